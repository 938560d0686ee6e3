//! Plain WireGuard peers in an agent's place: what their visitors get, and who may not have what is theirs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::identity::{PresharedKey, PublicKey};
use portal_core::{
    Access, AgentEvent, Binding, Kind, PlainLease, PlainPeer, PlainPeerError, RefusalCode, RelayConfig, RelayEvent,
    proxy,
};
use portal_sim::{
    Memory, World, agent_config, agent_key, client_hello, key, pattern, plain_addr, relay_config, relay_key, service,
};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: shop.tunnel.test\r\n\r\n";
const TCP_PORT: u16 = 20_001;
const HEADER_PORT: u16 = 20_002;
const UDP_PORT: u16 = 20_003;

fn lease(kind: Kind, name: Option<&str>, port: Option<u16>, target_port: u16) -> PlainLease {
    PlainLease {
        kind,
        name: name.map(str::to_owned),
        port,
        target_port,
        proxy_header: false,
    }
}

/// The peer with this key and one lease of each sort.
fn peer(byte: u8) -> PlainPeer {
    PlainPeer {
        key: key(byte).public_key(),
        preshared_key: None,
        endpoint: None,
        leases: vec![
            lease(Kind::Http, Some("shop"), None, 8080),
            lease(Kind::Tcp, None, Some(TCP_PORT), 8080),
            PlainLease {
                proxy_header: true,
                ..lease(Kind::Tcp, None, Some(HEADER_PORT), 8081)
            },
            lease(Kind::Udp, None, Some(UDP_PORT), 53),
        ],
    }
}

/// A relay that serves granted keys only, of which there are none, with this peer.
fn config(peer: PlainPeer) -> RelayConfig {
    let mut config = relay_config(0);
    config.access = Access::Granted(Vec::new());
    config.plain_peers = vec![peer];
    config
}

/// Such a relay, and the peer's machine if it is to be there.
fn world(config: RelayConfig, shared: Option<PresharedKey>) -> World {
    let mut world = World::new(origin(), 5);
    assert_eq!(config.check_plain_peers(), Ok(()));
    world.add_relay(config);
    world.add_plain(key(0x70), shared, 0, &[8080, 8081]);
    world
}

fn connected() -> World {
    let mut world = world(config(peer(0x70)), None);
    world.run_until("the tunnel", |world| count(world, is_up) == 1);
    world
}

fn is_up(event: &RelayEvent) -> bool {
    matches!(event, RelayEvent::PeerUp { .. })
}

fn count(world: &World, wanted: fn(&RelayEvent) -> bool) -> usize {
    world.relay_events().iter().filter(|event| wanted(event)).count()
}

/// A visitor of the name says GET, and the echo comes.
#[track_caller]
fn assert_served(world: &mut World, limit: Duration) {
    let visitor = world.visit(80).unwrap();
    world.say(visitor, GET);
    world.visitor(visitor).fin_to_send = true;
    world.run_until_within("the echo", limit, |world| world.relays[0].sockets[&visitor].is_over());
    let socket = world.visitor(visitor);
    assert!(socket.closed && socket.fin_received && !socket.reset);
    assert_eq!(String::from_utf8_lossy(&socket.received), String::from_utf8_lossy(GET));
}

