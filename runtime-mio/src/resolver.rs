//! Names: looked up on threads of their own, remembered for a few seconds.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use portal_adapter::names::{MAX_NAMES, NAME_TTL, well_known, with_port};
use portal_core::{StreamId, UdpId};

use crate::handle::Shared;

/// How many names the system is asked for at once. One that does not answer holds a thread.
const THREADS: usize = 4;

/// How long a thread waits for another name.
const IDLE: Duration = Duration::from_secs(5);

/// What a thread may use. The system's resolver is frugal, its modules are less so; only what is used costs memory.
const STACK: usize = 512 * 1024;

/// Who waits for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Stream(StreamId),
    Local(UdpId),
    /// The machine, which wants this port with it.
    Machine(u16),
}

/// What is known about the names of targets. Connections to one name share one look-up.
#[derive(Debug)]
pub(crate) struct Names {
    known: HashMap<String, Name>,
    jobs: Arc<Jobs>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Name {
    Asked(Vec<Waiter>),
    Known { addrs: Vec<SocketAddr>, at: Instant },
}

/// Names that wait for a thread.
#[derive(Debug, Default)]
struct Jobs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<String>,
    threads: usize,
    idle: usize,
    /// Nobody waits any more.
    closed: bool,
}

impl Names {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            known: HashMap::new(),
            jobs: Arc::default(),
            shared,
        }
    }

    /// The addresses if no look-up is needed.
    pub(crate) fn get(&self, now: Instant, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        well_known(host, port).or_else(|| match self.known.get(host)? {
            Name::Known { addrs, at } if now.saturating_duration_since(*at) < NAME_TTL => Some(with_port(addrs, port)),
            _ => None,
        })
    }

    /// Has a name looked up, or joins those who wait for it.
    pub(crate) fn ask(&mut self, now: Instant, host: &str, waiter: Waiter) {
        if let Some(Name::Asked(waiting)) = self.known.get_mut(host) {
            if !waiting.contains(&waiter) {
                waiting.push(waiter);
            }
            return;
        }
        if self.known.len() >= MAX_NAMES {
            self.known.retain(|_, name| match name {
                Name::Asked(_) => true,
                Name::Known { at, .. } => now.saturating_duration_since(*at) < NAME_TTL,
            });
        }
        if self.known.len() >= MAX_NAMES {
            self.known.retain(|_, name| matches!(name, Name::Asked(_)));
        }
        self.known.insert(host.to_owned(), Name::Asked(vec![waiter]));
        if let Err(error) = self.jobs.add(host, &self.shared) {
            tracing::debug!(%error, host, "no thread to look a name up");
            self.shared.answer(host.to_owned(), Vec::new());
        }
    }

    /// Takes in an answer and says who waited for it.
    pub(crate) fn answered(&mut self, now: Instant, host: &str, addrs: &[SocketAddr]) -> Vec<Waiter> {
        let known = Name::Known {
            addrs: addrs.to_vec(),
            at: now,
        };
        match self.known.insert(host.to_owned(), known) {
            Some(Name::Asked(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    /// Somebody does not want to wait for a name any longer.
    pub(crate) fn give_up(&mut self, host: &str, waiter: Waiter) {
        if let Some(Name::Asked(waiting)) = self.known.get_mut(host) {
            waiting.retain(|other| *other != waiter);
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.jobs.lock().closed = true;
        self.jobs.changed.notify_all();
    }
}

impl Jobs {
    fn add(self: &Arc<Self>, host: &str, shared: &Arc<Shared>) -> io::Result<()> {
        let mut state = self.lock();
        state.queue.push_back(host.to_owned());
        if state.idle >= state.queue.len() || state.threads >= THREADS {
            self.changed.notify_one();
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let (jobs, shared) = (Arc::clone(self), Arc::clone(shared));
        let started = thread::Builder::new()
            .name("names".into())
            .stack_size(STACK)
            .spawn(move || jobs.work(&shared));
        if let Err(error) = started {
            let mut state = self.lock();
            state.threads -= 1;
            if state.threads == 0 {
                state.queue.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    fn work(&self, shared: &Shared) {
        while let Some(host) = self.next() {
            let addrs = match (host.as_str(), 0).to_socket_addrs() {
                Ok(addrs) => addrs.collect(),
                Err(error) => {
                    tracing::debug!(%error, host, "looking a name up failed");
                    Vec::new()
                }
            };
            shared.answer(host, addrs);
        }
    }

    /// Waits for a name; `None` ends the thread.
    fn next(&self) -> Option<String> {
        let mut state = self.lock();
        let mut patient = true;
        while !state.closed {
            if let Some(host) = state.queue.pop_front() {
                return Some(host);
            }
            if !patient {
                break;
            }
            state.idle += 1;
            let (woken, timeout) = self
                .changed
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            patient = !timeout.timed_out();
        }
        state.threads -= 1;
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
