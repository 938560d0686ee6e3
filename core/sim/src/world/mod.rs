//! Everything together: who is there, how they are joined, and what happens to them.

mod clock;
mod route;
mod visit;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::identity::{PresharedKey, SecretKey};
use portal_core::{Agent, AgentConfig, AgentEvent, Kind, Relay, RelayConfig, RelayEvent, Service};

use crate::host::{Behaviour, Host};
use crate::ledger::Ledger;
use crate::nat::Nat;
use crate::netem::{Counts, Impairments, Netem};
use crate::plain::PlainHost;
use crate::random::Random;
use crate::setup::{agent_addr, agent_config, plain_addr, relay_addr, relay_config, relay_key, service};
use crate::trace::Trace;
use crate::udp::UdpLedger;

/// See the module docs.
pub struct World {
    /// The time everywhere.
    pub now: Instant,
    /// When it began.
    pub start: Instant,
    /// The relays, by number.
    pub relays: Vec<Host<Relay>>,
    /// The agents, by number.
    pub agents: Vec<Host<Agent>>,
    /// Where each agent is, and how it is joined to its relay.
    pub sites: Vec<Site>,
    /// Plain WireGuard peers, by number.
    pub plain: Vec<PlainHost>,
    /// The model of all connections whose bytes are modelled.
    pub ledger: Ledger,
    /// The model of UDP visitors.
    pub udp: UdpLedger,
    /// What was sent.
    pub trace: Trace,
    /// Datagrams that were delivered, the last few, if [`World::capture`] says how many.
    pub captured: VecDeque<Captured>,
    /// How many delivered datagrams to keep for replays.
    pub capture: usize,
    /// Datagrams that led nowhere.
    pub unroutable: u64,
    /// Datagrams sent to strangers, by WireGuard message type.
    pub to_strangers: [u64; 5],
    random: Random,
    relay_memories: Vec<RelayMemory>,
    agent_configs: Vec<AgentConfig>,
    strangers: BTreeSet<SocketAddr>,
    /// Every address that an agent has had.
    externals: BTreeSet<SocketAddr>,
}

/// Names a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// A relay, by number.
    Relay(usize),
    /// An agent, by number.
    Agent(usize),
}

/// Where an agent is.
#[derive(Debug)]
pub struct Site {
    /// Which relay it is joined to.
    pub relay: usize,
    /// What stands between it and the world.
    pub nat: Nat,
    /// From the agent to the relay.
    pub up: Netem<Packet>,
    /// From the relay to the agent.
    pub down: Netem<Packet>,
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Who sent it, as the receiver sees it.
    pub from: SocketAddr,
    /// Whereto.
    pub to: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// A datagram that was delivered.
#[derive(Clone, Debug)]
pub struct Captured {
    /// To whom.
    pub host: HostId,
    /// From where.
    pub from: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// What a relay's program keeps of its events, as its state directory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Bindings and recent agents survive the restart.
    Kept,
    /// Nothing does.
    Lost,
}

/// A relay's configuration, brought up to date by its events.
struct RelayMemory {
    config: RelayConfig,
    /// How many of its host's events were looked at.
    seen: usize,
}

impl World {
    /// An empty world. `origin` is the instant it begins at; any will do.
    #[must_use]
    pub fn new(origin: Instant, seed: u64) -> Self {
        Self {
            now: origin,
            start: origin,
            relays: Vec::new(),
            agents: Vec::new(),
            sites: Vec::new(),
            plain: Vec::new(),
            ledger: Ledger::default(),
            udp: UdpLedger::default(),
            trace: Trace::default(),
            captured: VecDeque::new(),
            capture: 0,
            unroutable: 0,
            to_strangers: [0; 5],
            random: Random::new(seed),
            relay_memories: Vec::new(),
            agent_configs: Vec::new(),
            strangers: BTreeSet::new(),
            externals: BTreeSet::new(),
        }
    }

