//! Relays and agents are restarted in every order, and everybody has the same names and ports as before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::{AgentEvent, Kind, Service};
use portal_sim::{HostId, Memory, Random, World, agent_config, relay_config, service};

/// The relay of each agent.
const RELAYS_OF_AGENTS: [usize; 3] = [0, 0, 1];
const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Udp, Kind::Http, Kind::Tls];
const HOSTS: [HostId; 5] = [
    HostId::Relay(0),
    HostId::Relay(1),
    HostId::Agent(0),
    HostId::Agent(1),
    HostId::Agent(2),
];

/// Agent and service, and how people reach it.
type Leases = BTreeMap<(usize, String), String>;

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}

/// Two relays with no port to spare, so that a port given to the wrong agent is missed by its own.
fn world(seed: u64) -> World {
    let mut world = World::new(origin(), seed);
    for relay in 0..2 {
        let agents = RELAYS_OF_AGENTS.iter().filter(|&&of| of == relay).count() as u16;
        let mut config = relay_config(relay);
        config.ports = Some(20_000..=20_000 + 2 * agents - 1);
        world.add_relay(config);
    }
    for (agent, relay) in RELAYS_OF_AGENTS.into_iter().enumerate() {
        let services = KINDS.into_iter().zip(3000..).map(|(kind, port)| Service {
            name: matches!(kind, Kind::Http | Kind::Tls).then(|| format!("{kind}{agent}")),
            ..service(kind, port)
        });
        world.add_agent(agent_config(agent, relay, services.collect()), relay);
    }
    world.run_until_within("the leases", Duration::from_secs(10), |world| {
        leases(world).len() == RELAYS_OF_AGENTS.len() * KINDS.len()
    });
    world
}

/// What the agents hold by what their relays told them last.
fn leases(world: &World) -> Leases {
    let mut leases = Leases::new();
    for (agent, host) in world.agents.iter().enumerate() {
        for event in &host.events {
            match event {
                AgentEvent::Granted { service, public } => {
                    leases.insert((agent, service.clone()), public.clone());
                }
                AgentEvent::RelayUp { .. } | AgentEvent::RelayDown { .. } => leases.retain(|(of, _), _| *of != agent),
                AgentEvent::Refused { service, .. } | AgentEvent::Revoked { service, .. } => {
                    leases.remove(&(agent, service.clone()));
                }
                _ => {}
            }
        }
    }
    leases
}

/// Whether relays and agents agree that everything is leased.
fn all_leased(world: &World) -> bool {
    let all = RELAYS_OF_AGENTS.len() * KINDS.len();
    let held: usize = world.relays.iter().map(|host| host.machine.census().leases).sum();
    held == all && leases(world).len() == all
}

fn restart(world: &mut World, host: HostId) {
    match host {
        HostId::Relay(relay) => world.restart_relay(relay, Memory::Kept),
        HostId::Agent(agent) => world.restart_agent(agent),
    }
}

/// Waits for the leases, and sees that they are those from before and that each port leads somewhere.
#[track_caller]
fn assert_as_before(world: &mut World, before: &Leases, order: &[HostId]) {
    world.run_until_within(
        &format!("the leases after {order:?}"),
        Duration::from_secs(60),
        all_leased,
    );
    assert_eq!(leases(world), *before, "after {order:?}");
    let visitor: SocketAddr = "198.51.100.9:1234".parse().unwrap();
    for ((agent, _), public) in before.iter().filter(|(_, public)| public.starts_with("tcp://")) {
        let relay = RELAYS_OF_AGENTS[*agent];
        let port = public.rsplit(':').next().unwrap().parse().unwrap();
        let dials = world.agents[*agent].dials.len();
        let said = world.visit_saying(relay, port, visitor, b"hello".to_vec());
        said.unwrap_or_else(|| panic!("{public} is closed after {order:?}"))
            .fin_to_send = true;
        world.run_until_within(&format!("a dial of {public}"), Duration::from_secs(5), |world| {
            world.agents[*agent].dials.len() > dials
        });
    }
    world.check_invariants();
}

/// All orders of `hosts`.
fn orders(hosts: &[HostId]) -> Vec<Vec<HostId>> {
    if hosts.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (place, &first) in hosts.iter().enumerate() {
        let others: Vec<_> = [&hosts[..place], &hosts[place + 1..]].concat();
        all.extend(orders(&others).into_iter().map(|rest| [vec![first], rest].concat()));
    }
    all
}

#[test]
fn restarts_in_every_order_end_in_the_same_leases() {
    let orders = orders(&HOSTS);
    assert_eq!(orders.len(), 120);
    let mut random = Random::new(3);
    for (number, order) in orders.iter().enumerate() {
        let mut world = world(number as u64);
        let before = leases(&world);
        // All at once, or one by one: in the middle of another one's greeting, or after it.
        let pause = [0, 30, 300, 3000][number % 4];
        for &host in order {
            restart(&mut world, host);
            world.run(random.duration(Duration::from_millis(pause + 1)));
        }
        assert_as_before(&mut world, &before, order);
    }
}

#[test]
fn hundreds_of_restarts_end_in_the_same_leases() {
    let mut random = Random::new(11);
    let mut world = world(11);
    let before = leases(&world);
    for _ in 0..60 {
        let order: Vec<_> = (0..1 + random.index(8))
            .map(|_| HOSTS[random.index(HOSTS.len())])
            .collect();
        for &host in &order {
            restart(&mut world, host);
            world.run(random.duration(Duration::from_secs(2)));
        }
        assert_as_before(&mut world, &before, &order);
        // The events from which the leases are read stay few.
        assert!(world.agents.iter().all(|host| host.events.len() < 2000));
    }
}

/// A relay that has lost its state gives out what follows from the keys, and what was asked for.
#[test]
fn relays_that_forgot_everything_give_the_same_names_again() {
    for seed in 0..10 {
        let mut world = world(seed);
        let names = |leases: Leases| -> Leases {
            leases
                .into_iter()
                .filter(|(_, public)| public.starts_with("http"))
                .collect()
        };
        let before = names(leases(&world));
        assert_eq!(before.len(), 6);
        for relay in 0..2 {
            world.restart_relay(relay, Memory::Lost);
        }
        world.run_until_within("the leases", Duration::from_secs(60), all_leased);
        assert_eq!(names(leases(&world)), before);
    }
}
