//! What moves much does not make those wait that ask for little, where the path between relay and agent is narrow.

use std::time::{Duration, Instant};

use portal_core::{Kind, StreamId};
use portal_sim::{TargetScript, World, agent_config, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

const MS: Duration = Duration::from_millis(1);
/// A home's line, in bytes a second, and what its modem keeps when more comes: half a second.
const RATE: u64 = 50_000_000 / 8;
const MODEM: usize = RATE as usize / 2;

/// A relay and an agent with a line of this one-way delay between them.
fn world(latency: Duration) -> World {
    let mut world = World::new(origin(), 1);
    world.add_relay(relay_config(0));
    world.add_agent(agent_config(0, 0, vec![service(Kind::Tcp, 3000)]), 0);
    world.agents[0].behaviour.targets = TargetScript::Model { most: 0 };
    world.run_until("the lease", |world| world.public(0).is_some());
    world.impair(0, |link| {
        link.latency = latency;
        link.rate = RATE;
        link.queue = MODEM;
    });
    world
}

/// How long one of a hundred small requests takes to arrive, at the worst but one.
fn small_request(world: &mut World, visitor: StreamId) -> Duration {
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            world.run(50 * MS);
            world.upload(visitor, 500)
        })
        .collect();
    times.sort_unstable();
    times[98]
}

/// Asserts that the p99 of small requests beside bulk is at most three times that without, and that bulk gets its line.
fn is_fair(latency: Duration) {
    let mut world = world(latency);
    let small = world.settled_visitor();
    let alone = small_request(&mut world, small);
    let shortened = |world: &World| world.relays[0].machine.counters().queues_shortened;
    assert_eq!(shortened(&world), 0);
    let bulk = world.settled_visitor();
    world.visitor(bulk).left_to_send = 1 << 32;
    // It comes to speed, and has to find out what the line bears.
    world.run(Duration::from_secs(10));
    let sent = |world: &mut World| (1 << 32) - world.visitor(bulk).left_to_send;
    let (start, before) = (world.now, sent(&mut world));
    let beside = small_request(&mut world, small);
    let rate = (sent(&mut world) - before) as f64 / (world.now - start).as_secs_f64();
    assert!(beside <= 3 * alone, "{beside:?} beside bulk, {alone:?} alone");
    assert!(
        shortened(&world) > 0,
        "whoever asks why it is no faster finds it counted"
    );
    // Headers take a tenth of it.
    assert!(rate >= 0.8 * RATE as f64, "{rate} bytes a second of {RATE}");
    world.check_invariants();
}

#[test]
fn over_a_short_path() {
    is_fair(10 * MS);
}

#[test]
fn over_a_long_path() {
    is_fair(50 * MS);
}
