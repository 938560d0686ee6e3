//! A machine for tests: it joins streams by bounded buffers, echoes datagrams and writes down what it was told.
//!
//! A stream is joined to itself (an echo) or to a dialled one (a splice). It asks for reading and writing exactly when
//! the contract says, never more, so that a runtime that forgets a readiness hangs.

#![allow(dead_code, reason = "no test binary uses all of it")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use portal_core::{
    Action, ByteStream, Destination, DialError, ListenerId, Machine, Path, SocketEvent, StreamId, Target,
    TransmitBatch, Transport, UdpId, UdpSocketRef,
};
use portal_runtime_tokio::{Driver, Events, Finished, Handle, Handlers, Settings};
use tokio::task::JoinHandle;

/// What the machine tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Listening(SocketAddr),
    ListenFailed(std::io::ErrorKind),
    Accepted(StreamId, SocketAddr, SocketAddr),
    Connected(StreamId),
    DialFailed(DialError),
    UdpConnected(UdpId),
    UdpFailed(DialError),
    Resolved(String, Vec<SocketAddr>),
    Timeout(Instant),
    /// The runtime said so by `ByteStream::abort`.
    Failed(StreamId),
    Eof(StreamId),
    Local(Vec<u8>),
}

/// A bounded queue of bytes with contiguous slices.
#[derive(Debug)]
pub(crate) struct Ring {
    buffer: Box<[u8]>,
    head: usize,
    len: usize,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        Self {
            buffer: vec![0; capacity].into_boxed_slice(),
            head: 0,
            len: 0,
        }
    }

    fn room(&mut self) -> &mut [u8] {
        let capacity = self.buffer.len();
        let tail = (self.head + self.len) % capacity;
        let end = if tail < self.head || self.len == capacity {
            tail + (capacity - self.len)
        } else {
            capacity
        };
        &mut self.buffer[tail..end]
    }

    fn data(&self) -> &[u8] {
        let end = (self.head + self.len).min(self.buffer.len());
        &self.buffer[self.head..end]
    }

    fn take(&mut self, n: usize) {
        self.head = (self.head + n) % self.buffer.len();
        self.len -= n;
    }
}

#[derive(Debug)]
pub(crate) struct Flow {
    generation: u32,
    /// Where its bytes go: itself, or the other half of a splice.
    peer: usize,
    /// Bytes on their way to this stream's kernel socket.
    out: Ring,
    /// The machine said there was no room, or nothing: it owes an action.
    read_blocked: bool,
    write_blocked: bool,
    /// The kernel socket reached its end of file.
    eof: bool,
    /// A FIN has to follow the bytes in `out`.
    fin: bool,
    fin_sent: bool,
    filled: u64,
    drained: u64,
}

#[derive(Debug)]
pub(crate) struct Toy {
    pub(crate) echo_local: bool,
    /// Accepted streams are spliced to a dial of this.
    pub(crate) target: Option<Target>,
    pub(crate) refuse: bool,
    pub(crate) capacity: usize,
    /// Nothing is drained: the back-pressure test.
    pub(crate) stalled: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) timeouts: Vec<Instant>,
    /// Datagrams of the tunnel.
    pub(crate) received: Vec<(Path, Vec<u8>)>,
    /// The largest number of datagrams that came in one piece.
    pub(crate) largest_train: usize,
    pub(crate) resolves: usize,
    pub(crate) flows: Vec<Option<Flow>>,
    pub(crate) generation: u32,
    pub(crate) actions: VecDeque<Action<Told>>,
    pub(crate) transmits: VecDeque<(Destination, Vec<u8>)>,
    pub(crate) stopping: bool,
    pub(crate) never_finished: bool,
}

impl Default for Toy {
    fn default() -> Self {
        Self {
            echo_local: false,
            target: None,
            refuse: false,
            capacity: 64 * 1024,
            stalled: false,
            deadline: None,
            timeouts: Vec::new(),
            received: Vec::new(),
            largest_train: 0,
            resolves: 0,
            flows: Vec::new(),
            generation: 0,
            actions: VecDeque::new(),
            transmits: VecDeque::new(),
            stopping: false,
            never_finished: false,
        }
    }
}

impl Toy {
    /// Asks for a public socket. The answer is an event.
    pub(crate) fn listen(&mut self, index: u32, addr: &str, transport: Transport) -> ListenerId {
        let listener = ListenerId::from_parts(index, 1);
        self.actions.push_back(Action::Listen {
            listener,
            addr: addr.parse().unwrap(),
            transport,
        });
        listener
    }

