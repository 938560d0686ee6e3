//! What an agent offers can change while it runs, and says what its targets are told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::proxy::{self, ProxyHeader};
use portal_core::{AgentEvent, Kind, Service, Target};
use portal_sim::{TargetScript, VISITOR_ADDR, World, agent_config, relay_config, service};

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
