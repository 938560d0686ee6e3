//! Every bound is reached, refuses by its own name, and leaves what runs alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::identity::PublicKey;
use portal_core::{AgentEvent, Binding, Counters, Kind, RefusalCode, RelayConfig, Service, StreamId};
use portal_sim::{TargetScript, World, agent_config, agent_key, pattern, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

/// A relay with changed bounds and an agent with one service, its lease granted.
fn world(kind: Kind, change: impl FnOnce(&mut RelayConfig)) -> World {
    let mut config = relay_config(0);
    change(&mut config);
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![service(kind, 3000)]));
    world.run_until("the lease", |world| world.public(0).is_some());
    world
}

fn counters(world: &World) -> &Counters {
    world.relays[0].machine.counters()
}

/// A visitor from this address; whether it was let in.
fn visit_from(world: &mut World, remote: &str) -> bool {
    let (port, remote) = (world.public_port(0), remote.parse::<SocketAddr>().unwrap());
    world.visit_saying(0, port, remote, Vec::new()).is_some()
}

/// What an admitted visitor says still comes back.
#[track_caller]
fn assert_served(world: &mut World, visitor: StreamId) {
    world.say(visitor, b"still here?");
    world.run_until_within("the echo", Duration::from_secs(5), |world| {
        world.relays[0].sockets[&visitor].received.ends_with(b"still here?")
    });
    world.check_invariants();
}

#[test]
fn connections_of_one_source_are_bounded_and_an_ipv6_source_is_its_64() {
    let mut world = world(Kind::Tcp, |config| config.visitors_per_source = 3);
    let first = world.visit(world.public_port(0)).unwrap();
    for port in 1..=2 {
        assert!(visit_from(&mut world, &format!("198.51.100.9:{port}")));
    }
    assert!(!visit_from(&mut world, "198.51.100.9:77"));
    assert!(
        !visit_from(&mut world, "[::ffff:198.51.100.9]:78"),
        "the same address in other words"
    );
    assert!(visit_from(&mut world, "198.51.100.10:77"), "another source");
    for host in 1..=3 {
        assert!(visit_from(&mut world, &format!("[2001:db8:0:1::{host}]:77")));
    }
    assert!(!visit_from(&mut world, "[2001:db8:0:1:ffff::1]:77"));
    assert!(visit_from(&mut world, "[2001:db8:0:2::1]:77"));
    assert_eq!(counters(&world).refused_visitor_source, 3);
    assert_served(&mut world, first);
}

#[test]
fn connections_to_one_lease_are_bounded() {
    let mut world = world(Kind::Tcp, |config| config.visitors_per_lease = 2);
    let port = world.public_port(0);
    let visitors: Vec<_> = (0..3).map(|_| world.visit(port)).collect();
    world.run(Duration::from_secs(1));
    assert_eq!(counters(&world).refused_visitor_lease, 1);
    let first = visitors[0].unwrap();
    assert_served(&mut world, first);
    world.visitor(first).fin_to_send = true;
    world.run_until("the end", |world| world.relays[0].sockets[&first].is_over());
    let next = world.visit(port).expect("there is room again");
    assert_served(&mut world, next);
}

#[test]
fn connections_in_all_are_bounded() {
    let mut world = world(Kind::Tcp, |config| config.limits.streams = 2);
    let port = world.public_port(0);
    let visitors: Vec<_> = (0..3).map(|_| world.visit(port)).collect();
    assert!(visitors[2].is_none());
    assert_eq!(counters(&world).refused_streams_full, 1);
    assert_served(&mut world, visitors[0].unwrap());
}

#[test]
fn flows_are_bounded() {
    // One of them is the control channel.
    let mut world = world(Kind::Tcp, |config| config.limits.flows = 3);
    let port = world.public_port(0);
    let visitors: Vec<_> = (0..3).map(|_| world.visit(port)).collect();
    world.run(Duration::from_secs(1));
    assert_eq!(counters(&world).refused_flows_full, 1);
    assert_served(&mut world, visitors[0].unwrap());
}

#[test]
fn half_open_flows_are_bounded_and_those_refused_come_in_later() {
    const AGENTS: usize = 8;
    let mut relay = relay_config(0);
    relay.limits.half_open = 2;
    let mut world = World::new(origin(), 1);
    world.add_relay(relay);
    for number in 0..AGENTS {
        world.add_agent(agent_config(number, 0, vec![service(Kind::Tcp, 3000)]), 0);
    }
    world.run_until_within("all of them", Duration::from_secs(30), |world| {
        (0..AGENTS).all(|number| world.public(number).is_some())
    });
    assert!(counters(&world).refused_half_open > 0);
}

