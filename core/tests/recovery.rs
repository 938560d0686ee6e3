//! Relay and agent find each other again: restarts, cuts, moves, grants, and time.

use std::time::{Duration, Instant};

use portal_core::{Access, AgentEvent, Grant, Kind, Machine, RelayEvent, StreamId, Transport};
use portal_sim::{HostId, Loss, Memory, World, agent_config, agent_key, pattern, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

fn grants(world: &World) -> usize {
    world.agents[0]
        .events
        .iter()
        .filter(|event| matches!(event, AgentEvent::Granted { .. }))
        .count()
}

/// One visitor asks, and gets its own bytes back.
#[track_caller]
fn assert_served(world: &mut World, within: Duration) {
    let port = world.public_port(0);
    let visitor = world.visit(port).expect("accepted");
    world.say(visitor, b"still there?");
    world.visitor(visitor).fin_to_send = true;
    world.run_until_within("an answer", within, |world| world.relays[0].sockets[&visitor].is_over());
    let socket = world.visitor(visitor);
    assert_eq!(
        (socket.received.as_slice(), socket.reset),
        (&b"still there?"[..], false)
    );
}

#[test]
fn an_agent_killed_and_started_again_takes_over_at_once() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let before = world.public(0);
    let orphan = world.visit(world.public_port(0)).unwrap();
    world.say(orphan, b"to the first process");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    world.restart_agent(0);
    world.run_until_within("the lease", Duration::from_secs(2), |world| grants(world) == 1);
    assert_eq!(world.public(0), before);
    world.run_until_within("the orphan's end", Duration::from_secs(1), |world| {
        world.relays[0].sockets[&orphan].reset
    });
    assert_served(&mut world, Duration::from_secs(1));
}

#[test]
fn a_relay_killed_and_started_again_calls_the_agents_it_knew() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let before = world.public(0);
    world.run(Duration::from_secs(5));
    world.restart_relay(0, Memory::Kept);
    world.run_until_within("the lease", Duration::from_secs(2), |world| grants(world) == 2);
    assert_eq!(world.public(0), before);
    assert_served(&mut world, Duration::from_secs(1));
}

#[test]
fn a_relay_that_forgot_everything_is_found_by_asking() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let before = world.public(0);
    world.restart_relay(0, Memory::Lost);
    world.run_until_within("the lease", Duration::from_secs(30), |world| grants(world) == 2);
    assert_eq!(world.public(0), before);
    assert_served(&mut world, Duration::from_secs(1));
}

#[test]
fn an_agent_waits_for_an_absent_relay_and_says_so() {
    let mut world = World::pair(
        origin(),
        relay_config(0),
        agent_config(0, 0, vec![service(Kind::Tcp, 3000)]),
    );
    world.relays[0].on = false;
    world.run(Duration::from_secs(300));
    let silent = world.agents[0]
        .events
        .iter()
        .filter(|event| matches!(event, AgentEvent::RelaySilent { .. }))
        .count();
    assert!((5..=40).contains(&silent), "told {silent} times in five minutes");
    world.relays[0].on = true;
    world.run_until_within("the lease", Duration::from_secs(7), |world| grants(world) == 1);
    assert_served(&mut world, Duration::from_secs(1));
}

#[test]
fn connections_over_a_relay_that_stays_away_end() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"hello");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    world.relays[0].on = false;
    world.run(Duration::from_secs(60));
    assert!(
        world.agents[0].sockets.values().all(|socket| !socket.is_over()),
        "a minute is survived"
    );
    world.run(Duration::from_secs(600));
    assert!(
        world.agents[0].sockets.values().all(|socket| socket.is_over()),
        "ten minutes are not"
    );
    assert_eq!(world.agents[0].machine.connection_count(), 0);
}

#[test]
fn a_cut_of_a_minute_loses_no_idle_connection() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"before");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&visitor].received == b"before"
    });
    world.impair(0, |link| link.partitioned = true);
    world.run(Duration::from_secs(60));
    world.impair(0, |link| link.partitioned = false);
    world.run(Duration::from_secs(15));
    world.say(visitor, b" and after");
    world.run_until_within("the echo", Duration::from_secs(10), |world| {
        world.relays[0].sockets[&visitor].received == b"before and after"
    });
    assert!(!world.visitor(visitor).is_over());
}

