//! What the runtimes of Portal have in common: non-blocking sockets as a [`portal_core::Machine`] wants them.
//!
//! A runtime waits for sockets in its own way; what it does with one that is ready is the same everywhere, and is here:
//! moving bytes between a kernel stream and the machine ([`stream`]), trains of datagrams in and out of the tunnel's
//! socket ([`tunnel`]), public and local UDP sockets ([`udp`]), listeners ([`listener`]), what is known about names
//! ([`names`]), tables by the machine's identities ([`table`]) and the bounds of one turn ([`turn`]). Nothing here waits,
//! has a thread or reads a clock.
//!
//! A runtime gives each socket a face of its own, [`stream::KernelStream`] or [`udp::Datagrams`], which says whether the
//! kernel has more, and arranges for a visit when it has again.

pub mod addr;
mod bind;
pub mod listener;
pub mod names;
mod settings;
mod stats;
pub mod stream;
pub mod table;
pub mod tunnel;
pub mod turn;
pub mod udp;

pub use bind::{bind_udp, usable};
pub use settings::Settings;
pub use stats::Stats;
