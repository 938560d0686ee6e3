//! The tokio runtime of Portal: it owns sockets, clock and name resolution and drives a [`portal_core::Machine`].
//!
//! No protocol decision is taken here. One future, [`Driver::run`], holds the machine, the tunnel's UDP socket, every
//! listener, stream and UDP socket, the dials and one timer; so the machine needs no lock, and a connection costs a slot
//! and a waker instead of a task.
//!
//! # A turn
//!
//! The future wakes, does one *turn* and sleeps again:
//!
//! 1. the clock is read, once; a deadline that is due is honoured. First, so that no busy socket delays a timer;
//! 2. what came from outside: calls of a [`Handle`], a shutdown, dials and look-ups that ended;
//! 3. the machine is drained: transmits, then actions, as its contract says;
//! 4. the sockets that are ready, in the order they became so, each up to its own bound; the machine is drained after
//!    each batch of the tunnel and after every few other sockets, so that its queues stay short while trains stay long;
//! 5. the timer is set to the machine's deadline.
//!
//! Nothing inside a turn waits. Dials and look-ups are tasks of their own and report back; a socket that would block is
//! left until its waker puts it on the ready list (module `wake`). A turn is bounded in sockets visited, bytes
//! moved, datagrams received and sent; when a bound is reached, what is left keeps its place in the queue, and the
//! driver yields in a way that lets tokio look for new readiness before it goes on. tokio's own cooperative budget is
//! switched off for the driver: it counts operations on single sockets and would make thousands of them look blocked.
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

mod actions;
mod dial;
mod driver;
mod handle;
mod listener;
pub mod service;
mod stream;
mod timer;
mod udp;
mod wake;

pub use dial::Handlers;
pub use driver::{Driver, Finished};
pub use handle::{Events, Handle, Stopped};
pub use portal_adapter::{Settings, Stats, bind_udp, usable};
