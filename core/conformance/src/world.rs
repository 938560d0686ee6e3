//! A relay, an agent, the cable between them, targets and visitors.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use portal_core::identity::SecretKey;
use portal_core::{
    Access, Agent, AgentConfig, AgentEvent, Binding, Ingress, Kind, Machine, Relay, RelayConfig, RelayEvent, Service,
    Target,
};

use crate::{Adapter, Call, Started};

/// How long anything may take. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a shutdown may wait for what is open.
pub const GRACE: Duration = Duration::from_secs(20);

/// A machine that runs, and what it has told.
pub struct End<M: Machine> {
    started: Started<M>,
}

impl<M: Machine + Send + 'static> End<M>
where
    M::Event: Send + 'static,
{
    fn start(adapter: impl Adapter, machine: M, tunnel: UdpSocket) -> Self {
        let started = adapter.start(machine, tunnel, GRACE);
        Self { started }
    }

    /// Has something done with the machine.
    pub fn call<R: Send + 'static>(&self, call: impl FnOnce(&mut M, Instant) -> R + Send + 'static) -> R {
        let (answer, result) = channel();
        let call: Call<M> = Box::new(move |machine, now| answer.send(call(machine, now)).expect("somebody waits"));
        (self.started.call)(call);
        result.recv_timeout(PATIENCE).expect("the machine runs")
    }

    /// Waits for an event of this sort.
    #[track_caller]
    pub fn told<R>(&self, what: &str, mut wanted: impl FnMut(M::Event) -> Option<R>) -> R {
        let ends = Instant::now() + PATIENCE;
        loop {
            let left = ends.saturating_duration_since(Instant::now());
            match self.started.events.recv_timeout(left) {
                Ok(event) => {
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
                Err(error) => panic!("{what} was not told: {error}"),
            }
        }
    }

    /// Asks it to end.
    pub fn shutdown(&self) {
        (self.started.shutdown)();
    }

    /// Waits for its end; whether everything was finished.
    #[track_caller]
    pub fn ended(self) -> bool {
        eventually("the end", || self.started.ended.is_finished().then_some(()));
        self.started.ended.join().expect("the driver does not panic")
    }

    /// Ends it as far as it can be from inside: at once, whatever is open.
    #[track_caller]
    pub fn kill(self) {
        self.shutdown();
        self.shutdown();
        self.ended();
    }
}

/// The relay's end, and what it takes to start it once more.
pub struct RelayEnd {
    /// The machine.
    pub end: End<Relay>,
    /// Where HTTP visitors come in.
    pub http: SocketAddr,
    /// Its side of the cable.
    pub udp: SocketAddr,
    ports: RangeInclusive<u16>,
}

/// What the relay's key is made of, and the agent's.
const RELAY_KEY: [u8; 32] = [1; 32];
const AGENT_KEY: [u8; 32] = [2; 32];

impl RelayEnd {
    /// Starts a relay that serves everybody.
    pub fn start(adapter: impl Adapter) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(adapter, udp, http, free_ports(20), Vec::new())
    }

    /// Starts it again in the same places, with what the one before had bound.
    pub fn again(
        adapter: impl Adapter,
        udp: SocketAddr,
        http: SocketAddr,
        ports: RangeInclusive<u16>,
        bindings: Vec<Binding>,
    ) -> Self {
        let udp = eventually("its address", || UdpSocket::bind(udp).ok());
        Self::start_with(adapter, udp, http, ports, bindings)
    }

    /// The ports that it gives out.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.ports.clone()
    }

    fn start_with(
        adapter: impl Adapter,
        socket: UdpSocket,
        http: SocketAddr,
        ports: RangeInclusive<u16>,
        bindings: Vec<Binding>,
    ) -> Self {
        let udp = socket.local_addr().expect("bound");
        let mut config = RelayConfig::new(SecretKey::from_bytes(RELAY_KEY), seed(), "localhost".into());
        config.http = Some(http);
        config.ports = Some(ports.clone());
        config.ports_ip = Ipv4Addr::LOCALHOST.into();
        config.access = Access::Open;
        config.bindings = bindings;
        // Everybody here has one address.
        config.visitors_per_source = u32::MAX;
        let end = End::start(adapter, Relay::new(Instant::now(), config), socket);
        let http = end.told("listening", |event| match event {
            RelayEvent::Listening {
                ingress: Ingress::Http,
                local,
            } => Some(local),
            RelayEvent::ListenFailed { error, .. } => panic!("listening failed: {error}"),
            _ => None,
        });
        Self { end, http, udp, ports }
    }
}

/// The agent's end.
pub struct AgentEnd {
    /// The machine.
    pub end: End<Agent>,
    /// Where its first service is for visitors.
    pub public: String,
}

impl AgentEnd {
    /// Starts an agent with one service, whose relay is at `relay` or behind that end of a cable, and waits for its lease.
    pub fn start(adapter: impl Adapter, relay: SocketAddr, kind: Kind, target: Target) -> Self {
        let key = SecretKey::from_bytes(RELAY_KEY).public_key().url_safe();
        let uri = format!("portal://{key}@{relay}");
        let uri = uri.parse().expect("a URI");
        let mut config = AgentConfig::new(SecretKey::from_bytes(AGENT_KEY), seed(), uri);
        config.services.push(Service::new("it", kind, target));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let end = End::start(adapter, Agent::new(Instant::now(), config), socket);
        let public = end.told("a lease", granted);
        Self { end, public }
    }

