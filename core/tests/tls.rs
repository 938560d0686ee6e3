//! TLS ends at the agent: the relay carries what it cannot read, and the target gets plain bytes, or TLS of its own.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portal_core::tls::{TlsAcceptor, TlsClock, TlsConnector, TlsError, Trust, pki_types};
use portal_core::{AgentEvent, DialError, Kind, Service, StreamId};
use portal_sim::{HostId, TargetScript, World, agent_config, pattern, relay_config, service};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

/// The date at the start of every world.
const TODAY: Duration = Duration::from_secs(1_790_000_000);

/// A certificate for a name, and its key.
struct Identity {
    certificate: pki_types::CertificateDer<'static>,
    key: pki_types::PrivateKeyDer<'static>,
}

fn identity(name: &str) -> Identity {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    Identity {
        certificate: made.cert.der().clone(),
        key: pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
    }
}

impl Identity {
    fn acceptor(&self, clock: &TlsClock) -> TlsAcceptor {
        TlsAcceptor::new(
            clock,
            vec![self.certificate.clone()],
            self.key.clone_key(),
            &["h2", "http/1.1"],
        )
        .unwrap()
    }

    fn client(&self, name: &str, protocols: &[&str]) -> Connection {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = pki_types::ServerName::try_from(name.to_owned()).unwrap();
        ClientConnection::new(Arc::new(config), name).unwrap().into()
    }

    fn server(&self) -> Connection {
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .unwrap();
        ServerConnection::new(Arc::new(config)).unwrap().into()
    }
}

/// An agent that ends the TLS of web.tunnel.test, with its lease.
fn world(change: impl Fn(&TlsClock, Service) -> Service) -> (World, Identity) {
    let identity = identity("web.tunnel.test");
    let start = origin();
    let clock = TlsClock::new(start, TODAY);
    let https = Service {
        tls: Some(identity.acceptor(&clock)),
        ..service(Kind::Https, 3000)
    };
    let mut world = World::pair(start, relay_config(0), agent_config(0, 0, vec![change(&clock, https)]));
    world.run_until("the lease", |world| world.public(0).is_some());
    (world, identity)
}

/// A socket with TLS on top, at either end.
struct Speaker {
    host: HostId,
    id: StreamId,
    tls: Connection,
    taken: usize,
    received: Vec<u8>,
    error: Option<rustls::Error>,
}

impl Speaker {
    fn new(host: HostId, id: StreamId, mut tls: Connection) -> Self {
        tls.set_buffer_limit(None);
        Self {
            host,
            id,
            tls,
            taken: 0,
            received: Vec::new(),
            error: None,
        }
    }

    fn visitor(world: &mut World, tls: Connection) -> Self {
        Self::new(HostId::Relay(0), world.visit(443).unwrap(), tls)
    }

    fn say(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
    }

    /// Moves bytes between the TLS and the scripted socket.
    fn turn(&mut self, world: &mut World) {
        let socket = match self.host {
            HostId::Relay(relay) => world.relays[relay].socket(self.id),
            HostId::Agent(agent) => world.agents[agent].socket(self.id),
        };
        let new = socket.received[self.taken..].to_vec();
        self.taken = socket.received.len();
        let mut rest = &new[..];
        while !rest.is_empty() && self.error.is_none() {
            self.tls.read_tls(&mut rest).unwrap();
            if let Err(error) = self.tls.process_new_packets() {
                self.error = Some(error);
            }
            let mut plain = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = self.tls.reader().read(&mut plain) {
                self.received.extend_from_slice(&plain[..count]);
            }
        }
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        if out.is_empty() {
            return;
        }
        match self.host {
            HostId::Relay(_) => world.say(self.id, &out),
            HostId::Agent(agent) => world.agents[agent].socket(self.id).to_send.extend(&out),
        }
    }
}

