//! What operators are told adds up, and readiness follows the tunnel.

use std::time::{Duration, Instant};

use portal_core::{Access, AgentStatus, Kind, RelayStatus, Service, Status};
use portal_sim::{DOMAIN, World, agent_config, agent_key, pattern, relay_config, relay_key, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

fn relay(world: &World) -> RelayStatus {
    world.relays[0].machine.status(world.now)
}

fn agent(world: &World) -> AgentStatus {
    world.agents[0].machine.status(world.now)
}

#[test]
fn what_live_and_ended_connections_carried_adds_up_on_both_ends() {
    let services = vec![service(Kind::Tcp, 3000), service(Kind::Http, 3001)];
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
    world.run_until("the leases", |world| world.agents[0].machine.not_ready().is_none());
    let port: u16 = relay(&world)
        .leases
        .iter()
        .find_map(|lease| lease.public.strip_prefix("tcp://tunnel.test:")?.parse().ok())
        .expect("a port");

    let ended = world.visit(port).unwrap();
    world.say(ended, &pattern(100_000));
    world.visitor(ended).fin_to_send = true;
    world.run_until("the end", |world| world.relays[0].sockets[&ended].is_over());
    let live = world.visit(port).unwrap();
    world.say(live, &pattern(5000));
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&live].received.len() == 5000
    });
    let lost = world.visit(80).unwrap();
    world.say(lost, b"GET / HTTP/1.1\r\nHost: nobody.tunnel.test\r\n\r\n");
    world.run(Duration::from_secs(3));

    let status = relay(&world);
    assert_eq!(
        (status.key, status.domain.as_str()),
        (relay_key(0).public_key(), DOMAIN)
    );
    assert_eq!(status.not_ready, None);
    assert_eq!(status.uptime_s, (world.now - world.start).as_secs());
    let [seen] = &status.agents[..] else {
        panic!("{status:?}")
    };
    assert_eq!((seen.key, seen.name.as_str()), (agent_key(0).public_key(), "agent 0"));
    assert_eq!((seen.leases, seen.up_s), (2, Some(status.uptime_s)));
    assert!(seen.heard_s <= 10 && seen.remote.is_some());
    let of = |kind: Kind| status.leases.iter().find(|lease| lease.kind == kind).unwrap();
    let tcp = of(Kind::Tcp).visitors;
    assert_eq!((tcp.now, tcp.total, tcp.received, tcp.sent), (1, 2, 105_000, 105_000));
    assert_eq!(of(Kind::Http).visitors.total, 0);
    assert_eq!(status.visitors.received, 105_000);
    assert_eq!((status.visitors.now, status.visitors.total), (2, 3), "{status:?}");
    assert_eq!(status.refusals.get("drop_unknown_name"), Some(&1));
    assert_eq!(status.memory.used, world.relays[0].machine.memory_used() as u64);
    assert_eq!((status.leases_left_out, status.agents_left_out), (0, 0));

    let status = agent(&world);
    assert_eq!((status.state.as_str(), &status.not_ready), ("serving", &None));
    let tcp = &status.services[0];
    assert_eq!((tcp.id.as_str(), tcp.target.as_str()), ("tcp", "127.0.0.1:3000"));
    assert!(tcp.public.as_ref().unwrap().ends_with(&format!(":{port}")));
    let carried = tcp.connections;
    assert_eq!((carried.now, carried.total), (1, 2), "one of them has ended");
    assert_eq!((carried.received, carried.sent), (105_000, 105_000));
    assert_eq!(status.connections, carried, "the other service had none");
    world.check_invariants();
}

