//! A relay and an agent live through what the bytes say, against a small model of what must be true.

use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use portal_core::{Access, Grant, Kind, Service, StreamId};
use portal_sim::{Loss, Memory, World, agent_config, agent_key, pattern, relay_config, service};

/// One thing that happens.
#[derive(Debug, Arbitrary)]
enum Happening {
    Visit,
    Say { visitor: u8, len: u16 },
    HalfClose { visitor: u8 },
    Wait { millis: u16 },
    WaitLong { minutes: u8 },
    Lose { share: u8 },
    Heal,
    RestartAgent,
    RestartRelay { keeps: bool },
    Revoke,
    Grant,
    Offer { names: u8 },
}

/// What the model knows of a visitor.
struct Visit {
    id: StreamId,
    said: Vec<u8>,
}

/// The most visitors, and the most happenings, of one life.
const VISITORS: usize = 8;
const HAPPENINGS: usize = 40;

/// Whole-core operations. What a visitor gets back is always a prefix of what it said, invariants hold after each step, and
/// once the network is whole and the key granted, a new visitor is served.
pub fn core_ops(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, vec![tcp(0)]));
    let mut visits: Vec<Visit> = Vec::new();
    let bytes = pattern(1 << 16);
    for _ in 0..HAPPENINGS {
        let Ok(happening) = input.arbitrary() else { break };
        match happening {
            Happening::Visit => {
                if visits.len() < VISITORS
                    && let Some(id) = visit(&mut world)
                {
                    visits.push(Visit { id, said: Vec::new() });
                }
            }
            Happening::Say { visitor, len } => {
                if let Some(visit) = visits.get_mut(usize::from(visitor) % VISITORS)
                    && let Some(socket) = world.relays[0].sockets.get_mut(&visit.id)
                    && !socket.fin_to_send
                {
                    socket.to_send.extend(&bytes[..usize::from(len)]);
                    visit.said.extend(&bytes[..usize::from(len)]);
                    // The world looks at sockets that it was told about.
                    world.say(visit.id, b"");
                }
            }
            Happening::HalfClose { visitor } => {
                if let Some(visit) = visits.get(usize::from(visitor) % VISITORS)
                    && world.relays[0].sockets.contains_key(&visit.id)
                {
                    world.visitor(visit.id).fin_to_send = true;
                }
            }
            Happening::Wait { millis } => world.run(Duration::from_millis(u64::from(millis))),
            Happening::WaitLong { minutes } => world.run(Duration::from_secs(60 * u64::from(minutes % 16))),
            Happening::Lose { share } => {
                world.impair(0, |link| link.loss = Loss::Random(u32::from(share) * 3900));
            }
            Happening::Heal => world.impair(0, |link| link.loss = Loss::Random(0)),
            Happening::RestartAgent => world.restart_agent(0),
            Happening::RestartRelay { keeps } => {
                let memory = if keeps { Memory::Kept } else { Memory::Lost };
                visits.clear();
                world.restart_relay(0, memory);
            }
            Happening::Revoke => allow(&mut world, Access::Granted(Vec::new())),
            Happening::Grant => allow(&mut world, Access::Granted(vec![Grant::all(agent_key(0).public_key())])),
            Happening::Offer { names } => {
                let services = (0..=names % 3).map(tcp).collect();
                let now = world.now;
                world.agents[0].machine.set_services(now, services);
            }
        }
        world.run(Duration::from_millis(1));
        world.check_invariants();
        for visit in &visits {
            if let Some(socket) = world.relays[0].sockets.get(&visit.id) {
                assert!(
                    visit.said.starts_with(&socket.received),
                    "an echo is a prefix of what was said"
                );
            }
        }
    }
    world.impair(0, |link| link.loss = Loss::Random(0));
    allow(&mut world, Access::Open);
    let now = world.now;
    world.agents[0].machine.set_services(now, vec![tcp(0)]);
    for _ in 0..120 {
        world.run(Duration::from_secs(1));
        if let Some(last) = visit(&mut world) {
            world.say(last, b"at last");
            world.run(Duration::from_secs(5));
            let served = world.relays[0].sockets.get(&last);
            if served.is_some_and(|socket| socket.received == b"at last") {
                world.check_invariants();
                return;
            }
        }
    }
    world.report();
    panic!("nobody is served although all is well");
}

fn tcp(number: u8) -> Service {
    Service {
        id: format!("service {number}"),
        ..service(Kind::Tcp, 3000)
    }
}

/// A visitor at the port that the relay has open for the agent, if it has one.
fn visit(world: &mut World) -> Option<StreamId> {
    let port = (20_000..=20_099).find(|&port| {
        let listener = world.relays[0].listener(port, portal_core::Transport::Tcp);
        listener.is_some()
    })?;
    world.visit(port)
}

fn allow(world: &mut World, access: Access) {
    world.relay_config_mut(0).access = access.clone();
    let now = world.now;
    world.relays[0].machine.set_access(now, access);
}

/// An arbitrary origin for the virtual clock.
fn origin() -> Instant {
    Instant::now()
}
