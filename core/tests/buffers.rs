//! Buffers follow need: idle visitors hold next to nothing, a lone transfer gets a large window and gives it back, and
//! near the end of the memory new visitors get little, then nothing, while what runs goes on.

use std::time::{Duration, Instant};

use portal_core::{AgentConfig, Kind, RelayConfig, RelayEvent};
use portal_sim::{TargetScript, World, agent_config, pattern, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

/// Longer than a flow waits before it gives its buffers back.
const SILENCE: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

fn world(change: impl FnOnce(&mut RelayConfig, &mut AgentConfig)) -> World {
    let (mut relay, mut agent) = (relay_config(0), agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    relay.visitors_per_source = 100_000;
    relay.visitors_per_lease = 100_000;
    change(&mut relay, &mut agent);
    let mut world = World::new(origin(), 1);
    world.add_relay(relay);
    world.add_agent(agent, 0);
    world.run_until("the lease", |world| world.public(0).is_some());
    world
}

/// Bytes charged at the relay and at the agent.
fn used(world: &World) -> (u64, u64) {
    (
        world.relays[0].machine.memory_used() as u64,
        world.agents[0].machine.memory_used() as u64,
    )
}

#[test]
fn a_lone_transfer_gets_a_window_of_several_mib_and_gives_it_back() {
    let mut world = world(|_, _| {});
    world.agents[0].behaviour.targets = TargetScript::Model { most: 0 };
    world.impair(0, |link| link.latency = Duration::from_millis(50));
    let visitor = world.settled_visitor();
    let before = used(&world);
    world.upload(visitor, 64 * MIB);
    let took = world.upload(visitor, 64 * MIB);
    let busy = used(&world);
    // The relay holds what it sends, the agent the window; neither more than it needs for the other direction.
    for (busy, before) in [(busy.0, before.0), (busy.1, before.1)] {
        let more = busy - before;
        assert!((5 * MIB..7 * MIB).contains(&more), "{more} bytes more");
    }
    let rate = 64 * MIB * 1000 / u64::try_from(took.as_millis()).unwrap();
    assert!(rate > 55_000_000, "{rate} bytes/s over a round trip of 100 ms");
    world.run(SILENCE);
    let idle = used(&world);
    assert!(idle.0 < before.0 && idle.1 < before.1, "{idle:?} after {before:?}");
    // And again, after the silence.
    world.upload(visitor, MIB);
    world.check_invariants();
}

#[test]
fn a_transfer_that_slows_down_gives_back_what_it_does_not_need() {
    let mut world = world(|_, _| {});
    world.agents[0].behaviour.targets = TargetScript::Model { most: 0 };
    let visitor = world.settled_visitor();
    world.upload(visitor, 64 * MIB);
    let busy = used(&world);
    for _ in 0..100 {
        world.upload(visitor, 1000);
        world.run(Duration::from_millis(200));
    }
    let slow = used(&world);
    assert!(
        busy.0 - slow.0 > MIB && busy.1 - slow.1 > MIB,
        "{busy:?}, then {slow:?}"
    );
    world.upload(visitor, 16 * MIB);
    world.check_invariants();
}

#[test]
fn talk_in_both_directions_gets_large_buffers_too() {
    let mut world = world(|_, _| {});
    let visitor = world.visit(world.public_port(0)).expect("accepted");
    let bytes = pattern(32 << 20);
    let start = world.now;
    world.say(visitor, &bytes);
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&visitor].received.len() == bytes.len()
    });
    assert!(world.visitor(visitor).received == bytes);
    let took = world.now - start;
    assert!(took < Duration::from_secs(4), "{took:?} at a round trip of 20 ms");
    world.run(SILENCE);
    world.check_invariants();
}