/// Visitors knock from the moment the network is back, as people do.
#[track_caller]
fn assert_served_after_a_cut(cut: Duration, within: Duration) {
    // Whatever the timers stood at when the network went: an idle agent asks every 25 seconds.
    for phase in 0..20 {
        let mut world = World::with_service(origin(), Kind::Tcp);
        let before = world.public(0);
        world.run(Duration::from_millis(5_000 + 1_290 * phase));
        world.impair(0, |link| link.partitioned = true);
        world.run(cut);
        world.impair(0, |link| link.partitioned = false);
        let back = world.now;
        let mut answered = false;
        while !answered && world.now < back + within {
            let visitor = world.relays[0]
                .listener(public_port(before.as_deref()), Transport::Tcp)
                .and_then(|_| world.visit(public_port(before.as_deref())));
            if let Some(visitor) = visitor {
                world.say(visitor, b"anybody?");
            }
            world.run(Duration::from_millis(100));
            answered = world.relays[0]
                .sockets
                .values()
                .any(|socket| socket.received == b"anybody?");
        }
        assert!(answered, "not served {within:?} after a cut of {cut:?} (phase {phase})");
        assert_eq!(world.public(0), before);
    }
}

fn public_port(public: Option<&str>) -> u16 {
    let port = public.and_then(|public| public.rsplit(':').next());
    port.and_then(|port| port.parse().ok()).expect("a port")
}

#[test]
fn after_a_cut_of_up_to_a_minute_visitors_are_served_within_three_seconds() {
    for cut in [5, 15, 25, 40, 60] {
        assert_served_after_a_cut(Duration::from_secs(cut), Duration::from_secs(3));
    }
}

#[test]
fn after_a_cut_of_ten_minutes_visitors_are_served_within_ten_seconds() {
    assert_served_after_a_cut(Duration::from_secs(600), Duration::from_secs(10));
}

#[test]
fn an_agent_without_visitors_for_ten_minutes_answers_the_first_at_once() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.run(Duration::from_secs(600));
    // Three round trips of 20 ms: TCP inside the tunnel, the bytes, the end.
    assert_served(&mut world, Duration::from_millis(100));
    assert_eq!(grants(&world), 1, "it never lost its lease");
}

#[test]
fn an_idle_agent_keeps_its_lease_with_a_question_and_an_answer_in_25_seconds() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.run(Duration::from_secs(60));
    let (slept, handshakes, packets) = idle_figures(&world);
    world.run(Duration::from_secs(600));
    let (slept_later, handshakes_later, packets_later) = idle_figures(&world);
    assert_eq!(slept_later, slept, "no question wakes the control channel");
    // A question, its answer, and WireGuard's own word 10 s later that the answer has come.
    let of_handshakes = 4 * (handshakes_later - handshakes);
    assert!(
        packets_later - packets <= 3 * 600 / 25 + of_handshakes,
        "{packets} packets before, {packets_later} after, {of_handshakes} may be of handshakes"
    );
    assert_eq!(grants(&world), 1, "it never lost its lease");
}

/// Of the relay: flows that fell asleep, handshakes, and datagrams both ways.
fn idle_figures(world: &World) -> (u64, u64, u64) {
    let counters = world.relays[0].machine.counters();
    let datagrams = counters.datagrams_received + counters.datagrams_sent;
    (counters.flows_slept, counters.handshakes, datagrams)
}

#[test]
fn a_path_that_loses_a_third_costs_no_lease() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.impair(0, |link| link.loss = Loss::Random(330_000));
    world.run(Duration::from_secs(1200));
    assert_eq!(grants(&world), 1);
    world.impair(0, |link| link.loss = Loss::Random(0));
    assert_served(&mut world, Duration::from_secs(1));
}

