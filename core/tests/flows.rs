//! Relay and agent together: what visitors say arrives, and ends as it was ended.

mod sim;

use std::time::Duration;

use portal_core::{AgentEvent, Kind, RelayEvent, SocketEvent, Transport, UdpSocketRef};
use sim::{Sim, pattern};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n";

#[test]
fn a_lease_is_granted_within_a_few_round_trips() {
    let sim = Sim::with_service(Kind::Http);
    assert_eq!(sim.public().as_deref(), Some("http://web.tunnel.test/"));
    assert!(
        sim.now - sim.start < Duration::from_millis(200),
        "took {:?}",
        sim.now - sim.start
    );
}

#[test]
fn an_http_visitor_reaches_the_target_and_half_close_is_kept() {
    let mut sim = Sim::with_service(Kind::Http);
    let visitor = sim.visit(80).unwrap();
    sim.say(visitor, GET);
    sim.visitor(visitor).fin_to_send = true;
    sim.run_until("the end", |sim| sim.relay.sockets[&visitor].is_over());
    let socket = sim.visitor(visitor);
    assert!(socket.closed && socket.fin_received && !socket.reset);
    assert_eq!(socket.received, GET, "the target echoes what it got");
    let left = sim.agent.events.iter().find_map(|event| match event {
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
        Some((Some(sim::VISITOR_ADDR.parse().unwrap()), GET.len() as u64, true))
    );
    sim.run(Duration::from_secs(30));
    assert_eq!(sim.relay.machine.census().flows, 1, "only the control channel is left");
}

#[test]
fn megabytes_arrive_both_ways_with_and_without_loss() {
    for (loss, len) in [(0, 8 << 20), (100, 1 << 20), (20, 256 << 10)] {
        let mut sim = Sim::with_service(Kind::Tcp);
        sim.link.loss = loss;
        sim.link.delay = Duration::from_millis(5);
        let visitor = sim.visit(sim.public_port()).unwrap();
        let bytes = pattern(len);
        sim.say(visitor, &bytes);
        sim.visitor(visitor).fin_to_send = true;
        sim.run_until("the echo", |sim| sim.relay.sockets[&visitor].is_over());
        let socket = sim.visitor(visitor);
        assert!(!socket.reset, "reset at loss 1/{loss}");
        assert!(socket.received == bytes, "bytes differ at loss 1/{loss}");
        assert!(loss == 0 || sim.lost > 0);
    }
}

#[test]
fn a_reset_travels_both_ways() {
    let mut sim = Sim::with_service(Kind::Tcp);
    sim.agent.targets_echo = false;
    let visitor = sim.visit(sim.public_port()).unwrap();
    sim.say(visitor, b"hello");
    sim.run_until("the dial", |sim| {
        sim.agent.sockets.values().any(|socket| socket.received == b"hello")
    });
    {
        use portal_core::{ByteStream, Machine};
        sim.relay.machine.stream(sim.now, visitor).unwrap().abort();
    }
    sim.run_until("the reset", |sim| sim.agent.sockets.values().all(|socket| socket.reset));

    let visitor = sim.visit(sim.public_port()).unwrap();
    sim.say(visitor, b"again");
    sim.run_until("the dial", |sim| {
        sim.agent.sockets.values().any(|socket| socket.received == b"again")
    });
    {
        use portal_core::{ByteStream, Machine};
        let target = sim.agent.dials.last().unwrap().0;
        sim.agent.machine.stream(sim.now, target).unwrap().abort();
    }
    sim.run_until("the reset", |sim| sim.relay.sockets[&visitor].reset);
}

#[test]
fn a_slow_reader_holds_the_writer_back() {
    let mut sim = Sim::with_service(Kind::Tcp);
    sim.agent.targets_echo = false;
    let visitor = sim.visit(sim.public_port()).unwrap();
    sim.say(visitor, b"x");
    sim.run_until("the dial", |sim| !sim.agent.sockets.is_empty());
    let target = sim.agent.dials[0].0;
    sim.agent.socket(target).reads = false;
    let bytes = pattern(16 << 20);
    sim.say(visitor, &bytes);
    sim.visitor(visitor).fin_to_send = true;
    sim.run(Duration::from_secs(60));
    let waiting = sim.relay.sockets[&visitor].to_send.len();
    assert!(waiting > 12 << 20, "only {waiting} bytes were held back");
    assert_eq!(sim.agent.socket(target).received, b"x");
    sim.agent.socket(target).reads = true;
    sim.run_until("the rest", |sim| sim.agent.sockets[&target].fin_received);
    assert!(sim.agent.socket(target).received[1..] == bytes[..]);
}

#[test]
fn a_thousand_visitors_at_once() {
    let mut sim = Sim::with_service(Kind::Tcp);
    let port = sim.public_port();
    let visitors: Vec<_> = (0..1000).map(|_| sim.visit(port).unwrap()).collect();
    for (number, &visitor) in visitors.iter().enumerate() {
        let bytes = format!("visitor {number}").repeat(100);
        sim.say(visitor, bytes.as_bytes());
        sim.visitor(visitor).fin_to_send = true;
    }
    sim.run_until("all", |sim| {
        visitors.iter().all(|visitor| sim.relay.sockets[visitor].is_over())
    });
    for (number, visitor) in visitors.iter().enumerate() {
        let expected = format!("visitor {number}").repeat(100);
        assert_eq!(sim.relay.sockets[visitor].received, expected.as_bytes());
    }
}

#[test]
fn udp_visitors_are_told_apart() {
    let mut sim = Sim::with_service(Kind::Udp);
    let port = sim.public_port();
    let listener = sim.relay.listener(port, Transport::Udp);
    let visitors: Vec<std::net::SocketAddr> = (1..=3)
        .map(|n| format!("198.51.100.{n}:500").parse().unwrap())
        .collect();
    for &remote in &visitors {
        use portal_core::Machine;
        let payload = remote.to_string();
        let socket = UdpSocketRef::Public(listener);
        let event = SocketEvent::Datagram {
            socket,
            remote,
            payload: payload.as_bytes(),
        };
        sim.relay.machine.handle_socket(sim.now, event);
    }
    sim.run_until("the datagrams", |sim| sim.agent.datagrams.len() == 3);
    for (socket, remote, payload) in std::mem::take(&mut sim.agent.datagrams) {
        use portal_core::Machine;
        assert_eq!(remote, None);
        let answer = [b"to ", &payload[..]].concat();
        let event = SocketEvent::Datagram {
            socket,
            remote: "127.0.0.1:3000".parse().unwrap(),
            payload: &answer,
        };
        sim.agent.machine.handle_socket(sim.now, event);
    }
    sim.run_until("the answers", |sim| sim.relay.datagrams.len() == 3);
    for (socket, remote, payload) in &sim.relay.datagrams {
        assert_eq!(*socket, UdpSocketRef::Public(listener));
        assert_eq!(*payload, format!("to {}", remote.unwrap()).into_bytes());
    }
}

#[test]
fn an_unknown_host_gets_a_page_and_a_refused_target_a_502() {
    let mut sim = Sim::with_service(Kind::Http);
    let visitor = sim.visit(80).unwrap();
    sim.say(visitor, b"GET / HTTP/1.1\r\nHost: other.tunnel.test\r\n\r\n");
    sim.run_until("the page", |sim| sim.relay.sockets[&visitor].fin_received);
    assert!(sim.visitor(visitor).received.starts_with(b"HTTP/1.1 404"));
    sim.visitor(visitor).fin_to_send = true;
    sim.run_until_within("the close", Duration::from_secs(1), |sim| {
        sim.relay.sockets[&visitor].closed
    });

    sim.agent.refuse_dials = true;
    let visitor = sim.visit(80).unwrap();
    sim.say(visitor, GET);
    sim.run_until("the page", |sim| sim.relay.sockets[&visitor].fin_received);
    assert!(sim.visitor(visitor).received.starts_with(b"HTTP/1.1 502"));
    assert!(
        sim.agent
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::TargetFailed { .. }))
    );
    // It never closes: its time is limited.
    sim.run_until_within("the end", Duration::from_secs(6), |sim| {
        sim.relay.sockets[&visitor].is_over()
    });
}

#[test]
fn a_visitor_who_says_nothing_is_not_kept() {
    let mut sim = Sim::with_service(Kind::Http);
    let visitor = sim.visit(80).unwrap();
    sim.run_until_within("the end", Duration::from_secs(11), |sim| {
        sim.relay.sockets[&visitor].reset
    });
    assert_eq!(sim.relay.machine.counters().drop_head_timeout, 1);
    assert_eq!(sim.relay.machine.census().visitors, 0);
}

#[test]
fn a_server_name_that_nobody_has_gets_an_alert() {
    let mut sim = Sim::with_service(Kind::Tls);
    assert_eq!(sim.public().as_deref(), Some("https://web.tunnel.test/"));
    let visitor = sim.visit(443).unwrap();
    sim.say(visitor, b"GET / HTTP/1.1\r\n\r\n");
    sim.run_until("the end", |sim| sim.relay.sockets[&visitor].is_over());
    assert_eq!(sim.relay.machine.counters().drop_head_malformed, 1);
    assert!(
        sim.relay_events()
            .iter()
            .any(|event| matches!(event, RelayEvent::VisitorLeft { .. }))
    );
}
