//! The engine: a machine, its sockets, and what is done with those that are ready.
//!
//! It does the work of a turn and leaves two things to the runtime: to wait, and to say what has happened.

mod actions;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use portal_core::{ListenerId, Machine, SocketEvent, StreamId, UdpId, UdpSocketRef};

use crate::addr::canonical;
use crate::listener::{Accepting, Pause, VISIT_ACCEPTS, is_exhaustion, local_addr};
use crate::settings::Settings;
use crate::stats::Stats;
use crate::stream::{Pump, Then, reset_on_drop};
use crate::system::{Accept, Queued, System, Token};
use crate::table::Table;
use crate::tunnel::{Outbox, Received, Tunnel};
use crate::turn::Budget;
use crate::udp::{MAX_DATAGRAM, Udp};

/// After this many sockets the machine is drained: enough that the packets of several streams share a train.
const VISITS_PER_DRAIN: usize = 32;

/// See the module docs.
///
/// # A turn
///
/// A runtime that was woken does this, in this order, and sleeps again:
///
/// 1. [`Engine::begin_turn`] with the clock's time, read once. A deadline that is due is honoured: first, so that no busy
///    socket delays a timer;
/// 2. it says what came from outside: calls of the application, a shutdown, dials and look-ups that ended;
/// 3. [`Engine::work`]: the machine is drained (transmits, then actions, as its contract says), then the sockets that are
///    ready are visited, in the order they became so, each up to its own bound; the machine is drained after each batch of
///    the tunnel and after every few other sockets, so that its queues stay short while trains stay long;
/// 4. [`Engine::end`], and if this is not the end, it sleeps until [`Engine::wake_at`] at the latest, or not at all if
///    [`Engine::has_work`].
///
/// A turn is bounded in sockets visited, bytes moved, datagrams received and sent; when a bound is reached, what is left
/// keeps its place in the queue.
pub struct Engine<M: Machine, S: System<Event = M::Event>> {
    /// The machine. Who changes it drains it afterwards, by [`Engine::work`].
    pub machine: M,
    /// The runtime's own part.
    pub system: S,
    /// What was counted.
    pub stats: Stats,
    /// Sockets to visit, in order.
    pub queue: VecDeque<Token>,
    settings: Settings,
    now: Instant,
    deadline: Option<Instant>,
    budget: Budget,
    tunnel: Tunnel<S::Datagrams>,
    outbox: Outbox,
    listeners: Table<ListenerId, Public<S>>,
    streams: Table<StreamId, Slot<S>>,
    locals: Table<UdpId, Local<S>>,
    /// A descriptor was closed: accepting may go on.
    freed: bool,
    /// The machine was fed while its actions were carried out: it has to be drained once more.
    fed: bool,
    stopping: Option<Stopping>,
    pause: Pause,
    datagram: Box<[u8]>,
}

/// A public socket.
enum Public<S: System> {
    Tcp(S::Listener),
    Udp(UdpSocket<S>),
}

/// A UDP socket and what is known about it.
struct UdpSocket<S: System> {
    held: S::Datagrams,
    facts: Udp,
}

/// A stream, or a dial that will become one.
enum Slot<S: System> {
    Dialing {
        dial: S::Dial,
        /// The machine has asked for a FIN already.
        shutdown: bool,
    },
    Open {
        held: S::Stream,
        pump: Pump,
    },
}

/// A local UDP socket, or the look-up before it.
enum Local<S: System> {
    Opening(S::DialUdp),
    Open(UdpSocket<S>),
}

/// A shutdown is under way.
struct Stopping {
    patience_ends: Instant,
    hurried: bool,
}

impl<M: Machine, S: System<Event = M::Event>> Engine<M, S> {
    /// Takes the machine and the bound socket of its tunnel.
    ///
    /// # Errors
    /// If the socket cannot be prepared (its options, its registration with the runtime).
    pub fn new(
        now: Instant,
        machine: M,
        tunnel: std::net::UdpSocket,
        settings: Settings,
        mut system: S,
    ) -> io::Result<Self> {
        let mut tunnel = Tunnel::new(tunnel, &settings, |socket| system.hold_datagrams(socket, Token::Tunnel))?;
        let mut queue = VecDeque::new();
        tunnel.socket.queue(&mut queue);
        Ok(Self {
            outbox: Outbox::new(tunnel.max_segments()),
            machine,
            system,
            stats: Stats::default(),
            queue,
            settings,
            now,
            deadline: None,
            budget: Budget::default(),
            tunnel,
            listeners: Table::new(),
            streams: Table::new(),
            locals: Table::new(),
            freed: false,
            fed: false,
            stopping: None,
            pause: Pause::default(),
            datagram: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        })
    }

