//! The runtimes that are shipped, as the conformance suite wants them.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use portal_conformance::{Adapter, Started, forwarded};
use portal_core::Machine;

#[derive(Clone, Copy)]
pub(crate) struct Mio;

#[derive(Clone, Copy)]
pub(crate) struct Tokio;

impl Adapter for Mio {
    fn start<M>(self, machine: M, tunnel: UdpSocket, grace: Duration) -> Started<M>
    where
        M: Machine + Send + 'static,
        M::Event: Send + 'static,
    {
        use portal_runtime_mio::{Driver, Settings};
        let settings = Settings {
            shutdown_grace: grace,
            ..Settings::small()
        };
        let (driver, handle, mut told) = Driver::new(machine, tunnel, settings).unwrap();
        let calls = handle.clone();
        Started {
            call: Box::new(move |call| calls.call_blocking(call).expect("it runs")),
            events: forwarded(move || told.recv_blocking()),
            shutdown: Box::new(move || handle.shutdown()),
            ended: thread::spawn(move || driver.run().clean),
        }
    }
}

impl Adapter for Tokio {
    fn start<M>(self, machine: M, tunnel: UdpSocket, grace: Duration) -> Started<M>
    where
        M: Machine + Send + 'static,
        M::Event: Send + 'static,
    {
        use portal_runtime_tokio::{Driver, Handlers, Settings};
        let settings = Settings {
            shutdown_grace: grace,
            ..Settings::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let made = {
            let _inside = runtime.enter();
            Driver::new(machine, tunnel, settings, Handlers::new())
        };
        let (driver, handle, mut told) = made.unwrap();
        let calls = handle.clone();
        Started {
            call: Box::new(move |call| calls.call_blocking(call).expect("it runs")),
            events: forwarded(move || told.recv_blocking()),
            shutdown: Box::new(move || handle.shutdown()),
            ended: thread::spawn(move || runtime.block_on(driver.run()).clean),
        }
    }
}
