//! A relay and agents on one virtual clock, joined by links that delay and lose, with scripted kernel sockets.
//!
//! The clock moves only to the next thing that is due: a datagram's arrival or a machine's deadline. Nothing waits.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "a module of test binaries")]
#![allow(clippy::disallowed_methods, reason = "one arbitrary origin for the virtual clock")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::identity::SecretKey;
use portal_core::{
    Access, Action, Agent, AgentConfig, AgentEvent, ByteStream, Kind, ListenerId, Machine, Path, Relay, RelayConfig,
    RelayEvent, Service, SocketEvent, StreamId, Target, TransmitBatch, Transport, UdpSocketRef,
};

pub const RELAY_ADDR: &str = "203.0.113.1:51820";
pub const AGENT_ADDR: &str = "192.0.2.7:40000";
pub const VISITOR_ADDR: &str = "198.51.100.9:1234";

/// What a scripted socket has done and has been told.
#[derive(Debug, Default)]
pub struct Socket {
    pub to_send: VecDeque<u8>,
    pub received: Vec<u8>,
    pub fin_to_send: bool,
    pub fin_sent: bool,
    pub fin_received: bool,
    pub reset: bool,
    pub closed: bool,
    pub echo: bool,
    pub reads: bool,
    read_wanted: bool,
    write_wanted: bool,
}

impl Socket {
    pub fn is_over(&self) -> bool {
        self.reset || self.closed
    }
}

/// One machine with its sockets.
pub struct Host<M: Machine> {
    pub machine: M,
    pub addr: SocketAddr,
    pub sockets: BTreeMap<StreamId, Socket>,
    pub listeners: BTreeMap<ListenerId, (SocketAddr, Transport)>,
    pub events: Vec<M::Event>,
    pub datagrams: Vec<(UdpSocketRef, Option<SocketAddr>, Vec<u8>)>,
    pub resolves: usize,
    pub dials: Vec<(StreamId, Target)>,
    pub refuse_dials: bool,
    pub targets_echo: bool,
    pub on: bool,
    batch: TransmitBatch,
}

/// When it arrives, its number, whether it goes to the relay, and its bytes.
type InFlight = (Instant, u64, bool, Vec<u8>);

/// The link between the two.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub delay: Duration,
    /// One datagram in this many is lost; 0 for none.
    pub loss: u64,
    pub cut: bool,
    /// Bytes a second; 0 for no limit.
    pub rate: u64,
    pub mtu: usize,
}

pub struct Sim {
    pub now: Instant,
    pub start: Instant,
    pub relay: Host<Relay>,
    pub agent: Host<Agent>,
    pub link: Link,
    pub sent: u64,
    pub lost: u64,
    wire: BinaryHeap<Reverse<InFlight>>,
    busy_until: [Instant; 2],
    random: u64,
    spin: (Instant, u32),
}

pub fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

pub fn relay_config() -> RelayConfig {
    let mut config = RelayConfig::new(key(1), [1; 32], "tunnel.test".into());
    config.http = Some("203.0.113.1:80".parse().unwrap());
    config.https = Some("203.0.113.1:443".parse().unwrap());
    config.ports = Some(20_000..=20_099);
    config.access = Access::Open;
    config
}

pub fn service(kind: Kind) -> Service {
    Service {
        id: kind.to_string(),
        kind,
        target: Target::Host {
            host: "127.0.0.1".into(),
            port: 3000,
        },
        name: matches!(kind, Kind::Http | Kind::Tls).then(|| "web".into()),
        port: None,
    }
}

pub fn agent_config(services: Vec<Service>) -> AgentConfig {
    let uri = format!("portal://{}@relay.test:51820", key(1).public_key().url_safe());
    let mut config = AgentConfig::new(key(2), [2; 32], uri.parse().unwrap());
    config.services = services;
    config.name = "sim".into();
    config
}

