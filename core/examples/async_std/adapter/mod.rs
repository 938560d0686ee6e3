//! A runtime on async-std: one future that turns the engine of `portal-adapter`.
//!
//! What it leaves out beside the two that are shipped: targets inside the program, a memory of names, and a race between
//! the addresses of a target that has several.

mod dial;
mod system;

use std::future::{Future, poll_fn};
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::Timer;
use portal_adapter::Settings;
use portal_adapter::engine::Engine;
use portal_adapter::wake::ReadyList;
use portal_core::Machine;

use dial::Report;
use system::AsyncStd;

/// How many calls wait for the machine, and how many of them, and of reports, one turn takes.
const CALLS: usize = 64;

type Call<M> = Box<dyn FnOnce(&mut M, Instant) + Send>;

/// The application's way to a machine that runs.
pub(crate) struct Handle<M> {
    calls: SyncSender<Call<M>>,
    ready: Arc<ReadyList>,
    shutdowns: Arc<AtomicUsize>,
}

/// A machine and its sockets.
pub(crate) struct Driver<M: Machine> {
    engine: Engine<M, AsyncStd<M::Event>>,
    ready: Arc<ReadyList>,
    calls: Receiver<Call<M>>,
    reports: Receiver<Report>,
    asked_to_end: Arc<AtomicUsize>,
    told_to_end: usize,
    timer: Timer,
}

impl<M> Handle<M> {
    /// Has something done with the machine, and waits until it is; `None` if the machine has ended.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut M, Instant) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, result) = sync_channel(1);
        let call: Call<M> = Box::new(move |machine, now| {
            // The caller waits below.
            let _ = answer.send(call(machine, now));
        });
        self.calls.send(call).ok()?;
        self.ready.wake();
        result.recv().ok()
    }

    /// Starts a clean end; asked twice, the end comes at once.
    pub(crate) fn shutdown(&self) {
        self.shutdowns.fetch_add(1, Ordering::AcqRel);
        self.ready.wake();
    }
}

impl<M: Machine> Driver<M> {
    /// Takes a machine and the bound socket of its tunnel. A shutdown waits no longer than `grace`.
    pub(crate) fn new(
        machine: M,
        tunnel: UdpSocket,
        grace: Duration,
    ) -> io::Result<(Self, Handle<M>, Receiver<M::Event>)> {
        let settings = Settings {
            shutdown_grace: grace,
            ..Settings::default()
        };
        let ready = Arc::new(ReadyList::default());
        let (calls_in, calls) = sync_channel(CALLS);
        let (reports_in, reports) = channel();
        let (events_in, events) = sync_channel(settings.event_queue);
        let asked_to_end = Arc::new(AtomicUsize::new(0));
        let handle = Handle {
            calls: calls_in,
            ready: Arc::clone(&ready),
            shutdowns: Arc::clone(&asked_to_end),
        };
        let system = AsyncStd::new(&ready, reports_in, events_in, &settings);
        let driver = Self {
            engine: Engine::new(Instant::now(), machine, tunnel, settings, system)?,
            ready,
            calls,
            reports,
            asked_to_end,
            told_to_end: 0,
            timer: Timer::never(),
        };
        Ok((driver, handle, events))
    }

    /// Runs the machine until a shutdown has ended; whether all was finished then.
    pub(crate) async fn run(mut self) -> bool {
        poll_fn(|cx| self.turn(cx)).await
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.engine.begin_turn(Instant::now());
        self.ready.take(cx.waker(), &mut self.engine.queue);
        for taken in 1..=CALLS {
            let (call, report) = (self.calls.try_recv().ok(), self.reports.try_recv().ok());
            if call.is_none() && report.is_none() {
                break;
            }
            if let Some(call) = call {
                let now = self.engine.now();
                call(&mut self.engine.machine, now);
            }
            if let Some(report) = report {
                self.heed(report);
            }
            if taken == CALLS {
                self.engine.left_some();
            }
        }
        while self.told_to_end < self.asked_to_end.load(Ordering::Acquire) {
            self.told_to_end += 1;
            self.engine.shutdown();
        }
        self.engine.work();
        if let Some(clean) = self.engine.end() {
            return Poll::Ready(clean);
        }
        match self.engine.wake_at() {
            Some(at) => self.timer.set_at(at),
            None => self.timer = Timer::never(),
        }
        if Pin::new(&mut self.timer).poll(cx).is_ready() || self.engine.has_work() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn heed(&mut self, report: Report) {
        match report {
            Report::Dialed { stream, result } => {
                let result = result.and_then(|socket| self.engine.system.hold_dialed(socket, stream));
                self.engine.dialed(stream, result);
            }
            Report::DialedUdp { socket, result } => self.engine.dialed_udp(socket, result),
            Report::Resolved { host, addrs } => self.engine.resolved(&host, &addrs),
        }
    }
}