#[test]
fn udp_visitors_and_their_bytes_are_counted() {
    let mut world = World::with_service(origin(), Kind::Udp);
    world.agents[0].behaviour.udp_echo = true;
    let port = world.public_port(0);
    for visitor in [1, 2, 2] {
        let remote = format!("198.51.100.{visitor}:5").parse().unwrap();
        assert!(world.send_datagram(0, port, remote, &[7; 100]));
        world.run(Duration::from_secs(1));
    }
    let (lease, service) = (relay(&world).leases[0].visitors, agent(&world).services[0].connections);
    assert_eq!((lease.now, lease.total, lease.received, lease.sent), (2, 2, 300, 300));
    assert_eq!(service, lease);
    assert_eq!((relay(&world).associations, agent(&world).associations), (2, 2));
    world.run(Duration::from_secs(100));
    let (lease, service) = (relay(&world).leases[0].visitors, agent(&world).services[0].connections);
    assert_eq!((lease.now, service.now), (0, 0), "silence ends them");
    assert_eq!((lease.received, service.received), (300, 300));
}

#[test]
fn readiness_follows_the_tunnel_and_names_why_not() {
    let mut config = relay_config(0);
    config.access = Access::Granted(Vec::new());
    let mut world = World::pair(origin(), config, agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    assert!(agent(&world).not_ready.unwrap().contains("address"));
    assert!(relay(&world).not_ready.unwrap().contains("not open"));
    world.run(Duration::from_secs(2));
    assert_eq!(relay(&world).not_ready, None);
    let refused = agent(&world);
    assert!(refused.not_ready.unwrap().contains("not granted"));
    assert_eq!(
        (refused.state.as_str(), refused.services[0].public.as_ref()),
        ("refused", None)
    );
    world.run(Duration::from_secs(20));
    assert!(agent(&world).state_s >= 20, "asking again is no other state");

    let now = world.now;
    world.relays[0].machine.set_access(now, Access::Open);
    world.run_until("the lease", |world| world.agents[0].machine.not_ready().is_none());
    for _ in 0..400 {
        world.run(Duration::from_millis(100));
        assert_eq!(agent(&world).not_ready, None, "a question on its way is no reason");
    }
    world.impair(0, |link| link.partitioned = true);
    world.run(Duration::from_secs(30));
    let cut = agent(&world);
    assert!(cut.not_ready.is_some(), "{cut:?}");
    world.impair(0, |link| link.partitioned = false);
    world.run_until_within("ready again", Duration::from_secs(20), |world| {
        world.agents[0].machine.not_ready().is_none()
    });

    let now = world.now;
    portal_core::Machine::begin_shutdown(&mut world.relays[0].machine, now);
    world.run(Duration::from_secs(1));
    assert!(relay(&world).not_ready.unwrap().contains("shutting down"));
    assert!(agent(&world).not_ready.is_some());
    assert_eq!(agent(&world).services[0].public, None);
}

#[test]
fn a_service_without_a_lease_is_named_with_its_cause() {
    let wished = Service {
        port: Some(1),
        ..service(Kind::Tcp, 3000)
    };
    let services = vec![service(Kind::Http, 3001), wished];
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
    world.run_until("the refusal", |world| agent(world).services[1].refused.is_some());
    let status = agent(&world);
    let reason = status.not_ready.unwrap();
    assert!(
        reason.contains("tcp") && reason.contains("port 1 is outside"),
        "{reason}"
    );
    assert!(status.services[0].public.is_some() && status.services[1].public.is_none());
}

#[test]
fn it_survives_json_and_what_is_not_listed_is_counted() {
    let mut config = relay_config(0);
    config.leases_per_key = 600;
    let services = (0..520).map(|n| Service {
        id: format!("service {n}"),
        name: None,
        ..service(Kind::Http, 3000)
    });
    let mut world = World::pair(origin(), config, agent_config(0, 0, services.collect()));
    world.run_until_within("the leases", Duration::from_secs(60), |world| {
        world.agents[0].machine.not_ready().is_none()
    });
    let status = relay(&world);
    assert_eq!((status.leases.len(), status.leases_left_out), (500, 20));
    assert_eq!((status.agents.len(), status.agents[0].leases), (1, 520));
    let of_agent = agent(&world);
    assert_eq!((of_agent.services.len(), of_agent.services_left_out), (500, 20));
    for status in [Status::Relay(status), Status::Agent(of_agent)] {
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        assert!(text.starts_with("{\"role\":\""), "{}", &text[..40]);
    }
}