/// Lets everybody talk until it is done.
#[track_caller]
fn talk(world: &mut World, speakers: &mut [&mut Speaker], done: impl Fn(&World, &[&mut Speaker]) -> bool) {
    for _ in 0..20_000 {
        for speaker in speakers.iter_mut() {
            speaker.turn(world);
        }
        if done(world, speakers) {
            world.check_invariants();
            return;
        }
        world.run(Duration::from_millis(5));
    }
    world.report();
    panic!("it is not done");
}

#[test]
fn the_relay_carries_what_it_cannot_read() {
    let (mut world, identity) = world(|_, service| service);
    assert_eq!(world.public(0).as_deref(), Some("https://web.tunnel.test/"));
    let marker = b"a marker that only the two ends may see";
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &["h2", "http/1.1"]));
    visitor.say(marker);
    talk(&mut world, &mut [&mut visitor], |_, speakers| {
        speakers[0].received == marker
    });
    assert_eq!(visitor.tls.alpn_protocol(), Some(&b"h2"[..]));
    let target = world.agents[0].dials[0].0;
    assert_eq!(
        world.agents[0].sockets[&target].received, marker,
        "the target gets plain bytes"
    );
    let seen = &world.relays[0].sockets[&visitor.id].received;
    assert!(seen.len() > marker.len() && !seen.windows(marker.len()).any(|window| window == marker));

    // Both ways of ending: close_notify and FIN travel as FIN, and back.
    visitor.tls.send_close_notify();
    visitor.turn(&mut world);
    world.visitor(visitor.id).fin_to_send = true;
    world.run_until("the end", |world| world.relays[0].sockets[&visitor.id].is_over());
    assert!(world.agents[0].sockets[&target].fin_received && !world.agents[0].sockets[&target].reset);
    visitor.turn(&mut world);
    assert!(visitor.error.is_none());
    world.run(Duration::from_secs(1));
    world.check_invariants();
}

#[test]
fn megabytes_pass_both_ways_and_a_slow_target_holds_the_visitor_back() {
    let (mut world, identity) = world(|_, service| service);
    world.agents[0].behaviour.targets = TargetScript::Echo;
    let bytes = pattern(3 << 20);
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    visitor.say(b"x");
    talk(&mut world, &mut [&mut visitor], |_, speakers| {
        speakers[0].received == b"x"
    });
    let target = world.agents[0].dials[0].0;
    world.agents[0].socket(target).reads = false;
    visitor.say(&bytes);
    visitor.turn(&mut world);
    world.run(Duration::from_secs(20));
    let waiting = world.relays[0].sockets[&visitor.id].to_send.len();
    assert!(waiting > 1 << 20, "only {waiting} bytes were held back");
    world.check_invariants();
    world.agents[0].socket(target).reads = true;
    talk(&mut world, &mut [&mut visitor], |_, speakers| {
        speakers[0].received.len() == bytes.len() + 1
    });
    assert!(visitor.received[1..] == bytes[..]);
}

#[test]
fn a_visitor_that_garbles_its_handshake_gets_an_alert() {
    let (mut world, identity) = world(|_, service| service);
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &["smtp"]));
    talk(&mut world, &mut [&mut visitor], |_, speakers| {
        speakers[0].error.is_some()
    });
    assert!(
        matches!(
            visitor.error,
            Some(rustls::Error::AlertReceived(_) | rustls::Error::NoApplicationProtocol)
        ),
        "{:?}",
        visitor.error
    );
    world.run(Duration::from_secs(1));
    assert_eq!(world.agents[0].machine.counters().drop_tls_visitor, 1);

    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    visitor.turn(&mut world);
    world.say(visitor.id, &[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.agents[0].machine.counters().drop_tls_visitor, 2);
    assert_eq!(world.agents[0].machine.connection_count(), 0);
    world.check_invariants();
}