#[test]
fn thousands_of_idle_visitors_are_charged_little_and_all_answer() {
    const VISITORS: u64 = 5000;
    let mut world = world(|_, _| {});
    let port = world.public_port(0);
    let before = used(&world);
    let mut visitors = Vec::new();
    for number in 0..VISITORS {
        let visitor = world.visit(port).expect("accepted");
        world.say(visitor, b"GET / HTTP/1.1\r\n\r\n");
        visitors.push(visitor);
        if number % 200 == 0 {
            world.run(Duration::from_secs(1));
        }
    }
    world.run(SILENCE);
    let idle = used(&world);
    for (idle, before) in [(idle.0, before.0), (idle.1, before.1)] {
        let each = (idle - before) / VISITORS;
        // 4 KiB of it are for the kernel's socket.
        assert!(each < 6144, "{each} bytes for an idle visitor");
    }
    // Long enough that each side has asked whether the other is there.
    world.run(Duration::from_secs(400));
    assert_eq!(used(&world), idle);
    for &visitor in &visitors {
        world.say(visitor, b"still here?");
    }
    world.run_until("all answers", |world| {
        let answered = |visitor| world.relays[0].sockets[visitor].received.ends_with(b"still here?");
        visitors.iter().all(answered)
    });
    world.run(SILENCE);
    assert_eq!(used(&world), idle);
    world.check_invariants();
}

#[test]
fn near_the_end_of_memory_visitors_get_little_then_nothing_and_transfers_go_on() {
    let limit = 8 * MIB;
    let mut world = world(|relay, _| relay.limits.memory = usize::try_from(limit).unwrap());
    world.agents[0].behaviour.targets = TargetScript::Model { most: 0 };
    let port = world.public_port(0);
    let transfer = world.settled_visitor();
    world.upload(transfer, MIB);
    let target = {
        let side = world.visitor(transfer).side.expect("modelled");
        world
            .ledger
            .get(side)
            .and_then(|side| side.peer)
            .expect("it has reached its target")
    };
    let arrived = |world: &World| world.ledger.get(target).expect("it is not forgotten").received;
    let goal = arrived(&world) + 32 * MIB;
    world.visitor(transfer).left_to_send = 32 * MIB;
    let mut costs = Vec::new();
    for _ in 0..50 {
        let before = used(&world).0;
        for _ in 0..40 {
            world.visit(port);
            assert!(used(&world).0 <= limit);
        }
        world.run(Duration::from_millis(40));
        costs.push(used(&world).0.saturating_sub(before) / 40);
    }
    world.check_invariants();
    let counters = world.relays[0].machine.counters();
    assert!(
        counters.refused_memory > 0 && counters.flows_opened > 150,
        "{counters:?}"
    );
    assert!(*costs.iter().max().unwrap() > 32 << 10, "the first get larger buffers");
    assert!(
        costs.iter().any(|&cost| cost > 0 && cost < 12 << 10),
        "later ones small ones"
    );
    world.run_until("the transfer", |world| arrived(world) >= goal);
    let events = world.relay_events().iter();
    let told = events.filter(|event| matches!(event, RelayEvent::MemoryShort { .. }));
    assert_eq!(told.count(), 1, "said at once, and not again within a minute");
    // The others have fallen silent: there is room again.
    world.run(SILENCE);
    assert!(world.visit(port).is_some());
    world.check_invariants();
}

#[test]
fn all_wake_at_once_in_too_little_memory_and_all_are_answered() {
    let limit = 12 * MIB;
    let mut world = world(|relay, _| relay.limits.memory = usize::try_from(limit).unwrap());
    let port = world.public_port(0);
    let mut visitors = Vec::new();
    for number in 0..1500 {
        visitors.push(world.visit(port).expect("accepted"));
        if number % 50 == 49 {
            world.run(Duration::from_secs(4));
        }
    }
    world.run(SILENCE);
    for &visitor in &visitors {
        world.say(visitor, b"all of us at once");
        assert!(used(&world).0 <= limit);
    }
    world.run_until("all answers", |world| {
        let answered = |visitor| {
            world.relays[0].sockets[visitor]
                .received
                .ends_with(b"all of us at once")
        };
        visitors.iter().all(answered)
    });
    assert!(world.relays[0].machine.counters().wakes_delayed > 0);
    world.check_invariants();
}