#[test]
fn a_plain_peer_serves_by_name_and_port_and_its_leases_are_counted() {
    let mut world = connected();
    let leased: Vec<_> = world
        .relay_events()
        .iter()
        .filter_map(|event| match event {
            RelayEvent::Leased {
                key, service, public, ..
            } => Some((*key, service.as_str(), public.as_str())),
            _ => None,
        })
        .collect();
    let owner = key(0x70).public_key();
    assert_eq!(
        leased,
        [
            (owner, "port 8080", "http://shop.tunnel.test/"),
            (owner, "port 8080", "tcp://tunnel.test:20001"),
            (owner, "port 8081", "tcp://tunnel.test:20002"),
            (owner, "port 53", "udp://tunnel.test:20003"),
        ]
    );
    let census = world.relays[0].machine.census();
    assert_eq!((census.peers, census.agents, census.leases), (1, 0, 4));
    assert!(world.relays[0].machine.metrics().contains("portal_relay_leases 4"));
    assert_served(&mut world, Duration::from_secs(2));

    let bytes = pattern(3 << 20);
    let visitor = world.visit(TCP_PORT).unwrap();
    world.say(visitor, &bytes);
    world.visitor(visitor).fin_to_send = true;
    world.run_until("the echo", |world| world.relays[0].sockets[&visitor].is_over());
    assert!(world.visitor(visitor).received == bytes);
    world.run(Duration::from_secs(90));
    assert_eq!(world.relays[0].machine.census().flows, 0);
    let unbound = |event: &RelayEvent| matches!(event, RelayEvent::Bound(_));
    assert_eq!(
        count(&world, unbound),
        0,
        "the configuration is what its names come from"
    );
}

#[test]
fn the_proxy_header_comes_first_where_it_is_asked_for() {
    let mut world = connected();
    let visitor = world.visit(HEADER_PORT).unwrap();
    world.say(visitor, b"hello");
    world.run_until("the bytes", |world| {
        world.plain[0]
            .connections
            .iter()
            .any(|connection| connection.received.ends_with(b"hello"))
    });
    let received = &world.plain[0]
        .connections
        .iter()
        .find(|one| one.port == 8081 && !one.received.is_empty())
        .unwrap()
        .received;
    let proxy::Parsed::Complete {
        header: Some(header),
        len,
    } = proxy::parse(received).unwrap()
    else {
        panic!("no header")
    };
    assert_eq!(header.source, portal_sim::VISITOR_ADDR.parse::<SocketAddr>().unwrap());
    assert_eq!(header.destination.port(), HEADER_PORT);
    assert_eq!(&received[len..], b"hello");
}

#[test]
fn a_tls_visitor_is_carried_by_its_server_name() {
    let tls = PlainLease {
        proxy_header: true,
        ..lease(Kind::Tls, Some("safe"), None, 8081)
    };
    let mut world = world(
        config(PlainPeer {
            leases: vec![tls],
            ..peer(0x70)
        }),
        None,
    );
    world.run_until("the tunnel", |world| count(world, is_up) == 1);
    let hello = client_hello("safe.tunnel.test", 1);
    let visitor = world.visit(443).unwrap();
    world.say(visitor, &hello);
    world.run_until("the bytes", |world| {
        let mut connections = world.plain[0].connections.iter();
        connections.any(|connection| connection.received.ends_with(&hello))
    });
    let served = world.plain[0].connections.iter().find(|one| !one.received.is_empty());
    let Ok(proxy::Parsed::Complete {
        header: Some(header), ..
    }) = proxy::parse(&served.unwrap().received)
    else {
        panic!("no header")
    };
    assert_eq!(header.authority.as_deref(), Some("safe.tunnel.test"));
}

#[test]
fn udp_visitors_get_associations() {
    let mut world = connected();
    let visitors: Vec<SocketAddr> = (1..=3)
        .map(|n| format!("198.51.100.{n}:500").parse().unwrap())
        .collect();
    for &remote in &visitors {
        assert!(world.send_datagram(0, UDP_PORT, remote, remote.to_string().as_bytes()));
    }
    world.run_until("the answers", |world| world.relays[0].datagrams.len() == 3);
    assert!(world.plain[0].datagrams.iter().all(|(port, _)| *port == 53));
    for (_, remote, payload) in &world.relays[0].datagrams {
        assert_eq!(*payload, format!("echo {}", remote.unwrap()).into_bytes());
    }
}

