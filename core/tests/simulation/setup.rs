//! Who is in a life, drawn from its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use portal_core::{Access, AgentEvent, Counters, Grant, Kind, Limits, RelayEvent, Service};
use portal_sim::{Impairments, Loss, Random, TargetScript, World, agent_config, agent_key, relay_config, service};

use crate::progress::Progress;

/// A life under way.
pub(crate) struct Simulation {
    pub(crate) world: World,
    pub(crate) random: Random,
    /// The bounds every relay has.
    pub(crate) limits: Limits,
    /// Which agents have a grant.
    pub(crate) granted: Vec<bool>,
    /// What their grants bound: connections at a time, and bytes a second; zeroes are no bounds.
    pub(crate) bounds: Vec<(u32, u64)>,
    /// Which agents were told to end.
    pub(crate) ended: Vec<bool>,
    /// The services each agent believes to be reachable.
    pub(crate) serving: Vec<BTreeSet<String>>,
    /// Which public port of which relay leads to a target port now, for the kinds that have one.
    pub(crate) leased: BTreeMap<u16, (usize, u16)>,
    /// What each connection has brought over.
    pub(crate) progress: Progress,
    /// What was done, for [`Simulation::report`].
    pub(crate) done: BTreeMap<&'static str, u64>,
}

/// What agents offer, in the order of their target ports.
pub(crate) const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Http, Kind::Tls, Kind::Udp];

impl Simulation {
    pub(crate) fn new(origin: Instant, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut world = World::new(origin, random.u64());
        world.capture = 64;
        let limits = Limits {
            memory: [4, 6, 16, 64][random.index(4)] << 20,
            peers: 8,
            flows: 8 + random.index(100),
            half_open: 16,
            streams: 16 + random.index(100),
            associations: 4 + random.index(8),
        };
        let (relays, agents) = (1 + random.index(2), 1 + random.index(3));
        for relay in 0..relays {
            let mut config = relay_config(relay);
            config.seed = random.seed();
            config.limits = limits;
            config.visitors_per_source = 8 + random.below(40) as u32;
            config.access = Access::Granted((0..agents).map(grant).collect());
            world.add_relay(config);
        }
        for agent in 0..agents {
            let relay = random.index(relays);
            let mut config = agent_config(agent, relay, services(agent));
            config.seed = random.seed();
            config.limits.memory = limits.memory;
            config.limits.streams = limits.streams;
            config.limits.flows = limits.flows + 8;
            config.limits.associations = limits.associations;
            world.add_agent(config, relay);
        }
        let mut simulation = Self {
            world,
            limits,
            granted: vec![true; agents],
            bounds: vec![(0, 0); agents],
            ended: vec![false; agents],
            serving: vec![BTreeSet::new(); agents],
            leased: BTreeMap::new(),
            progress: Progress::default(),
            done: BTreeMap::new(),
            random,
        };
        simulation.make_kernels_fickle();
        for agent in 0..agents {
            simulation.change_link(agent);
        }
        simulation
    }

    /// Who may lease at the moment.
    pub(crate) fn access(&self) -> Access {
        let granted = (0..self.granted.len()).filter(|&agent| self.granted[agent]);
        let grant = |agent: usize| {
            let (flows, rate) = self.bounds[agent];
            Grant {
                flows: NonZeroU32::new(flows),
                rate: NonZeroU64::new(rate),
                ..grant(agent)
            }
        };
        Access::Granted(granted.map(grant).collect())
    }

    /// The agent's grant has other bounds from now on.
    pub(crate) fn change_bounds(&mut self, agent: usize) {
        let flows = [0, 0, 3, 12][self.random.index(4)];
        let rate = [0, 0, 5_000, 50_000, 2_000_000][self.random.index(5)];
        self.bounds[agent] = (flows, rate);
    }

    /// The agents' link is another one from now on.
    pub(crate) fn change_link(&mut self, agent: usize) {
        let random = &mut self.random;
        let link = Impairments {
            latency: Duration::from_micros(random.between(200..80_000)),
            jitter: random.duration(Duration::from_millis(10)),
            loss: match random.below(6) {
                0 => Loss::Random(10_000),
                1 => Loss::Random(100_000),
                2 => Loss::Bursts {
                    worsen: 10_000,
                    recover: 200_000,
                    in_good: 1_000,
                    in_bad: 700_000,
                },
                _ => Loss::None,
            },
            duplicate: [0, 0, 20_000][random.index(3)],
            reorder: [0, 0, 20_000][random.index(3)],
            rate: [0, 0, 0, 60_000, 2_000_000][random.index(5)],
            queue: 64 << 10,
            mtu: [1500, 1360][random.index(2)],
            ..Impairments::default()
        };
        self.world.impair(agent, |current| {
            let partitioned = current.partitioned;
            *current = Impairments {
                partitioned,
                ..link.clone()
            };
        });
    }