#[test]
fn memory_is_bounded_new_connections_are_refused_and_a_transfer_goes_on() {
    let limit = 6 << 20;
    let mut world = world(Kind::Tcp, |config| config.limits.memory = limit);
    let port = world.public_port(0);
    let transfer = world.visit(port).unwrap();
    let bytes = pattern(4 << 20);
    world.say(transfer, &bytes);
    world.visitor(transfer).fin_to_send = true;
    world.run(Duration::from_millis(50));
    for _ in 0..1000 {
        world.visit(port);
        assert!(world.relays[0].machine.memory_used() <= limit);
    }
    // Those who say nothing are waited for a while.
    world.run(Duration::from_millis(10));
    assert!(world.relays[0].machine.memory_used() <= limit);
    assert!(counters(&world).refused_memory > 0);
    world.run_until("the transfer", |world| world.relays[0].sockets[&transfer].is_over());
    assert!(world.visitor(transfer).received == bytes);
    world.check_invariants();
}

#[test]
fn leases_of_a_key_are_bounded() {
    let mut config = relay_config(0);
    config.leases_per_key = 2;
    let services = (0..3)
        .map(|n| Service {
            id: format!("service {n}"),
            ..service(Kind::Tcp, 3000)
        })
        .collect();
    let mut world = World::pair(origin(), config, agent_config(0, 0, services));
    assert_eq!(refusal(&mut world), RefusalCode::LimitReached);
    assert_eq!(world.relays[0].machine.census().leases, 2);
}

/// A relay on which so many names and ports belong to a key already.
fn relay_with_bindings(of: PublicKey, names: u32, ports: u16) -> RelayConfig {
    let names = (0..names).map(|number| Binding::Name {
        name: format!("n{number}"),
        key: of,
    });
    let ports = (0..ports).map(|number| Binding::Port {
        port: 30_000 + number,
        key: of,
        service: format!("service {number}"),
    });
    RelayConfig {
        bindings: names.chain(ports).collect(),
        ..relay_config(0)
    }
}

#[test]
fn names_and_ports_of_a_key_are_bounded() {
    let agent = || agent_config(0, 0, vec![service(Kind::Http, 3000), service(Kind::Tcp, 3001)]);
    let key = agent_key(0).public_key();
    let mut world = World::pair(origin(), relay_with_bindings(key, 200, 56), agent());
    let (code, message) = refused(&mut world);
    assert_eq!(code, RefusalCode::LimitReached);
    assert!(message.contains("this key holds 256 names and ports"), "{message}");
    world.run(Duration::from_secs(1));
    let census = world.relays[0].machine.census();
    assert_eq!((census.leases, census.bindings), (0, 256));
    assert_eq!(counters(&world).leases_refused, 2);

    // With one place left, one of the two services gets it; and it is the key's for good.
    let mut world = World::pair(origin(), relay_with_bindings(key, 199, 56), agent());
    assert_eq!(refusal(&mut world), RefusalCode::LimitReached);
    assert_eq!(world.relays[0].machine.census().leases, 1);
    world.restart_agent(0);
    world.run_until("the same again", |world| world.public(0).is_some());
    assert_eq!(refusal(&mut world), RefusalCode::LimitReached);
    assert_eq!(world.relays[0].machine.census().bindings, 256);
    world.check_invariants();

    // Another key is not concerned.
    let mut world = World::pair(
        origin(),
        relay_with_bindings(agent_key(7).public_key(), 200, 56),
        agent(),
    );
    world.run(Duration::from_secs(1));
    assert_eq!(world.relays[0].machine.census().leases, 2);
}

#[test]
fn names_and_ports_in_all_are_bounded() {
    const MOST: u32 = 65_536;
    let asked = vec![service(Kind::Http, 3000)];
    let config = relay_with_bindings(agent_key(7).public_key(), MOST, 0);
    let mut world = World::pair(origin(), config, agent_config(0, 0, asked));
    let (code, message) = refused(&mut world);
    assert_eq!(code, RefusalCode::LimitReached);
    assert!(message.contains("the relay 65536"), "{message}");

    // A name that follows from the key belongs to it anyway.
    let derived = vec![Service {
        name: None,
        ..service(Kind::Http, 3000)
    }];
    let config = relay_with_bindings(agent_key(7).public_key(), MOST, 0);
    let mut world = World::pair(origin(), config, agent_config(0, 0, derived));
    world.run_until("the lease", |world| world.public(0).is_some());
}