#[test]
fn a_handshake_that_stops_is_ended() {
    let (mut world, identity) = world(|_, service| service);
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    visitor.turn(&mut world);
    world.run(Duration::from_secs(9));
    assert_eq!(world.agents[0].machine.connection_count(), 1);
    world.run(Duration::from_secs(2));
    assert_eq!(world.agents[0].machine.connection_count(), 0);
    assert_eq!(world.agents[0].machine.counters().drop_tls_timeout, 1);

    // Who leaves in it is not waited for.
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    visitor.turn(&mut world);
    world.visitor(visitor.id).fin_to_send = true;
    world.run(Duration::from_secs(1));
    assert_eq!(world.agents[0].machine.connection_count(), 0);
    assert_eq!(world.agents[0].machine.counters().drop_tls_timeout, 1);
    assert_eq!(world.agents[0].machine.counters().drop_tls_visitor, 1);
    world.check_invariants();
}

#[test]
fn a_target_that_is_down_is_said_within_tls() {
    let (mut world, identity) = world(|_, service| service);
    world.agents[0].behaviour.dial_error = Some(DialError::Refused);
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &["http/1.1"]));
    visitor.say(b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n");
    talk(&mut world, &mut [&mut visitor], |world, speakers| {
        speakers[0].received.ends_with(b"does not answer\n") && world.relays[0].sockets[&speakers[0].id].fin_received
    });
    assert!(visitor.received.starts_with(b"HTTP/1.1 502 "));
    visitor.turn(&mut world);
    assert!(visitor.error.is_none());
    world.visitor(visitor.id).fin_to_send = true;
    world.run(Duration::from_secs(1));
    assert_eq!(world.agents[0].machine.connection_count(), 0);

    // HTTP/2 has no such short answer.
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &["h2"]));
    talk(&mut world, &mut [&mut visitor], |world, speakers| {
        world.relays[0].sockets[&speakers[0].id].reset
    });
    assert_eq!(visitor.received, b"");
    // One that stops in its handshake is not waited for.
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    visitor.turn(&mut world);
    world.run(Duration::from_secs(11));
    assert_eq!(world.agents[0].machine.connection_count(), 0);
    world.check_invariants();
}

#[test]
fn a_target_with_which_there_is_no_tls_is_said_within_tls() {
    let target = identity("target.test");
    let cases: [(&str, &[u8], DialError); 3] = [
        ("untrusted", b"", DialError::Untrusted),
        ("no TLS", b"SSH-2.0-OpenSSH_9.2\r\n", DialError::Tls),
        ("hung up", b"", DialError::Tls),
    ];
    for (case, greeting, error) in cases {
        let (mut world, identity) = world(|clock, service| {
            let trust = Trust::Roots(vec![identity("target.test").certificate]);
            Service {
                target_tls: Some(TlsConnector::new(clock, trust, "target.test", &[]).unwrap()),
                ..service
            }
        });
        world.agents[0].behaviour.targets = TargetScript::Keep;
        let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &["http/1.1"]));
        visitor.say(b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n");
        talk(&mut world, &mut [&mut visitor], |world, _| {
            let mut sockets = world.agents[0].sockets.values();
            sockets.any(|socket| !socket.received.is_empty())
        });
        let id = world.agents[0].dials[0].0;
        let mut target = Speaker::new(HostId::Agent(0), id, target.server());
        world.agents[0].socket(id).to_send.extend(greeting);
        world.agents[0].socket(id).fin_to_send = case == "hung up";
        let done = |world: &World, speakers: &[&mut Speaker]| {
            speakers[0].received.ends_with(b"does not answer\n")
                && world.relays[0].sockets[&speakers[0].id].fin_received
        };
        match case {
            "untrusted" => talk(&mut world, &mut [&mut visitor, &mut target], done),
            _ => talk(&mut world, &mut [&mut visitor], done),
        }
        assert!(visitor.received.starts_with(b"HTTP/1.1 502 "), "{case}");
        assert!(visitor.error.is_none(), "{case}");
        let failed =
            |event: &AgentEvent| matches!(event, AgentEvent::TargetFailed { error: found, .. } if *found == error);
        assert!(world.agents[0].events.iter().any(failed), "{case}");
        assert_eq!(world.agents[0].machine.counters().drop_tls_target, 1, "{case}");
        world.visitor(visitor.id).fin_to_send = true;
        world.run(Duration::from_secs(1));
        assert_eq!(world.agents[0].machine.connection_count(), 0, "{case}");
        world.check_invariants();
    }
}

