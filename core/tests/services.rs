//! What an agent offers can change while it runs, and says what its targets are told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::proxy::{self, ProxyHeader};
use portal_core::{AgentEvent, Kind, Service, Target};
use portal_sim::{Memory, TargetScript, VISITOR_ADDR, World, agent_config, relay_config, service};

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

fn named(id: &str, name: &str, port: u16) -> Service {
    Service {
        id: id.into(),
        name: Some(name.into()),
        ..service(Kind::Http, port)
    }
}

/// The public address that a service was last given.
fn public_of(world: &World, id: &str) -> Option<String> {
    let mut events = world.agents[0].events.iter().rev();
    events.find_map(|event| match event {
        AgentEvent::Granted { service, public } if service == id => Some(public.clone()),
        _ => None,
    })
}

fn grants(world: &World) -> usize {
    let granted = |event: &&AgentEvent| matches!(event, AgentEvent::Granted { .. });
    world.agents[0].events.iter().filter(granted).count()
}

/// Which port of the agent's host a new visitor of this name is joined to.
fn target_of(world: &mut World, name: &str) -> Option<u16> {
    let dials = world.agents[0].dials.len();
    let visitor = world.visit(80)?;
    world.say(
        visitor,
        format!("GET / HTTP/1.1\r\nHost: {name}.tunnel.test\r\n\r\n").as_bytes(),
    );
    world.run(Duration::from_secs(1));
    world.agents[0].dials.get(dials).map(|(_, target)| match target {
        Target::Host { port, .. } => *port,
        other => panic!("{other:?}"),
    })
}

#[test]
fn services_come_go_and_move_without_harm_to_those_that_stay() {
    let services = vec![named("a", "a", 1000), named("b", "b", 2000), named("c", "c", 3000)];
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
    world.run_until("three leases", |world| grants(world) == 3);
    let running = world.visit(80).unwrap();
    world.say(running, b"GET / HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n");
    world.run_until("the echo", |world| {
        !world.relays[0].sockets[&running].received.is_empty()
    });

    // a stays and gets another target, b asks for another name, c goes, d comes.
    let services = vec![named("a", "a", 1001), named("b", "beta", 2000), named("d", "d", 4000)];
    world.agents[0].machine.set_services(world.now, services);
    world.run_until("two more leases", |world| grants(world) == 5);
    world.run(Duration::from_secs(1));
    assert_eq!(public_of(&world, "b").as_deref(), Some("http://beta.tunnel.test/"));
    assert_eq!(world.relays[0].machine.census().leases, 3);
    assert_eq!(target_of(&mut world, "a"), Some(1001));
    assert_eq!(target_of(&mut world, "beta"), Some(2000));
    assert_eq!(target_of(&mut world, "d"), Some(4000));
    for gone in ["b", "c"] {
        assert_eq!(target_of(&mut world, gone), None, "{gone} is not served any more");
    }
    world.visitor(running).received.clear();
    world.say(running, b"still here");
    world.run_until("the echo", |world| {
        world.relays[0].sockets[&running].received == b"still here"
    });
}

#[test]
fn a_change_before_the_relay_has_answered_ends_in_one_lease() {
    let mut world = World::pair(
        origin(),
        relay_config(0),
        agent_config(0, 0, vec![named("a", "a", 1000)]),
    );
    // While the first registration is under way, and again while the second is.
    world.run_until("the greeting", |world| world.relays[0].machine.census().agents == 1);
    for name in ["b", "c"] {
        let services = vec![named("a", name, 1000)];
        world.agents[0].machine.set_services(world.now, services);
        world.run(Duration::from_millis(1));
    }
    world.run(Duration::from_secs(2));
    assert_eq!(public_of(&world, "a").as_deref(), Some("http://c.tunnel.test/"));
    assert_eq!(
        world.relays[0].machine.census().leases,
        1,
        "what was overtaken is given back"
    );
    assert_eq!(target_of(&mut world, "c"), Some(1000));
}

#[test]
fn answers_that_overtake_each_other_end_in_the_lease_that_is_wished_for() {
    // The relay has to open a port for the one kind, and not for the other.
    let (by_port, by_name) = (with_id("a", Kind::Tcp, 1000), named("a", "a", 2000));
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, Vec::new()));
    world.run(Duration::from_secs(1));
    for service in [by_port, by_name] {
        world.set_services(0, vec![service]);
    }
    world.run(Duration::from_secs(2));
    assert_eq!(public_of(&world, "a").as_deref(), Some("http://a.tunnel.test/"));
    assert_eq!(world.relays[0].machine.census().leases, 1);
    assert_eq!(target_of(&mut world, "a"), Some(2000));
}

#[test]
fn a_lease_for_an_earlier_wish_is_given_back_though_the_later_one_is_refused() {
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, Vec::new()));
    world.add_agent(agent_config(1, 0, vec![named("other", "taken", 3000)]), 0);
    world.run(Duration::from_secs(1));
    for name in ["free", "taken"] {
        world.set_services(0, vec![named("a", name, 1000)]);
    }
    world.run(Duration::from_secs(2));
    let refused = |event: &AgentEvent| matches!(event, AgentEvent::Refused { service, .. } if service == "a");
    assert!(world.agents[0].events.iter().any(refused));
    assert_eq!(target_of(&mut world, "free"), None, "nobody wishes for it any more");
}

