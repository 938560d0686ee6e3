//! Portal's protocol: the relay and the agent as pure state machines.
//!
//! Nothing in this crate opens a socket, reads a clock, starts a thread, draws a random number from the system or looks
//! at a file or an environment variable. A *runtime* (an adapter crate) owns sockets and clock and drives a [`Machine`];
//! time and seed are parameters.
//!
//! # The run loop
//!
//! A runtime feeds input by the `handle_*` calls, by [`Machine::accept`] and through the byte path of
//! [`Machine::stream`]. Each of these is a *mutation*. After any mutation, in this order:
//!
//! 1. call [`Machine::poll_transmit`] until it returns `false`, sending each batch;
//! 2. call [`Machine::poll_action`] until it returns `None`, carrying each [`Action`] out;
//! 3. read [`Machine::poll_timeout`] and arrange for [`Machine::handle_timeout`] at that instant.
//!
//! Feeding several inputs before one drain is fine and is how a runtime batches work.
//!
//! # Rules
//!
//! - `now` never runs backwards inside: an earlier instant is treated as the latest one seen. A late one is fine, however
//!   late: one `handle_timeout` after a suspend of hours is enough.
//! - Once [`Machine::handle_timeout`] was called at or after the deadline, the next deadline is strictly later than that
//!   call (asserted in debug builds).
//! - Bytes of streams never travel through actions; they move in [`ByteStream::fill`] and [`ByteStream::drain`].
//! - Junk from the network is a counted drop, never an error.
//! - Every table, queue and buffer has a bound; what is refused is counted (see [`Counters`]).
//! - Equal seed and equal inputs give equal actions and deadlines. Exempt are the bytes that boringtun and rustls draw
//!   from the system's generator (ephemeral keys, cookie secrets) and boringtun's TAI64N base; see the `wg` module.

#![forbid(unsafe_code)]

mod admin;
mod agent;
mod associations;
mod batch;
mod budget;
mod byte_queue;
mod control;
mod counters;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod http;
pub mod identity;
mod machine;
mod metrics;
pub mod names;
mod node;
pub mod proxy;
mod relay;
mod resources;
mod seed;
pub mod sni;
mod stack;
mod status;
mod table;
mod timers;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
pub mod tls;
pub mod uri;
mod wg;

pub use agent::{Agent, AgentConfig, AgentEvent, AgentStatus, Service, ServiceStatus};
pub use batch::{Destination, TransmitBatch};
pub use control::{Kind, RefusalCode, UnknownKind};
pub use counters::Counters;
pub use machine::{
    Action, ByteStream, DialError, ListenerId, Machine, Path, SocketEvent, StreamId, Target, Transport, UdpId,
    UdpSocketRef,
};
pub use node::{DEFAULT_MTU, Limits, StreamMut};
pub use relay::{
    Access, AgentSeen, Binding, Census, Grant, Ingress, Kept, LeaseStatus, PlainLease, PlainPeer, PlainPeerError,
    Relay, RelayConfig, RelayEvent, RelayStatus, VisitorEnd,
};
pub use status::{Memory, Status, Traffic};
