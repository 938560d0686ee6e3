//! The end beside the service: keeps the tunnel to its relay, and joins what comes through it to local targets.

mod datagrams;
mod inbound;
mod liveness;
mod services;
mod status;
mod uplink;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::datagrams::TargetAssociations;
use self::inbound::{Inbound, Joined};
use self::services::Services;
use self::uplink::Uplink;
use crate::admin::{self, Operated};
use crate::batch::TransmitBatch;
use crate::control::RefusalCode;
use crate::counters::Counters;
use crate::http;
use crate::identity::SecretKey;
use crate::machine::{
    Action, DialError, ListenerId, Machine, Path, SocketEvent, StreamId, Target, Transport, UdpSocketRef,
};
use crate::metrics;
use crate::node::{DEFAULT_MTU, End, Ended, Limits, Node, NodeEvent, Owned, StreamMut};
use crate::stack::Owner;
use crate::status::{Status, Traffic};
use crate::uri::RelayUri;
use crate::wg::PeerId;

pub use self::services::Service;
pub use self::status::{AgentStatus, ServiceStatus};

/// What an agent is to be.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Its WireGuard key.
    pub secret: SecretKey,
    /// Where everything random grows from; never the same twice.
    pub seed: [u8; 32],
    /// Its relay.
    pub relay: RelayUri,
    /// What it offers.
    pub services: Vec<Service>,
    /// What it calls itself to the relay, for people.
    pub name: String,
    /// Where operators ask how it is: see [`Agent::status`]. There is no password.
    pub admin: Option<SocketAddr>,
    /// Inner MTU, 1280 to 1420.
    pub mtu: u16,
    /// Common bounds.
    pub limits: Limits,
}

impl AgentConfig {
    /// An agent that offers nothing yet, with the usual bounds.
    #[must_use]
    pub fn new(secret: SecretKey, seed: [u8; 32], relay: RelayUri) -> Self {
        Self {
            secret,
            seed,
            relay,
            services: Vec::new(),
            name: String::new(),
            admin: None,
            mtu: DEFAULT_MTU,
            limits: Limits {
                peers: 8,
                ..Limits::default()
            },
        }
    }
}

/// What an agent tells its program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
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
    /// The relay's name has no address; it is asked for again.
    Unresolved {
        /// The host name.
        host: String,
        /// When it is asked for again.
        retry: Duration,
    },
    /// The relay does not answer; it is called again.
    RelaySilent {
        /// Where it was called.
        remote: SocketAddr,
        /// For how long nothing has come from it.
        since: Duration,
        /// When it is called again.
        retry: Duration,
    },
    /// The relay has answered and knows this agent.
    RelayUp {
        /// Where it is.
        remote: SocketAddr,
        /// What it calls itself.
        relay: String,
    },
    /// The control channel is gone; services cannot be reached until it is back.
    RelayDown {
        /// Why.
        reason: String,
    },
    /// The relay refuses this agent's key, or speaks another version. The agent asks again.
    RelayRefused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people, with the mend.
        message: String,
        /// When it asks again.
        retry: Duration,
    },
    /// A service can be reached.
    Granted {
        /// Which.
        service: String,
        /// How people reach it.
        public: String,
    },
    /// The relay refuses a service.
    Refused {
        /// Which.
        service: String,
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// A service can no longer be reached.
    Revoked {
        /// Which.
        service: String,
        /// Why, for people.
        message: String,
    },
    /// The memory budget is used up: something was refused for want of it, and what is there goes on. Said at most once
    /// a minute.
    MemoryShort {
        /// How many connections, flows, peers and the like were refused since this was last said.
        refused: u64,
    },
    /// A visitor's connection could not be joined to its target.
    TargetFailed {
        /// Of which service.
        service: String,
        /// Where it should have gone.
        target: Target,
        /// Why it did not.
        error: DialError,
    },
    /// A visitor's connection has ended.
    VisitorLeft {
        /// Of which service.
        service: String,
        /// Who it was, as the relay says.
        visitor: Option<SocketAddr>,
        /// Bytes the visitor sent.
        received: u64,
        /// Bytes the visitor got.
        sent: u64,
        /// Whether both sides were done.
        finished: bool,
    },
}

