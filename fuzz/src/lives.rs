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

/// Long enough for any agent to ask again and for any session that is dead to be known as dead.
const SETTLED: Duration = Duration::from_secs(4 * 60);

/// What relay and agent agree on in the end, whatever came between: the reference that the machines are held against.
struct Model {
    /// The agent's key is served.
    granted: bool,
    /// How many services the agent offers.
    offered: usize,
    /// The network loses nothing.
    whole: bool,
    /// How long nothing of this has changed, and nobody restarted.
    unchanged: Duration,
}

impl Model {
    fn new() -> Self {
        Self {
            granted: true,
            offered: 1,
            whole: true,
            unchanged: Duration::ZERO,
        }
    }

    /// Something happened that they must agree on anew.
    fn changed(&mut self) {
        self.unchanged = Duration::ZERO;
    }

    /// How many leases there must be; none while that may be underway.
    fn leases(&self) -> Option<usize> {
        let settled = self.whole && self.unchanged >= SETTLED;
        settled.then_some(if self.granted { self.offered } else { 0 })
    }

    /// Whom the relay serves never needs the network: a key without a grant has no lease at once.
    fn at_most(&self) -> usize {
        if self.granted { usize::MAX } else { 0 }
    }
}

/// Whole-core operations. What a visitor gets back is always a prefix of what it said, invariants hold after each step, the
/// leases are the model's, and once the network is whole and the key granted, a new visitor is served.
pub fn core_ops(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut world = World::pair(origin(), relay_config(0), agent_config(0, 0, vec![tcp(0)]));
    let mut visits: Vec<Visit> = Vec::new();
    let mut model = Model::new();
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
            Happening::Wait { millis } => wait(&mut world, &mut model, Duration::from_millis(u64::from(millis))),
            Happening::WaitLong { minutes } => {
                wait(
                    &mut world,
                    &mut model,
                    Duration::from_secs(60 * u64::from(minutes % 16)),
                );
            }
            Happening::Lose { share } => {
                model.whole = share == 0;
                model.changed();
                world.impair(0, |link| link.loss = Loss::Random(u32::from(share) * 3900));
            }
            Happening::Heal => heal(&mut world, &mut model),
            Happening::RestartAgent => {
                model.changed();
                world.restart_agent(0);
            }
            Happening::RestartRelay { keeps } => {
                let memory = if keeps { Memory::Kept } else { Memory::Lost };
                visits.clear();
                model.changed();
                world.restart_relay(0, memory);
            }
            Happening::Revoke => allow(&mut world, &mut model, Access::Granted(Vec::new())),
            Happening::Grant => allow(
                &mut world,
                &mut model,
                Access::Granted(vec![Grant::all(agent_key(0).public_key())]),
            ),
            Happening::Offer { names } => offer(&mut world, &mut model, names % 3 + 1),
        }
        wait(&mut world, &mut model, Duration::from_millis(1));
        check(&world, &model, &visits);
    }
    heal(&mut world, &mut model);
    allow(&mut world, &mut model, Access::Open);
    offer(&mut world, &mut model, 1);
    end_well(&mut world);
    wait(&mut world, &mut model, SETTLED);
    check(&world, &model, &[]);
}

fn check(world: &World, model: &Model, visits: &[Visit]) {
    world.check_invariants();
    for visit in visits {
        if let Some(socket) = world.relays[0].sockets.get(&visit.id) {
            assert!(
                visit.said.starts_with(&socket.received),
                "an echo is a prefix of what was said"
            );
        }
    }
    let leases = world.relays[0].machine.census().leases;
    assert!(
        leases <= model.at_most(),
        "{leases} leases of a key that has lost its grant"
    );
    if let Some(expected) = model.leases() {
        assert_eq!(leases, expected, "leases after {:?} without a change", model.unchanged);
    }
}

/// All is well from now on: within two minutes a new visitor is served.
fn end_well(world: &mut World) {
    for _ in 0..120 {
        world.run(Duration::from_secs(1));
        if let Some(last) = visit(world) {
            world.say(last, b"at last");
            world.run(Duration::from_secs(5));
            let served = world.relays[0].sockets.get(&last);
            if served.is_some_and(|socket| socket.received == b"at last") {
                return;
            }
        }
    }
    world.report();
    panic!("nobody is served although all is well");
}

fn wait(world: &mut World, model: &mut Model, duration: Duration) {
    world.run(duration);
    model.unchanged += duration;
}

fn heal(world: &mut World, model: &mut Model) {
    if !model.whole {
        model.whole = true;
        model.changed();
    }
    world.impair(0, |link| link.loss = Loss::Random(0));
}

fn offer(world: &mut World, model: &mut Model, count: u8) {
    model.offered = usize::from(count);
    model.changed();
    world.set_services(0, (0..count).map(tcp).collect());
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

fn allow(world: &mut World, model: &mut Model, access: Access) {
    model.granted = !matches!(&access, Access::Granted(grants) if grants.is_empty());
    model.changed();
    world.relay_config_mut(0).access = access.clone();
    let now = world.now;
    world.relays[0].machine.set_access(now, access);
}

/// An arbitrary origin for the virtual clock.
fn origin() -> Instant {
    Instant::now()
}
