//! What drives the machines. The only place that knows which runtime this program was built with: the one below that is
//! called `imp` here. Nothing of it shows: a machine runs on a thread of its own, its events come on another, and whoever
//! started it is a plain thread that waits for neither.

#[cfg(feature = "mio")]
#[path = "runtime/mio.rs"]
mod imp;
#[cfg(feature = "tokio")]
#[path = "runtime/tokio.rs"]
mod imp;

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portal_core::Machine;

pub(crate) use self::imp::{Servers, Stopped, VERSION, bind_udp, usable};
use crate::process;

/// How long an end waits for open connections: all of it is over within 5 s, well before the 10 s after which `docker stop`
/// kills. An idle browser holds its connection for minutes.
const GRACE: Duration = Duration::from_secs(4);

/// Events that may wait. More than one turn of a machine makes, or a flood of visitors would hide the binding of a name.
pub(crate) const EVENTS: usize = 8192;

/// A machine that runs.
pub(crate) struct Running<M: Machine> {
    name: Arc<str>,
    handle: imp::Handle<M>,
    driver: JoinHandle<M>,
    events: JoinHandle<()>,
}

/// A machine that is about to run.
struct Prepared<M: Machine> {
    handle: imp::Handle<M>,
    events: imp::Events<M::Event>,
    /// Runs it to its end and hands it back.
    drive: Box<dyn FnOnce() -> M + Send>,
}

/// Runs a machine on a thread of this name. `take` is given its events one after the other, on a second thread, and
/// `None` once it has ended; while it does not return, events are kept, and lost at last.
pub(crate) fn start<M>(
    name: &str,
    machine: M,
    tunnel: UdpSocket,
    servers: &Servers,
    mut take: impl FnMut(Option<M::Event>) + Send + 'static,
) -> io::Result<Running<M>>
where
    M: Machine + Send + 'static,
    M::Event: Send,
{
    let settings = imp::Settings {
        shutdown_grace: GRACE,
        event_queue: EVENTS,
        ..imp::Settings::default()
    };
    let Prepared {
        handle,
        mut events,
        drive,
    } = imp::prepare(machine, tunnel, settings, servers)?;
    let driver = thread::Builder::new().name(name.into()).spawn(drive)?;
    let events = process::spawn(&format!("{name} events"), move || {
        while let Some(event) = events.recv_blocking() {
            take(Some(event));
        }
        take(None);
    })?;
    Ok(Running {
        name: name.into(),
        handle,
        driver,
        events,
    })
}

impl<M: Machine> Running<M> {
    /// Runs `call` on the machine and waits for what it returns.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut M, Instant) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        self.handle.call_blocking(call)
    }

    /// Asks it to end. Asked again, it ends at once.
    pub(crate) fn shutdown(&self) {
        self.handle.shutdown();
    }

    /// Has it end without patience.
    pub(crate) fn end_at_once(&self) {
        self.handle.shutdown();
        self.handle.shutdown();
    }

    /// How many events were lost so far, because nobody took them in time.
    pub(crate) fn lost_events(&self) -> u64 {
        self.handle.stats().event_drops
    }

    /// Waits for its end, and for its last event to be taken. Hands the machine back.
    pub(crate) fn join(self) -> M {
        // A panic ends the process.
        let (Ok(machine), Ok(())) = (self.driver.join(), self.events.join()) else {
            unreachable!("the thread of {} has ended by a panic", self.name);
        };
        machine
    }
}