#[test]
fn a_preshared_key_must_be_the_same_at_both_ends() {
    let shared = PresharedKey::from_bytes([7; 32]);
    let with_secret = || {
        config(PlainPeer {
            preshared_key: Some(shared.clone()),
            ..peer(0x70)
        })
    };
    let mut same = world(with_secret(), Some(shared.clone()));
    same.run_until("the tunnel", |world| count(world, is_up) == 1);
    assert_served(&mut same, Duration::from_secs(2));

    for wrong in [None, Some(PresharedKey::from_bytes([8; 32]))] {
        let mut world = world(with_secret(), wrong);
        world.run(Duration::from_secs(60));
        assert_eq!(count(&world, is_up), 0);
    }
}

#[test]
fn a_peer_that_never_comes_costs_its_visitors_ten_seconds_and_the_relay_nothing() {
    let mut world = world(config(peer(0x70)), None);
    world.plain[0].on = false;
    world.run(Duration::from_secs(5));
    let idle = world.relays[0].machine.memory_used();
    let begin = world.now;
    let http: Vec<_> = (0..20).map(|_| world.visit(80).unwrap()).collect();
    let tcp = world.visit(TCP_PORT).unwrap();
    for &visitor in &http {
        world.say(visitor, GET);
        world.visitor(visitor).fin_to_send = true;
    }
    world.say(tcp, &pattern(1 << 20));
    let gone = world.visit(TCP_PORT).unwrap();
    world.run(Duration::from_secs(1));
    world.abort(portal_sim::HostId::Relay(0), gone);
    for n in 0..50 {
        assert!(world.send_datagram(0, UDP_PORT, SocketAddr::from(([198, 51, 100, n], 9)), b"anybody?"));
    }
    world.run_until("the ends", |world| {
        http.iter()
            .chain([&tcp])
            .all(|visitor| world.relays[0].sockets[visitor].is_over())
    });
    let took = world.now - begin;
    assert!((9..=12).contains(&took.as_secs()), "took {took:?}");
    for visitor in http {
        let received = &world.visitor(visitor).received;
        assert!(
            received.starts_with(b"HTTP/1.1 502"),
            "{}",
            String::from_utf8_lossy(received)
        );
    }
    assert!(world.visitor(tcp).reset);
    assert_eq!(world.relays[0].machine.census().flows, 0, "nothing is kept for it");
    assert_eq!(world.relays[0].machine.counters().drop_udp_queue, 50);
    world.run(Duration::from_secs(61));
    assert_eq!(world.relays[0].machine.memory_used(), idle);

    // And when it comes at last, it is served.
    world.plain[0].on = true;
    world.run_until_within("the tunnel", Duration::from_secs(1), |world| count(world, is_up) == 1);
    assert_served(&mut world, Duration::from_secs(2));
}

#[test]
fn peers_that_are_not_there_cause_no_work() {
    let mut config = relay_config(0);
    config.plain_peers = (0x20..0xe0)
        .map(|n| PlainPeer {
            leases: vec![lease(Kind::Http, Some(&format!("n{n}")), None, 80)],
            endpoint: Some(SocketAddr::from(([192, 0, 2, 250], 9))),
            ..peer(n)
        })
        .collect();
    let mut world = World::new(origin(), 5);
    world.add_relay(config);
    // They are called for as long as WireGuard tries.
    world.run(Duration::from_secs(120));
    assert_eq!(world.relays[0].machine.census().leases, 192);
    assert_eq!(portal_core::Machine::poll_timeout(&mut world.relays[0].machine), None);
}

#[test]
fn a_relay_calls_a_peer_whose_place_it_knows() {
    let mut called = world(
        config(PlainPeer {
            endpoint: Some(plain_addr(0)),
            ..peer(0x70)
        }),
        None,
    );
    called.plain[0].waits_to_be_called();
    called.run(Duration::from_millis(100));
    assert_eq!(count(&called, is_up), 1);
    assert_served(&mut called, Duration::from_secs(2));

    // One that it got to know is called by the next relay.
    let mut world = connected();
    world.run(Duration::from_secs(3));
    world.restart_relay(0, Memory::Kept);
    world.run_until_within("the tunnel", Duration::from_secs(1), |world| count(world, is_up) == 1);
    assert_served(&mut world, Duration::from_secs(2));
}

