//! The public end: takes visitors, finds their lease, and carries them to the agent that holds it.

mod access;
mod datagrams;
mod ingress;
mod kept;
mod leases;
mod plain;
mod plain_change;
mod quotas;
mod register;
mod sessions;
mod status;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Instant;

use self::datagrams::VisitorAssociations;
use self::ingress::{Listener, Role, Visitor};
use self::leases::Leases;
use self::plain::PlainPeers;
use self::quotas::Quotas;
use self::sessions::Sessions;
use crate::admin::{self, Operated};
use crate::batch::TransmitBatch;
use crate::budget::BufferClass;
use crate::control::{Kind, RefusalCode};
use crate::counters::Counters;
use crate::identity::{PublicKey, SecretKey};
use crate::machine::{Action, ListenerId, Machine, Path, SocketEvent, StreamId, Transport, UdpSocketRef};
use crate::metrics;
use crate::node::{DEFAULT_MTU, End, Ended, Limits, Node, NodeEvent, Owned, StreamMut};
use crate::seed::Map;
use crate::stack::Owner;
use crate::status::Status;
use crate::table::{Key, Table};
use crate::wg::{PeerId, WgEvent};

pub use self::access::{Access, Grant};
pub use self::ingress::Ingress;
pub use self::kept::Kept;
pub use self::leases::Binding;
pub use self::plain::{PlainLease, PlainPeer, PlainPeerError};
pub use self::status::{AgentSeen, LeaseStatus, RelayStatus};

/// What a relay is to be.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Its WireGuard key.
    pub secret: SecretKey,
    /// Where everything random grows from; never the same twice.
    pub seed: [u8; 32],
    /// The domain under which names are given out.
    pub domain: String,
    /// Where HTTP visitors come in.
    pub http: Option<SocketAddr>,
    /// Where TLS visitors come in.
    pub https: Option<SocketAddr>,
    /// Where operators ask how it is: see [`Relay::status`]. There is no password.
    pub admin: Option<SocketAddr>,
    /// The ports given out for the kinds `tcp` and `udp`.
    pub ports: Option<RangeInclusive<u16>>,
    /// The address on which those ports are opened.
    pub ports_ip: IpAddr,
    /// Who is served.
    pub access: Access,
    /// WireGuard peers that are no agents. See [`RelayConfig::check_plain_peers`].
    pub plain_peers: Vec<PlainPeer>,
    /// Names and ports that belong to keys from earlier runs.
    pub bindings: Vec<Binding>,
    /// Agents of an earlier run and where they were: they are called at the start, so that they need not wait for their
    /// own timers to find out that the relay is back.
    pub recent: Vec<(PublicKey, SocketAddr)>,
    /// Inner MTU, 1280 to 1420.
    pub mtu: u16,
    /// Common bounds.
    pub limits: Limits,
    /// Connections from one source (an IPv4 address, an IPv6 /64) at a time.
    pub visitors_per_source: u32,
    /// Connections to one lease at a time. Less than [`Limits::streams`], so that one lease leaves room for others.
    pub visitors_per_lease: u32,
    /// Leases one key may hold at a time.
    pub leases_per_key: usize,
    /// A relay with one HTTP lease only shows it under any Host.
    pub sole_lease_answers: bool,
}

impl RelayConfig {
    /// A relay that serves nothing yet, with the usual bounds.
    #[must_use]
    pub fn new(secret: SecretKey, seed: [u8; 32], domain: String) -> Self {
        Self {
            secret,
            seed,
            domain,
            http: None,
            https: None,
            admin: None,
            ports: None,
            ports_ip: IpAddr::from([0, 0, 0, 0]),
            access: Access::Granted(Vec::new()),
            plain_peers: Vec::new(),
            bindings: Vec::new(),
            recent: Vec::new(),
            mtu: DEFAULT_MTU,
            limits: Limits::default(),
            visitors_per_source: 4096,
            visitors_per_lease: 24_576,
            leases_per_key: 64,
            sole_lease_answers: false,
        }
    }
}

