//! Relay and agent together: what visitors say arrives, and ends as it was ended.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::{AgentEvent, DialError, Kind, Machine, RelayEvent, SocketEvent, Transport, UdpSocketRef};
use portal_sim::{HostId, Loss, Pace, TargetScript, VISITOR_ADDR, World, pattern};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n";

#[test]
fn a_lease_is_granted_within_a_few_round_trips() {
    let world = World::with_service(origin(), Kind::Http);
    assert_eq!(world.public(0).as_deref(), Some("http://web.tunnel.test/"));
    assert!(
        world.now - world.start < Duration::from_millis(200),
        "took {:?}",
        world.now - world.start
    );
}

#[test]
fn an_http_visitor_reaches_the_target_and_half_close_is_kept() {
    let mut world = World::with_service(origin(), Kind::Http);
    let visitor = world.visit(80).unwrap();
    world.say(visitor, GET);
    world.visitor(visitor).fin_to_send = true;
    world.run_until("the end", |world| world.relays[0].sockets[&visitor].is_over());
    let socket = world.visitor(visitor);
    assert!(socket.closed && socket.fin_received && !socket.reset);
    assert_eq!(socket.received, GET, "the target echoes what it got");
    let left = world.agents[0].events.iter().find_map(|event| match event {
        AgentEvent::VisitorLeft {
            visitor,
            received,
            finished,
            ..
        } => Some((*visitor, *received, *finished)),
        _ => None,
    });
    assert_eq!(
        left,
        Some((Some(VISITOR_ADDR.parse().unwrap()), GET.len() as u64, true))
    );
    world.run(Duration::from_secs(30));
    assert_eq!(
        world.relays[0].machine.census().flows,
        1,
        "only the control channel is left"
    );
}

#[test]
fn sixty_four_megabytes_arrive_both_ways_at_no_one_and_five_percent_loss() {
    let bytes = pattern(64 << 20);
    for loss in [0, 100, 20] {
        let mut world = World::with_service(origin(), Kind::Tcp);
        world.impair(0, |link| {
            link.loss = Loss::Random(1_000_000_u32.checked_div(loss).unwrap_or(0));
            link.latency = Duration::from_millis(5);
        });
        let visitor = world.visit(world.public_port(0)).unwrap();
        world.say(visitor, &bytes);
        world.visitor(visitor).fin_to_send = true;
        world.run_until_within("the echo", Duration::from_secs(4 * 3600), |world| {
            world.relays[0].sockets[&visitor].is_over()
        });
        let socket = world.visitor(visitor);
        assert!(!socket.reset, "reset at loss 1/{loss}");
        assert!(socket.received == bytes, "bytes differ at loss 1/{loss}");
        assert!(loss == 0 || world.lost(0) > 0);
    }
}

#[test]
fn a_reset_travels_both_ways() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"hello");
    world.run_until("the dial", |world| {
        world.agents[0]
            .sockets
            .values()
            .any(|socket| socket.received == b"hello")
    });
    world.abort(HostId::Relay(0), visitor);
    world.run_until("the reset", |world| {
        world.agents[0].sockets.values().all(|socket| socket.reset)
    });

    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"again");
    world.run_until("the dial", |world| {
        world.agents[0]
            .sockets
            .values()
            .any(|socket| socket.received == b"again")
    });
    let target = world.agents[0].dials.last().unwrap().0;
    world.abort(HostId::Agent(0), target);
    world.run_until("the reset", |world| world.relays[0].sockets[&visitor].reset);
}

/// It may wait for its own bytes to be taken first, which nobody will.
#[test]
fn a_target_that_does_not_take_the_rest_of_a_broken_connection_is_let_go() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let used = world.agents[0].machine.memory_used();
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"x");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    let target = world.agents[0].dials[0].0;
    world.agents[0].socket(target).reads = false;
    world.say(visitor, &pattern(5_000));
    world.agents[0].socket(target).to_send.extend(pattern(10_000_000));
    world.visitor(visitor).reads = false;
    world.run(Duration::from_secs(10));
    world.abort(HostId::Relay(0), visitor);
    world.run(Duration::from_secs(55));
    assert!(!world.agents[0].sockets[&target].reset, "it has a minute");
    world.run(Duration::from_secs(10));
    assert!(world.agents[0].sockets[&target].reset);
    assert!(world.agents[0].machine.memory_used() <= used);
}

#[test]
fn a_slow_target_gets_the_rest_of_a_broken_connection() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    // No more than the agent takes at once: what is left at the relay goes with the visitor.
    let bytes = pattern(4_900);
    world.say(visitor, &bytes);
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    let target = world.agents[0].dials[0].0;
    world.agents[0].socket(target).pace = Pace {
        chunk: 500,
        pause: Duration::from_secs(45),
    };
    world.run(Duration::from_secs(1));
    world.abort(HostId::Relay(0), visitor);
    world.run_until("the reset", |world| world.agents[0].sockets[&target].reset);
    assert_eq!(world.agents[0].sockets[&target].received.len(), bytes.len());
    assert!(world.agents[0].sockets[&target].received == bytes);
}