#[test]
fn a_visitor_wakes_a_peer_that_had_gone_to_sleep_or_was_given_up() {
    let mut world = connected();
    world.plain[0].on = false;
    world.run(Duration::from_secs(1));
    // Its last session ends, and calling it is given up.
    for _ in 0..12 {
        let visitor = world.visit(80).unwrap();
        world.say(visitor, GET);
        world.run(Duration::from_secs(40));
        assert!(world.visitor(visitor).received.starts_with(b"HTTP/1.1 502"));
    }
    let down = |event: &RelayEvent| matches!(event, RelayEvent::PeerDown { .. });
    assert_eq!(count(&world, down), 1);
    assert_eq!(world.relays[0].machine.census().flows, 0);
    world.run(Duration::from_secs(600));
    world.plain[0].on = true;
    world.plain[0].waits_to_be_called();
    assert_served(&mut world, Duration::from_secs(7));
    assert_eq!(count(&world, is_up), 2);
}

#[test]
fn a_peer_that_restarts_or_moves_is_served_at_once() {
    let mut world = connected();
    world.run(Duration::from_secs(40));
    world.plain[0].restart();
    world.run(Duration::from_millis(100));
    assert_served(&mut world, Duration::from_secs(2));
    assert_eq!(count(&world, is_up), 1, "its tunnel was never down");

    let moved: SocketAddr = "198.51.100.200:4000".parse().unwrap();
    world.plain[0].addr = moved;
    // It is heard at its next keepalive.
    world.run(Duration::from_secs(26));
    assert_served(&mut world, Duration::from_secs(2));
    assert!(world.relay_events().contains(&RelayEvent::PeerMoved {
        key: key(0x70).public_key(),
        remote: moved
    }));
    assert!(world.relay_events().contains(&RelayEvent::AgentAt {
        key: key(0x70).public_key(),
        remote: moved
    }));
}

#[test]
fn a_session_is_renewed_for_as_long_as_there_are_visitors() {
    let mut world = connected();
    for _ in 0..60 {
        assert_served(&mut world, Duration::from_secs(2));
        world.run(Duration::from_secs(10));
        world.forget_ended();
    }
    assert!(
        world.plain[0].handshakes >= 5,
        "{} handshakes",
        world.plain[0].handshakes
    );
}

#[test]
fn what_is_a_plain_peers_no_agent_gets_and_grants_do_not_concern_it() {
    let mut config = config(peer(0x70));
    config.access = Access::Open;
    let mut world = world(config, None);
    let mut by_name = service(Kind::Http, 3000);
    by_name.name = Some("shop".into());
    let mut by_port = service(Kind::Tcp, 3001);
    by_port.port = Some(TCP_PORT);
    world.add_agent(agent_config(0, 0, vec![by_name, by_port]), 0);
    let refusals = |world: &World| -> Vec<RefusalCode> {
        let events = world.agents[0].events.iter();
        events
            .filter_map(|event| match event {
                AgentEvent::Refused { code, .. } => Some(code.clone()),
                _ => None,
            })
            .collect()
    };
    world.run_until("the refusals", |world| refusals(world).len() == 2);
    assert_eq!(refusals(&world), [RefusalCode::NameTaken, RefusalCode::PortBusy]);
    let now = world.now;
    world.relays[0].machine.set_access(now, Access::Granted(Vec::new()));
    world.run(Duration::from_secs(1));
    assert_eq!(world.relays[0].machine.census().leases, 4);
    assert_served(&mut world, Duration::from_secs(2));
}

