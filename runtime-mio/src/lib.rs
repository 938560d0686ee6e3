//! The mio runtime of Portal: one thread, one [`mio::Poll`], for machines where every megabyte counts.
//!
//! It offers what the tokio runtime offers, without an executor: [`Driver::run`] blocks its thread, and other threads reach
//! it by a [`Handle`]. What is done with a socket that is ready is the engine's ([`portal_adapter::engine`]); this crate
//! waits.
//!
//! # A turn
//!
//! epoll reports edges: a socket that has more to give and is not asked to the end says nothing again. So each socket
//! remembers what the kernel has said of it until a call says "would block" (module `watched`), and one that is left
//! before stays in the engine's queue, with which the next poll does not wait. The events of a poll are taken in before
//! anything is done with a socket, and name sockets by an index that stays theirs until they are dropped: none can reach
//! another socket. Deadlines are rounded up to the poll's milliseconds.
//!
//! # Names
//!
//! The system's resolver blocks. It is asked on up to four threads of its own, which end after a few idle seconds; a
//! connection waits for its name no longer than it waits for the network.
//!
//! # Example
//!
//! ```no_run
//! # fn run<M: portal_core::Machine>(machine: M) -> std::io::Result<()> {
//! use portal_runtime_mio::{Driver, Settings};
//!
//! let tunnel = std::net::UdpSocket::bind("[::]:51820")?;
//! let (driver, handle, _events) = Driver::new(machine, tunnel, Settings::small())?;
//! // Elsewhere: `handle.call_blocking(|machine, now| …)`, `handle.stats()`, `handle.shutdown()`.
//! let finished = driver.run();
//! assert!(finished.clean);
//! # Ok(())
//! # }
//! ```

mod dial;
mod driver;
mod handle;
mod resolver;
mod system;
mod watched;

pub use driver::Driver;
pub use handle::{Events, Handle};
pub use portal_adapter::engine::{Finished, Stopped};
pub use portal_adapter::{Settings, Stats, bind_udp, usable};
