//! The tokio runtime of Portal: it owns sockets, clock and name resolution and drives a [`portal_core::Machine`].
//!
//! No protocol decision is taken here. One future, [`Driver::run`], holds the machine, the tunnel's UDP socket, every
//! listener, stream and UDP socket, the dials and one timer; so the machine needs no lock, and a connection costs a slot
//! and a waker instead of a task.
//!
//! # A turn
//!
//! The future wakes, does one turn of a [`portal_adapter::engine::Engine`] and sleeps again. Nothing inside a turn waits.
//! Dials and look-ups are tasks of their own and report back; a socket that would block is left until its waker puts it on
//! the ready list (module `wake`). When a bound of the turn is reached, the driver yields in a way that lets tokio look for
//! new readiness before it goes on. tokio's own cooperative budget is switched off for the driver: it counts operations on
//! single sockets and would make thousands of them look blocked.
//!
//! # The end
//!
//! Tasks and sockets end with the driver, or with its future if that is dropped. A look-up that the system has begun
//! cannot be cancelled: its thread of tokio's blocking pool ends when the system answers. A program that wants to leave
//! sooner uses `Runtime::shutdown_background`.
//!
//! # For programs
//!
//! [`service`] is for those that want visitors and no machine to drive.
//!
//! # Example
//!
//! ```no_run
//! # async fn run<M: portal_core::Machine>(machine: M) -> std::io::Result<()> {
//! use portal_runtime_tokio::{Driver, Handlers, Settings};
//!
//! let tunnel = std::net::UdpSocket::bind("[::]:51820")?;
//! let (driver, handle, _events) =
//!     Driver::new(machine, tunnel, Settings::default(), Handlers::new())?;
//! // Elsewhere: `handle.call(|machine, now| …).await`, `handle.stats()`, `handle.shutdown()`.
//! let finished = driver.run().await;
//! assert!(finished.clean);
//! # Ok(())
//! # }
//! ```

mod dial;
mod driver;
mod handle;
pub mod service;
mod socket;
mod system;
mod timer;

pub use dial::Handlers;
pub use driver::Driver;
pub use handle::{Events, Handle};
pub use portal_adapter::engine::{Finished, Stopped};
pub use portal_adapter::{Settings, Stats, bind_udp, usable};