    /// One relay and one agent with one service on port 3000, joined by 10 ms each way, the lease granted.
    ///
    /// # Panics
    /// If the lease is not granted.
    #[must_use]
    pub fn with_service(origin: Instant, kind: Kind) -> Self {
        let services = vec![service(kind, 3000)];
        let mut world = Self::pair(origin, relay_config(0), agent_config(0, 0, services));
        world.run_until("the lease", |world| world.public(0).is_some());
        world
    }

    /// One relay and one agent, joined by 10 ms each way.
    #[must_use]
    pub fn pair(origin: Instant, relay: RelayConfig, agent: AgentConfig) -> Self {
        let mut world = Self::new(origin, 1);
        world.add_relay(relay);
        world.add_agent(agent, 0);
        world
    }

    /// Adds a relay; returns its number. The usual configuration is [`relay_config`]'s with that number.
    pub fn add_relay(&mut self, config: RelayConfig) -> usize {
        let number = self.relays.len();
        let machine = Relay::new(self.now, config.clone());
        self.relays
            .push(Host::new(machine, relay_addr(number), Behaviour::default()));
        self.relay_memories.push(RelayMemory { config, seen: 0 });
        number
    }

    /// Adds an agent of a relay; returns its number.
    pub fn add_agent(&mut self, config: AgentConfig, relay: usize) -> usize {
        let number = self.agents.len();
        let inside = SocketAddr::from(([10, 0, 0, 2], 40000));
        let behaviour = Behaviour {
            addresses: vec![self.relays[relay].addr],
            ..Behaviour::default()
        };
        let machine = Agent::new(self.now, config.clone());
        self.agents.push(Host::new(machine, inside, behaviour));
        self.agent_configs.push(config);
        self.externals.insert(agent_addr(number));
        let link = Impairments {
            latency: Duration::from_millis(10),
            mtu: 1500,
            ..Impairments::default()
        };
        self.sites.push(Site {
            relay,
            nat: Nat::new(agent_addr(number)),
            up: Netem::new(link.clone(), self.random.u64()),
            down: Netem::new(link, self.random.u64()),
        });
        number
    }

    /// Adds a plain WireGuard peer that calls a relay and echoes on these TCP ports; returns its number. What the relay
    /// has to know of it is the caller's to configure.
    pub fn add_plain(&mut self, secret: SecretKey, shared: Option<PresharedKey>, relay: usize, ports: &[u16]) -> usize {
        let number = self.plain.len();
        let addr = plain_addr(number);
        self.externals.insert(addr);
        let link = Impairments {
            latency: Duration::from_millis(10),
            mtu: 1500,
            ..Impairments::default()
        };
        let links = [link.clone(), link].map(|link| Netem::new(link, self.random.u64()));
        let relay = (self.relays[relay].addr, relay_key(relay).public_key());
        let host = PlainHost::new(self.start, secret, shared, addr, relay, ports, links);
        self.plain.push(host);
        number
    }

    /// An agent offers other services from now on, and after its restarts.
    pub fn set_services(&mut self, agent: usize, services: Vec<Service>) {
        self.agent_configs[agent].services.clone_from(&services);
        self.agents[agent].machine.set_services(self.now, services);
    }

    /// Another process in the agent's place, which offers the same.
    ///
    /// It is made as if it had been there, asleep, since the world began. WireGuard's timestamps count from the system's
    /// real clock when a machine is made, by the virtual one from then on; a process made later would be behind the one
    /// before it, and its handshakes would pass for replays.
    pub fn restart_agent(&mut self, agent: usize) {
        let config = AgentConfig {
            seed: self.random.seed(),
            ..self.agent_configs[agent].clone()
        };
        let old = &mut self.agents[agent];
        old.kill(&mut self.ledger);
        let (behaviour, addr) = (old.behaviour.clone(), old.addr);
        self.agents[agent] = Host::new(Agent::new(self.start, config), addr, behaviour);
    }