    pub(crate) fn act(&mut self, action: Action<Told>) {
        self.actions.push_back(action);
    }

    /// Queues a datagram of the tunnel.
    pub(crate) fn send(&mut self, to: SocketAddr, payload: Vec<u8>) {
        let path = Path {
            remote: to,
            local_ip: None,
        };
        self.transmit(UdpSocketRef::Tunnel, Some(path), payload);
    }

    pub(crate) fn transmit(&mut self, socket: UdpSocketRef, path: Option<Path>, payload: Vec<u8>) {
        self.transmits.push_back((Destination { socket, path }, payload));
    }

    /// Opens a dialled stream that echoes.
    pub(crate) fn dial(&mut self, target: Target) -> StreamId {
        let id = self.open(None);
        self.actions.push_back(Action::Dial { stream: id, target });
        id
    }

    /// Resets a stream from this side.
    pub(crate) fn reset(&mut self, id: StreamId) {
        self.flows[id.index()] = None;
        self.actions.push_back(Action::Abort(id));
    }

    /// Lets a stalled machine go on.
    pub(crate) fn resume(&mut self) {
        self.stalled = false;
        for index in 0..self.flows.len() {
            self.wants_write(index);
        }
    }

    pub(crate) fn open_streams(&self) -> usize {
        self.flows.iter().flatten().count()
    }

    /// Bytes taken from kernel sockets and given to them.
    pub(crate) fn moved(&self) -> (u64, u64) {
        let flows = self.flows.iter().flatten();
        flows.fold((0, 0), |(filled, drained), flow| {
            (filled + flow.filled, drained + flow.drained)
        })
    }

    fn open(&mut self, peer: Option<usize>) -> StreamId {
        let index = self.flows.iter().position(Option::is_none).unwrap_or(self.flows.len());
        if index == self.flows.len() {
            self.flows.push(None);
        }
        self.generation += 1;
        self.flows[index] = Some(Flow {
            generation: self.generation,
            peer: peer.unwrap_or(index),
            out: Ring::new(self.capacity),
            read_blocked: false,
            write_blocked: true,
            eof: false,
            fin: false,
            fin_sent: false,
            filled: 0,
            drained: 0,
        });
        StreamId::from_parts(index as u32, self.generation)
    }

    fn flow(&mut self, index: usize) -> Option<&mut Flow> {
        self.flows.get_mut(index)?.as_mut()
    }

    fn id(&mut self, index: usize) -> Option<StreamId> {
        self.flow(index)
            .map(|flow| StreamId::from_parts(index as u32, flow.generation))
    }

    /// Bytes or a FIN came into the queue towards `index`.
    fn wants_write(&mut self, index: usize) {
        let stalled = self.stalled;
        let Some(id) = self.id(index) else { return };
        let flow = self.flow(index).unwrap();
        if flow.out.len > 0 && flow.write_blocked && !stalled {
            flow.write_blocked = false;
            self.actions.push_back(Action::WantWrite(id));
        } else if flow.out.len == 0 && flow.fin && !flow.fin_sent {
            flow.fin_sent = true;
            self.actions.push_back(Action::Shutdown(id));
        }
        self.close_if_done(index);
    }

    /// Room came free in the queue towards `index`.
    fn wants_read(&mut self, index: usize) {
        let reader = self.flow(index).map(|flow| flow.peer);
        let Some(id) = reader.and_then(|reader| self.id(reader)) else {
            return;
        };
        let flow = self.flow(id.index()).unwrap();
        if flow.read_blocked && !flow.eof {
            flow.read_blocked = false;
            self.actions.push_back(Action::WantRead(id));
        }
    }

    fn close_if_done(&mut self, index: usize) {
        let Some(id) = self.id(index) else { return };
        let flow = self.flow(index).unwrap();
        if flow.fin_sent && flow.eof {
            self.flows[index] = None;
            self.actions.push_back(Action::Close(id));
        }
    }

    /// Ends a stream that the runtime has given up, and resets the other half of its splice.
    fn give_up(&mut self, index: usize) {
        let Some(id) = self.id(index) else { return };
        let peer = self.flow(index).unwrap().peer;
        self.flows[index] = None;
        self.actions.push_back(Action::Close(id));
        if let Some(peer) = self.id(peer) {
            self.reset(peer);
        }
    }
}

impl Machine for Toy {
    type Event = Told;
    type Stream<'a> = ToyStream<'a>;