/// The only listener that an agent has.
const ADMIN: ListenerId = ListenerId {
    index: 0,
    generation: 1,
};

/// See the module docs.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    instance: u64,
    node: Node<Joined, AgentEvent>,
    relay: PeerId,
    uplink: Uplink,
    services: Services,
    inbound: Inbound,
    associations: TargetAssociations,
}

impl Agent {
    /// An agent at work: its first action asks for the relay's address.
    ///
    /// # Panics
    /// If the limits allow no peer at all.
    #[must_use]
    pub fn new(now: Instant, mut config: AgentConfig) -> Self {
        let services = Services::new(std::mem::take(&mut config.services));
        let mut node = Node::new(now, &config.secret, config.mtu, &config.limits, false, config.seed);
        let relay = node
            .wg
            .add_peer(now, config.relay.key, None, &mut node.resources)
            .expect("an empty table of peers has room for one");
        node.wg.set_pinned(relay, true);
        let mut agent = Self {
            instance: node.random.u64(),
            relay,
            uplink: Uplink::new(now),
            services,
            inbound: Inbound::new(),
            associations: TargetAssociations::new(config.limits.associations, &mut node.random),
            node,
            config,
        };
        if let Some(addr) = agent.config.admin {
            agent.node.admin.enable(addr, &mut agent.node.resources);
            agent.node.actions.push_back(Action::Listen {
                listener: ADMIN,
                addr,
                transport: Transport::Tcp,
            });
        }
        agent.uplink_due(now);
        agent
    }

    /// Offers these services from now on. Those that want the same as before keep their lease, and every connection goes
    /// on; leases of the others are given back, and asked for anew where the wishes have changed.
    pub fn set_services(&mut self, now: Instant, services: Vec<Service>) {
        let now = self.node.clamp(now);
        self.replace_services(services);
        self.register_missing();
        self.settle(now);
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
        let gauges = [
            (
                "connections",
                "Connections to local targets.",
                self.connection_count() as u64,
            ),
            ("flows", "Flows in the tunnel.", self.node.stack.flow_count() as u64),
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
        metrics::render("portal_agent", self.counters(), &gauges)
    }

    /// Asserts what must always hold between the machine's parts; for tests and fuzzing.
    ///
    /// # Panics
    /// If it does not hold, which is a fault of this crate.
    pub fn check_invariants(&self) {
        self.node
            .check_invariants(self.associations.check_invariants() + self.uplink.held());
    }

    /// Connections to local targets, those being dialled among them.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.node.stream_count()
    }

    fn dial_failed(&mut self, id: StreamId, error: DialError) {
        let Some(stream) = self.node.stream(id) else {
            return;
        };
        let Some(Joined { service, .. }) = &stream.data else {
            return;
        };
        let event = AgentEvent::TargetFailed {
            service: service.id.clone(),
            target: service.target.clone(),
            error,
        };
        self.node.resources.counters.dials_failed += 1;
        self.node.event(event);
        // Visitors of other kinds are told by the relay, or see a reset.
        let end = End::SocketFailed;
        if !self.node.answer_in_tls(id, http::bad_gateway(), end) {
            self.node.drop_stream(id, end);
        }
    }

    fn ended(&mut self, ended: &Ended<Joined>) {
        if let End::TargetTls { untrusted } = ended.end {
            let event = AgentEvent::TargetFailed {
                service: ended.data.service.id.clone(),
                target: ended.data.service.target.clone(),
                error: if untrusted {
                    DialError::Untrusted
                } else {
                    DialError::Tls
                },
            };
            self.node.event(event);
        }
        let id = &ended.data.service.id;
        self.services.carried_by(id, ended.to_socket, ended.from_socket);
        let event = AgentEvent::VisitorLeft {
            service: ended.data.service.id.clone(),
            visitor: ended.data.visitor,
            received: ended.to_socket,
            sent: ended.from_socket,
            finished: ended.end == End::Finished,
        };
        self.node.event(event);
    }
}

impl Owned for Agent {
    type Data = Joined;
    type Event = AgentEvent;

    fn node(&mut self) -> &mut Node<Joined, AgentEvent> {
        &mut self.node
    }

