//! The conformance suite with the example runtime on async-std at both ends.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it runs a runtime, which owns sockets, clock and threads, and is no part of the core"
)]

use std::net::UdpSocket;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_std::task::block_on;
use portal_conformance::{Adapter, Started, conformance};
use portal_core::Machine;

#[path = "../examples/async_std/adapter/mod.rs"]
mod adapter;

#[derive(Clone, Copy)]
struct AsyncStd;

conformance!(async_std_async_std, AsyncStd, AsyncStd);

impl Adapter for AsyncStd {
    fn start<M>(self, machine: M, tunnel: UdpSocket, grace: Duration) -> Started<M>
    where
        M: Machine + Send + 'static,
        M::Event: Send + 'static,
    {
        let (driver, handle, events) = adapter::Driver::new(machine, tunnel, grace).expect("the socket is sound");
        let handle = Arc::new(handle);
        let calls = Arc::clone(&handle);
        Started {
            call: Box::new(move |call| calls.call(call).expect("it runs")),
            events,
            shutdown: Box::new(move || handle.shutdown()),
            ended: thread::spawn(move || block_on(driver.run())),
        }
    }
}
