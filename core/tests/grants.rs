//! What a grant bounds: the connections of a key, and its bytes a second.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use portal_core::{Access, Counters, Grant, Kind, StreamId};
use portal_sim::{HostId, TargetScript, World, agent_config, agent_key, pattern, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

/// The grant of agent number `agent`; zeroes stand for no bound.
fn grant(agent: usize, flows: u32, rate: u64) -> Grant {
    Grant {
        flows: NonZeroU32::new(flows),
        rate: NonZeroU64::new(rate),
        ..Grant::all(agent_key(agent).public_key())
    }
}

/// A relay and as many agents as there are grants, each with one service of this kind, their leases granted.
fn world(kind: Kind, grants: Vec<Grant>) -> World {
    let mut world = World::new(origin(), 1);
    let agents = grants.len();
    let mut config = relay_config(0);
    config.access = Access::Granted(grants);
    world.add_relay(config);
    for agent in 0..agents {
        let services = vec![service(kind, 3000)];
        world.add_agent(agent_config(agent, 0, services), 0);
    }
    world.run_until("the leases", |world| {
        world.agents.iter().all(|agent| agent.machine.not_ready().is_none())
    });
    world
}

fn counters(world: &World) -> &Counters {
    world.relays[0].machine.counters()
}

fn change(world: &mut World, grants: Vec<Grant>) {
    let now = world.now;
    world.relays[0].machine.set_access(now, Access::Granted(grants));
}

/// A visitor of an agent who sends so much, and a FIN behind it.
fn send(world: &mut World, agent: usize, bytes: usize) -> StreamId {
    let visitor = world.visit(world.public_port(agent)).expect("accepted");
    world.say(visitor, &pattern(bytes));
    world.visitor(visitor).fin_to_send = true;
    visitor
}

/// Runs until a visitor's connection is over, and says how long it took.
#[track_caller]
fn end_of(world: &mut World, visitor: StreamId) -> f64 {
    let start = world.now;
    world.run_until_within("the end", Duration::from_secs(3600), |world| {
        world.relays[0].sockets[&visitor].is_over()
    });
    assert!(!world.visitor(visitor).reset);
    (world.now - start).as_secs_f64()
}

#[track_caller]
fn assert_near(value: f64, expected: f64) {
    assert!(
        (value / expected - 1.0).abs() < 0.1,
        "{value:.3} is not within a tenth of {expected:.3}"
    );
}

#[test]
fn a_transfer_takes_as_long_as_its_rate_says_both_ways_together() {
    for (rate, bytes) in [(20_000, 100_000), (200_000, 1_000_000), (5_000_000, 32 << 20)] {
        let mut world = world(Kind::Tcp, vec![grant(0, 0, rate)]);
        // What is sent comes back, so it counts twice.
        let visitor = send(&mut world, 0, bytes);
        let took = end_of(&mut world, visitor);
        assert_near(took, 2.0 * bytes as f64 / rate as f64);
        assert!(
            world.visitor(visitor).received == pattern(bytes),
            "bytes differ at {rate}"
        );
        world.check_invariants();
    }
}

#[test]
fn a_rate_holds_over_a_lossy_link_too() {
    let mut world = world(Kind::Tcp, vec![grant(0, 0, 100_000)]);
    world.impair(0, |link| link.loss = portal_sim::Loss::Random(20_000));
    let visitor = send(&mut world, 0, 1_000_000);
    assert_near(end_of(&mut world, visitor), 20.0);
    assert!(world.visitor(visitor).received == pattern(1_000_000));
}

#[test]
fn connections_of_a_key_share_its_rate_and_other_keys_have_their_own() {
    let mut world = world(Kind::Tcp, vec![grant(0, 0, 100_000), grant(1, 0, 0)]);
    for agent in &mut world.agents {
        agent.behaviour.targets = TargetScript::Keep;
    }
    let sharing: Vec<_> = (0..4).map(|_| send(&mut world, 0, 500_000)).collect();
    let start = world.now;
    let other = send(&mut world, 1, 4_000_000);
    world.run_until_within("the other key's", Duration::from_secs(3), |world| {
        world.relays[0].sockets[&other].to_send.is_empty()
    });
    world.run(Duration::from_secs(10) - (world.now - start));
    let moved = |world: &World, id: &StreamId| 500_000.0 - world.relays[0].sockets[id].to_send.len() as f64;
    for id in &sharing {
        assert_near(moved(&world, id), 250_000.0);
    }
    world.run_until_within("the rest", Duration::from_secs(12), |world| {
        sharing.iter().all(|id| world.relays[0].sockets[id].to_send.is_empty())
    });
    assert_near((world.now - start).as_secs_f64(), 20.0);
    world.check_invariants();
}

#[test]
fn a_download_leaves_the_upload_beside_it_its_half() {
    let mut world = world(Kind::Tcp, vec![grant(0, 0, 100_000)]);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"x");
    world.run_until("the dial", |world| !world.agents[0].sockets.is_empty());
    let target = world.agents[0].dials[0].0;
    world.agents[0].socket(target).to_send.extend(pattern(2_000_000));
    world.say(visitor, &pattern(2_000_000));
    world.run(Duration::from_secs(10));
    assert_near(world.visitor(visitor).received.len() as f64, 500_000.0);
    assert_near(2_000_000.0 - world.visitor(visitor).to_send.len() as f64, 500_000.0);
}