    /// Takes note of what the machines told their programs, and forgets what has ended.
    pub(crate) fn listen_to_events(&mut self) {
        for (number, host) in self.world.relays.iter().enumerate() {
            for event in &host.events {
                if let RelayEvent::Leased {
                    key, service, public, ..
                } = event
                    && let Some(port) = public.rsplit(':').next().and_then(|port| port.parse().ok())
                {
                    let agents = 0..self.granted.len();
                    let mut targets = agents.filter(|&agent| agent_key(agent).public_key() == *key);
                    let place = targets.find_map(|agent| place(self.world.services(agent), service));
                    self.leased.insert(place.unwrap_or(0), (number, port));
                }
            }
        }
        for (host, serving) in self.world.agents.iter().zip(&mut self.serving) {
            for event in &host.events {
                match event {
                    AgentEvent::Granted { service, .. } => drop(serving.insert(service.clone())),
                    AgentEvent::RelayUp { .. } | AgentEvent::RelayDown { .. } => serving.clear(),
                    AgentEvent::Revoked { service, .. } | AgentEvent::Refused { service, .. } => {
                        serving.remove(service);
                    }
                    _ => {}
                }
            }
        }
        self.world.forget_ended();
    }

    /// What was done, for people.
    pub(crate) fn report(&self, seed: u64) {
        let (at_target, came_back) = self.world.udp.delivered();
        eprintln!(
            "seed {seed}: {:?} virtual, {} datagrams, {} bytes verified, {} connections whole, udp {at_target}/{came_back}, \
             strangers {:?}, buffers changed {}, slept {}, {:?}",
            self.world.now - self.world.start,
            self.world.trace.count(),
            self.world.ledger.verified(),
            self.world.ledger.whole(),
            self.world.to_strangers,
            self.sum(|counters| counters.buffers_changed),
            self.sum(|counters| counters.flows_slept),
            self.done,
        );
    }

    /// What those machines counted that run at the end.
    fn sum(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        let relays = self.world.relays.iter().map(|host| count(host.machine.counters()));
        let agents = self.world.agents.iter().map(|host| count(host.machine.counters()));
        relays.chain(agents).sum()
    }

    fn make_kernels_fickle(&mut self) {
        for host in &mut self.world.relays {
            host.behaviour.listen_fails = 20_000;
        }
        for host in &mut self.world.agents {
            host.behaviour.targets = TargetScript::Model { most: 20_000 };
            host.behaviour.dial_delay = Duration::from_millis(300);
            host.behaviour.dial_fails = 50_000;
            host.behaviour.resolve_delay = Duration::from_secs(2);
            host.behaviour.resolve_fails = 100_000;
            host.behaviour.udp_echo = true;
        }
    }
}

/// Where visitors come from.
pub(crate) fn visitor(random: &mut Random) -> SocketAddr {
    let host = 1 + random.below(6) as u16;
    let port = 1024 + random.below(60_000) as u16;
    if random.chance(300_000) {
        SocketAddr::from(([0x2001, 0xdb8, host, 0, 0, 0, 0, 1], port))
    } else {
        SocketAddr::from(([198, 51, 100, host as u8], port))
    }
}

/// The name of an agent's services.
pub(crate) fn name(agent: usize) -> String {
    format!("web{agent}")
}

fn grant(agent: usize) -> Grant {
    Grant::all(agent_key(agent).public_key())
}

/// What an agent offers when it offers all.
pub(crate) fn services(agent: usize) -> Vec<Service> {
    let ports = 3000 + 10 * agent as u16..;
    KINDS
        .into_iter()
        .zip(ports)
        .map(|(kind, port)| {
            let mut service = service(kind, port);
            service.name = service.name.map(|_| name(agent));
            service
        })
        .collect()
}

fn place(services: &[Service], id: &str) -> Option<u16> {
    let service = services.iter().find(|service| service.id == id)?;
    match &service.target {
        portal_core::Target::Host { port, .. } => Some(*port),
        _ => None,
    }
}