/// What a relay tells its program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A shared listener is open.
    Listening {
        /// Which one.
        ingress: Ingress,
        /// Where.
        local: SocketAddr,
    },
    /// A shared listener could not be opened: visitors of this sort cannot come in.
    ListenFailed {
        /// Which one.
        ingress: Ingress,
        /// Where.
        addr: SocketAddr,
        /// Why.
        error: io::ErrorKind,
    },
    /// The listener for operators is open.
    AdminListening {
        /// Where.
        local: SocketAddr,
    },
    /// The listener for operators could not be opened.
    AdminFailed {
        /// Where.
        addr: SocketAddr,
        /// Why.
        error: io::ErrorKind,
    },
    /// An agent has opened its control channel.
    AgentUp {
        /// Its key.
        key: PublicKey,
        /// What it calls itself.
        agent: String,
        /// Where it is.
        remote: SocketAddr,
    },
    /// An agent's leases have ended with its control channel.
    AgentDown {
        /// Its key.
        key: PublicKey,
        /// Why.
        reason: &'static str,
    },
    /// A key without a grant has asked for service.
    NotGranted {
        /// The key.
        key: PublicKey,
        /// Where it is.
        remote: Option<SocketAddr>,
    },
    /// A lease has been given.
    Leased {
        /// To whom.
        key: PublicKey,
        /// The agent's own name for the service.
        service: String,
        /// Its kind.
        kind: Kind,
        /// How people reach it.
        public: String,
    },
    /// A service got no lease.
    Refused {
        /// Whose.
        key: PublicKey,
        /// The agent's own name for the service.
        service: String,
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// A name or port belongs to a key from now on: keep it for [`RelayConfig::bindings`].
    Bound(Binding),
    /// An agent or a plain peer is at a new address: keep it for [`RelayConfig::recent`].
    AgentAt {
        /// Its key.
        key: PublicKey,
        /// Where it is.
        remote: SocketAddr,
    },
    /// The tunnel to a plain peer is up.
    PeerUp {
        /// Its key.
        key: PublicKey,
        /// Where it is.
        remote: SocketAddr,
    },
    /// A plain peer is at a new address, its tunnel up.
    PeerMoved {
        /// Its key.
        key: PublicKey,
        /// Where it is.
        remote: SocketAddr,
    },
    /// Nothing was heard of a plain peer for so long that its last session has ended.
    PeerDown {
        /// Its key.
        key: PublicKey,
    },
    /// The port of a plain peer's lease could not be opened: the lease has ended.
    PeerPortFailed {
        /// Its key.
        key: PublicKey,
        /// TCP or UDP.
        transport: Transport,
        /// Where.
        addr: SocketAddr,
        /// Why.
        error: io::ErrorKind,
    },
    /// The plain peers cannot be as they are configured, and so some or all are not there.
    PlainPeersRefused {
        /// Why.
        error: PlainPeerError,
    },
    /// The memory budget is used up: something was refused for want of it, and what is there goes on. Said at most once
    /// a minute.
    MemoryShort {
        /// How many connections, flows, peers and the like were refused since this was last said.
        refused: u64,
    },
    /// A visitor sends datagrams, for the first time or again after a silence.
    DatagramVisitor {
        /// The lease's public address.
        public: String,
        /// Who it is.
        remote: SocketAddr,
    },
    /// A visitor's connection has ended.
    VisitorLeft {
        /// The lease's public address; empty if none was found.
        public: String,
        /// Who it was.
        remote: SocketAddr,
        /// Bytes the visitor sent.
        received: u64,
        /// Bytes the visitor got.
        sent: u64,
        /// Why it ended.
        end: VisitorEnd,
    },
}

/// Why a visitor's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisitorEnd {
    /// Both sides were done.
    Finished,
    /// The visitor broke it off.
    VisitorGone,
    /// The agent or its target broke it off, or could not be reached.
    ServiceGone,
    /// The relay answered or refused it itself.
    Refused,
}

/// See the module docs.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    instance: u64,
    node: Node<Visitor, RelayEvent>,
    listeners: Table<Listener>,
    leases: Leases,
    sessions: Sessions,
    plain: PlainPeers,
    sources: Map<IpAddr, u32>,
    quotas: Quotas,
    associations: VisitorAssociations,
}