#[test]
fn an_agent_that_moves_loses_no_running_transfer() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.impair(0, |link| link.rate = 5_000_000);
    let visitor = world.visit(world.public_port(0)).unwrap();
    let bytes = pattern(8 << 20);
    world.say(visitor, &bytes);
    world.visitor(visitor).fin_to_send = true;
    world.run(Duration::from_secs(1));
    assert!(!world.visitor(visitor).is_over());
    world.rebind(0, "198.51.100.77:9".parse().unwrap());
    world.run_until("the echo", |world| world.relays[0].sockets[&visitor].is_over());
    assert!(world.visitor(visitor).received == bytes);
    assert!(world.relay_events().iter().any(|event| {
        matches!(event, RelayEvent::AgentAt { remote, .. } if remote.to_string() == "198.51.100.77:9")
    }));
}

#[test]
fn a_key_without_a_grant_is_refused_by_name_and_served_once_granted() {
    let mut config = relay_config(0);
    config.access = Access::Granted(Vec::new());
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    world.run(Duration::from_secs(20));
    let agent_key = agent_key(0).public_key();
    let refusals: Vec<_> = world.agents[0]
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
        world
            .relay_events()
            .iter()
            .any(|event| matches!(event, RelayEvent::NotGranted { key, .. } if *key == agent_key))
    );
    assert_eq!(grants(&world), 0);

    world.relays[0]
        .machine
        .set_access(world.now, Access::Granted(vec![Grant::all(agent_key)]));
    world.run_until_within("the lease", Duration::from_secs(5), |world| grants(world) == 1);
    assert_served(&mut world, Duration::from_secs(1));

    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"running");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&visitor].received == b"running"
    });
    world.relays[0]
        .machine
        .set_access(world.now, Access::Granted(Vec::new()));
    world.run_until_within("the end", Duration::from_secs(1), |world| {
        world.relays[0].sockets[&visitor].reset
    });
    assert_eq!(world.relays[0].machine.census().leases, 0);
    assert_eq!(world.relays[0].machine.census().agents, 0);
}

#[test]
fn a_narrowed_grant_ends_the_leases_that_it_does_not_cover() {
    let mut config = relay_config(0);
    config.access = Access::Granted(vec![Grant::all(agent_key(0).public_key())]);
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    world.run_until("the lease", |world| grants(world) == 1);
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"running");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&visitor].received == b"running"
    });
    let narrow = Grant {
        kinds: vec![Kind::Http],
        ..Grant::all(agent_key(0).public_key())
    };
    world.relays[0]
        .machine
        .set_access(world.now, Access::Granted(vec![narrow]));
    world.run_until_within("the refusal", Duration::from_secs(5), |world| {
        world.agents[0]
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::Refused { .. }))
    });
    assert!(world.relays[0].sockets[&visitor].reset);
    assert_eq!(
        (
            world.relays[0].machine.census().leases,
            world.relays[0].machine.census().agents
        ),
        (0, 1)
    );
}

#[test]
fn half_an_hour_of_requests_crosses_ten_rekeys() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    for second in 0..1800 {
        assert_served(&mut world, Duration::from_millis(500));
        let next = world.start + Duration::from_secs(second + 1);
        while world.step(next) {}
    }
    let handshakes = world.relays[0].machine.counters().handshakes;
    assert!(handshakes >= 10, "only {handshakes} handshakes");
    assert_eq!(
        world.relays[0].machine.counters().flows_opened - world.relays[0].machine.counters().flows_closed,
        1
    );
}

#[test]
fn a_suspend_of_two_hours_is_survived() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let before = world.public(0);
    world.run(Duration::from_secs(30));
    // Both clocks jump; nobody was polled meanwhile.
    world.jump(Duration::from_secs(7200));
    world.run(Duration::from_secs(20));
    let awake = world.now;
    for second in 0..1800 {
        assert_served(&mut world, Duration::from_millis(500));
        let next = awake + Duration::from_secs(second + 1);
        while world.step(next) {}
    }
    assert_eq!(world.public(0), before);
    let handshakes = world.relays[0].machine.counters().handshakes;
    assert!(handshakes >= 10, "only {handshakes} handshakes");
}