#[test]
fn an_agent_with_a_plain_peers_key_is_told_so() {
    let mut config = relay_config(0);
    config.plain_peers = vec![PlainPeer {
        key: agent_key(0).public_key(),
        ..peer(0)
    }];
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![service(Kind::Http, 3000)]));
    let refused = |world: &World| {
        world.agents[0].events.iter().find_map(|event| match event {
            AgentEvent::RelayRefused { code, message, .. } => Some((code.clone(), message.clone())),
            _ => None,
        })
    };
    world.run_until("the refusal", |world| refused(world).is_some());
    let (code, message) = refused(&world).unwrap();
    assert_eq!(code, RefusalCode::NotAllowed);
    assert!(
        message.contains(&agent_key(0).public_key().to_string()) && message.contains("plain WireGuard peer"),
        "{message}"
    );
    assert_eq!(world.relays[0].machine.census().leases, 4, "they stay");
    assert!(world.relays[0].machine.counters().refused_plain_key > 0);
}

#[test]
fn a_port_that_cannot_be_opened_is_told() {
    let mut world = World::new(origin(), 5);
    world.add_relay(config(peer(0x70)));
    world.relays[0].behaviour.busy_ports.insert(TCP_PORT);
    world.run(Duration::from_secs(1));
    let failed =
        |event: &RelayEvent| matches!(event, RelayEvent::PeerPortFailed { addr, .. } if addr.port() == TCP_PORT);
    assert_eq!(count(&world, failed), 1);
    assert_eq!(world.relays[0].machine.census().leases, 3);
}

#[test]
fn conflicts_are_errors_that_name_both() {
    let (a, b) = (key(0x70).public_key(), key(0x71).public_key());
    let with = |leases: Vec<PlainLease>, others: Vec<PlainLease>| {
        let mut config = config(PlainPeer { leases, ..peer(0x70) });
        config.plain_peers.push(PlainPeer {
            leases: others,
            ..peer(0x71)
        });
        config
    };
    let shop = || lease(Kind::Http, Some("shop"), None, 80);
    let port = |kind| lease(kind, None, Some(20_010), 80);
    #[track_caller]
    fn refused(config: &RelayConfig, keys: &[PublicKey], texts: &[&str]) {
        let error = config.check_plain_peers().unwrap_err();
        let text = error.to_string();
        for key in keys {
            assert!(text.contains(&key.to_string()), "{text}");
        }
        for part in texts {
            assert!(text.contains(part), "{text}");
        }
        // A relay that is made all the same has none of them.
        let mut world = World::new(origin(), 1);
        world.add_relay(config.clone());
        world.settle();
        assert_eq!(
            world.relay_events().first(),
            Some(&RelayEvent::PlainPeersRefused { error })
        );
        assert_eq!(world.relays[0].machine.census().leases, 0);
    }
    let tls = lease(Kind::Tls, Some("shop"), None, 443);
    refused(&with(vec![shop()], vec![tls.clone()]), &[a, b], &["name shop"]);
    assert_eq!(
        with(vec![shop(), tls], vec![]).check_plain_peers(),
        Ok(()),
        "of one peer"
    );
    refused(&with(vec![shop(), shop()], vec![]), &[a], &["both have the name shop"]);
    refused(
        &with(vec![port(Kind::Tcp)], vec![port(Kind::Udp)]),
        &[a, b],
        &["port 20010"],
    );
    assert_eq!(
        with(vec![port(Kind::Tcp), port(Kind::Udp)], vec![]).check_plain_peers(),
        Ok(())
    );

    let mut bound = with(vec![shop()], vec![port(Kind::Tcp)]);
    let agent = agent_key(0).public_key();
    bound.bindings = vec![Binding::Name {
        name: "shop".into(),
        key: agent,
    }];
    refused(&bound, &[a, agent], &["name shop", "already"]);
    bound.bindings = vec![Binding::Port {
        port: 20_010,
        key: agent,
        service: "db".into(),
    }];
    refused(&bound, &[b, agent], &["port 20010", "already"]);
    bound.bindings = vec![Binding::Name {
        name: "shop".into(),
        key: a,
    }];
    assert_eq!(bound.check_plain_peers(), Ok(()), "its own");

    refused(
        &with(vec![lease(Kind::Http, None, Some(1), 80)], vec![]),
        &[a],
        &["http lease, which needs a name and has no port"],
    );
    refused(
        &with(vec![lease(Kind::Tcp, None, None, 80)], vec![]),
        &[a],
        &["tcp lease, which needs a port"],
    );
    refused(
        &with(vec![lease(Kind::Http, Some("Shop"), None, 80)], vec![]),
        &[a],
        &["Shop", "lower case"],
    );
    refused(
        &with(vec![lease(Kind::Tcp, None, Some(0), 80)], vec![]),
        &[a],
        &["port 0"],
    );
    refused(
        &with(vec![lease(Kind::Tcp, None, Some(5), 0)], vec![]),
        &[a],
        &["port 0"],
    );
    let header = PlainLease {
        proxy_header: true,
        ..port(Kind::Udp)
    };
    refused(&with(vec![header], vec![]), &[a], &["udp", "PROXY"]);
    refused(
        &with(vec![lease(Kind::Https, Some("shop"), None, 80)], vec![]),
        &[a],
        &["https", "the kind tls"],
    );
    let mut config = with(vec![shop()], vec![]);
    config.http = None;
    refused(&config, &[a], &["start it with --http"]);
    let mut config = with(vec![], vec![]);
    config.plain_peers[1].key = a;
    refused(&config, &[a], &["twice"]);
    config.plain_peers[1].key = relay_key(0).public_key();
    refused(&config, &[relay_key(0).public_key()], &["own key"]);
    let mut config = with(vec![shop(), port(Kind::Tcp)], vec![]);
    config.leases_per_key = 1;
    refused(&config, &[a], &["2 leases"]);
    config.limits.peers = 1;
    let error = config.check_plain_peers().unwrap_err();
    assert_eq!(error, PlainPeerError::TooMany { given: 2, most: 1 });
}