impl Relay {
    /// A relay at work: its first actions open the shared listeners and call the agents it knew.
    #[must_use]
    pub fn new(now: Instant, config: RelayConfig) -> Self {
        let mut node = Node::new(now, &config.secret, config.mtu, &config.limits, true, config.seed);
        node.stack.serve(crate::control::PORT, BufferClass::SMALLEST);
        let mut relay = Self {
            instance: node.random.u64(),
            listeners: Table::new(3 + usize::from(u16::MAX)),
            leases: Leases::new(
                config.limits.peers.saturating_mul(config.leases_per_key),
                config.bindings.clone(),
                &mut node.resources,
            ),
            sessions: Sessions::new(),
            plain: PlainPeers::default(),
            sources: Map::with_hasher(node.random.hasher()),
            quotas: Quotas::new(&config.access),
            associations: VisitorAssociations::new(config.limits.associations, &mut node.random),
            node,
            config,
        };
        relay.node.set_rates(now, &relay.config.access.rates());
        for (ingress, addr) in [(Ingress::Http, relay.config.http), (Ingress::Https, relay.config.https)] {
            if let Some(addr) = addr {
                relay.listen(Role::Shared(ingress), addr, Transport::Tcp);
            }
        }
        if let Some(addr) = relay.config.admin {
            relay.node.admin.enable(addr, &mut relay.node.resources);
            relay.listen(Role::Admin, addr, Transport::Tcp);
        }
        relay.add_plain_peers(now);
        for (key, remote) in std::mem::take(&mut relay.config.recent) {
            if relay.node.wg.knows(&key) {
                continue;
            }
            let path = Path { remote, local_ip: None };
            if relay.config.access.admits(&key).is_ok()
                && let Some(peer) = relay.node.wg.add_peer(now, key, Some(path), &mut relay.node.resources)
            {
                relay.node.wg.call(now, peer, false);
            }
        }
        relay
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.node.resources.counters
    }

