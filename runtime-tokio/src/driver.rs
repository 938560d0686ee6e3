//! The driver: one future that turns the engine. The crate docs describe a turn.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use portal_adapter::Settings;
use portal_adapter::engine::{Engine, Finished};
use portal_core::Machine;
use tokio::sync::mpsc;

use crate::dial::{Handlers, Report};
use crate::handle::{CALL_QUEUE, Call, Events, Handle, Shared};
use crate::system::Tokio;
use crate::timer::{self, Timer};

/// How many calls, and how many reports of tasks, one turn takes.
const CALLS_PER_TURN: usize = 64;
const REPORTS_PER_TURN: usize = 256;

/// Drives a machine: see the [crate docs](crate).
pub struct Driver<M: Machine> {
    engine: Engine<M, Tokio<M::Event>>,
    shared: Arc<Shared>,
    /// How many of the shutdowns asked for the engine knows of.
    shutdowns: usize,
    calls: Option<mpsc::Receiver<Call<M>>>,
    timer: Timer,
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
        let (calls_in, calls) = mpsc::channel(CALL_QUEUE);
        let (events, events_out) = mpsc::channel(settings.event_queue.max(1));
        let system = Tokio::new(Arc::clone(&shared.ready), handlers, events, &settings);
        let driver = Self {
            engine: Engine::new(timer::now(), machine, tunnel, settings, system)?,
            shared: Arc::clone(&shared),
            shutdowns: 0,
            calls: Some(calls),
            timer: Timer::new(),
        };
        Ok((driver, Handle::new(calls_in, shared), Events::new(events_out)))
    }

    /// Where the tunnel's socket is bound.
    #[must_use]
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.engine.tunnel_addr()
    }

    /// Runs the machine until a shutdown has ended. Dropping the future closes every socket at once.
    pub async fn run(mut self) -> Finished<M> {
        let clean = tokio::task::unconstrained(poll_fn(|cx| self.turn(cx))).await;
        self.shared.publish(&self.engine.stats);
        let (machine, stats) = self.engine.into_parts();
        Finished { machine, clean, stats }
    }

    /// One turn; ready, with whether all was finished, when the driver has come to its end.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.engine.begin_turn(timer::now());
        self.shared.ready.take(cx.waker(), &mut self.engine.queue);
        self.take_calls(cx);
        self.take_reports(cx);
        while self.shutdowns < self.shared.shutdowns() {
            self.shutdowns += 1;
            self.engine.shutdown();
        }
        self.engine.work();
        // Those begun in this turn have to learn whom to wake.
        let more = self.take_reports(cx);

        self.shared.publish(&self.engine.stats);
        if let Some(clean) = self.engine.end() {
            return Poll::Ready(clean);
        }
        let due = self.timer.poll(cx, self.engine.wake_at());
        if due.is_ready() || more || self.engine.has_work() {
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
                Poll::Ready(Some(call)) => {
                    let now = self.engine.now();
                    call(&mut self.engine.machine, now);
                }
                Poll::Ready(None) => {
                    // Every handle is gone: nobody will call any more, the machine goes on.
                    self.calls = None;
                    return;
                }
                Poll::Pending => return,
            }
        }
        self.engine.left_some();
    }

    /// Returns whether there were any.
    fn take_reports(&mut self, cx: &mut Context<'_>) -> bool {
        for taken in 0..REPORTS_PER_TURN {
            match self.engine.system.poll_report(cx) {
                Poll::Ready(Some(report)) => self.heed(report),
                Poll::Ready(None) | Poll::Pending => return taken > 0,
            }
        }
        self.engine.left_some();
        true
    }

    fn heed(&mut self, report: Report) {
        match report {
            Report::Dialed { stream, result } => {
                let result = result.map(|socket| self.engine.system.hold(socket, stream));
                self.engine.dialed(stream, result);
            }
            Report::DialedUdp { socket, result } => self.engine.dialed_udp(socket, result),
            Report::Resolved { host, addrs, .. } => self.engine.resolved(&host, &addrs),
            // By the machine, which knows.
            Report::CalledOff => {}
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

/// Has this task polled again after tokio has looked for new readiness. Waking it directly would put that off for up to
/// 61 turns, tokio's interval when tasks are always runnable.
fn yield_now(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
