//! What strangers and visitors send into a world that is at work.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use portal_core::tls::{TlsAcceptor, TlsClock, pki_types};
use portal_core::{Kind, Service};
use portal_sim::{HostId, World, agent_config, relay_config, service};

/// What a stranger does.
#[derive(Debug, Arbitrary)]
enum Deed<'a> {
    /// Sends bytes of its own.
    Raw(&'a [u8]),
    /// Sends a real datagram again, changed at a place by the bits of `flip` and cut at its end.
    Copy { which: u8, at: u16, flip: u8, cut: u8 },
    /// Waits.
    Wait(u16),
    /// Has the agent's visitor say something, so that there is real traffic.
    Traffic(u8),
}

/// Datagrams into a fresh relay, or into one with an agent: counted drops, and nobody who was at work is harmed.
pub fn relay_datagrams(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let established = input.arbitrary().unwrap_or(true);
    let origin = origin();
    let mut world = if established {
        World::with_service(origin, Kind::Tcp)
    } else {
        let mut world = World::new(origin, 1);
        world.add_relay(relay_config(0));
        world
    };
    world.capture = 16;
    let visitor = established.then(|| world.visit(world.public_port(0)).expect("room for a visitor"));
    let mut said = 0;
    for number in 0..24 {
        let Ok(deed) = input.arbitrary() else { break };
        let stranger = SocketAddr::from(([198, 18, 0, number % 3], 7000));
        match deed {
            Deed::Raw(bytes) => world.inject(HostId::Relay(0), stranger, bytes),
            Deed::Copy { which, at, flip, cut } => {
                let Some(mut copy) = world.captured.get(usize::from(which) % 16).cloned() else {
                    continue;
                };
                let len = copy.bytes.len();
                copy.bytes[usize::from(at) % len] ^= flip;
                copy.bytes.truncate(len - usize::from(cut) % len);
                let from = if flip == 0 { copy.from } else { stranger };
                world.inject(copy.host, from, &copy.bytes);
            }
            Deed::Wait(millis) => world.run(Duration::from_millis(u64::from(millis))),
            Deed::Traffic(len) => {
                if let Some(visitor) = visitor {
                    world.say(visitor, &vec![b'x'; usize::from(len)]);
                    said += usize::from(len);
                    world.run(Duration::from_millis(30));
                }
            }
        }
        world.check_invariants();
    }
    let Some(visitor) = visitor else { return };
    world.run_until("every byte of the visitor's to come back", |world| {
        let socket = &world.relays[0].sockets[&visitor];
        assert!(!socket.reset, "strangers cannot break a connection");
        socket.received.len() == said
    });
}

/// Bytes of a visitor into the TLS that an agent ends: garbage, or a real handshake that goes wrong somewhere.
pub fn tls_visitor(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let origin = origin();
    let identity = identity();
    let clock = TlsClock::new(origin, Duration::from_secs(1_790_000_000));
    let chain = vec![identity.certificate.clone()];
    let acceptor = TlsAcceptor::new(&clock, chain, identity.key.clone_key(), &["h2", "http/1.1"]);
    let https = Service {
        tls: acceptor.ok(),
        ..service(Kind::Https, 3000)
    };
    let mut world = World::pair(origin, relay_config(0), agent_config(0, 0, vec![https]));
    world.run_until("the lease", |world| world.public(0).is_some());
    let visitor = world.visit(443).expect("room for a visitor");
    let mut client = identity.client();
    let mut plain = vec![0; 4096];
    for _ in 0..12 {
        let Ok((flip, at, cut, own)) = input.arbitrary::<(u8, u16, bool, &[u8])>() else {
            break;
        };
        let mut out = Vec::new();
        while client.wants_write() && client.write_tls(&mut out).is_ok_and(|count| count > 0) {}
        if !out.is_empty() {
            let at = usize::from(at) % out.len();
            // Half of the time the real bytes go as they are.
            if flip > 127 {
                out[at] ^= flip & 127;
            }
            if cut {
                out.truncate(at);
            }
        }
        out.extend_from_slice(own);
        let Some(socket) = world.relays[0].sockets.get(&visitor) else {
            break;
        };
        if socket.is_over() || socket.reset {
            break;
        }
        world.say(visitor, &out);
        world.run(Duration::from_millis(200));
        world.check_invariants();
        let received = std::mem::take(&mut world.visitor(visitor).received);
        let mut rest = &received[..];
        while !rest.is_empty() && client.read_tls(&mut rest).is_ok_and(|count| count > 0) {
            if client.process_new_packets().is_err() {
                break;
            }
        }
        while client.reader().read(&mut plain).is_ok_and(|count| count > 0) {}
        let _ = client.writer().write_all(b"GET / HTTP/1.1\r\n\r\n");
    }
    // Whatever it was, it ends.
    world.visitor(visitor).fin_to_send = true;
    world.run(Duration::from_secs(400));
    assert_eq!(world.agents[0].machine.connection_count(), 0);
    world.check_invariants();
}

/// A certificate and its key, made once: they are not what is fuzzed.
struct Identity {
    certificate: pki_types::CertificateDer<'static>,
    key: pki_types::PrivateKeyDer<'static>,
}

impl Identity {
    fn client(&self) -> rustls::ClientConnection {
        let mut roots = rustls::RootCertStore::empty();
        let _ = roots.add(self.certificate.clone());
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = pki_types::ServerName::try_from("web.tunnel.test").expect("a name");
        rustls::ClientConnection::new(Arc::new(config), name).expect("a client")
    }
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec!["web.tunnel.test".to_owned()]).expect("a certificate");
        Identity {
            certificate: made.cert.der().clone(),
            key: pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
        }
    })
}

/// An arbitrary origin for the virtual clock.
fn origin() -> Instant {
    Instant::now()
}
