//! The outside's view of a running driver.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use portal_adapter::Stats;
use portal_adapter::engine::Stopped;
use tokio::sync::{mpsc, oneshot};

use portal_adapter::wake::ReadyList;

/// How many calls may wait for the driver; callers beyond that wait to get in.
pub(crate) const CALL_QUEUE: usize = 256;

/// Something to be done with the machine between two drains.
pub(crate) type Call<M> = Box<dyn FnOnce(&mut M, Instant) + Send>;

/// Reaches a [`Driver`](crate::Driver) from other tasks and threads.
pub struct Handle<M> {
    calls: mpsc::Sender<Call<M>>,
    shared: Arc<Shared>,
}

impl<M> Handle<M> {
    pub(crate) fn new(calls: mpsc::Sender<Call<M>>, shared: Arc<Shared>) -> Self {
        Self { calls, shared }
    }

    /// Runs `call` on the machine, between two turns' inputs, and hands back what it returns. The machine is drained
    /// afterwards.
    ///
    /// `call` runs on the driver's task: it must not wait.
    ///
    /// # Errors
    /// [`Stopped`] if the driver ended before it came to it.
    pub async fn call<R>(&self, call: impl FnOnce(&mut M, Instant) -> R + Send + 'static) -> Result<R, Stopped>
    where
        R: Send + 'static,
    {
        let (call, result) = answered(call);
        self.calls.send(call).await.map_err(|_| Stopped)?;
        result.await.map_err(|_| Stopped)
    }

    /// [`Handle::call`] for a thread that is no task: waits for the driver.
    ///
    /// # Errors
    /// [`Stopped`] if the driver ended before it came to it.
    ///
    /// # Panics
    /// Inside of an asynchronous context, which it would block.
    pub fn call_blocking<R>(&self, call: impl FnOnce(&mut M, Instant) -> R + Send + 'static) -> Result<R, Stopped>
    where
        R: Send + 'static,
    {
        let (call, result) = answered(call);
        self.calls.blocking_send(call).map_err(|_| Stopped)?;
        result.blocking_recv().map_err(|_| Stopped)
    }

    /// Starts the end: listeners are closed, the machine says goodbye, and the driver goes on until all is finished or
    /// [`Settings::shutdown_grace`](crate::Settings::shutdown_grace) is over. Called a second time, ends at once.
    pub fn shutdown(&self) {
        self.shared.shutdowns.fetch_add(1, Ordering::AcqRel);
        self.shared.ready.wake();
    }

    /// Whether a shutdown was asked for.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shared.shutdowns() > 0
    }

    /// The counters as of the end of the last turn.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

/// A call that sends on what it returns.
fn answered<M, R: Send + 'static>(
    call: impl FnOnce(&mut M, Instant) -> R + Send + 'static,
) -> (Call<M>, oneshot::Receiver<R>) {
    let (answer, result) = oneshot::channel();
    let call: Call<M> = Box::new(move |machine, now| {
        // A caller that has gone does not want its answer.
        let _ = answer.send(call(machine, now));
    });
    (call, result)
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            calls: self.calls.clone(),
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
    queue: mpsc::Receiver<E>,
}

impl<E> Events<E> {
    pub(crate) fn new(queue: mpsc::Receiver<E>) -> Self {
        Self { queue }
    }

    /// Waits for the next event; `None` once the driver has ended.
    pub async fn recv(&mut self) -> Option<E> {
        self.queue.recv().await
    }

    /// [`Events::recv`] for a thread that is no task.
    ///
    /// # Panics
    /// Inside of an asynchronous context, which it would block.
    pub fn recv_blocking(&mut self) -> Option<E> {
        self.queue.blocking_recv()
    }

    /// The next event if one is waiting.
    pub fn try_recv(&mut self) -> Option<E> {
        self.queue.try_recv().ok()
    }
}

/// What driver and handles share beside the queue of calls.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) ready: Arc<ReadyList>,
    stats: Mutex<Stats>,
    shutdowns: AtomicUsize,
}

impl Shared {
    /// How often a shutdown was asked for.
    pub(crate) fn shutdowns(&self) -> usize {
        self.shutdowns.load(Ordering::Acquire)
    }

    pub(crate) fn publish(&self, stats: &Stats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = *stats;
    }

    fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