#[test]
fn a_changed_grant_acts_on_connections_that_are_open() {
    let mut world = world(Kind::Tcp, vec![grant(0, 0, 0)]);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.say(visitor, b"x");
    world.run(Duration::from_secs(1));
    let left = |world: &World| world.relays[0].sockets[&visitor].to_send.len() as f64;

    change(&mut world, vec![grant(0, 0, 10_000)]);
    world.say(visitor, &pattern(4_000_000));
    world.run(Duration::from_secs(10));
    assert_near(4_000_000.0 - left(&world), 110_000.0);
    change(&mut world, vec![grant(0, 0, 100_000)]);
    let before = left(&world);
    world.run(Duration::from_secs(10));
    assert_near(before - left(&world), 1_000_000.0);
    change(&mut world, vec![grant(0, 0, 0)]);
    world.run_until_within("the rest", Duration::from_secs(3), |world| left(world) == 0.0);
    world.check_invariants();
    change(&mut world, vec![grant(0, 0, 1000)]);
    world.say(visitor, &pattern(100_000));
    world.run(Duration::from_secs(1));
    change(&mut world, Vec::new());
    world.run(Duration::from_secs(1));
    assert!(world.visitor(visitor).reset, "without a grant it ends at once");
    world.check_invariants();
}

#[test]
fn connections_that_end_while_they_wait_leave_nothing_behind() {
    let mut world = world(Kind::Tcp, vec![grant(0, 0, 2000)]);
    let visitors: Vec<_> = (0..50).map(|_| send(&mut world, 0, 50_000)).collect();
    world.run(Duration::from_secs(2));
    world.check_invariants();
    for id in visitors {
        world.abort(HostId::Relay(0), id);
        world.check_invariants();
    }
    world.run(Duration::from_secs(130));
    let fresh = send(&mut world, 0, 10_000);
    assert!(end_of(&mut world, fresh) < 11.0);
    world.check_invariants();
}

#[test]
fn heads_are_paid_for_and_small_connections_do_not_slip_through() {
    let mut world = world(Kind::Http, vec![grant(0, 0, 10_000)]);
    let start = world.now;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: web.tunnel.test\r\nX: {}\r\n\r\n",
        "y".repeat(4000)
    );
    for _ in 0..50 {
        let visitor = world.visit(80).unwrap();
        world.say(visitor, request.as_bytes());
        world.visitor(visitor).fin_to_send = true;
        end_of(&mut world, visitor);
        assert_eq!(world.visitor(visitor).received, request.as_bytes());
    }
    // Each goes both ways.
    assert_near(
        (world.now - start).as_secs_f64(),
        50.0 * 2.0 * request.len() as f64 / 10_000.0,
    );
}

#[test]
fn datagrams_over_the_rate_are_dropped_and_counted() {
    let mut world = world(Kind::Udp, vec![grant(0, 0, 50_000), grant(1, 0, 0)]);
    for agent in &mut world.agents {
        agent.behaviour.udp_echo = true;
    }
    let (port, other) = (world.public_port(0), world.public_port(1));
    let visitor = "198.51.100.7:5".parse().unwrap();
    let flood = |world: &mut World, port| {
        let before = world.relays[0].datagrams.len();
        for _ in 0..1000 {
            assert!(world.send_datagram(0, port, visitor, &[7; 1000]));
            world.run(Duration::from_millis(10));
        }
        // The last ones are still on their way.
        world.run(Duration::from_secs(1));
        world.relays[0].datagrams.len() - before
    };
    // 100 kB/s are sent and come back. Of both together half as much may pass, so a quarter comes back at most.
    let back = flood(&mut world, port);
    let dropped = counters(&world).drop_udp_rate;
    assert!((150..=260).contains(&back), "{back} came back");
    assert!((700..=900).contains(&dropped), "{dropped} were dropped");
    assert_eq!(flood(&mut world, other), 1000, "another key");
    assert_eq!(counters(&world).drop_udp_rate, dropped);
}