    fn head_grew(&mut self, now: Instant, id: StreamId) {
        admin::head_grew(self, now, id);
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.node.poll_event() {
            match event {
                NodeEvent::Tunnel(event) => self.tunnel_event(now, event),
                NodeEvent::Flow(flow, Owner::Nobody) => self.flow_touched(now, flow),
                NodeEvent::Flow(flow, _) => self.channel_touched(now, flow),
                NodeEvent::Ended(ended) => self.ended(&ended),
            }
        }
        if let Some(refused) = self.node.resources.refusals_to_tell(now) {
            self.node.event(AgentEvent::MemoryShort { refused });
        }
        self.uplink.note_state(now);
        self.note_work(now);
        self.node.follow_closing(now);
    }
}

impl Operated for Agent {
    fn metrics_text(&self) -> String {
        self.metrics()
    }

    fn why_not_ready(&self) -> Option<String> {
        self.not_ready()
    }

    fn status_now(&self, now: Instant) -> Status {
        Status::Agent(self.status(now))
    }
}

impl Machine for Agent {
    type Event = AgentEvent;
    type Stream<'a> = StreamMut<'a, Self>;

    fn handle_datagram(&mut self, now: Instant, path: Path, batch: &mut [u8], stride: usize) {
        let now = self.node.clamp(now);
        let Self {
            node,
            associations,
            services,
            ..
        } = self;
        node.handle_datagram(now, path, batch, stride, |node, _, packet, payload| {
            let service = services.at(packet.destination_port).map(AsRef::as_ref);
            let opened = node.resources.counters.associations_opened;
            associations.take_from_tunnel(now, node, service, &packet, payload);
            let carried = Traffic {
                now: 0,
                total: node.resources.counters.associations_opened - opened,
                received: payload.len() as u64,
                sent: 0,
            };
            services.carried_at(packet.destination_port, carried);
        });
        self.settle(now);
    }

    /// Operators are all that an agent listens to.
    fn accept(&mut self, now: Instant, listener: ListenerId, _: SocketAddr, _: SocketAddr) -> Option<StreamId> {
        let now = self.node.clamp(now);
        if listener != ADMIN || self.node.is_closing() {
            return None;
        }
        self.node.accept_operator(now)
    }

    fn handle_socket(&mut self, now: Instant, event: SocketEvent<'_>) {
        let now = self.node.clamp(now);
        match event {
            SocketEvent::Connected { stream } => self.node.connected(stream),
            SocketEvent::DialFailed { stream, error } => self.dial_failed(stream, error),
            SocketEvent::Datagram {
                socket: UdpSocketRef::Local(socket),
                payload,
                ..
            } => {
                self.datagram_from_target(now, socket, payload);
            }
            SocketEvent::UdpConnected { socket } => self.udp_connected(socket),
            SocketEvent::UdpFailed { socket, error } => self.udp_failed(socket, error),
            SocketEvent::Resolved { host, addrs } => self.resolved(now, host, addrs),
            SocketEvent::Listening { local, .. } => self.node.event(AgentEvent::AdminListening { local }),
            SocketEvent::ListenFailed { error, .. } => {
                if let Some(addr) = self.config.admin {
                    self.node.event(AgentEvent::AdminFailed { addr, error });
                }
            }
            SocketEvent::Datagram { .. } => {}
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
        self.uplink_due(now);
        self.inbound_due(now);
        self.associations_due(now);
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

    fn poll_action(&mut self) -> Option<Action<AgentEvent>> {
        self.node.actions.pop_front()
    }

    fn poll_timeout(&mut self) -> Option<(Instant, &'static str)> {
        let own = [
            self.uplink.next_timeout(),
            self.inbound.next_timeout().map(|at| (at, "proxy header")),
            self.associations.next_timeout().map(|at| (at, "idle association")),
        ];
        self.node
            .poll_timeout(own.into_iter().flatten().min_by_key(|&(at, _)| at))
    }

    fn begin_shutdown(&mut self, now: Instant) {
        let now = self.node.clamp(now);
        self.node.begin_closing(now);
        if self.config.admin.take().is_some() {
            self.node.actions.push_back(Action::Unlisten { listener: ADMIN });
        }
        self.say_goodbye();
        self.settle(now);
    }

    fn is_finished(&self) -> bool {
        self.node.is_finished()
    }
}

#[cfg(test)]
mod tests;
