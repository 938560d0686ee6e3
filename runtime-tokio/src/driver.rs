//! The driver: one future that turns the machine. The crate docs describe a turn.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use portal_adapter::listener::{Accepting, Pause};
use portal_adapter::stream::Then;
use portal_adapter::table::Table;
use portal_adapter::tunnel::{Outbox, Received, Tunnel};
use portal_adapter::turn::Budget;
use portal_adapter::udp::MAX_DATAGRAM;
use portal_adapter::{Settings, Stats};
use portal_core::{ListenerId, Machine, StreamId, UdpId, UdpSocketRef};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::dial::{Handlers, Names, Report};
use crate::handle::{CALL_QUEUE, Call, Events, Handle, Shared};
use crate::listener::Listener;
use crate::stream::Stream;
use crate::timer::{self, Timer};
use crate::udp::{Held, Udp};
use crate::wake::{Source, Token};

/// After this many sockets the machine is drained: enough that the packets of several streams share a train.
const VISITS_PER_DRAIN: usize = 32;

/// How many calls, and how many reports of tasks, one turn takes.
const CALLS_PER_TURN: usize = 64;
const REPORTS_PER_TURN: usize = 256;

/// Drives a machine: see the [crate docs](crate).
pub struct Driver<M: Machine> {
    pub(crate) machine: M,
    pub(crate) settings: Settings,
    pub(crate) handlers: Handlers,
    /// The turn's time.
    pub(crate) now: Instant,
    pub(crate) budget: Budget,
    /// Sockets to visit, in order.
    pub(crate) work: VecDeque<Token>,
    pub(crate) tunnel: Tunnel<Held>,
    pub(crate) outbox: Outbox,
    pub(crate) listeners: Table<ListenerId, Public>,
    pub(crate) streams: Table<StreamId, Slot>,
    pub(crate) locals: Table<UdpId, Local>,
    /// Dials and look-ups. They end with the driver.
    pub(crate) tasks: JoinSet<Report>,
    pub(crate) names: Names,
    pub(crate) resolving: HashSet<(String, u16)>,
    pub(crate) events: mpsc::Sender<M::Event>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stats: Stats,
    /// A descriptor was closed: accepting may go on.
    pub(crate) freed: bool,
    /// The machine was fed while its actions were carried out: it has to be drained once more.
    pub(crate) fed: bool,
    pub(crate) stopping: Option<Stopping>,
    calls: Option<mpsc::Receiver<Call<M>>>,
    pause: Pause,
    timer: Timer,
    deadline: Option<Instant>,
    datagram: Box<[u8]>,
}

/// How a driver ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished<M> {
    /// The machine, for a last look.
    pub machine: M,
    /// Everything had ended; `false` if patience or a second shutdown ended it.
    pub clean: bool,
    /// The final counters.
    pub stats: Stats,
}

/// A public socket.
pub(crate) enum Public {
    Tcp(Listener),
    Udp(Udp),
}

/// A stream, or a dial that will become one.
pub(crate) enum Slot {
    Dialing {
        task: AbortHandle,
        /// The machine has asked for a FIN already.
        shutdown: bool,
    },
    Open(Stream),
}

/// A local UDP socket, or the look-up before it.
pub(crate) enum Local {
    Opening(AbortHandle),
    Open(Udp),
}

/// A shutdown is under way.
pub(crate) struct Stopping {
    patience_ends: Instant,
}

impl<M: Machine> Driver<M> {
    /// Takes the machine and the bound socket of its tunnel. Nothing happens until [`Driver::run`].
    ///
    /// # Errors
    /// If the socket cannot be prepared (its options, its registration with tokio).
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn new(
        machine: M,
        tunnel: std::net::UdpSocket,
        settings: Settings,
        handlers: Handlers,
    ) -> io::Result<(Self, Handle<M>, Events<M::Event>)> {
        let shared = Arc::new(Shared::default());
        let source = Source::new(&shared.ready, Token::Tunnel);
        let tunnel = Tunnel::new(tunnel, &settings, |socket| Held::new(socket, source))?;
        let mut work = VecDeque::new();
        tunnel.socket.source.queue(&mut work);
        let (calls_in, calls) = mpsc::channel(CALL_QUEUE);
        let (events, events_out) = mpsc::channel(settings.event_queue.max(1));
        let driver = Self {
            outbox: Outbox::new(tunnel.max_segments()),
            machine,
            settings,
            handlers,
            now: timer::now(),
            budget: Budget::default(),
            work,
            tunnel,
            listeners: Table::new(),
            streams: Table::new(),
            locals: Table::new(),
            tasks: JoinSet::new(),
            names: Names::default(),
            resolving: HashSet::new(),
            events,
            shared: Arc::clone(&shared),
            stats: Stats::default(),
            freed: false,
            fed: false,
            stopping: None,
            calls: Some(calls),
            pause: Pause::default(),
            timer: Timer::new(),
            deadline: None,
            datagram: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        };
        Ok((driver, Handle::new(calls_in, shared), Events::new(events_out)))
    }