    /// How much of the memory budget is in use, in bytes.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        self.node.resources.budget.used()
    }

    /// Counters and gauges as OpenMetrics text.
    #[must_use]
    pub fn metrics(&self) -> String {
        let census = self.census();
        let gauges = [
            ("peers", "WireGuard peers.", census.peers as u64),
            ("agents", "Agents with a control channel.", census.agents as u64),
            ("leases", "Leases.", census.leases as u64),
            (
                "bindings",
                "Names and ports that belong to keys.",
                census.bindings as u64,
            ),
            ("visitors", "Visitor connections.", census.visitors as u64),
            ("flows", "Flows in the tunnels.", census.flows as u64),
            (
                "memory_used_bytes",
                "Bytes charged to the memory budget.",
                self.memory_used() as u64,
            ),
            (
                "memory_limit_bytes",
                "The memory budget.",
                self.config.limits.memory as u64,
            ),
        ];
        metrics::render("portal_relay", self.counters(), &gauges)
    }

    /// How many agents, leases, visitors and flows there are.
    #[must_use]
    pub fn census(&self) -> Census {
        Census {
            peers: self.node.wg.len(),
            agents: self.sessions.len(),
            leases: self.leases.iter().count(),
            bindings: self.leases.binding_count(),
            visitors: self.node.stream_count(),
            flows: self.node.stack.flow_count(),
        }
    }

    /// Changes who is served, at once: keys that lost their grant lose their leases and flows, leases that a narrowed
    /// grant does not cover end, and keys that gained a grant are served the next time they ask, which agents do by
    /// themselves.
    pub fn set_access(&mut self, now: Instant, access: Access) {
        let now = self.node.clamp(now);
        self.config.access = access;
        self.quotas.set(&self.config.access);
        self.node.set_rates(now, &self.config.access.rates());
        for peer in self.sessions.peers() {
            let Some(key) = self.node.wg.key(peer) else {
                continue;
            };
            if let Err(refusal) = self.config.access.admits(&key) {
                self.end_session_of(peer, &refusal, "the grant was revoked");
                self.node.stack.break_flows(peer, &mut self.node.resources);
            }
        }
        self.revoke_uncovered();
        self.settle(now);
    }

    /// Asserts what must always hold between the machine's parts; for tests and fuzzing.
    ///
    /// # Panics
    /// If it does not hold, which is a fault of this crate.
    pub fn check_invariants(&self) {
        let held = self.associations.check_invariants() + self.sessions.held() + self.leases.held();
        self.node.check_invariants(held);
        let visitors: u32 = self.sources.values().sum();
        assert_eq!(
            visitors as usize,
            self.node.stream_count(),
            "every visitor counts for its source"
        );
        let carried = self.node.streams_where(|visitor| visitor.key.is_some()).len();
        assert_eq!(self.quotas.count(), carried, "who is carried counts for a key");
    }

    fn listen(&mut self, role: Role, addr: SocketAddr, transport: Transport) -> Option<ListenerId> {
        let key = self.listeners.insert_with(|_| Listener {
            role,
            addr,
            open: false,
        })?;
        let listener = ListenerId {
            index: key.index,
            generation: key.generation,
        };
        self.node.actions.push_back(Action::Listen {
            listener,
            addr,
            transport,
        });
        Some(listener)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        if self.listeners.remove(listener_key(listener)).is_some() {
            self.node.actions.push_back(Action::Unlisten { listener });
        }
    }

    fn listening(&mut self, listener: ListenerId, local: SocketAddr) {
        let opened = self.listeners.get_mut(listener_key(listener)).map(|listener| {
            listener.open = true;
            listener.role
        });
        match opened {
            Some(Role::Shared(ingress)) => {
                // The kernel may have chosen the port, and public addresses name it.
                match ingress {
                    Ingress::Http => self.config.http = Some(local),
                    Ingress::Https => self.config.https = Some(local),
                }
                self.node.event(RelayEvent::Listening { ingress, local });
                self.announce_plain_names(ingress);
            }
            Some(Role::Port(lease)) => self.announce(lease),
            Some(Role::Admin) => self.node.event(RelayEvent::AdminListening { local }),
            None => {}
        }
    }

    fn listen_failed(&mut self, listener: ListenerId, error: io::ErrorKind) {
        let Some(failed) = self.listeners.remove(listener_key(listener)) else {
            return;
        };
        match failed.role {
            Role::Shared(ingress) => self.node.event(RelayEvent::ListenFailed {
                ingress,
                addr: failed.addr,
                error,
            }),
            Role::Port(lease) => self.port_failed(lease, error),
            Role::Admin => self.node.event(RelayEvent::AdminFailed {
                addr: failed.addr,
                error,
            }),
        }
    }

    fn ended(&mut self, ended: Ended<Visitor>) {
        let visitor = ended.data;
        if let Some(count) = self.sources.get_mut(&visitor.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&visitor.source);
            }
        }
        if let Some(key) = &visitor.key {
            self.quotas.close(key);
        }
        if let Some(id) = visitor.lease {
            self.leases.carried(id, ended.from_socket, ended.to_socket);
            if let Some(lease) = self.leases.get_mut(id) {
                lease.visitors -= 1;
            }
        }
        let end = match ended.end {
            End::Finished => VisitorEnd::Finished,
            End::SocketFailed => VisitorEnd::VisitorGone,
            End::FlowBroken | End::TargetTls { .. } => VisitorEnd::ServiceGone,
            End::Dropped => VisitorEnd::Refused,
        };
        self.node.event(RelayEvent::VisitorLeft {
            public: visitor.public,
            remote: visitor.remote,
            received: ended.from_socket,
            sent: ended.to_socket,
            end,
        });
    }

    fn tunnel_event(&mut self, event: WgEvent) {
        match event {
            WgEvent::Moved(peer) if self.sessions.has(peer) => self.note_address(peer),
            WgEvent::Dropped(peer) => self.forget_peer(peer),
            WgEvent::Up(peer) => self.plain_up(peer),
            WgEvent::Down(peer) => self.plain_down(peer),
            WgEvent::Moved(peer) => self.plain_moved(peer),
            WgEvent::Called(_) => {}
        }
    }

    fn note_address(&mut self, peer: PeerId) {
        if let (Some(key), Some(path)) = (self.node.wg.key(peer), self.node.wg.path(peer)) {
            self.node.event(RelayEvent::AgentAt {
                key,
                remote: path.remote,
            });
        }
    }
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// WireGuard peers, those without a session of ours among them.
    pub peers: usize,
    /// Agents with a control channel.
    pub agents: usize,
    /// Leases.
    pub leases: usize,
    /// Names and ports that belong to keys, leased now or not.
    pub bindings: usize,
    /// Visitor connections.
    pub visitors: usize,
    /// Flows in the tunnels.
    pub flows: usize,
}

impl Owned for Relay {
    type Data = Visitor;
    type Event = RelayEvent;

    fn node(&mut self) -> &mut Node<Visitor, RelayEvent> {
        &mut self.node
    }

    fn head_grew(&mut self, now: Instant, id: StreamId) {
        if !admin::head_grew(self, now, id) {
            self.route(now, id);
        }
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.node.poll_event() {
            match event {
                NodeEvent::Tunnel(event) => self.tunnel_event(event),
                NodeEvent::Flow(flow, Owner::Nobody) => self.channel_opened(now, flow),
                NodeEvent::Flow(flow, _) => self.channel_touched(now, flow),
                NodeEvent::Ended(ended) => self.ended(ended),
            }
        }
        if let Some(refused) = self.node.resources.refusals_to_tell(now) {
            self.node.event(RelayEvent::MemoryShort { refused });
        }
        self.node.follow_closing(now);
    }
}