impl<M: Machine> Host<M> {
    pub fn new(machine: M, addr: &str) -> Self {
        Self {
            machine,
            addr: addr.parse().unwrap(),
            sockets: BTreeMap::new(),
            listeners: BTreeMap::new(),
            events: Vec::new(),
            datagrams: Vec::new(),
            resolves: 0,
            dials: Vec::new(),
            refuse_dials: false,
            targets_echo: true,
            on: true,
            batch: TransmitBatch::new(32, 65_000),
        }
    }

    pub fn listener(&self, port: u16, transport: Transport) -> ListenerId {
        let found = self
            .listeners
            .iter()
            .find(|(_, (addr, kind))| addr.port() == port && *kind == transport);
        *found
            .unwrap_or_else(|| panic!("nothing listens on {transport} {port}"))
            .0
    }

    fn pump(&mut self, now: Instant) {
        let ids: Vec<_> = self.sockets.keys().copied().collect();
        for id in ids {
            let socket = self.sockets.get_mut(&id).unwrap();
            if socket.is_over() {
                continue;
            }
            while socket.read_wanted && !socket.to_send.is_empty() {
                let Some(mut stream) = self.machine.stream(now, id) else {
                    break;
                };
                let filled = stream.fill(&mut |room| {
                    let count = room.len().min(socket.to_send.len());
                    for (slot, byte) in room.iter_mut().zip(socket.to_send.drain(..count)) {
                        *slot = byte;
                    }
                    count
                });
                if filled.is_none() {
                    socket.read_wanted = false;
                }
            }
            if socket.read_wanted && socket.fin_to_send && socket.to_send.is_empty() && !socket.fin_sent {
                socket.fin_sent = true;
                socket.read_wanted = false;
                if let Some(mut stream) = self.machine.stream(now, id) {
                    stream.shutdown();
                }
            }
            while socket.write_wanted && socket.reads {
                let Some(mut stream) = self.machine.stream(now, id) else {
                    break;
                };
                let drained = stream.drain(&mut |bytes| {
                    socket.received.extend_from_slice(bytes);
                    if socket.echo {
                        socket.to_send.extend(bytes);
                    }
                    bytes.len()
                });
                if drained.is_none() {
                    socket.write_wanted = false;
                }
            }
        }
    }

    fn act(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(action) = self.machine.poll_action() {
            any = true;
            match action {
                Action::Listen {
                    listener,
                    addr,
                    transport,
                } => {
                    self.listeners.insert(listener, (addr, transport));
                    self.machine
                        .handle_socket(now, SocketEvent::Listening { listener, local: addr });
                }
                Action::Unlisten { listener } => {
                    self.listeners.remove(&listener);
                }
                Action::Dial { stream, target } => {
                    self.dials.push((stream, target));
                    if self.refuse_dials {
                        let error = portal_core::DialError::Refused;
                        self.machine
                            .handle_socket(now, SocketEvent::DialFailed { stream, error });
                    } else {
                        let socket = Socket {
                            reads: true,
                            echo: self.targets_echo,
                            ..Socket::default()
                        };
                        self.sockets.insert(stream, socket);
                        self.machine.handle_socket(now, SocketEvent::Connected { stream });
                    }
                }
                Action::WantRead(id) => self.socket(id).read_wanted = true,
                Action::WantWrite(id) => self.socket(id).write_wanted = true,
                Action::Shutdown(id) => {
                    let socket = self.socket(id);
                    socket.fin_received = true;
                    if socket.echo {
                        socket.fin_to_send = true;
                    }
                }
                Action::Abort(id) => {
                    if let Some(socket) = self.sockets.get_mut(&id) {
                        socket.reset = true;
                    }
                }
                Action::Close(id) => self.socket(id).closed = true,
                Action::Resolve { host, port } => {
                    self.resolves += 1;
                    let addr: SocketAddr = RELAY_ADDR.parse().unwrap();
                    assert_eq!(port, addr.port());
                    self.machine.handle_socket(
                        now,
                        SocketEvent::Resolved {
                            host: &host,
                            addrs: &[addr],
                        },
                    );
                }
                Action::Event(event) => self.events.push(event),
                _ => {}
            }
        }
        any
    }