    fn handle_datagram(&mut self, _: Instant, path: Path, batch: &mut [u8], stride: usize) {
        let chunks: Vec<_> = if batch.is_empty() {
            vec![Vec::new()]
        } else {
            batch.chunks(stride).map(<[u8]>::to_vec).collect()
        };
        self.largest_train = self.largest_train.max(chunks.len());
        self.received.extend(chunks.into_iter().map(|payload| (path, payload)));
    }

    fn accept(&mut self, _: Instant, _: ListenerId, remote: SocketAddr, local: SocketAddr) -> Option<StreamId> {
        if self.refuse {
            return None;
        }
        let id = self.open(None);
        self.actions.push_back(Action::Event(Told::Accepted(id, remote, local)));
        if let Some(target) = self.target.clone() {
            let dialled = self.open(Some(id.index()));
            self.flow(id.index()).unwrap().peer = dialled.index();
            self.actions.push_back(Action::Dial {
                stream: dialled,
                target,
            });
        }
        Some(id)
    }

    fn handle_socket(&mut self, _: Instant, event: SocketEvent<'_>) {
        let told = match event {
            SocketEvent::Listening { local, .. } => Told::Listening(local),
            SocketEvent::ListenFailed { error, .. } => Told::ListenFailed(error),
            SocketEvent::Connected { stream } => Told::Connected(stream),
            SocketEvent::DialFailed { stream, error } => {
                let peer = self.flow(stream.index()).map(|flow| flow.peer);
                self.flows[stream.index()] = None;
                if let Some(peer) = peer.and_then(|peer| self.id(peer)) {
                    self.reset(peer);
                }
                Told::DialFailed(error)
            }
            SocketEvent::Datagram {
                socket,
                remote,
                payload,
            } => {
                match socket {
                    UdpSocketRef::Local(_) if !self.echo_local => {
                        self.actions.push_back(Action::Event(Told::Local(payload.to_vec())));
                    }
                    UdpSocketRef::Local(_) => self.transmit(socket, None, payload.to_vec()),
                    _ => {
                        let path = Path { remote, local_ip: None };
                        self.transmit(socket, Some(path), payload.to_vec());
                    }
                }
                return;
            }
            SocketEvent::UdpConnected { socket } => Told::UdpConnected(socket),
            SocketEvent::UdpFailed { error, .. } => Told::UdpFailed(error),
            SocketEvent::Resolved { host, addrs } => {
                self.resolves += 1;
                Told::Resolved(host.to_owned(), addrs.to_vec())
            }
            _ => return,
        };
        self.actions.push_back(Action::Event(told));
    }

    fn stream(&mut self, _: Instant, id: StreamId) -> Option<ToyStream<'_>> {
        if self.id(id.index()) != Some(id) {
            return None;
        }
        Some(ToyStream {
            toy: self,
            index: id.index(),
        })
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timeouts.push(now);
            self.actions.push_back(Action::Event(Told::Timeout(now)));
        }
    }

    fn poll_transmit(&mut self, _: Instant, batch: &mut TransmitBatch) -> bool {
        batch.clear();
        while let Some((destination, payload)) = self.transmits.front() {
            if !batch.fits(*destination, payload.len()) {
                break;
            }
            batch.reserve()[..payload.len()].copy_from_slice(payload);
            batch.commit(*destination, payload.len());
            self.transmits.pop_front();
        }
        !batch.is_empty()
    }

    fn poll_action(&mut self) -> Option<Action<Told>> {
        self.actions.pop_front()
    }

    fn poll_timeout(&mut self) -> Option<(Instant, &'static str)> {
        self.deadline.map(|deadline| (deadline, "asked for"))
    }

    fn begin_shutdown(&mut self, _: Instant) {
        self.stopping = true;
    }

    fn is_finished(&self) -> bool {
        self.stopping && !self.never_finished && self.open_streams() == 0
    }
}

pub(crate) struct ToyStream<'a> {
    toy: &'a mut Toy,
    index: usize,
}

