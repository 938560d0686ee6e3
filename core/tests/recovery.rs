//! Relay and agent find each other again: restarts, cuts, moves, grants, and time.

mod sim;

use std::time::Duration;

use portal_core::{Access, AgentEvent, Grant, Kind, Machine, RelayEvent};
use sim::{Sim, key, pattern, relay_config, service};

fn grants(sim: &Sim) -> usize {
    sim.agent
        .events
        .iter()
        .filter(|event| matches!(event, AgentEvent::Granted { .. }))
        .count()
}

/// One visitor asks, and gets its own bytes back.
#[track_caller]
fn assert_served(sim: &mut Sim, within: Duration) {
    let port = sim.public_port();
    let visitor = sim.visit(port).expect("accepted");
    sim.say(visitor, b"still there?");
    sim.visitor(visitor).fin_to_send = true;
    sim.run_until_within("an answer", within, |sim| sim.relay.sockets[&visitor].is_over());
    let socket = sim.visitor(visitor);
    assert_eq!(
        (socket.received.as_slice(), socket.reset),
        (&b"still there?"[..], false)
    );
}

#[test]
fn an_agent_killed_and_started_again_takes_over_at_once() {
    let mut sim = Sim::with_service(Kind::Tcp);
    let before = sim.public();
    let orphan = sim.visit(sim.public_port()).unwrap();
    sim.say(orphan, b"to the first process");
    sim.run_until("the dial", |sim| !sim.agent.sockets.is_empty());
    sim.restart_agent(vec![service(Kind::Tcp)], 3);
    sim.run_until_within("the lease", Duration::from_secs(2), |sim| grants(sim) == 1);
    assert_eq!(sim.public(), before);
    sim.run_until_within("the orphan's end", Duration::from_secs(1), |sim| {
        sim.relay.sockets[&orphan].reset
    });
    assert_served(&mut sim, Duration::from_secs(1));
}

#[test]
fn a_relay_killed_and_started_again_calls_the_agents_it_knew() {
    let mut sim = Sim::with_service(Kind::Tcp);
    let before = sim.public();
    let mut config = relay_config();
    for event in sim.relay_events() {
        match event {
            RelayEvent::AgentAt { key, remote } => config.recent.push((*key, *remote)),
            RelayEvent::Bound(binding) => config.bindings.push(binding.clone()),
            _ => {}
        }
    }
    sim.run(Duration::from_secs(5));
    sim.restart_relay(9, config);
    sim.run_until_within("the lease", Duration::from_secs(2), |sim| grants(sim) == 2);
    assert_eq!(sim.public(), before);
    assert_served(&mut sim, Duration::from_secs(1));
}

#[test]
fn a_relay_that_forgot_everything_is_found_by_the_pings() {
    let mut sim = Sim::with_service(Kind::Tcp);
    let before = sim.public();
    sim.restart_relay(9, relay_config());
    sim.run_until_within("the lease", Duration::from_secs(30), |sim| grants(sim) == 2);
    assert_eq!(sim.public(), before);
    assert_served(&mut sim, Duration::from_secs(1));
}

#[test]
fn an_agent_waits_for_an_absent_relay_and_says_so() {
    let mut sim = Sim::new(relay_config(), sim::agent_config(vec![service(Kind::Tcp)]));
    sim.relay.on = false;
    sim.run(Duration::from_secs(300));
    let silent = sim
        .agent
        .events
        .iter()
        .filter(|event| matches!(event, AgentEvent::RelaySilent { .. }))
        .count();
    assert!((5..=40).contains(&silent), "told {silent} times in five minutes");
    sim.relay.on = true;
    sim.run_until_within("the lease", Duration::from_secs(7), |sim| grants(sim) == 1);
    assert_served(&mut sim, Duration::from_secs(1));
}

#[test]
fn a_cut_of_a_minute_loses_no_idle_connection() {
    let mut sim = Sim::with_service(Kind::Tcp);
    let visitor = sim.visit(sim.public_port()).unwrap();
    sim.say(visitor, b"before");
    sim.run_until("the echo", |sim| sim.relay.sockets[&visitor].received == b"before");
    sim.link.cut = true;
    sim.run(Duration::from_secs(60));
    sim.link.cut = false;
    sim.run(Duration::from_secs(15));
    sim.say(visitor, b" and after");
    sim.run_until_within("the echo", Duration::from_secs(10), |sim| {
        sim.relay.sockets[&visitor].received == b"before and after"
    });
    assert!(!sim.visitor(visitor).is_over());
}