    /// Where the tunnel's socket is bound.
    #[must_use]
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.tunnel.local_addr()
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The turn's time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The machine, for a last look, and what was counted.
    pub fn into_parts(self) -> (M, Stats) {
        (self.machine, self.stats)
    }

    /// Starts a turn.
    pub fn begin_turn(&mut self, now: Instant) {
        self.stats.turns += 1;
        self.now = now;
        self.budget = Budget::default();
        if self.deadline.is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
    }

    /// Says that something from outside was left for the next turn.
    pub fn left_some(&mut self) {
        self.budget.exhausted = true;
    }

    /// Starts the end, or hurries it if it was started: listeners are closed, the machine says goodbye.
    pub fn shutdown(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.hurried = true;
            return;
        }
        tracing::debug!("shutting down");
        self.stopping = Some(Stopping {
            patience_ends: self.now + self.settings.shutdown_grace,
            hurried: false,
        });
        // New visitors are refused by the kernel from here on. UDP has no connections: the machine says when it is over.
        self.listeners.retain(|socket| matches!(socket, Public::Udp(_)));
        self.machine.begin_shutdown(self.now);
    }

    /// Takes in that a dial has ended.
    pub fn dialed(&mut self, id: StreamId, result: Result<S::Stream, portal_core::DialError>) {
        match self.streams.remove(id) {
            Some(Slot::Dialing { shutdown, .. }) => self.connected(id, result, shutdown),
            // Ended by the machine in the meantime.
            Some(Slot::Open { .. }) | None => {}
        }
    }

    /// The dial that is under way for a stream.
    pub fn dial_mut(&mut self, id: StreamId) -> Option<(&mut S, &mut S::Dial)> {
        match self.streams.get_mut(id) {
            Some(Slot::Dialing { dial, .. }) => Some((&mut self.system, dial)),
            _ => None,
        }
    }

    /// The look-up that is under way for a local UDP socket.
    pub fn dial_udp_mut(&mut self, id: UdpId) -> Option<&mut S::DialUdp> {
        match self.locals.get_mut(id) {
            Some(Local::Opening(dial)) => Some(dial),
            _ => None,
        }
    }

    /// Takes in that a local UDP socket is open or cannot be.
    pub fn dialed_udp(&mut self, id: UdpId, result: Result<std::net::UdpSocket, portal_core::DialError>) {
        if let Some(Local::Opening(_)) = self.locals.get_mut(id) {
            self.opened_udp(id, result);
        }
    }

    /// Takes in what a name was found to mean; nothing if there is no answer.
    pub fn resolved(&mut self, host: &str, addrs: &[SocketAddr]) {
        self.feed(SocketEvent::Resolved { host, addrs });
    }

    /// The socket of a token that the kernel reports as ready, and the queue of those to visit.
    pub fn socket(&mut self, token: Token) -> Option<(Socket<'_, S>, &mut VecDeque<Token>)> {
        let socket = match token {
            Token::Tunnel => Socket::Datagrams(&mut self.tunnel.socket),
            Token::Listener(id) => match self.listeners.get_mut(id)? {
                Public::Tcp(listener) => Socket::Listener(listener),
                Public::Udp(udp) => Socket::Datagrams(&mut udp.held),
            },
            Token::Stream(id) => match self.streams.get_mut(id)? {
                Slot::Dialing { dial, .. } => Socket::Dial(dial),
                Slot::Open { held, .. } => Socket::Stream(held),
            },
            Token::Local(id) => match self.locals.get_mut(id)? {
                Local::Opening(_) => return None,
                Local::Open(udp) => Socket::Datagrams(&mut udp.held),
            },
        };
        Some((socket, &mut self.queue))
    }

    /// The stream, or dial, that has this index now.
    pub fn stream_at(&mut self, index: usize) -> Option<StreamId> {
        self.streams.at(index).map(|(id, _)| id)
    }

    /// The public socket that has this index now.
    pub fn listener_at(&mut self, index: usize) -> Option<ListenerId> {
        self.listeners.at(index).map(|(id, _)| id)
    }

    /// The local UDP socket that has this index now.
    pub fn local_at(&mut self, index: usize) -> Option<UdpId> {
        self.locals.at(index).map(|(id, _)| id)
    }

    /// Drains the machine and visits what is ready until nothing is or the turn's bounds are reached.
    pub fn work(&mut self) {
        self.drain();
        self.resume_accepting();
        self.visit_ready();
        self.stats.streams = self.streams.len() as u64;
        self.stats.budget_exhaustions += u64::from(self.budget.exhausted);
    }

    /// Whether this is the end, and if so, whether everything was finished.
    pub fn end(&self) -> Option<bool> {
        let stopping = self.stopping.as_ref()?;
        let unsent = self.outbox.full || self.budget.exhausted;
        if self.machine.is_finished() && !unsent {
            return Some(true);
        }
        (stopping.hurried || self.now >= stopping.patience_ends).then_some(false)
    }

    /// When the next turn has to begin at the latest; `None` if only something from outside can cause one.
    pub fn wake_at(&mut self) -> Option<Instant> {
        self.deadline = self.machine.poll_timeout().map(|(at, reason)| {
            tracing::trace!(reason, "next deadline");
            at
        });
        [
            self.deadline,
            self.pause.until(),
            self.stopping.as_ref().map(|stop| stop.patience_ends),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether work is left for a turn that begins at once.
    pub fn has_work(&self) -> bool {
        self.budget.exhausted || !self.queue.is_empty() || self.pause.until().is_some() && self.freed
    }

    /// What is left of the turn's bounds keeps its place.
    fn visit_ready(&mut self) {
        let mut visits = 0;
        while !self.queue.is_empty() {
            while let Some(token) = self.queue.pop_front() {
                self.visit(token);
                self.budget.visits -= 1;
                visits += 1;
                // The tunnel's datagrams free and fill the most.
                if token == Token::Tunnel || visits % VISITS_PER_DRAIN == 0 {
                    self.drain();
                }
                if self.budget.is_spent() {
                    break;
                }
            }
            self.drain();
            if self.budget.is_spent() {
                self.budget.exhausted |= !self.queue.is_empty();
                return;
            }
        }
    }

    fn visit(&mut self, token: Token) {
        match token {
            Token::Tunnel => self.visit_tunnel(),
            Token::Stream(id) => self.visit_stream(id),
            Token::Listener(id) => match self.listeners.get_mut(id) {
                None => {}
                Some(Public::Udp(_)) => self.visit_udp(UdpSocketRef::Public(id)),
                Some(Public::Tcp(_)) => self.visit_listener(id),
            },
            Token::Local(id) => self.visit_udp(UdpSocketRef::Local(id)),
        }
    }

    fn visit_tunnel(&mut self) {
        let (machine, now) = (&mut self.machine, self.now);
        let before = self.stats.tunnel_rx_datagrams;
        self.tunnel.socket.visited();
        let received = self.tunnel.visit(&mut self.stats, |path, batch, stride| {
            machine.handle_datagram(now, path, batch, stride);
        });
        if received == Received::Again {
            self.tunnel.socket.queue(&mut self.queue);
        }
        let datagrams = self.stats.tunnel_rx_datagrams - before;
        self.budget.took_datagrams(datagrams as usize);
    }

    fn visit_stream(&mut self, id: StreamId) {
        let Some(Slot::Open { held, pump }) = self.streams.get_mut(id) else {
            return;
        };
        held.visited();
        let visit = pump.visit(held, &mut self.machine, self.now, id);
        self.budget.stream_bytes = self.budget.stream_bytes.saturating_sub(visit.moved);
        match visit.then {
            Then::Wait => {}
            Then::Again => held.queue(&mut self.queue),
            Then::Drop => {
                self.streams.remove(id);
                self.freed = true;
            }
        }
    }

    fn visit_udp(&mut self, socket: UdpSocketRef) {
        let Some(udp) = udp(&mut self.listeners, &mut self.locals, socket) else {
            return;
        };
        let (machine, now) = (&mut self.machine, self.now);
        udp.held.visited();
        let visit = udp
            .facts
            .visit(&mut udp.held, &mut self.datagram, &mut self.stats, |remote, payload| {
                let datagram = SocketEvent::Datagram {
                    socket,
                    remote,
                    payload,
                };
                machine.handle_socket(now, datagram);
            });
        if visit.again {
            udp.held.queue(&mut self.queue);
        }
        self.budget.took_datagrams(visit.datagrams);
    }

    fn visit_listener(&mut self, id: ListenerId) {
        let Some(Public::Tcp(listener)) = self.listeners.get_mut(id) else {
            return;
        };
        listener.visited();
        let accepting = accept(
            listener,
            &mut self.machine,
            self.now,
            id,
            &mut self.stats,
            |id, socket| {
                let mut held = self.system.hold_accepted(socket, id)?;
                held.queue(&mut self.queue);
                let pump = Pump::default();
                self.streams.insert(id, Slot::Open { held, pump });
                Ok(())
            },
        );
        match accepting {
            Accepting::Done => {}
            Accepting::Again => listener.queue(&mut self.queue),
            Accepting::Exhausted => self.pause.begin(self.now, &mut self.stats),
        }
    }

    /// Tries again to accept, if it had to rest and it is time.
    fn resume_accepting(&mut self) {
        if self.pause.end(self.now, std::mem::take(&mut self.freed)) {
            for (_, socket) in self.listeners.iter_mut() {
                if let Public::Tcp(listener) = socket {
                    listener.queue(&mut self.queue);
                }
            }
        }
    }
}

/// How a driver ended.
#[derive(Debug)]
pub struct Finished<M> {
    /// The machine, for a last look.
    pub machine: M,
    /// Everything had ended; `false` if patience or a second shutdown ended it.
    pub clean: bool,
    /// The final counters.
    pub stats: Stats,
}

/// The driver has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime has stopped")]
pub struct Stopped;

/// A socket as the runtime holds it.
pub enum Socket<'a, S: System> {
    /// A UDP socket.
    Datagrams(&'a mut S::Datagrams),
    /// A TCP listener.
    Listener(&'a mut S::Listener),
    /// A connection.
    Stream(&'a mut S::Stream),
    /// A connection that is being made.
    Dial(&'a mut S::Dial),
}

impl<M: Machine, S: System<Event = M::Event>> fmt::Debug for Engine<M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn udp<'a, S: System>(
    listeners: &'a mut Table<ListenerId, Public<S>>,
    locals: &'a mut Table<UdpId, Local<S>>,
    socket: UdpSocketRef,
) -> Option<&'a mut UdpSocket<S>> {
    match socket {
        UdpSocketRef::Public(id) => match listeners.get_mut(id) {
            Some(Public::Udp(udp)) => Some(udp),
            _ => None,
        },
        UdpSocketRef::Local(id) => match locals.get_mut(id) {
            Some(Local::Open(udp)) => Some(udp),
            _ => None,
        },
        UdpSocketRef::Tunnel => None,
    }
}

/// Offers waiting connections to the machine; what it takes goes to `keep`.
fn accept<L: Accept, M: Machine>(
    listener: &mut L,
    machine: &mut M,
    now: Instant,
    id: ListenerId,
    stats: &mut Stats,
    mut keep: impl FnMut(StreamId, L::Accepted) -> io::Result<()>,
) -> Accepting {
    for _ in 0..VISIT_ACCEPTS {
        let (socket, remote) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepting::Done,
            Err(error) if is_exhaustion(&error) => return Accepting::Exhausted,
            Err(error) => {
                // The visitor gave up before we came, or the network failed under it: the next one may be fine.
                tracing::debug!(%error, "accepting a connection failed");
                stats.accept_errors += 1;
                continue;
            }
        };
        let Ok(local) = local_addr(&socket) else {
            stats.accept_errors += 1;
            continue;
        };
        let Some(id) = machine.accept(now, id, canonical(remote), local) else {
            stats.refused += 1;
            reset_on_drop(&socket);
            continue;
        };
        match keep(id, socket) {
            Ok(()) => stats.accepted += 1,
            Err(error) => {
                tracing::debug!(%error, "watching a connection failed");
                stats.accept_errors += 1;
                if let Some(mut stream) = machine.stream(now, id) {
                    portal_core::ByteStream::abort(&mut stream);
                }
            }
        }
    }
    Accepting::Again
}
