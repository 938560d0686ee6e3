//! Machines on mio: each is its thread.

use std::io;
use std::net::UdpSocket;

use portal_core::Machine;
use portal_runtime_mio::{Driver, Events};

pub(super) use portal_runtime_mio::{Handle, Settings};
pub(crate) use portal_runtime_mio::{Stopped, bind_udp, usable};

use crate::folder::Folder;

/// The program's version.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (mio)");

/// What is served from inside the program: nothing, as a [`Folder`] cannot be opened here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Servers;

impl Servers {
    /// Never called.
    pub(crate) fn set(self, _name: String, folder: Folder) {
        match folder {}
    }

    /// There is nothing to take away.
    pub(crate) fn retain(self, _keep: impl FnMut(&str) -> bool) {}
}

/// Makes all that a machine needs: what reaches it, its events, and what runs it to its end and hands it back.
pub(super) fn prepare<M>(
    machine: M,
    tunnel: UdpSocket,
    settings: Settings,
    _servers: &Servers,
) -> io::Result<(Handle<M>, Events<M::Event>, impl FnOnce() -> M + Send + use<M>)>
where
    M: Machine + Send + 'static,
    M::Event: Send,
{
    let (driver, handle, events) = Driver::new(machine, tunnel, settings)?;
    Ok((handle, events, move || driver.run().machine))
}
