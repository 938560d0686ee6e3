//! What the runtimes of Portal have in common: non-blocking sockets as a [`portal_core::Machine`] wants them.
//!
//! A runtime waits, in its own way, for sockets, timers, connections and names; what is done with a socket that is ready
//! is the same everywhere, and is here, in the [`engine`]: it moves bytes between kernel streams and the machine, trains of
//! datagrams in and out of the tunnel's socket, accepts, listens, and carries out what the machine asks for, all within
//! the bounds of a turn. Nothing here waits, has a thread or reads a clock.
//!
//! The other half is a [`system::System`]: how sockets are watched, connections made and names looked up. It gives each
//! socket a face, [`stream::KernelStream`] or [`udp::Datagrams`], which says whether the kernel has more, and arranges for
//! a visit when it has again.

mod addr;
mod bind;
pub mod engine;
mod listener;
pub mod names;
mod settings;
mod stats;
pub mod stream;
pub mod system;
mod table;
mod tunnel;
mod turn;
pub mod udp;
pub mod wake;

pub use bind::{bind_udp, usable};
pub use settings::Settings;
pub use stats::Stats;