#[test]
fn a_slow_reader_holds_the_writer_back() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"x");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    let target = world.agents[0].dials[0].0;
    world.run_until("the byte", |world| world.agents[0].sockets[&target].received == b"x");
    world.agents[0].socket(target).reads = false;
    let bytes = pattern(16 << 20);
    world.say(visitor, &bytes);
    world.visitor(visitor).fin_to_send = true;
    world.run(Duration::from_secs(60));
    let waiting = world.relays[0].sockets[&visitor].to_send.len();
    assert!(waiting > 12 << 20, "only {waiting} bytes were held back");
    assert_eq!(world.agents[0].socket(target).received, b"x");
    world.agents[0].socket(target).reads = true;
    world.run_until("the rest", |world| world.agents[0].sockets[&target].fin_received);
    assert!(world.agents[0].socket(target).received[1..] == bytes[..]);
}

#[test]
fn a_thousand_visitors_at_once() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let port = world.public_port(0);
    let visitors: Vec<_> = (0..1000).map(|_| world.visit(port).unwrap()).collect();
    for (number, &visitor) in visitors.iter().enumerate() {
        let bytes = format!("visitor {number}").repeat(100);
        world.say(visitor, bytes.as_bytes());
        world.visitor(visitor).fin_to_send = true;
    }
    world.run_until("all", |world| {
        visitors
            .iter()
            .all(|visitor| world.relays[0].sockets[visitor].is_over())
    });
    for (number, visitor) in visitors.iter().enumerate() {
        let expected = format!("visitor {number}").repeat(100);
        assert_eq!(world.relays[0].sockets[visitor].received, expected.as_bytes());
    }
}

#[test]
fn udp_visitors_are_told_apart() {
    let mut world = World::with_service(origin(), Kind::Udp);
    let port = world.public_port(0);
    let listener = world.relays[0].listener(port, Transport::Udp).expect("a public socket");
    let visitors: Vec<SocketAddr> = (1..=3)
        .map(|n| format!("198.51.100.{n}:500").parse().unwrap())
        .collect();
    for &remote in &visitors {
        assert!(world.send_datagram(0, port, remote, remote.to_string().as_bytes()));
    }
    world.run_until("the datagrams", |world| world.agents[0].datagrams.len() == 3);
    for (socket, remote, payload) in std::mem::take(&mut world.agents[0].datagrams) {
        assert_eq!(remote, None);
        let answer = [b"to ", &payload[..]].concat();
        let event = SocketEvent::Datagram {
            socket,
            remote: "127.0.0.1:3000".parse().unwrap(),
            payload: &answer,
        };
        world.agents[0].machine.handle_socket(world.now, event);
    }
    world.run_until("the answers", |world| world.relays[0].datagrams.len() == 3);
    // Each is named once, however much it sends.
    assert!(world.send_datagram(0, port, visitors[0], b"again"));
    world.run(Duration::from_secs(1));
    let named: Vec<SocketAddr> = world.relays[0]
        .events
        .iter()
        .filter_map(|event| match event {
            RelayEvent::DatagramVisitor { remote, .. } => Some(*remote),
            _ => None,
        })
        .collect();
    assert_eq!(named, visitors);
    for (socket, remote, payload) in &world.relays[0].datagrams {
        assert_eq!(*socket, UdpSocketRef::Public(listener));
        assert_eq!(*payload, format!("to {}", remote.unwrap()).into_bytes());
    }
}

#[test]
fn an_unknown_host_gets_a_page_and_a_refused_target_a_502() {
    let mut world = World::with_service(origin(), Kind::Http);
    let visitor = world.visit(80).unwrap();
    world.say(visitor, b"GET / HTTP/1.1\r\nHost: other.tunnel.test\r\n\r\n");
    world.run_until("the page", |world| world.relays[0].sockets[&visitor].fin_received);
    assert!(world.visitor(visitor).received.starts_with(b"HTTP/1.1 404"));
    world.visitor(visitor).fin_to_send = true;
    world.run_until_within("the close", Duration::from_secs(1), |world| {
        world.relays[0].sockets[&visitor].closed
    });

    world.agents[0].behaviour.dial_error = Some(DialError::Refused);
    let visitor = world.visit(80).unwrap();
    world.say(visitor, GET);
    world.run_until("the page", |world| world.relays[0].sockets[&visitor].fin_received);
    assert!(world.visitor(visitor).received.starts_with(b"HTTP/1.1 502"));
    assert!(
        world.agents[0]
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::TargetFailed { .. }))
    );
    // It never closes: its time is limited.
    world.run_until_within("the end", Duration::from_secs(6), |world| {
        world.relays[0].sockets[&visitor].is_over()
    });
}

#[test]
fn a_visitor_who_says_nothing_is_not_kept() {
    let mut world = World::with_service(origin(), Kind::Http);
    let visitor = world.visit(80).unwrap();
    world.run_until_within("the end", Duration::from_secs(11), |world| {
        world.relays[0].sockets[&visitor].reset
    });
    assert_eq!(world.relays[0].machine.counters().drop_head_timeout, 1);
    assert_eq!(world.relays[0].machine.census().visitors, 0);
}

#[test]
fn a_server_name_that_nobody_has_gets_an_alert() {
    let mut world = World::with_service(origin(), Kind::Tls);
    assert_eq!(world.public(0).as_deref(), Some("https://web.tunnel.test/"));
    let visitor = world.visit(443).unwrap();
    world.say(visitor, b"GET / HTTP/1.1\r\n\r\n");
    world.run_until("the end", |world| world.relays[0].sockets[&visitor].is_over());
    assert_eq!(world.relays[0].machine.counters().drop_head_malformed, 1);
    assert!(
        world
            .relay_events()
            .iter()
            .any(|event| matches!(event, RelayEvent::VisitorLeft { .. }))
    );
}