fn with_id(id: &str, kind: Kind, port: u16) -> Service {
    Service {
        id: id.into(),
        ..service(kind, port)
    }
}

/// The ports of the agent's host to which UDP sockets are open.
fn udp_targets(world: &World) -> Vec<u16> {
    let targets = world.agents[0].udp.values();
    let ports = targets.map(|target| match target {
        Target::Host { port, .. } => *port,
        other => panic!("{other:?}"),
    });
    ports.collect()
}

/// A datagram for the service with this id.
fn send_datagram_to(world: &mut World, id: &str) {
    let public = public_of(world, id).unwrap();
    let port = public.rsplit(':').next().unwrap().parse().unwrap();
    assert!(world.send_datagram(0, port, VISITOR_ADDR.parse().unwrap(), b"hello"));
    world.run(Duration::from_secs(1));
}

#[test]
fn a_udp_service_that_goes_takes_its_sockets_with_it() {
    let services = vec![with_id("a", Kind::Udp, 1000), with_id("b", Kind::Udp, 2000)];
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
    world.run_until("two leases", |world| grants(world) == 2);
    send_datagram_to(&mut world, "a");
    send_datagram_to(&mut world, "b");
    assert_eq!(udp_targets(&world), [1000, 2000]);
    world.agents[0]
        .machine
        .set_services(world.now, vec![with_id("b", Kind::Udp, 2000)]);
    world.run(Duration::from_secs(1));
    assert_eq!(udp_targets(&world), [2000], "nobody speaks for a any more");
    world.check_invariants();
}

#[test]
fn visitors_of_a_restarted_relay_are_not_taken_for_those_before() {
    let services = vec![with_id("a", Kind::Udp, 1000), with_id("b", Kind::Udp, 2000)];
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
    world.run_until("two leases", |world| grants(world) == 2);
    send_datagram_to(&mut world, "a");
    // The new process counts its inner ports from the start, and b's is the first.
    world.restart_relay(0, Memory::Kept);
    world.set_services(0, vec![with_id("b", Kind::Udp, 2000)]);
    world.run_until_within("b's new lease", Duration::from_secs(30), |world| grants(world) == 3);
    send_datagram_to(&mut world, "b");
    assert_eq!(udp_targets(&world), [2000], "the visitor of b speaks with b");
    world.check_invariants();
}

#[test]
fn a_visitor_on_the_way_is_not_joined_to_a_later_service() {
    for cut in (0..4000).step_by(250) {
        let services = vec![named("a", "a", 1000), named("b", "b", 2000)];
        let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, services));
        world.run_until("two leases", |world| grants(world) == 2);
        world.impair(0, |link| link.partitioned = true);
        world.run_until("the agent's doubts", |world| {
            let is_down = |event: &AgentEvent| matches!(event, AgentEvent::RelayDown { .. });
            world.agents[0].events.iter().any(is_down)
        });
        // The relay has none yet.
        let visitor = world.visit(80).unwrap();
        world.say(visitor, b"GET / HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n");
        world.set_services(0, vec![named("b", "b", 2000)]);
        world.run(Duration::from_millis(cut));
        world.impair(0, |link| link.partitioned = false);
        world.run(Duration::from_secs(15));
        assert_eq!(grants(&world), 3);
        assert_eq!(
            world.agents[0].dials,
            [],
            "the visitor of a has nothing to do with b, after {cut} ms"
        );
        world.check_invariants();
    }
}

#[test]
fn a_target_that_wants_it_is_told_who_the_visitor_is() {
    let told = Service {
        proxy: true,
        ..service(Kind::Tcp, 3000)
    };
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, vec![told]));
    world.run_until("the lease", |world| grants(world) == 1);
    world.agents[0].behaviour.targets = TargetScript::Keep;
    let visitor = world.visit(world.public_port(0)).unwrap();
    world.run_until("the header", |world| {
        world.agents[0]
            .sockets
            .values()
            .any(|socket| !socket.received.is_empty())
    });
    world.say(visitor, b"hello");
    world.visitor(visitor).fin_to_send = true;
    world.run_until("the end", |world| {
        world.agents[0].sockets.values().any(|socket| socket.fin_received)
    });
    let target = world.agents[0].dials[0].0;
    let received = world.agents[0].sockets[&target].received.clone();
    let Ok(proxy::Parsed::Complete {
        header: Some(header),
        len,
    }) = proxy::parse(&received)
    else {
        panic!("no header in {received:?}")
    };
    let ProxyHeader {
        source, destination, ..
    } = header;
    assert_eq!(source, VISITOR_ADDR.parse::<SocketAddr>().unwrap());
    assert_eq!(destination.port(), world.public_port(0));
    assert_eq!(&received[len..], b"hello");
    world.check_invariants();
}
