//! The outside's view of a running driver.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use portal_adapter::Stats;
use portal_adapter::engine::Stopped;

/// Something to be done with the machine between two drains.
type Call<M> = Box<dyn FnOnce(&mut M, Instant) + Send>;

/// Reaches a [`Driver`](crate::Driver) from other threads.
pub struct Handle<M> {
    calls: Arc<Calls<M>>,
    shared: Arc<Shared>,
}

impl<M> Handle<M> {
    /// Runs `call` on the machine, between two turns' inputs, waits for it and hands back what it returns. The machine is
    /// drained afterwards.
    ///
    /// `call` runs on the driver's thread: it must not wait.
    ///
    /// # Errors
    /// [`Stopped`] if the driver ended before it came to it.
    pub fn call_blocking<R>(&self, call: impl FnOnce(&mut M, Instant) -> R + Send + 'static) -> Result<R, Stopped>
    where
        R: Send + 'static,
    {
        let (answer, result) = sync_channel(1);
        let call: Call<M> = Box::new(move |machine, now| {
            // The caller waits.
            let _ = answer.send(call(machine, now));
        });
        self.calls.add(call)?;
        self.shared.wake();
        result.recv().map_err(|_| Stopped)
    }

    /// Starts the end: listeners are closed, the machine says goodbye, and the driver goes on until all is finished or
    /// [`Settings::shutdown_grace`](crate::Settings::shutdown_grace) is over. Called a second time, ends at once.
    pub fn shutdown(&self) {
        self.shared.shutdowns.fetch_add(1, Ordering::AcqRel);
        self.shared.wake();
    }

    /// The counters as of the end of the last turn.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *lock(&self.shared.stats)
    }
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            calls: Arc::clone(&self.calls),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<M> fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// The machine's events, in order. Events that nobody takes are dropped and counted once the queue is full.
#[derive(Debug)]
pub struct Events<E> {
    queue: Receiver<E>,
    waiting: Arc<AtomicUsize>,
}

impl<E> Events<E> {
    /// Waits for the next event; `None` once the driver has ended.
    pub fn recv_blocking(&mut self) -> Option<E> {
        let event = self.queue.recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        Some(event)
    }

    /// The next event if one is waiting.
    pub fn try_recv(&mut self) -> Option<E> {
        let event = self.queue.try_recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        Some(event)
    }
}

/// The driver's end of [`Events`]. Room is taken as events come, not for the longest queue beforehand.
#[derive(Debug)]
pub(crate) struct Telling<E> {
    queue: Sender<E>,
    waiting: Arc<AtomicUsize>,
    capacity: usize,
}

/// A queue for so many events.
pub(crate) fn events<E>(capacity: usize) -> (Telling<E>, Events<E>) {
    let (sender, queue) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let telling = Telling {
        queue: sender,
        waiting: Arc::clone(&waiting),
        capacity,
    };
    (telling, Events { queue, waiting })
}

impl<E> Telling<E> {
    /// `false` if there is no room.
    pub(crate) fn tell(&self, event: E) -> bool {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= self.capacity {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        if self.queue.send(event).is_err() {
            // An application that has dropped its end does not want them.
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        true
    }
}

/// Calls that wait for the driver: as many as there are threads that wait for an answer.
pub(crate) struct Calls<M> {
    queue: Mutex<Option<Vec<Call<M>>>>,
}

impl<M> Calls<M> {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Some(Vec::new())),
        }
    }

    fn add(&self, call: Call<M>) -> Result<(), Stopped> {
        lock(&self.queue).as_mut().ok_or(Stopped)?.push(call);
        Ok(())
    }

    pub(crate) fn take(&self) -> Vec<Call<M>> {
        lock(&self.queue).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nobody will come for them any more: who waits is told.
    pub(crate) fn close(&self) {
        lock(&self.queue).take();
    }
}

/// What driver, handles and threads share beside the calls.
#[derive(Debug)]
pub(crate) struct Shared {
    waker: mio::Waker,
    stats: Mutex<Stats>,
    shutdowns: AtomicUsize,
    answers: Mutex<Vec<(String, Vec<SocketAddr>)>>,
}

impl Shared {
    pub(crate) fn new(waker: mio::Waker) -> Self {
        Self {
            waker,
            stats: Mutex::default(),
            shutdowns: AtomicUsize::new(0),
            answers: Mutex::default(),
        }
    }

    /// How often a shutdown was asked for.
    pub(crate) fn shutdowns(&self) -> usize {
        self.shutdowns.load(Ordering::Acquire)
    }

    pub(crate) fn publish(&self, stats: &Stats) {
        *lock(&self.stats) = *stats;
    }

    /// Leaves what a name means for the driver.
    pub(crate) fn answer(&self, host: String, addrs: Vec<SocketAddr>) {
        lock(&self.answers).push((host, addrs));
        self.wake();
    }

    pub(crate) fn take_answers(&self) -> Vec<(String, Vec<SocketAddr>)> {
        std::mem::take(&mut *lock(&self.answers))
    }

    fn wake(&self) {
        let woken: io::Result<()> = self.waker.wake();
        if let Err(error) = woken {
            tracing::warn!(%error, "the driver could not be woken");
        }
    }
}

/// A handle on these.
pub(crate) fn handle<M>(calls: &Arc<Calls<M>>, shared: &Arc<Shared>) -> Handle<M> {
    Handle {
        calls: Arc::clone(calls),
        shared: Arc::clone(shared),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