#[test]
fn a_service_without_a_certificate_lets_nobody_in() {
    let (mut world, identity) = world(|_, service| Service { tls: None, ..service });
    let mut visitor = Speaker::visitor(&mut world, identity.client("web.tunnel.test", &[]));
    talk(&mut world, &mut [&mut visitor], |_, speakers| {
        speakers[0].error.is_some()
    });
    assert_eq!(world.agents[0].dials.len(), 0);
}

#[test]
fn plain_visitors_of_an_https_name_are_sent_to_https() {
    let (mut world, _) = world(|_, service| service);
    let visitor = world.visit(80).unwrap();
    world.say(visitor, b"GET /a/b?c=d HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n");
    world.run(Duration::from_secs(1));
    let answer = String::from_utf8(world.visitor(visitor).received.clone()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(
        answer.contains("\r\nlocation: https://web.tunnel.test/a/b?c=d\r\n"),
        "{answer}"
    );
}

/// A plain service whose target speaks TLS; `trust` says whom it believes.
fn behind_tls(trust: impl Fn(&Identity) -> Trust) -> (World, Identity) {
    let target = identity("target.test");
    let start = origin();
    let clock = TlsClock::new(start, TODAY);
    let tcp = Service {
        target_tls: Some(TlsConnector::new(&clock, trust(&target), "target.test", &[]).unwrap()),
        ..service(Kind::Tcp, 3000)
    };
    let mut world = World::pair(start, relay_config(0), agent_config(0, 0, vec![tcp]));
    world.run_until("the lease", |world| world.public(0).is_some());
    world.agents[0].behaviour.targets = TargetScript::Keep;
    (world, target)
}

/// A visitor has said hello, and the target has been dialled.
fn dialled(world: &mut World, target: &Identity) -> (StreamId, Speaker) {
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"hello");
    world.run_until("the dial", |world| {
        world.agents[0]
            .sockets
            .values()
            .any(|socket| !socket.received.is_empty())
    });
    let id = world.agents[0].dials[0].0;
    (visitor, Speaker::new(HostId::Agent(0), id, target.server()))
}

#[test]
fn a_target_is_spoken_to_in_tls() {
    let (mut world, identity) = behind_tls(|identity| Trust::Roots(vec![identity.certificate.clone()]));
    let (visitor, mut target) = dialled(&mut world, &identity);
    let bytes = pattern(1 << 20);
    world.say(visitor, &bytes);
    target.say(&bytes);
    talk(&mut world, &mut [&mut target], |world, speakers| {
        speakers[0].received.len() == bytes.len() + 5 && world.relays[0].sockets[&visitor].received.len() == bytes.len()
    });
    assert!(target.received[5..] == bytes[..] && target.received[..5] == *b"hello");
    assert!(world.visitor(visitor).received == bytes);
    // The target ends by close_notify alone, the visitor by FIN.
    target.tls.send_close_notify();
    target.turn(&mut world);
    world.run_until("the end", |world| world.relays[0].sockets[&visitor].fin_received);
    world.visitor(visitor).fin_to_send = true;
    world.run_until("the end", |world| world.agents[0].sockets[&target.id].fin_received);
    target.turn(&mut world);
    assert!(target.error.is_none());
    world.check_invariants();
}

#[test]
fn a_connection_outlives_the_time_for_its_handshakes() {
    let (mut world, identity) = behind_tls(|identity| Trust::Roots(vec![identity.certificate.clone()]));
    let (visitor, mut target) = dialled(&mut world, &identity);
    talk(&mut world, &mut [&mut target], |_, speakers| {
        speakers[0].received == b"hello"
    });
    world.run(Duration::from_secs(30));
    assert!(!world.visitor(visitor).reset, "it was over in time");
    world.say(visitor, b" again");
    talk(&mut world, &mut [&mut target], |_, speakers| {
        speakers[0].received == b"hello again"
    });
    assert_eq!(world.agents[0].machine.counters().drop_tls_timeout, 0);
}