impl ByteStream for ToyStream<'_> {
    fn fill(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize> {
        let peer = self.toy.flow(self.index).unwrap().peer;
        let room = match self.toy.flow(peer) {
            Some(flow) if !flow.fin => flow.out.room(),
            _ => &mut [],
        };
        if room.is_empty() {
            self.toy.flow(self.index).unwrap().read_blocked = true;
            return None;
        }
        let n = read(room);
        self.toy.flow(peer).unwrap().out.len += n;
        self.toy.flow(self.index).unwrap().filled += n as u64;
        self.toy.wants_write(peer);
        Some(n)
    }

    fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize> {
        let stalled = self.toy.stalled;
        let flow = self.toy.flow(self.index)?;
        if flow.out.len == 0 || stalled {
            flow.write_blocked = true;
            return None;
        }
        let n = write(flow.out.data());
        flow.out.take(n);
        flow.drained += n as u64;
        if n > 0 {
            self.toy.wants_read(self.index);
            self.toy.wants_write(self.index);
        }
        Some(n)
    }

    fn shutdown(&mut self) {
        let id = self.toy.id(self.index).unwrap();
        self.toy.act(Action::Event(Told::Eof(id)));
        let flow = self.toy.flow(self.index).unwrap();
        flow.eof = true;
        let peer = flow.peer;
        if let Some(flow) = self.toy.flow(peer) {
            flow.fin = true;
        }
        self.toy.wants_write(peer);
        self.toy.close_if_done(self.index);
    }

    fn abort(&mut self) {
        let id = self.toy.id(self.index).unwrap();
        self.toy.act(Action::Event(Told::Failed(id)));
        self.toy.give_up(self.index);
    }
}

/// A running driver.
pub(crate) struct Running {
    pub(crate) handle: Handle<Toy>,
    pub(crate) events: Events<Told>,
    pub(crate) task: JoinHandle<Finished<Toy>>,
    /// Where its tunnel is bound.
    pub(crate) tunnel: SocketAddr,
}

impl Running {
    pub(crate) fn start(toy: Toy) -> Self {
        Self::start_with(toy, "127.0.0.1:0", Settings::default(), Handlers::new())
    }

    pub(crate) fn start_with(toy: Toy, tunnel: &str, settings: Settings, handlers: Handlers) -> Self {
        let tunnel = std::net::UdpSocket::bind(tunnel).unwrap();
        let (driver, handle, events) = Driver::new(toy, tunnel, settings, handlers).unwrap();
        let tunnel = driver.tunnel_addr();
        Self {
            handle,
            events,
            task: tokio::spawn(driver.run()),
            tunnel,
        }
    }

    /// Starts a machine with one TCP listener and says where it listens.
    pub(crate) async fn listening(toy: Toy, settings: Settings, handlers: Handlers) -> (Self, SocketAddr) {
        let mut running = Self::start_with(toy, "127.0.0.1:0", settings, handlers);
        let addr = running.listen(0, "127.0.0.1:0", Transport::Tcp).await;
        (running, addr)
    }

    pub(crate) async fn listen(&mut self, index: u32, addr: &'static str, transport: Transport) -> SocketAddr {
        self.call(move |toy| toy.listen(index, addr, transport)).await;
        match self.told().await {
            Told::Listening(addr) => addr,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn call<R: Send + 'static>(&self, call: impl FnOnce(&mut Toy) -> R + Send + 'static) -> R {
        self.handle.call(|toy, _| call(toy)).await.unwrap()
    }

    /// The next event. The time allowed is for a hang, not for a slow machine.
    pub(crate) async fn told(&mut self) -> Told {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the driver runs")
    }

    /// The first event that `wanted` accepts; others are passed over.
    pub(crate) async fn told_that<T>(&mut self, wanted: impl Fn(&Told) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.told().await) {
                return found;
            }
        }
    }

    /// Asks the machine again and again until it says yes.
    pub(crate) async fn until(&self, wanted: impl FnOnce(&mut Toy) -> bool + Clone + Send + 'static) {
        let wait = async {
            loop {
                let wanted = wanted.clone();
                if self.call(move |toy| wanted(toy)).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("in time");
    }

    pub(crate) async fn stop(self) -> Finished<Toy> {
        self.handle.shutdown();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("ends in time")
            .expect("no panic")
    }
}

/// How long a test waits before it calls a hang a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn host(addr: SocketAddr) -> Target {
    Target::Host {
        host: addr.ip().to_string(),
        port: addr.port(),
    }
}

pub(crate) fn udp_id(index: u32) -> UdpId {
    UdpId::from_parts(index, 1)
}

/// Bytes in which a lost, doubled or moved one is seen. They come round after a prime number of bytes, which no buffer's
/// size divides, and cost no more than a copy.
pub(crate) fn pattern(offset: usize, len: usize) -> Vec<u8> {
    const PERIOD: usize = 1_048_583;
    static ROUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..PERIOD as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    });
    let mut bytes = Vec::with_capacity(len);
    let mut at = offset % PERIOD;
    while bytes.len() < len {
        let end = PERIOD.min(at + len - bytes.len());
        bytes.extend_from_slice(&ROUND[at..end]);
        at = 0;
    }
    bytes
}
