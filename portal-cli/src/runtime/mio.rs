//! Machines on mio: each is its thread.

use std::io;
use std::net::UdpSocket;

use portal_core::Machine;
use portal_runtime_mio::Driver;

pub(super) use portal_runtime_mio::{Events, Handle, Settings};
pub(crate) use portal_runtime_mio::{Stopped, bind_udp, usable};

use super::Prepared;
use crate::folder::Folder;

/// The program's version.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (mio)");

/// What is served from inside the program: nothing, as a [`Folder`] cannot be opened here.
#[derive(Debug, Default)]
pub(crate) struct Servers(());

impl Servers {
    /// Never called: there is no [`Folder`] to call it with.
    pub(crate) fn set(&self, _name: String, folder: &Folder) {
        match *folder {}
    }

    /// There is nothing to take away.
    pub(crate) fn retain(&self, _keep: impl FnMut(&str) -> bool) {}
}

/// Makes all that a machine needs.
pub(super) fn prepare<M>(
    machine: M,
    tunnel: UdpSocket,
    settings: Settings,
    _servers: &Servers,
) -> io::Result<Prepared<M>>
where
    M: Machine + Send + 'static,
    M::Event: Send,
{
    let (driver, handle, events) = Driver::new(machine, tunnel, settings)?;
    Ok(Prepared {
        handle,
        events,
        drive: Box::new(move || driver.run().machine),
    })
}
