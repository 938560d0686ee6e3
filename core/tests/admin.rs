//! The listener for operators: what it answers, what it refuses, and that nothing of it counts for visitors.

use std::time::{Duration, Instant};

use portal_core::{AgentEvent, Kind, Machine, RelayEvent, Status, StreamId};
use portal_sim::{HostId, World, agent_config, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

const PORT: u16 = 900;
const RELAY: HostId = HostId::Relay(0);
const AGENT: HostId = HostId::Agent(0);

/// A relay and an agent that both can be asked, the lease granted.
fn world() -> World {
    let mut world = unready();
    world.run_until("the lease", |world| world.agents[0].machine.not_ready().is_none());
    world
}

fn unready() -> World {
    let (mut relay, mut agent) = (relay_config(0), agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    relay.admin = Some(format!("127.0.0.1:{PORT}").parse().unwrap());
    agent.admin = relay.admin;
    World::pair(origin(), relay, agent)
}

/// Sends a request and returns the whole answer.
#[track_caller]
fn exchange(world: &mut World, host: HostId, request: &[u8]) -> String {
    let id = world.connect(host, PORT).expect("room for an operator");
    world.socket(host, id).to_send.extend(request);
    end_of(world, host, id)
}

#[track_caller]
fn end_of(world: &mut World, host: HostId, id: StreamId) -> String {
    for _ in 0..100 {
        if world.socket(host, id).fin_received || world.socket(host, id).is_over() {
            break;
        }
        world.run(Duration::from_millis(1));
    }
    let socket = world.socket(host, id);
    socket.fin_to_send = true;
    assert!(socket.fin_received, "no end of the answer");
    String::from_utf8(socket.received.clone()).unwrap()
}

#[track_caller]
fn get(world: &mut World, host: HostId, path: &str) -> (u16, String) {
    let answer = exchange(
        world,
        host,
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nconnection: close"), "{head}");
    assert!(
        head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())),
        "{head}"
    );
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn both_machines_answer_what_operators_ask() {
    let mut world = world();
    for (host, prefix) in [(RELAY, "portal_relay"), (AGENT, "portal_agent")] {
        let (status, metrics) = get(&mut world, host, "/metrics");
        assert_eq!(status, 200);
        assert!(metrics.contains(&format!("{prefix}_flows 1\n")) && metrics.ends_with("# EOF\n"));
        assert_eq!(get(&mut world, host, "/healthz"), (200, "ok\n".into()));
        assert_eq!(get(&mut world, host, "/readyz?verbose"), (200, "ready\n".into()));
        let (status, json) = get(&mut world, host, "/status");
        let parsed: Status = serde_json::from_str(&json).unwrap();
        assert_eq!((status, matches!(parsed, Status::Relay(_))), (200, host == RELAY));
        assert_eq!(get(&mut world, host, "/").0, 404);
        assert_eq!(get(&mut world, host, "/metricsx").0, 404);
    }
    let answer = exchange(&mut world, RELAY, b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(answer.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
    let json = exchange(&mut world, RELAY, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(json.contains("\r\ncontent-type: application/json\r\n"));
    world.run(Duration::from_secs(6));
    world.check_invariants();
}

#[test]
fn a_head_has_no_body_and_other_methods_are_refused() {
    let mut world = world();
    let answer = exchange(&mut world, AGENT, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("content-length: 3\r\n"));
    assert!(answer.ends_with("\r\n\r\n"));
    for method in ["POST", "DELETE", "OPTIONS", "get"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = exchange(&mut world, RELAY, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
    }
}

#[test]
fn readiness_is_503_with_one_line_until_the_tunnel_carries_data() {
    let mut world = unready();
    world.impair(0, |link| link.partitioned = true);
    world.run(Duration::from_secs(3));
    let (status, body) = get(&mut world, AGENT, "/readyz");
    assert_eq!((status, body.lines().count()), (503, 1), "{body}");
    assert!(body.contains("no connection to the relay"), "{body}");
    assert_eq!(get(&mut world, AGENT, "/healthz").0, 200);
    assert_eq!(get(&mut world, RELAY, "/readyz").0, 200);
    world.impair(0, |link| link.partitioned = false);
    world.run_until("the lease", |world| world.public(0).is_some());
    assert_eq!(get(&mut world, AGENT, "/readyz").0, 200);
}

#[test]
fn rubbish_is_answered_and_a_slow_head_is_not_waited_for() {
    let mut world = world();
    let answer = exchange(&mut world, RELAY, b"\x16\x03\x01\x02\x00\x01\x00\x01");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = exchange(
        &mut world,
        RELAY,
        &[b"GET / HTTP/1.1\r\nX: ", &[b'a'; 20_000][..]].concat(),
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");

    let silent = world.connect(RELAY, PORT).unwrap();
    let slow = world.connect(AGENT, PORT).unwrap();
    world.socket(AGENT, slow).to_send.extend(b"GET /healthz HT");
    let gone = world.connect(AGENT, PORT).unwrap();
    world.socket(AGENT, gone).to_send.extend(b"GET /heal");
    world.socket(AGENT, gone).fin_to_send = true;
    world.run(Duration::from_secs(1));
    assert!(world.socket(AGENT, gone).reset, "it cannot say more");
    world.run(Duration::from_secs(8));
    assert!(!world.socket(RELAY, silent).is_over() && !world.socket(AGENT, slow).is_over());
    world.run(Duration::from_secs(2));
    assert!(world.socket(RELAY, silent).reset && world.socket(AGENT, slow).reset);
    assert_eq!(world.relays[0].machine.counters().drop_operator_request, 3);
    assert_eq!(world.agents[0].machine.counters().drop_operator_request, 2);
    assert_eq!(world.agents[0].machine.counters().drop_tls_timeout, 0);
    world.check_invariants();
}

#[test]
fn operators_are_bounded_and_are_nobodys_visitors() {
    let mut world = world();
    // By then the control channel has given its buffers back.
    world.run(Duration::from_secs(2));
    let before = world.relays[0].machine.memory_used();
    let idle: Vec<_> = (0..16).map(|_| world.connect(RELAY, PORT).unwrap()).collect();
    assert_eq!(world.connect(RELAY, PORT), None);
    world.run(Duration::from_secs(1));
    let machine = &world.relays[0].machine;
    assert_eq!(machine.counters().refused_operators, 1);
    assert_eq!(machine.memory_used(), before, "their memory was set aside");
    assert_eq!(
        (machine.census().visitors, machine.counters().visitors_accepted),
        (0, 0)
    );
    let status = machine.status(world.now);
    assert_eq!((status.visitors.total, status.leases[0].visitors.total), (0, 0));
    world.check_invariants();
    for id in idle {
        world.abort(RELAY, id);
    }
    world.run(Duration::from_secs(1));
    assert_eq!(get(&mut world, RELAY, "/healthz").0, 200, "there is room again");
    let left = |event: &RelayEvent| matches!(event, RelayEvent::VisitorLeft { .. });
    assert!(!world.relay_events().iter().any(left), "nobody's visitor has left");
    world.check_invariants();
}

#[test]
fn they_are_served_when_visitors_no_longer_are() {
    let mut relay = relay_config(0);
    relay.admin = Some(format!("127.0.0.1:{PORT}").parse().unwrap());
    relay.limits.streams = 2;
    relay.limits.memory = 6 << 20;
    let mut world = World::pair(origin(), relay, agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    world.run_until("the lease", |world| world.public(0).is_some());
    let port = world.public_port(0);
    let visitors: Vec<_> = (0..3).map(|_| world.visit(port)).collect();
    assert!(visitors[1].is_some() && visitors[2].is_none());
    let (status, metrics) = get(&mut world, RELAY, "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("portal_relay_refused_streams_full_total 1\n"));
    assert!(metrics.contains("portal_relay_visitors 2\n"));
}

#[test]
fn a_slow_reader_of_answers_keeps_nobody_else_out_and_ends() {
    let mut world = world();
    let id = world.connect(RELAY, PORT).unwrap();
    let socket = world.socket(RELAY, id);
    socket.reads = false;
    socket
        .to_send
        .extend(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    world.run(Duration::from_secs(1));
    assert_eq!(get(&mut world, RELAY, "/healthz").0, 200);
    world.run(Duration::from_secs(5));
    assert!(world.socket(RELAY, id).reset);
    world.check_invariants();
}

#[test]
fn a_listener_that_cannot_be_opened_is_told() {
    let mut world = unready();
    world.relays[0].behaviour.busy_ports = [PORT].into();
    world.agents[0].behaviour.busy_ports = [PORT].into();
    world.run(Duration::from_secs(1));
    let failed = |event: &RelayEvent| matches!(event, RelayEvent::AdminFailed { addr, .. } if addr.port() == PORT);
    assert!(world.relay_events().iter().any(failed));
    let failed = |event: &AgentEvent| matches!(event, AgentEvent::AdminFailed { addr, .. } if addr.port() == PORT);
    assert!(world.agents[0].events.iter().any(failed));
}

#[test]
fn they_do_not_hold_up_the_end() {
    let mut world = world();
    let (of_relay, of_agent) = (world.connect(RELAY, PORT), world.connect(AGENT, PORT));
    assert!(of_relay.is_some() && of_agent.is_some());
    let now = world.now;
    world.agents[0].machine.begin_shutdown(now);
    world.run(Duration::from_secs(1));
    world.relays[0].machine.begin_shutdown(now);
    world.run(Duration::from_secs(1));
    assert!(world.agents[0].machine.is_finished() && world.relays[0].machine.is_finished());
    assert_eq!((world.connect(RELAY, PORT), world.connect(AGENT, PORT)), (None, None));
}

/// A web page can have a name of its own lead to loopback and read what it gets there.
#[test]
fn a_name_of_dns_is_not_answered_on_loopback() {
    let mut world = world();
    let mut ask = |host: &str| {
        let request = format!("GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = exchange(&mut world, RELAY, request.as_bytes());
        answer.split(' ').nth(1).map(str::to_owned)
    };
    for host in ["127.0.0.1:900", "[::1]:900", "localhost", "portal.localhost:900"] {
        assert_eq!(ask(host).as_deref(), Some("200"), "{host}");
    }
    for host in ["evil.example", "evil.example:900", "localhost.evil.example"] {
        assert_eq!(ask(host).as_deref(), Some("421"), "{host}");
    }
}