    /// Another process in the relay's place, which knows what the one before had kept, or nothing. About its beginning
    /// see [`World::restart_agent`].
    pub fn restart_relay(&mut self, relay: usize, memory: Memory) {
        self.remember();
        let known = &mut self.relay_memories[relay];
        if memory == Memory::Lost {
            known.config.bindings.clear();
            known.config.recent.clear();
        }
        known.config.seed = self.random.seed();
        known.seen = 0;
        let old = &mut self.relays[relay];
        old.kill(&mut self.ledger);
        let (behaviour, addr) = (old.behaviour.clone(), old.addr);
        self.relays[relay] = Host::new(Relay::new(self.start, known.config.clone()), addr, behaviour);
    }

    /// Changes what a relay's configuration says, from its next restart on. Access is changed at the machine too.
    pub fn relay_config_mut(&mut self, relay: usize) -> &mut RelayConfig {
        &mut self.relay_memories[relay].config
    }

    /// What an agent's configuration says.
    #[must_use]
    pub fn agent_config(&self, agent: usize) -> &AgentConfig {
        &self.agent_configs[agent]
    }

    /// A host neither runs nor hears anything for a while; its clock goes on.
    pub fn suspend(&mut self, host: HostId, duration: Duration) {
        let until = self.now + duration;
        match host {
            HostId::Relay(relay) => self.relays[relay].suspended_until = Some(until),
            HostId::Agent(agent) => self.agents[agent].suspended_until = Some(until),
        }
    }

    /// The agent's router gives it a new address.
    pub fn rebind(&mut self, agent: usize, external: SocketAddr) {
        self.externals.insert(external);
        self.sites[agent].nat.rebind(external);
    }

    /// Changes both directions of an agent's link.
    pub fn impair(&mut self, agent: usize, change: impl Fn(&mut Impairments)) {
        change(self.sites[agent].up.impairments_mut());
        change(self.sites[agent].down.impairments_mut());
    }

    /// How many datagrams the agent's link has lost or refused.
    #[must_use]
    pub fn lost(&self, agent: usize) -> u64 {
        let site = &self.sites[agent];
        let of = |counts: Counts| counts.lost + counts.cut + counts.queue_full + counts.too_long;
        of(site.up.counts()) + of(site.down.counts())
    }

    /// The public address the agent was last told for any of its services.
    #[must_use]
    pub fn public(&self, agent: usize) -> Option<String> {
        let mut events = self.agents[agent].events.iter().rev();
        events.find_map(|event| match event {
            AgentEvent::Granted { public, .. } => Some(public.clone()),
            _ => None,
        })
    }

    /// The port of that address.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn public_port(&self, agent: usize) -> u16 {
        let public = self.public(agent).expect("a lease");
        let (_, port) = public.rsplit_once(':').expect("a port");
        port.parse().expect("a port")
    }

    /// What an agent offers.
    #[must_use]
    pub fn services(&self, agent: usize) -> &[Service] {
        &self.agent_configs[agent].services
    }

    /// What a relay told its program, from [`Host::events`].
    #[must_use]
    pub fn relay_events(&self) -> &[RelayEvent] {
        &self.relays[0].events
    }

    /// Forgets what has ended: sockets, connections and events. Long runs need it.
    pub fn forget_ended(&mut self) {
        self.remember();
        for (host, known) in self.relays.iter_mut().zip(&mut self.relay_memories) {
            host.forget_ended();
            known.seen = 0;
        }
        for host in &mut self.agents {
            host.forget_ended();
        }
        self.ledger.forget_ended();
    }

    /// Keeps of the relays' events what their programs would.
    fn remember(&mut self) {
        for (host, known) in self.relays.iter().zip(&mut self.relay_memories) {
            for event in &host.events[known.seen..] {
                match event {
                    RelayEvent::Bound(binding) => known.config.bindings.push(binding.clone()),
                    RelayEvent::AgentAt { key, remote } => {
                        known.config.recent.retain(|(known, _)| known != key);
                        known.config.recent.push((*key, *remote));
                    }
                    _ => {}
                }
            }
            known.seen = host.events.len();
        }
    }
}