#[test]
fn neither_datagrams_nor_streams_starve_beside_the_other() {
    let mut world = World::new(origin(), 1);
    let mut config = relay_config(0);
    config.access = Access::Granted(vec![grant(0, 0, 100_000)]);
    world.add_relay(config);
    let services = vec![service(Kind::Tcp, 3000), service(Kind::Udp, 3001)];
    world.add_agent(agent_config(0, 0, services), 0);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    world.run_until("the leases", |world| world.agents[0].machine.not_ready().is_none());
    let port_of = |world: &World, kind: Kind| -> u16 {
        let status = world.relays[0].machine.status(world.now);
        let lease = status.leases.iter().find(|lease| lease.kind == kind).unwrap();
        lease.public.rsplit(':').next().unwrap().parse().unwrap()
    };
    let (tcp, udp) = (port_of(&world, Kind::Tcp), port_of(&world, Kind::Udp));
    let visitor = world.visit(tcp).unwrap();
    world.say(visitor, &pattern(8_000_000));
    let from = "198.51.100.7:5".parse().unwrap();
    world.run(Duration::from_secs(1));
    let before = world.visitor(visitor).to_send.len();
    for _ in 0..1000 {
        world.send_datagram(0, udp, from, &[7; 1000]);
        world.send_datagram(0, udp, from, &[7; 1000]);
        world.run(Duration::from_millis(10));
    }
    let by_stream = before - world.visitor(visitor).to_send.len();
    let passed = 2000 - counters(&world).drop_udp_rate as usize;
    assert!((400..=600).contains(&passed), "{passed} datagrams passed");
    assert!(
        (400_000..=600_000).contains(&by_stream),
        "{by_stream} bytes of the stream"
    );
}

#[test]
fn connections_of_a_key_are_bounded_over_all_its_leases() {
    let mut world = World::new(origin(), 1);
    let mut config = relay_config(0);
    config.access = Access::Granted(vec![grant(0, 2, 0), grant(1, 0, 0)]);
    world.add_relay(config);
    world.add_agent(
        agent_config(0, 0, vec![service(Kind::Tcp, 3000), service(Kind::Http, 3001)]),
        0,
    );
    world.add_agent(agent_config(1, 0, vec![service(Kind::Tcp, 3000)]), 0);
    world.run_until("the leases", |world| {
        world.agents.iter().all(|agent| agent.machine.not_ready().is_none())
    });
    let status = world.relays[0].machine.status(world.now);
    let tcp = status.leases.iter().find(|lease| lease.kind == Kind::Tcp).unwrap();
    let port = tcp.public.rsplit(':').next().unwrap().parse().unwrap();
    let first = world.visit(port).unwrap();
    let second = world.visit(80).unwrap();
    world.say(second, b"GET / HTTP/1.1\r\nHost: web.tunnel.test\r\n\r\n");
    world.run(Duration::from_secs(1));
    assert_eq!(counters(&world).refused_visitor_key, 0);
    for _ in 0..2 {
        let third = world.visit(port).unwrap();
        world.run(Duration::from_secs(1));
        assert!(world.visitor(third).reset);
    }
    assert_eq!(counters(&world).refused_visitor_key, 2);
    assert_eq!(counters(&world).refused_visitor_lease, 0);
    let others: Vec<_> = (0..5).map(|_| world.visit(world.public_port(1)).unwrap()).collect();
    world.run(Duration::from_secs(1));
    assert!(
        others.iter().all(|id| !world.relays[0].sockets[id].reset),
        "another key"
    );
    world.check_invariants();

    world.abort(HostId::Relay(0), first);
    let next = world.visit(port).unwrap();
    world.say(next, b"room again");
    world.run(Duration::from_secs(1));
    assert_eq!(world.visitor(next).received, b"room again");
    change(&mut world, vec![grant(0, 3, 0), grant(1, 0, 0)]);
    let more = world.visit(port).unwrap();
    world.run(Duration::from_millis(10));
    change(&mut world, vec![grant(0, 1, 0), grant(1, 0, 0)]);
    let too_many = world.visit(port).unwrap();
    world.say(more, b"stays");
    world.run(Duration::from_secs(1));
    assert_eq!(world.visitor(more).received, b"stays", "what is open stays");
    assert!(world.visitor(too_many).reset);
    world.check_invariants();
}
