//! Machines on tokio: each has a runtime of a single thread, as it is one itself.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use portal_core::Machine;
use portal_runtime_tokio::{Driver, Handlers};
use tokio::net::UnixStream;
use tokio::runtime::Builder;

pub(super) use portal_runtime_tokio::{Events, Handle, Settings};
pub(crate) use portal_runtime_tokio::{Stopped, bind_udp, usable};

use super::Prepared;
use crate::folder::Folder;

/// The program's version.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (tokio)");

/// Threads for what blocks: look-ups, files.
const BLOCKING_THREADS: usize = 16;
/// How long the end waits for one of them that is stuck in a file system or a resolver.
const STUCK: Duration = Duration::from_millis(100);

/// What is served from inside the program. Clones share one set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Servers(Handlers);

impl Servers {
    /// Serves a folder to those who are sent to this name.
    pub(crate) fn set(&self, name: String, folder: &Folder) {
        let folder = folder.clone();
        self.0.set(name, move |connection: UnixStream| {
            let folder = folder.clone();
            tokio::spawn(async move { folder.serve(connection).await });
        });
    }

    /// Takes away the servers whose names do not pass. Connections that they have go on.
    pub(crate) fn retain(&self, keep: impl FnMut(&str) -> bool) {
        self.0.retain(keep);
    }
}

/// Makes all that a machine needs.
pub(super) fn prepare<M>(
    machine: M,
    tunnel: UdpSocket,
    settings: Settings,
    servers: &Servers,
) -> io::Result<Prepared<M>>
where
    M: Machine + Send + 'static,
    M::Event: Send,
{
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let entered = runtime.enter();
    let (driver, handle, events) = Driver::new(machine, tunnel, settings, servers.0.clone())?;
    drop(entered);
    let drive = move || {
        let finished = runtime.block_on(driver.run());
        runtime.shutdown_timeout(STUCK);
        finished.machine
    };
    Ok(Prepared {
        handle,
        events,
        drive: Box::new(drive),
    })
}