/// Changes the peers of a running relay.
fn change(world: &mut World, peers: Vec<PlainPeer>) -> Result<(), PlainPeerError> {
    let now = world.now;
    let changed = world.relays[0].machine.set_plain_peers(now, peers);
    world.relays[0].machine.check_invariants();
    changed
}

#[test]
fn what_a_peer_served_passes_to_another_key_and_the_old_one_serves_nobody() {
    let mut world = connected();
    let before = world.relays[0].machine.memory_used();
    world.add_plain(key(0x71), None, 0, &[8080, 8081]);
    world.run(Duration::from_secs(6));
    let running = world.visit(TCP_PORT).unwrap();
    world.say(running, b"hello");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&running].received == b"hello"
    });

    assert_eq!(change(&mut world, vec![peer(0x71)]), Ok(()));
    world.run_until("the end of its visitor", |world| {
        world.relays[0].sockets[&running].is_over()
    });
    world.run_until_within("the tunnel", Duration::from_secs(6), |world| count(world, is_up) == 2);
    let old = world.plain[0].connections.len();
    assert_served(&mut world, Duration::from_secs(2));
    let visitor = world.visit(TCP_PORT).unwrap();
    world.say(visitor, b"again");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&visitor].received == b"again"
    });
    assert_eq!(world.plain[0].connections.len(), old, "nobody is led to the old one");
    let census = world.relays[0].machine.census();
    assert_eq!((census.leases, census.bindings), (4, 4));

    // And back, as if nothing had been.
    assert_eq!(change(&mut world, Vec::new()), Ok(()));
    let census = world.relays[0].machine.census();
    assert_eq!((census.leases, census.bindings), (0, 0));
    assert_eq!(change(&mut world, vec![peer(0x70)]), Ok(()));
    world.run_until_within("the tunnel", Duration::from_secs(1), |world| count(world, is_up) == 3);
    assert_served(&mut world, Duration::from_secs(2));
    world.run(Duration::from_secs(600));
    assert!(world.relays[0].machine.memory_used() <= before + 16_384);
}