#[test]
fn both_ends_say_goodbye() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    world.agents[0].machine.begin_shutdown(world.now);
    world.run(Duration::from_secs(1));
    assert!(world.agents[0].machine.is_finished());
    assert_eq!(
        world.relays[0].machine.census().leases,
        0,
        "leases end with a goodbye, not only with their time"
    );

    let mut world = World::with_service(origin(), Kind::Tcp);
    world.relays[0].machine.begin_shutdown(world.now);
    world.run(Duration::from_millis(200));
    assert!(world.relays[0].machine.is_finished());
    assert!(world.relays[0].listeners.is_empty());
    assert!(
        world.agents[0]
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::RelayDown { .. }))
    );
}

/// A connection whose two ends were said, the agent's into a cable that is cut: where the end of the answer was lost.
fn end_in_a_cut(world: &mut World) -> StreamId {
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"all");
    world.run_until("the echo", |world| world.relays[0].sockets[&visitor].received == b"all");
    let target = *world.agents[0].sockets.keys().next().unwrap();
    let socket = world.socket(HostId::Agent(0), target);
    (socket.echo, socket.fin_answers_fin) = (false, false);
    world.visitor(visitor).fin_to_send = true;
    world.run_until("the visitor's end at the target", |world| {
        world.agents[0].sockets.values().any(|socket| socket.fin_received)
    });
    world.socket(HostId::Agent(0), target).fin_to_send = true;
    world.impair(0, |link| link.partitioned = true);
    world.run_until("the end of the connection at the agent", |world| {
        world.agents[0].machine.connection_count() == 0
    });
    visitor
}

#[test]
fn an_agent_that_ends_brings_over_what_was_lost_on_the_way() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let visitor = end_in_a_cut(&mut world);
    world.agents[0].machine.begin_shutdown(world.now);
    world.run(Duration::from_millis(500));
    assert!(!world.relays[0].sockets[&visitor].fin_received, "the cable is cut");
    assert!(!world.agents[0].machine.is_finished());
    world.impair(0, |link| link.partitioned = false);
    world.run_until("the agent's end", |world| world.agents[0].machine.is_finished());
    assert!(world.relays[0].sockets[&visitor].fin_received);
    assert_eq!(world.relays[0].machine.census().leases, 0);
}

#[test]
fn an_agent_that_ends_does_not_wait_for_a_relay_that_is_gone() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    end_in_a_cut(&mut world);
    world.agents[0].machine.begin_shutdown(world.now);
    world.run(Duration::from_secs(3));
    assert!(world.agents[0].machine.is_finished());
}

#[test]
fn an_agent_that_ends_lets_nobody_new_in() {
    let mut world = World::with_service(origin(), Kind::Tcp);
    let before = world.visit(world.public_port(0)).unwrap();
    world.say(before, b"before");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&before].received == b"before"
    });
    // On its way while the goodbye is.
    let late = world.visit(world.public_port(0)).unwrap();
    world.say(late, b"late");
    world.agents[0].machine.begin_shutdown(world.now);
    world.run_until("the reset", |world| world.relays[0].sockets[&late].reset);
    assert_eq!(world.agents[0].dials.len(), 1);
    world.say(before, b" and after");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&before].received == b"before and after"
    });
    world.visitor(before).fin_to_send = true;
    world.run_until("the end", |world| world.agents[0].machine.is_finished());
    world.check_invariants();
}

#[test]
fn equal_seeds_and_inputs_give_equal_runs() {
    let run = || {
        let mut world = World::with_service(origin(), Kind::Tcp);
        world.impair(0, |link| link.loss = Loss::Random(20_000));
        let visitor = world.visit(world.public_port(0)).unwrap();
        world.say(visitor, &pattern(300_000));
        world.visitor(visitor).fin_to_send = true;
        world.run_until("the echo", |world| world.relays[0].sockets[&visitor].is_over());
        world.run(Duration::from_secs(100));
        (
            world.now - world.start,
            world.trace.hash(),
            world.trace.count(),
            world.lost(0),
            format!("{:?}{:?}", world.agents[0].events, world.relays[0].events),
        )
    };
    assert_eq!(run(), run());
}