impl Operated for Relay {
    fn metrics_text(&self) -> String {
        self.metrics()
    }

    fn why_not_ready(&self) -> Option<String> {
        self.not_ready()
    }

    fn status_now(&self, now: Instant) -> Status {
        Status::Relay(self.status(now))
    }
}

impl Machine for Relay {
    type Event = RelayEvent;
    type Stream<'a> = StreamMut<'a, Self>;

    fn handle_datagram(&mut self, now: Instant, path: Path, batch: &mut [u8], stride: usize) {
        let now = self.node.clamp(now);
        let Self {
            node,
            associations,
            leases,
            ..
        } = self;
        node.handle_datagram(now, path, batch, stride, |node, peer, packet, payload| {
            associations.take_from_tunnel(now, node, leases, peer, &packet, payload);
        });
        self.settle(now);
    }

    fn accept(
        &mut self,
        now: Instant,
        listener: ListenerId,
        remote: SocketAddr,
        local: SocketAddr,
    ) -> Option<StreamId> {
        let now = self.node.clamp(now);
        let accepted = self.accept_visitor(now, listener, remote, local);
        self.settle(now);
        accepted
    }

    fn handle_socket(&mut self, now: Instant, event: SocketEvent<'_>) {
        let now = self.node.clamp(now);
        match event {
            SocketEvent::Listening { listener, local } => self.listening(listener, local),
            SocketEvent::ListenFailed { listener, error } => self.listen_failed(listener, error),
            SocketEvent::Datagram {
                socket: UdpSocketRef::Public(listener),
                remote,
                payload,
            } => {
                self.datagram_from_visitor(now, listener, remote, payload);
            }
            // A relay dials and resolves nothing.
            SocketEvent::Datagram { .. }
            | SocketEvent::Connected { .. }
            | SocketEvent::DialFailed { .. }
            | SocketEvent::UdpConnected { .. }
            | SocketEvent::UdpFailed { .. }
            | SocketEvent::Resolved { .. } => {}
        }
        self.settle(now);
    }

    fn stream(&mut self, now: Instant, id: StreamId) -> Option<StreamMut<'_, Self>> {
        let now = self.node.clamp(now);
        StreamMut::new(self, now, id)
    }

    fn handle_timeout(&mut self, now: Instant) {
        let now = self.node.clamp(now);
        self.node.handle_timeout(now);
        while let Some(id) = self.node.stream_deadlines.pop_due(now) {
            self.visitor_overdue(now, id);
        }
        self.sessions_timeout(now);
        self.associations.handle_timeout(now, &mut self.node.resources);
        self.settle(now);
    }

    fn poll_transmit(&mut self, now: Instant, batch: &mut TransmitBatch) -> bool {
        let now = self.node.clamp(now);
        while !self.node.poll_transmit(now, batch) {
            // A flow that has moved or woken may take bytes again.
            if !self.node.stack.has_touched() {
                return false;
            }
            self.settle(now);
        }
        true
    }

    fn poll_action(&mut self) -> Option<Action<RelayEvent>> {
        self.node.actions.pop_front()
    }

    fn poll_timeout(&mut self) -> Option<(Instant, &'static str)> {
        let own = [
            self.sessions.next_timeout().map(|at| (at, "control channel")),
            self.associations.next_timeout().map(|at| (at, "idle association")),
        ];
        self.node
            .poll_timeout(own.into_iter().flatten().min_by_key(|&(at, _)| at))
    }

    fn begin_shutdown(&mut self, now: Instant) {
        let now = self.node.clamp(now);
        self.node.begin_closing(now);
        self.node.stack.unserve(crate::control::PORT);
        let listeners: Vec<_> = self.listeners.iter().map(|(key, _)| key).collect();
        for key in listeners {
            self.unlisten(ListenerId {
                index: key.index,
                generation: key.generation,
            });
        }
        self.say_goodbye();
        self.settle(now);
    }

    fn is_finished(&self) -> bool {
        self.node.is_finished()
    }
}

fn listener_key(listener: ListenerId) -> Key {
    Key {
        index: listener.index,
        generation: listener.generation,
    }
}

#[cfg(test)]
mod tests;