#[test]
fn an_agent_that_moves_loses_no_running_transfer() {
    let mut sim = Sim::with_service(Kind::Tcp);
    sim.link.rate = 5_000_000;
    let visitor = sim.visit(sim.public_port()).unwrap();
    let bytes = pattern(8 << 20);
    sim.say(visitor, &bytes);
    sim.visitor(visitor).fin_to_send = true;
    sim.run(Duration::from_secs(1));
    assert!(!sim.visitor(visitor).is_over());
    sim.agent.addr = "198.51.100.77:9".parse().unwrap();
    sim.run_until("the echo", |sim| sim.relay.sockets[&visitor].is_over());
    assert!(sim.visitor(visitor).received == bytes);
    assert!(sim.relay_events().iter().any(|event| {
        matches!(event, RelayEvent::AgentAt { remote, .. } if remote.to_string() == "198.51.100.77:9")
    }));
}

#[test]
fn a_key_without_a_grant_is_refused_by_name_and_served_once_granted() {
    let mut config = relay_config();
    config.access = Access::Granted(Vec::new());
    let mut sim = Sim::new(config, sim::agent_config(vec![service(Kind::Tcp)]));
    sim.run(Duration::from_secs(20));
    let agent_key = key(2).public_key();
    let refusals: Vec<_> = sim
        .agent
        .events
        .iter()
        .filter_map(|event| match event {
            AgentEvent::RelayRefused { message, .. } => Some(message.clone()),
            _ => None,
        })
        .collect();
    assert!(refusals.len() >= 3, "it goes on asking");
    assert!(
        refusals[0].contains(&format!("portal grant {agent_key}")),
        "{}",
        refusals[0]
    );
    assert!(
        sim.relay_events()
            .iter()
            .any(|event| matches!(event, RelayEvent::NotGranted { key, .. } if *key == agent_key))
    );
    assert_eq!(grants(&sim), 0);

    sim.relay
        .machine
        .set_access(sim.now, Access::Granted(vec![Grant::all(agent_key)]));
    sim.run_until_within("the lease", Duration::from_secs(5), |sim| grants(sim) == 1);
    assert_served(&mut sim, Duration::from_secs(1));

    let visitor = sim.visit(sim.public_port()).unwrap();
    sim.say(visitor, b"running");
    sim.run_until("the echo", |sim| sim.relay.sockets[&visitor].received == b"running");
    sim.relay.machine.set_access(sim.now, Access::Granted(Vec::new()));
    sim.run_until_within("the end", Duration::from_secs(1), |sim| {
        sim.relay.sockets[&visitor].reset
    });
    assert_eq!(sim.relay.machine.census().leases, 0);
    assert_eq!(sim.relay.machine.census().agents, 0);
}

#[test]
fn half_an_hour_of_requests_crosses_ten_rekeys() {
    let mut sim = Sim::with_service(Kind::Tcp);
    for second in 0..1800 {
        assert_served(&mut sim, Duration::from_millis(500));
        let next = sim.start + Duration::from_secs(second + 1);
        while sim.step(next) {}
    }
    let handshakes = sim.relay.machine.counters().handshakes;
    assert!(handshakes >= 10, "only {handshakes} handshakes");
    assert_eq!(
        sim.relay.machine.counters().flows_opened - sim.relay.machine.counters().flows_closed,
        1
    );
}

#[test]
fn a_suspend_of_two_hours_is_survived() {
    let mut sim = Sim::with_service(Kind::Tcp);
    sim.run(Duration::from_secs(30));
    // Both clocks jump; nobody was polled meanwhile.
    sim.now += Duration::from_secs(7200);
    sim.run(Duration::from_secs(20));
    assert_served(&mut sim, Duration::from_secs(2));
}

#[test]
fn both_ends_say_goodbye() {
    let mut sim = Sim::with_service(Kind::Tcp);
    sim.agent.machine.begin_shutdown(sim.now);
    sim.run(Duration::from_secs(1));
    assert!(sim.agent.machine.is_finished());
    assert_eq!(
        sim.relay.machine.census().leases,
        0,
        "leases end with a goodbye, not only with their time"
    );

    let mut sim = Sim::with_service(Kind::Tcp);
    sim.relay.machine.begin_shutdown(sim.now);
    sim.run(Duration::from_millis(200));
    assert!(sim.relay.machine.is_finished());
    assert!(sim.relay.listeners.is_empty());
    assert!(
        sim.agent
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::RelayDown { .. }))
    );
}

#[test]
fn equal_seeds_and_inputs_give_equal_runs() {
    let run = || {
        let mut sim = Sim::with_service(Kind::Tcp);
        sim.link.loss = 50;
        let visitor = sim.visit(sim.public_port()).unwrap();
        sim.say(visitor, &pattern(300_000));
        sim.visitor(visitor).fin_to_send = true;
        sim.run_until("the echo", |sim| sim.relay.sockets[&visitor].is_over());
        sim.run(Duration::from_secs(100));
        (
            sim.now - sim.start,
            sim.sent,
            sim.lost,
            format!("{:?}{:?}", sim.agent.events, sim.relay.events),
        )
    };
    assert_eq!(run(), run());
}