#[test]
fn a_change_leaves_alone_what_stays_the_same() {
    let mut world = connected();
    let running = world.visit(TCP_PORT).unwrap();
    world.say(running, b"one ");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&running].received == b"one "
    });
    let handshakes = world.plain[0].handshakes;

    let mut changed = peer(0x70);
    changed.leases[0] = lease(Kind::Http, Some("market"), None, 8080);
    changed.leases.remove(3);
    assert_eq!(change(&mut world, vec![changed.clone()]), Ok(()));
    world.say(running, b"two");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&running].received == b"one two"
    });
    assert_eq!(world.plain[0].handshakes, handshakes, "its session goes on");
    assert!(!world.send_datagram(0, UDP_PORT, "198.51.100.1:500".parse().unwrap(), b"closed"));
    let visitor = world.visit(80).unwrap();
    world.say(visitor, GET);
    world.run_until("the end", |world| world.relays[0].sockets[&visitor].is_over());
    assert!(world.visitor(visitor).received.starts_with(b"HTTP/1.1 404"));
    let leased = world.relay_events().iter().rev().find_map(|event| match event {
        RelayEvent::Leased { public, .. } => Some(public.clone()),
        _ => None,
    });
    assert_eq!(leased.as_deref(), Some("http://market.tunnel.test/"));

    // Another secret is another session, and the peer must have it too.
    changed.preshared_key = Some(PresharedKey::from_bytes([7; 32]));
    assert_eq!(change(&mut world, vec![changed]), Ok(()));
    world.run_until("the end of its visitor", |world| {
        world.relays[0].sockets[&running].is_over()
    });
    world.run(Duration::from_secs(30));
    assert_eq!(count(&world, is_up), 1);
}

#[test]
fn a_change_that_cannot_be_changes_nothing() {
    let mut world = connected();
    let mut twice = peer(0x70);
    twice.leases.push(twice.leases[0].clone());
    assert!(matches!(
        change(&mut world, vec![twice]),
        Err(PlainPeerError::Conflict { .. })
    ));
    assert_served(&mut world, Duration::from_secs(2));

    // An agent's name is not taken from it, whenever it came.
    let now = world.now;
    world.relays[0].machine.set_access(now, Access::Open);
    let mut by_name = service(Kind::Http, 3000);
    by_name.name = Some("blog".into());
    world.add_agent(agent_config(0, 0, vec![by_name]), 0);
    world.run_until("its lease", |world| world.relays[0].machine.census().leases == 5);
    let mut greedy = peer(0x70);
    greedy.leases.push(lease(Kind::Http, Some("blog"), None, 8080));
    assert!(matches!(
        change(&mut world, vec![greedy]),
        Err(PlainPeerError::Bound { .. })
    ));
    assert_eq!(world.relays[0].machine.census().leases, 5);
    assert_served(&mut world, Duration::from_secs(2));
}

#[test]
fn an_agent_whose_key_becomes_a_plain_peers_is_told_so_and_its_name_is_the_peers() {
    let mut by_name = service(Kind::Http, 3000);
    by_name.name = Some("shop".into());
    let mut config = relay_config(0);
    config.access = Access::Open;
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![by_name]));
    world.run_until("its lease", |world| world.relays[0].machine.census().leases == 1);
    let same = PlainPeer {
        key: agent_key(0).public_key(),
        ..peer(0)
    };
    assert_eq!(change(&mut world, vec![same]), Ok(()));
    assert_eq!(world.relays[0].machine.census().leases, 4);
    world.run_until("the refusal", |world| {
        world.relays[0].machine.counters().refused_plain_key > 0
    });
    assert_eq!(world.relays[0].machine.census().leases, 4);
}