    /// The port that visitors of its first service use.
    #[must_use]
    pub fn port(&self) -> u16 {
        port_of(&self.public)
    }

    /// Visits its first service.
    #[must_use]
    pub fn visit(&self) -> TcpStream {
        visit(self.port())
    }
}

/// What a lease is granted as.
#[must_use]
pub fn granted(event: AgentEvent) -> Option<String> {
    match event {
        AgentEvent::Granted { public, .. } => Some(public),
        AgentEvent::Refused { message, .. } => panic!("refused: {message}"),
        _ => None,
    }
}

/// The port at the end of a public address.
#[must_use]
pub fn port_of(public: &str) -> u16 {
    public
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port")
}

/// Connects as a visitor.
#[must_use]
pub fn visit(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the public port");
    patient(&stream);
    stream
}

/// Nothing waits for ever.
pub fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
}

/// What agent and relay reach each other by: a forwarder of datagrams that can be pulled, and that can give the agent
/// another address.
pub struct Cable {
    /// Where agents send to.
    pub agents_side: SocketAddr,
    state: Arc<CableState>,
}

struct CableState {
    pulled: AtomicBool,
    ended: AtomicBool,
    /// The relay sees this one's address as the agent's.
    outside: Mutex<UdpSocket>,
    agent: Mutex<Option<SocketAddr>>,
    inside: UdpSocket,
    relay: SocketAddr,
}

/// How often a forwarder looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

impl Cable {
    /// Lays one to a relay.
    #[must_use]
    pub fn new(relay: SocketAddr) -> Self {
        let inside = socket();
        let agents_side = inside.local_addr().expect("bound");
        let state = Arc::new(CableState {
            pulled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            outside: Mutex::new(socket()),
            agent: Mutex::new(None),
            inside,
            relay,
        });
        let there = Arc::clone(&state);
        thread::spawn(move || there.towards_relay());
        state.towards_agent();
        Self { agents_side, state }
    }

    /// Nothing passes from here on, until it is put back.
    pub fn pull(&self) {
        self.state.pulled.store(true, Ordering::Release);
    }

    /// It carries again.
    pub fn put_back(&self) {
        self.state.pulled.store(false, Ordering::Release);
    }

    /// From here on the relay sees the agent at another address, and what it sends to the old one is lost.
    pub fn rebind(&self) {
        *lock(&self.state.outside) = socket();
        self.state.towards_agent();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Release);
    }
}

impl CableState {
    fn towards_relay(&self) {
        let mut buffer = vec![0; 65_536];
        while !self.ended.load(Ordering::Acquire) {
            let Ok((len, from)) = self.inside.recv_from(&mut buffer) else {
                continue;
            };
            *lock(&self.agent) = Some(from);
            if !self.pulled.load(Ordering::Acquire) {
                let _ = lock(&self.outside).send_to(&buffer[..len], self.relay);
            }
        }
    }

    /// Starts the thread of the socket that is outside now; it ends when that is replaced.
    fn towards_agent(self: &Arc<Self>) {
        let state = Arc::clone(self);
        let socket = lock(&self.outside).try_clone().expect("a second handle");
        let addr = socket.local_addr().expect("bound");
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            let is_wanted = || {
                let current = lock(&state.outside).local_addr().expect("bound");
                current == addr && !state.ended.load(Ordering::Acquire)
            };
            while is_wanted() {
                let Ok((len, _)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let agent = *lock(&state.agent);
                if let Some(agent) = agent
                    && !state.pulled.load(Ordering::Acquire)
                {
                    let _ = state.inside.send_to(&buffer[..len], agent);
                }
            }
        });
    }
}

/// What a target does with a connection.
pub type Serve = fn(TcpStream);

/// Starts a TCP server on a thread of its own, each connection on another.
#[must_use]
pub fn server(serve: Serve) -> Target {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            patient(&stream);
            thread::spawn(move || serve(stream));
        }
    });
    host(addr)
}

/// A target by address.
#[must_use]
pub fn host(addr: SocketAddr) -> Target {
    Target::Host {
        host: addr.ip().to_string(),
        port: addr.port(),
    }
}

/// Sends back what comes, and FIN when it was told so.
pub fn echo(mut stream: TcpStream) {
    let mut reader = stream.try_clone().expect("a second handle");
    let _ = io::copy(&mut reader, &mut stream);
    let _ = stream.shutdown(Shutdown::Write);
}

/// Some bytes, not the same anywhere.
#[must_use]
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Sends bytes through an echo and checks that they come back, while it still sends.
#[track_caller]
pub fn echoed(stream: &mut TcpStream, bytes: &[u8]) {
    let mut writer = stream.try_clone().expect("a second handle");
    let mut back = vec![0; bytes.len()];
    let read = thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes));
        stream.read_exact(&mut back)
    });
    read.expect("the echo goes on");
    assert!(back == bytes, "other bytes came back");
}

/// Tries until there is something.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ports in a row that no other relay of this process has, below those that the system gives out by itself.
fn free_ports(count: u16) -> RangeInclusive<u16> {
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 20_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Another process begins elsewhere.
    let start = std::process::id().wrapping_mul(311) as u16 % SPAN;
    let first = FIRST + start.wrapping_add(TAKEN.fetch_add(count, Ordering::Relaxed)) % SPAN;
    first..=first + count - 1
}

/// Never the same twice.
fn seed() -> [u8; 32] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut seed = [0; 32];
    let number = NEXT.fetch_add(1, Ordering::Relaxed) as u64;
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    seed
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(LOOK)).expect("a timeout");
    socket
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
