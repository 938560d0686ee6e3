//! A relay and an agent in memory, joined without a network, for benches.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::identity::SecretKey;
use portal_core::{
    Access, Action, Agent, AgentConfig, AgentEvent, ByteStream, Kind, ListenerId, Machine, Path, Relay, RelayConfig,
    Service, SocketEvent, StreamId, Target, TransmitBatch, Transport,
};

/// A relay and an agent with one `tcp` lease. Datagrams go from one to the other in whole trains, as GSO and GRO carry
/// them; the visitor's and the target's sockets are counters.
pub struct Pair {
    now: Instant,
    relay: Relay,
    agent: Agent,
    relay_addr: SocketAddr,
    agent_addr: SocketAddr,
    batch: TransmitBatch,
    received: Vec<u8>,
    listener: Option<ListenerId>,
    dialled: Option<StreamId>,
}

/// A connection from a visitor's socket to a target's.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    visitor: StreamId,
    target: StreamId,
}

/// Enough for ten thousand flows, and for the first of them to get a large window.
const MEMORY: usize = 2 << 30;
/// Datagrams to a train.
const TRAIN: usize = 32;

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Both ends, the lease granted.
    ///
    /// # Panics
    /// If they do not find each other, which would be a fault of theirs.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        let (relay_key, agent_key) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let uri = format!("portal://{}@127.0.0.1:51820", relay_key.public_key().url_safe());
        let mut relay = RelayConfig::new(relay_key, [1; 32], "bench.test".into());
        relay.ports = Some(20_000..=20_000);
        relay.access = Access::Open;
        relay.visitors_per_source = u32::MAX;
        relay.limits.memory = MEMORY;
        let mut agent = AgentConfig::new(agent_key, [2; 32], uri.parse().expect("a valid URI"));
        agent.limits.memory = MEMORY;
        agent.services.push(Service::new(
            "bench",
            Kind::Tcp,
            Target::Host {
                host: "127.0.0.1".into(),
                port: 1,
            },
        ));
        let mut pair = Self {
            now,
            relay: Relay::new(now, relay),
            agent: Agent::new(now, agent),
            relay_addr: SocketAddr::from(([127, 0, 0, 1], 51820)),
            agent_addr: SocketAddr::from(([127, 0, 0, 1], 40000)),
            batch: TransmitBatch::new(TRAIN, 65_000),
            received: Vec::new(),
            listener: None,
            dialled: None,
        };
        for _ in 0..100 {
            pair.turn();
        }
        assert!(pair.listener.is_some(), "the relay opened the lease's port");
        pair
    }

    /// Both ends, with so many connections.
    ///
    /// # Panics
    /// If these do not come about.
    #[must_use]
    pub fn with_connections(count: usize) -> (Self, Vec<Connection>) {
        let mut pair = Self::new();
        let connections = (0..count).map(|_| pair.connect()).collect();
        (pair, connections)
    }

    /// A visitor connects, and its target is dialled.
    ///
    /// # Panics
    /// If that does not come about.
    pub fn connect(&mut self) -> Connection {
        let listener = self.listener.expect("a lease");
        let remote = SocketAddr::from(([127, 0, 0, 1], 50000));
        let local = SocketAddr::from(([127, 0, 0, 1], 20000));
        let visitor = self
            .relay
            .accept(self.now, listener, remote, local)
            .expect("room for a visitor");
        self.dialled = None;
        for _ in 0..20 {
            self.turn();
        }
        Connection {
            visitor,
            target: self.dialled.expect("the target was dialled"),
        }
    }

    /// Moves `bytes` from the visitor to the target.
    ///
    /// # Panics
    /// If they stop moving.
    pub fn upload(&mut self, connection: Connection, bytes: usize) {
        let (mut sent, mut arrived, mut idle) = (0, 0, 0);
        while arrived < bytes {
            if let Some(mut stream) = self.relay.stream(self.now, connection.visitor) {
                while sent < bytes {
                    match stream.fill(&mut |room| room.len().min(bytes - sent)) {
                        Some(count) => sent += count,
                        None => break,
                    }
                }
            }
            self.turn();
            let before = arrived;
            if let Some(mut stream) = self.agent.stream(self.now, connection.target) {
                while let Some(count) = stream.drain(&mut <[u8]>::len) {
                    arrived += count;
                }
            }
            // After any mutation transmits are drained.
            carry(
                self.now,
                &mut self.agent,
                self.agent_addr,
                &mut self.relay,
                &mut self.batch,
                &mut self.received,
            );
            idle = if arrived == before { idle + 1 } else { 0 };
            assert!(idle < 100_000, "stuck after {arrived} of {bytes} bytes");
        }
    }

    /// Everything that is due, once in each direction.
    fn turn(&mut self) {
        self.now += Duration::from_micros(20);
        carry(
            self.now,
            &mut self.relay,
            self.relay_addr,
            &mut self.agent,
            &mut self.batch,
            &mut self.received,
        );
        while let Some(action) = self.agent.poll_action() {
            match action {
                Action::Resolve { host, .. } => {
                    let event = SocketEvent::Resolved {
                        host: &host,
                        addrs: &[self.relay_addr],
                    };
                    self.agent.handle_socket(self.now, event);
                }
                Action::Dial { stream, .. } => {
                    self.dialled = Some(stream);
                    self.agent.handle_socket(self.now, SocketEvent::Connected { stream });
                }
                Action::Event(AgentEvent::Refused { message, .. }) => panic!("refused: {message}"),
                _ => {}
            }
        }
        carry(
            self.now,
            &mut self.agent,
            self.agent_addr,
            &mut self.relay,
            &mut self.batch,
            &mut self.received,
        );
        while let Some(action) = self.relay.poll_action() {
            if let Action::Listen {
                listener,
                addr,
                transport: Transport::Tcp,
            } = action
            {
                self.listener = Some(listener);
                self.relay
                    .handle_socket(self.now, SocketEvent::Listening { listener, local: addr });
            }
        }
        if self.relay.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.relay.handle_timeout(self.now);
        }
        if self.agent.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.agent.handle_timeout(self.now);
        }
    }
}

/// Sends all that one machine has to the other.
fn carry(
    now: Instant,
    from: &mut impl Machine,
    from_addr: SocketAddr,
    to: &mut impl Machine,
    batch: &mut TransmitBatch,
    received: &mut Vec<u8>,
) {
    while from.poll_transmit(now, batch) {
        received.clear();
        received.extend_from_slice(batch.contents());
        let stride = batch.segment_size().unwrap_or(received.len());
        to.handle_datagram(
            now,
            Path {
                remote: from_addr,
                local_ip: None,
            },
            received,
            stride,
        );
    }
}
