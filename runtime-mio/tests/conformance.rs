//! The conformance suite, for every pair of the runtimes that are shipped.

use std::net::UdpSocket;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use portal_conformance::{Adapter, Started, conformance};
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
        let (parts, started) = channel();
        let (tell, events) = channel();
        let ended = thread::spawn(move || {
            let settings = portal_runtime_mio::Settings {
                shutdown_grace: grace,
                ..portal_runtime_mio::Settings::small()
            };
            let (driver, handle, mut told) = portal_runtime_mio::Driver::new(machine, tunnel, settings).unwrap();
            parts.send(handle).unwrap();
            thread::spawn(move || {
                while let Some(event) = told.recv_blocking() {
                    if tell.send(event).is_err() {
                        return;
                    }
                }
            });
            driver.run().clean
        });
        let handle = started.recv().unwrap();
        let calls = handle.clone();
        Started {
            call: Box::new(move |call| calls.call_blocking(call).expect("it runs")),
            events,
            shutdown: Box::new(move || handle.shutdown()),
            ended,
        }
    }
}

impl Adapter for Tokio {
    fn start<M>(self, machine: M, tunnel: UdpSocket, grace: Duration) -> Started<M>
    where
        M: Machine + Send + 'static,
        M::Event: Send + 'static,
    {
        let (parts, started) = channel();
        let (tell, events) = channel();
        let ended = thread::spawn(move || {
            let settings = portal_runtime_tokio::Settings {
                shutdown_grace: grace,
                ..portal_runtime_tokio::Settings::default()
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let handlers = portal_runtime_tokio::Handlers::new();
                let (driver, handle, mut told) =
                    portal_runtime_tokio::Driver::new(machine, tunnel, settings, handlers).unwrap();
                parts.send(handle).unwrap();
                thread::spawn(move || {
                    while let Some(event) = told.recv_blocking() {
                        if tell.send(event).is_err() {
                            return;
                        }
                    }
                });
                driver.run().await.clean
            })
        });
        let handle = started.recv().unwrap();
        let calls = handle.clone();
        Started {
            call: Box::new(move |call| calls.call_blocking(call).expect("it runs")),
            events,
            shutdown: Box::new(move || handle.shutdown()),
            ended,
        }
    }
}