    /// Where the tunnel's socket is bound.
    #[must_use]
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.tunnel.local_addr()
    }

    /// Runs the machine until a shutdown has ended. Dropping the future closes every socket at once.
    pub async fn run(mut self) -> Finished<M> {
        let clean = tokio::task::unconstrained(poll_fn(|cx| self.turn(cx))).await;
        self.shared.publish(&self.stats);
        Finished {
            machine: self.machine,
            clean,
            stats: self.stats,
        }
    }

    /// One turn; ready, with whether all was finished, when the driver has come to its end.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.stats.turns += 1;
        self.now = timer::now();
        self.budget = Budget::default();
        self.shared.ready.take(cx.waker(), &mut self.work);

        if self.deadline.is_some_and(|at| at <= self.now) {
            self.machine.handle_timeout(self.now);
        }
        self.take_calls(cx);
        self.take_reports(cx);
        self.heed_shutdown();
        self.drain();
        self.resume_accepting();
        self.visit_ready();
        // Those begun in this turn have to learn whom to wake.
        let more = self.take_reports(cx) || self.pause.until().is_some() && self.freed;

        let end = self.end();
        self.stats.streams = self.streams.len() as u64;
        self.stats.budget_exhaustions += u64::from(self.budget.exhausted);
        self.shared.publish(&self.stats);
        if let Some(clean) = end {
            return Poll::Ready(clean);
        }

        self.deadline = self.machine.poll_timeout().map(|(at, reason)| {
            tracing::trace!(reason, "next deadline");
            at
        });
        let wake_at = [
            self.deadline,
            self.pause.until(),
            self.stopping.as_ref().map(|stop| stop.patience_ends),
        ];
        let due = self.timer.poll(cx, wake_at.into_iter().flatten().min());
        if due.is_ready() || more || self.budget.exhausted || !self.work.is_empty() {
            yield_now(cx);
        }
        Poll::Pending
    }

    fn take_calls(&mut self, cx: &mut Context<'_>) {
        let Some(calls) = &mut self.calls else {
            return;
        };
        for _ in 0..CALLS_PER_TURN {
            match calls.poll_recv(cx) {
                Poll::Ready(Some(call)) => call(&mut self.machine, self.now),
                Poll::Ready(None) => {
                    // Every handle is gone: nobody will call any more, the machine goes on.
                    self.calls = None;
                    return;
                }
                Poll::Pending => return,
            }
        }
        self.budget.exhausted = true;
    }

    /// Returns whether there were any.
    fn take_reports(&mut self, cx: &mut Context<'_>) -> bool {
        for taken in 0..REPORTS_PER_TURN {
            match self.tasks.poll_join_next(cx) {
                Poll::Ready(Some(Ok(report))) => self.heed(report),
                // Cancelled by the machine, which knows.
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(None) | Poll::Pending => return taken > 0,
            }
        }
        self.budget.exhausted = true;
        true
    }

    fn heed_shutdown(&mut self) {
        if self.stopping.is_some() || self.shared.shutdowns() == 0 {
            return;
        }
        tracing::debug!("shutting down");
        self.stopping = Some(Stopping {
            patience_ends: self.now + self.settings.shutdown_grace,
        });
        // New visitors are refused by the kernel from here on. UDP has no connections: the machine says when it is over.
        self.listeners.retain(|socket| matches!(socket, Public::Udp(_)));
        self.machine.begin_shutdown(self.now);
    }

    /// Whether this is the end, and if so, whether everything was finished.
    fn end(&self) -> Option<bool> {
        let stopping = self.stopping.as_ref()?;
        let unsent = self.outbox.full || self.budget.exhausted;
        if self.machine.is_finished() && !unsent {
            return Some(true);
        }
        let hurried = self.shared.shutdowns() > 1;
        (hurried || self.now >= stopping.patience_ends).then_some(false)
    }

    /// Visits what is ready until nothing is or the turn's bounds are reached. What is left keeps its place.
    fn visit_ready(&mut self) {
        let mut visits = 0;
        while !self.work.is_empty() {
            while let Some(token) = self.work.pop_front() {
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
                self.budget.exhausted |= !self.work.is_empty();
                return;
            }
        }
    }

    fn visit(&mut self, token: Token) {
        match token {
            Token::Tunnel => self.visit_tunnel(),
            Token::Stream(id) => self.visit_stream(id),
            Token::Listener(id) => self.visit_public(id),
            Token::Local(id) => {
                if let Some(Local::Open(udp)) = self.locals.get_mut(id) {
                    let (machine, now) = (&mut self.machine, self.now);
                    let socket = UdpSocketRef::Local(id);
                    let visit = udp.visit(&mut self.datagram, &mut self.stats, |from, payload| {
                        machine.handle_socket(now, datagram(socket, from, payload));
                    });
                    if visit.again {
                        udp.source().queue(&mut self.work);
                    }
                    self.budget.took_datagrams(visit.datagrams);
                }
            }
        }
    }

    fn visit_tunnel(&mut self) {
        let (machine, now) = (&mut self.machine, self.now);
        let before = self.stats.tunnel_rx_datagrams;
        self.tunnel.socket.source.visited();
        let received = self.tunnel.visit(&mut self.stats, |path, batch, stride| {
            machine.handle_datagram(now, path, batch, stride);
        });
        if received == Received::Again {
            self.tunnel.socket.source.queue(&mut self.work);
        }
        let datagrams = self.stats.tunnel_rx_datagrams - before;
        self.budget.took_datagrams(datagrams as usize);
    }

    fn visit_stream(&mut self, id: StreamId) {
        let Some(Slot::Open(stream)) = self.streams.get_mut(id) else {
            return;
        };
        let visit = stream.visit(&mut self.machine, self.now, id);
        self.budget.stream_bytes = self.budget.stream_bytes.saturating_sub(visit.moved);
        match visit.then {
            Then::Wait => {}
            Then::Again => stream.source().queue(&mut self.work),
            Then::Drop => {
                self.streams.remove(id);
                self.freed = true;
            }
        }
    }

    fn visit_public(&mut self, id: ListenerId) {
        let (machine, now) = (&mut self.machine, self.now);
        match self.listeners.get_mut(id) {
            None => {}
            Some(Public::Udp(udp)) => {
                let socket = UdpSocketRef::Public(id);
                let visit = udp.visit(&mut self.datagram, &mut self.stats, |from, payload| {
                    machine.handle_socket(now, datagram(socket, from, payload));
                });
                if visit.again {
                    udp.source().queue(&mut self.work);
                }
                self.budget.took_datagrams(visit.datagrams);
            }
            Some(Public::Tcp(listener)) => {
                let (streams, ready, work) = (&mut self.streams, &self.shared.ready, &mut self.work);
                let accepting = listener.visit(machine, now, id, &mut self.stats, |id, socket| {
                    let stream = Stream::new(socket, Source::new(ready, Token::Stream(id)));
                    stream.source().queue(work);
                    streams.insert(id, Slot::Open(stream));
                });
                match accepting {
                    Accepting::Done => {}
                    Accepting::Again => listener.source.queue(&mut self.work),
                    Accepting::Exhausted => self.pause.begin(now, &mut self.stats),
                }
            }
        }
    }

    /// Tries again to accept, if it had to rest and it is time.
    fn resume_accepting(&mut self) {
        if self.pause.end(self.now, std::mem::take(&mut self.freed)) {
            for (_, socket) in self.listeners.iter_mut() {
                if let Public::Tcp(listener) = socket {
                    listener.source.queue(&mut self.work);
                }
            }
        }
    }
}

impl<M: Machine> fmt::Debug for Driver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn datagram(socket: UdpSocketRef, remote: SocketAddr, payload: &[u8]) -> portal_core::SocketEvent<'_> {
    portal_core::SocketEvent::Datagram {
        socket,
        remote,
        payload,
    }
}

/// Has this task polled again after tokio has looked for new readiness. Waking it directly would put that off for up to
/// 61 turns, tokio's interval when tasks are always runnable.
fn yield_now(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