    pub fn socket(&mut self, id: StreamId) -> &mut Socket {
        self.sockets.get_mut(&id).expect("a socket that the machine was given")
    }
}

impl Sim {
    pub fn new(relay: RelayConfig, agent: AgentConfig) -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        Self {
            now,
            start: now,
            relay: Host::new(Relay::new(now, relay), RELAY_ADDR),
            agent: Host::new(Agent::new(now, agent), AGENT_ADDR),
            link: Link {
                delay: Duration::from_millis(10),
                loss: 0,
                cut: false,
                rate: 0,
                mtu: 1500,
            },
            sent: 0,
            lost: 0,
            wire: BinaryHeap::new(),
            busy_until: [now; 2],
            random: 88_172_645_463_325_252,
            spin: (now, 0),
        }
    }

    /// A relay and an agent with one service, its lease granted.
    pub fn with_service(kind: Kind) -> Self {
        let mut sim = Self::new(relay_config(), agent_config(vec![service(kind)]));
        sim.run_until("the lease", |sim| sim.public().is_some());
        sim
    }

    /// The public address the agent was last told.
    pub fn public(&self) -> Option<String> {
        self.agent.events.iter().rev().find_map(|event| match event {
            AgentEvent::Granted { public, .. } => Some(public.clone()),
            _ => None,
        })
    }

    /// The port of that address.
    pub fn public_port(&self) -> u16 {
        self.public()
            .expect("a lease")
            .rsplit(':')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Another process in the agent's place.
    pub fn restart_agent(&mut self, services: Vec<Service>, seed: u8) {
        let config = AgentConfig {
            seed: [seed; 32],
            ..agent_config(services)
        };
        self.agent = Host::new(Agent::new(self.now, config), AGENT_ADDR);
    }

    /// Another process in the relay's place, which knows what `config` says.
    pub fn restart_relay(&mut self, seed: u8, config: RelayConfig) {
        let config = RelayConfig {
            seed: [seed; 32],
            ..config
        };
        self.relay = Host::new(Relay::new(self.now, config), RELAY_ADDR);
    }

    /// A visitor connects to a public port of the relay.
    pub fn visit(&mut self, port: u16) -> Option<StreamId> {
        let listener = self.relay.listener(port, Transport::Tcp);
        let local = SocketAddr::new("203.0.113.1".parse().unwrap(), port);
        let id = self
            .relay
            .machine
            .accept(self.now, listener, VISITOR_ADDR.parse().unwrap(), local)?;
        self.relay.sockets.insert(
            id,
            Socket {
                reads: true,
                ..Socket::default()
            },
        );
        Some(id)
    }

    pub fn visitor(&mut self, id: StreamId) -> &mut Socket {
        self.relay.socket(id)
    }

    pub fn say(&mut self, id: StreamId, bytes: &[u8]) {
        self.visitor(id).to_send.extend(bytes);
    }

    pub fn relay_events(&self) -> &[RelayEvent] {
        &self.relay.events
    }

    /// Runs until nothing is left to do at this instant.
    pub fn settle(&mut self) {
        loop {
            let mut any = false;
            while self.wire.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
                let Reverse((_, _, to_relay, mut bytes)) = self.wire.pop().unwrap();
                any = true;
                let stride = bytes.len();
                if to_relay && self.relay.on {
                    let path = Path {
                        remote: self.agent.addr,
                        local_ip: None,
                    };
                    self.relay.machine.handle_datagram(self.now, path, &mut bytes, stride);
                } else if !to_relay && self.agent.on {
                    let path = Path {
                        remote: self.relay.addr,
                        local_ip: None,
                    };
                    self.agent.machine.handle_datagram(self.now, path, &mut bytes, stride);
                }
            }
            any |= self.step_host(true);
            any |= self.step_host(false);
            if !any {
                return;
            }
        }
    }

    fn step_host(&mut self, is_relay: bool) -> bool {
        let now = self.now;
        macro_rules! step {
            ($host:expr) => {{
                let host = &mut $host;
                if !host.on {
                    return false;
                }
                host.pump(now);
                let mut sent = Vec::new();
                while host.machine.poll_transmit(now, &mut host.batch) {
                    let destination = host.batch.destination().unwrap();
                    let size = host
                        .batch
                        .segment_size()
                        .unwrap_or(host.batch.contents().len())
                        .max(1);
                    let contents = host.batch.contents();
                    if destination.socket == UdpSocketRef::Tunnel {
                        assert!(destination.path.is_some());
                        sent.extend(contents.chunks(size).map(<[u8]>::to_vec));
                    } else {
                        let remote = destination.path.map(|path| path.remote);
                        host.datagrams
                            .push((destination.socket, remote, contents.to_vec()));
                    }
                }
                (sent, host.act(now))
            }};
        }
        let (sent, mut any) = if is_relay { step!(self.relay) } else { step!(self.agent) };
        any |= !sent.is_empty();
        for bytes in sent {
            self.transmit(!is_relay, bytes);
        }
        let due = if is_relay {
            self.relay.machine.poll_timeout()
        } else {
            self.agent.machine.poll_timeout()
        };
        if let Some((at, reason)) = due
            && at <= now
        {
            if is_relay {
                self.relay.machine.handle_timeout(now);
            } else {
                self.agent.machine.handle_timeout(now);
            }
            if self.spin.0 == now {
                self.spin.1 += 1;
                assert!(self.spin.1 < 100_000, "spinning at one instant: {reason}");
            } else {
                self.spin = (now, 0);
            }
            any = true;
        }
        any
    }

    fn transmit(&mut self, to_relay: bool, bytes: Vec<u8>) {
        self.sent += 1;
        let lost = self.link.loss > 0 && self.random().is_multiple_of(self.link.loss);
        assert!(
            bytes.len() + 48 <= self.link.mtu,
            "a datagram of {} bytes exceeds the path",
            bytes.len()
        );
        if self.link.cut || lost {
            self.lost += 1;
            return;
        }
        let mut at = self.now.max(self.busy_until[usize::from(to_relay)]);
        if let Some(seconds) = (bytes.len() as u64 * 1_000_000_000).checked_div(self.link.rate) {
            at += Duration::from_nanos(seconds);
            self.busy_until[usize::from(to_relay)] = at;
        }
        self.wire
            .push(Reverse((at + self.link.delay, self.sent, to_relay, bytes)));
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Moves the clock to the next thing due, at most to `end`. False if that was reached.
    pub fn step(&mut self, end: Instant) -> bool {
        self.settle();
        if self.relay.machine.census().flows < 50 {
            self.relay.machine.check_invariants();
            self.agent.machine.check_invariants();
        }
        let next = [
            self.wire.peek().map(|Reverse((at, ..))| *at),
            self.relay
                .on
                .then(|| self.relay.machine.poll_timeout())
                .flatten()
                .map(|(at, _)| at),
            self.agent
                .on
                .then(|| self.agent.machine.poll_timeout())
                .flatten()
                .map(|(at, _)| at),
        ];
        match next.into_iter().flatten().min() {
            Some(at) if at < end => {
                self.now = self.now.max(at);
                true
            }
            _ => {
                self.now = end;
                self.settle();
                false
            }
        }
    }

    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Runs until `done`; fails after ten virtual minutes.
    #[track_caller]
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        self.run_until_within(what, Duration::from_secs(600), done);
    }

    #[track_caller]
    pub fn run_until_within(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return;
            }
            assert!(
                self.step(end) || done(self),
                "{what} did not come within {limit:?}\nagent: {:?}\nrelay: {:?}\n{:?}\n{:?}",
                self.agent.events,
                self.relay.events,
                self.agent.machine.counters(),
                self.relay.machine.counters(),
            );
        }
    }
}

/// Bytes that tell their place, so that a hole or a repeat shows.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
