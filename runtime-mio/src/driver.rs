//! The driver: one poll that turns the engine. The crate docs describe a turn.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll as Progress;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Poll, Waker};
use portal_adapter::Settings;
use portal_adapter::engine::{Engine, Finished, Socket};
use portal_adapter::names::with_port;
use portal_adapter::system::{Queued, Token};
use portal_core::{DialError, Machine, StreamId};

use crate::handle::{Calls, Events, Handle, Shared, events, handle};
use crate::resolver::Waiter;
use crate::system::{Mio, Timer, connect_udp};
use crate::watched::{About, WAKER, about};

/// How many events one poll may bring. More would wait for the next.
const EVENTS: usize = 512;

/// Drives a machine: see the [crate docs](crate).
pub struct Driver<M: Machine> {
    engine: Engine<M, Mio<M::Event>>,
    poll: Poll,
    shared: Arc<Shared>,
    calls: Arc<Calls<M>>,
    /// How many of the shutdowns asked for the engine knows of.
    shutdowns: usize,
    /// Dials that the kernel reports as ready.
    dials: Vec<StreamId>,
}

impl<M: Machine> Driver<M> {
    /// Takes the machine and the bound socket of its tunnel. Nothing happens until [`Driver::run`].
    ///
    /// # Errors
    /// If there is no poll, or the socket cannot be prepared.
    pub fn new(
        machine: M,
        tunnel: std::net::UdpSocket,
        settings: Settings,
    ) -> io::Result<(Self, Handle<M>, Events<M::Event>)> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared::new(Waker::new(poll.registry(), WAKER)?));
        let calls = Arc::new(Calls::new());
        let (telling, events) = events(settings.event_queue.max(1));
        let (now, registry) = (Instant::now(), poll.registry().try_clone()?);
        let system = Mio::new(now, registry, Arc::clone(&shared), telling, &settings);
        let driver = Self {
            engine: Engine::new(now, machine, tunnel, settings, system)?,
            poll,
            shared: Arc::clone(&shared),
            calls: Arc::clone(&calls),
            shutdowns: 0,
            dials: Vec::new(),
        };
        Ok((driver, handle(&calls, &shared), events))
    }

    /// Where the tunnel's socket is bound.
    #[must_use]
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.engine.tunnel_addr()
    }

    /// Runs the machine, on this thread, until a shutdown has ended.
    pub fn run(mut self) -> Finished<M> {
        let mut events = mio::Events::with_capacity(EVENTS);
        let clean = loop {
            let wait = self.wait();
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Only a fault of this program closes its poll.
                tracing::error!(%error, "waiting for sockets failed");
                break false;
            }
            self.begin_turn();
            for event in &events {
                self.note(event);
            }
            self.go_on();
            self.engine.work();
            self.shared.publish(&self.engine.stats);
            if let Some(clean) = self.engine.end() {
                break clean;
            }
        };
        self.calls.close();
        let (machine, stats) = self.engine.into_parts();
        Finished { machine, clean, stats }
    }

    /// How long the next poll may wait.
    fn wait(&mut self) -> Option<Duration> {
        // Asked for in any case: the engine honours the deadline that it has told.
        let due = [self.engine.wake_at(), self.engine.system.next_timer()];
        if self.engine.has_work() {
            return Some(Duration::ZERO);
        }
        let due = due.into_iter().flatten().min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn begin_turn(&mut self) {
        let now = Instant::now();
        self.engine.system.now = now;
        self.engine.begin_turn(now);
        for call in self.calls.take() {
            call(&mut self.engine.machine, now);
        }
        while self.shutdowns < self.shared.shutdowns() {
            self.shutdowns += 1;
            self.engine.shutdown();
        }
    }

    /// Takes in what the kernel reports about one socket.
    fn note(&mut self, event: &Event) {
        let token = match about(event.token()) {
            About::Waker => return,
            About::Tunnel => Some(Token::Tunnel),
            About::Listener(index) => self.engine.listener_at(index).map(Token::Listener),
            About::Stream(index) => self.engine.stream_at(index).map(Token::Stream),
            About::Local(index) => self.engine.local_at(index).map(Token::Local),
        };
        let Some((token, (socket, queue))) = token.and_then(|token| Some((token, self.engine.socket(token)?))) else {
            return;
        };
        match socket {
            Socket::Datagrams(socket) => {
                socket.note(event);
                socket.queue(queue);
            }
            Socket::Listener(socket) => {
                socket.note(event);
                socket.queue(queue);
            }
            Socket::Stream(socket) => {
                socket.note(event);
                socket.queue(queue);
            }
            Socket::Dial(_) => {
                if let Token::Stream(id) = token {
                    self.dials.push(id);
                }
            }
        }
    }

    /// Goes on with what is neither socket nor machine: dials, names, timers.
    fn go_on(&mut self) {
        let now = self.engine.now();
        for (host, addrs) in self.shared.take_answers() {
            for waiter in self.engine.system.names.answered(now, &host, &addrs) {
                self.answer(&host, &addrs, waiter);
            }
        }
        while let Some(timer) = self.engine.system.pop_timer() {
            match timer {
                Timer::Dial(id) => self.dials.push(id),
                Timer::DialUdp(id) => self.engine.dialed_udp(id, Err(DialError::TimedOut)),
                Timer::Asked => {
                    for host in self.engine.system.overdue() {
                        self.engine.resolved(&host, &[]);
                    }
                }
            }
        }
        for id in std::mem::take(&mut self.dials) {
            let Some((system, dial)) = self.engine.dial_mut(id) else {
                continue;
            };
            if let Progress::Ready(result) = system.advance(id, dial) {
                self.engine.dialed(id, result);
            }
        }
    }

    fn answer(&mut self, host: &str, addrs: &[SocketAddr], waiter: Waiter) {
        match waiter {
            Waiter::Stream(id) => {
                if let Some((_, dial)) = self.engine.dial_mut(id)
                    && let Some((awaited, port)) = dial.awaits()
                    && awaited == host
                {
                    dial.resolved(with_port(addrs, port));
                    self.dials.push(id);
                }
            }
            Waiter::Local(id) => {
                if let Some(dial) = self.engine.dial_udp_mut(id) {
                    let addrs = with_port(addrs, dial.port);
                    self.engine.dialed_udp(id, connect_udp(&addrs));
                }
            }
            Waiter::Machine(port) => {
                self.engine.system.not_asked(host, port);
                self.engine.resolved(host, &with_port(addrs, port));
            }
        }
    }
}

impl<M: Machine> fmt::Debug for Driver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}