#[test]
fn ports_run_out_by_name() {
    let mut config = relay_config(0);
    config.ports = Some(20_000..=20_000);
    let services = (0..2)
        .map(|n| Service {
            id: format!("service {n}"),
            ..service(Kind::Tcp, 3000)
        })
        .collect();
    let mut world = World::pair(origin(), config, agent_config(0, 0, services));
    assert_eq!(refusal(&mut world), RefusalCode::LimitReached);
}

#[test]
fn a_busy_port_is_refused_if_it_was_asked_for_and_replaced_if_not() {
    let asked = Service {
        port: Some(20_042),
        ..service(Kind::Tcp, 3000)
    };
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, vec![asked]));
    world.relays[0].behaviour.busy_ports = [20_042].into();
    assert_eq!(refusal(&mut world), RefusalCode::PortBusy);
    assert_eq!((world.public(0), world.relays[0].machine.census().leases), (None, 0));

    let mut world = self::world(Kind::Tcp, |_| {});
    let usual = world.public_port(0);
    world = World::pair(
        origin(),
        relay_config(0),
        agent_config(0, 0, vec![service(Kind::Tcp, 3000)]),
    );
    world.relays[0].behaviour.busy_ports = [usual].into();
    world.run_until("the lease", |world| world.public(0).is_some());
    assert_ne!(world.public_port(0), usual);
}

#[test]
fn associations_are_bounded_and_the_least_recently_used_makes_room() {
    let mut world = world(Kind::Udp, |config| config.limits.associations = 2);
    let port = world.public_port(0);
    for visitor in 1..=3 {
        let remote = format!("198.51.100.{visitor}:5").parse().unwrap();
        assert!(world.send_datagram(0, port, remote, b"hello"));
        world.run(Duration::from_secs(1));
    }
    assert_eq!(
        (
            counters(&world).associations_opened,
            counters(&world).associations_evicted
        ),
        (3, 1)
    );
    world.check_invariants();
}

#[test]
fn a_head_that_never_ends_is_answered_and_closed() {
    let mut world = world(Kind::Http, |_| {});
    let visitor = world.visit(80).unwrap();
    world.say(visitor, b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\nX: ");
    world.say(visitor, &[b'a'; 20_000]);
    world.run_until_within("the page", Duration::from_secs(1), |world| {
        world.relays[0].sockets[&visitor].fin_received
    });
    assert!(world.visitor(visitor).received.starts_with(b"HTTP/1.1 431"));
    assert_eq!(counters(&world).drop_head_malformed, 1);
}

#[test]
fn a_visitor_who_says_one_byte_a_second_is_not_kept() {
    let mut world = world(Kind::Tls, |_| {});
    let visitor = world.visit(443).unwrap();
    for byte in [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 7] {
        if world.visitor(visitor).is_over() {
            break;
        }
        world.say(visitor, &[byte]);
        world.run(Duration::from_secs(1));
    }
    assert!(world.visitor(visitor).reset);
    assert_eq!(counters(&world).drop_head_timeout, 1);
}

#[test]
fn a_target_that_never_reads_holds_no_more_than_its_buffers() {
    let mut world = world(Kind::Tcp, |_| {});
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"x");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    let target = world.agents[0].dials[0].0;
    world.run(Duration::from_millis(100));
    let used = world.relays[0].machine.memory_used();
    world.agents[0].socket(target).reads = false;
    world.say(visitor, &pattern(8 << 20));
    world.run(Duration::from_secs(30));
    assert!(
        world.visitor(visitor).to_send.len() > 6 << 20,
        "the visitor is held back"
    );
    // The control channel may have fallen asleep.
    assert!(world.relays[0].machine.memory_used() <= used);
}

/// The first refusal the agent is told.
fn refusal(world: &mut World) -> RefusalCode {
    refused(world).0
}

/// The same with what it says.
fn refused(world: &mut World) -> (RefusalCode, String) {
    let refused = |world: &World| {
        world.agents[0].events.iter().find_map(|event| match event {
            AgentEvent::Refused { code, message, .. } => Some((code.clone(), message.clone())),
            _ => None,
        })
    };
    world.run_until("a refusal", |world| refused(world).is_some());
    refused(world).expect("it was just there")
}