#[test]
fn a_target_that_says_that_it_ends_is_not_waited_for() {
    for fin in [true, false] {
        let (mut world, identity) = behind_tls(|_| Trust::Anyone);
        let (visitor, mut target) = dialled(&mut world, &identity);
        talk(&mut world, &mut [&mut target], |_, speakers| {
            speakers[0].received == b"hello"
        });
        target.say(b"bye");
        target.tls.send_close_notify();
        talk(&mut world, &mut [&mut target], |world, _| {
            world.relays[0].sockets[&visitor].fin_received
        });
        assert_eq!(world.visitor(visitor).received, b"bye");
        // Behind it comes the FIN, or nothing at all.
        world.agents[0].socket(target.id).fin_to_send = fin;
        world.run(Duration::from_secs(1));
        world.say(visitor, b", bye");
        world.visitor(visitor).fin_to_send = true;
        talk(&mut world, &mut [&mut target], |world, _| {
            world.relays[0].sockets[&visitor].is_over()
        });
        world.run(Duration::from_secs(1));
        target.turn(&mut world);
        assert_eq!(target.received, b"hello, bye", "the other way stayed open");
        assert_eq!(world.agents[0].machine.connection_count(), 0, "with FIN: {fin}");
        assert!(world.agents[0].sockets[&target.id].closed && !world.agents[0].sockets[&target.id].reset);
        world.check_invariants();
    }
}

#[test]
fn a_target_that_is_not_trusted_is_named() {
    let (mut world, identity) = behind_tls(|_| Trust::Roots(vec![self::identity("target.test").certificate]));
    let (visitor, mut target) = dialled(&mut world, &identity);
    talk(&mut world, &mut [&mut target], |world, _| {
        world.relays[0].sockets[&visitor].reset
    });
    let failed = |error| move |event: &AgentEvent| matches!(event, AgentEvent::TargetFailed { error: found, .. } if *found == error);
    assert!(world.agents[0].events.iter().any(failed(DialError::Untrusted)));
    assert_eq!(world.agents[0].machine.counters().drop_tls_target, 1);

    let (mut world, _) = behind_tls(|_| Trust::Anyone);
    let (visitor, target) = dialled(&mut world, &identity);
    world.agents[0]
        .socket(target.id)
        .to_send
        .extend(b"SSH-2.0-OpenSSH_9.2\r\n");
    world.run_until("the reset", |world| world.relays[0].sockets[&visitor].reset);
    assert!(world.agents[0].events.iter().any(failed(DialError::Tls)));

    let (mut world, _) = behind_tls(|_| Trust::Anyone);
    let (visitor, mut target) = dialled(&mut world, &identity);
    talk(&mut world, &mut [&mut target], |_, speakers| {
        speakers[0].received == b"hello"
    });
    assert!(
        !world.visitor(visitor).reset,
        "anybody may be the target if that was asked for"
    );
}

#[test]
fn certificates_that_cannot_be_used_are_refused() {
    let clock = TlsClock::new(origin(), TODAY);
    let (one, other) = (identity("a.test"), identity("a.test"));
    let mixed = TlsAcceptor::new(&clock, vec![one.certificate.clone()], other.key, &[]);
    assert_eq!(mixed.err(), Some(TlsError::KeyMismatch));
    let trust = || Trust::Roots(vec![one.certificate.clone()]);
    assert_eq!(
        TlsConnector::new(&clock, trust(), "not a name", &[]).err(),
        Some(TlsError::Name("not a name".into()))
    );
    assert_eq!(
        TlsConnector::new(&clock, Trust::Roots(Vec::new()), "a.test", &[]).err(),
        Some(TlsError::NoRoots)
    );
    assert!(TlsConnector::new(&clock, trust(), "192.0.2.1", &[]).is_ok());
}
