//! The conformance suite, for every pair of the runtimes that are shipped.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use portal_conformance::{Adapter, Started, conformance, forwarded};
use portal_core::Machine;

#[derive(Clone, Copy)]
struct Mio;

#[derive(Clone, Copy)]
struct Tokio;

conformance!(mio_mio, Mio, Mio);
conformance!(mio_tokio, Mio, Tokio);
conformance!(tokio_mio, Tokio, Mio);
conformance!(tokio_tokio, Tokio, Tokio);

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
