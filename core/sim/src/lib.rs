//! Relays and agents on one virtual clock, with the network and the kernel sockets around them.
//!
//! A [`World`] holds any number of relays and agents. Each agent sits behind its own [`Nat`] and its own pair of links
//! ([`Netem`]), and each machine has scripted kernel sockets ([`Socket`]): visitors at a relay, targets at an agent. A [`PlainHost`] is in an
//! agent's place without any code of the core. The
//! clock moves only to the next thing that is due, so hours pass in milliseconds.
//!
//! What sockets send can be *modelled*: its bytes follow from a connection's number and their place, and a [`Ledger`]
//! knows how many were sent, so that whatever a socket receives can be told to be right without being stored.
//!
//! The crate is itself sans-IO: it reads no clock, opens no socket and draws every random number from the seed it was
//! given. Two runs with the same seed and inputs give the same [`Trace`].
//!
//! While a world runs it asserts what every runtime may rely on:
//!
//! - a deadline that was honoured is strictly later when it is read again, so no machine spins at one instant;
//! - a drain comes to its end, nothing is left to poll after it, and no two machines keep each other busy without the
//!   clock moving;
//! - data messages leave only to addresses from which an authentic datagram came;
//! - a stranger gets nothing but answers to handshakes;
//! - a machine names only sockets that it was given, and none after it has ended it.

#![forbid(unsafe_code)]

mod content;
mod errors;
mod host;
mod ledger;
mod nat;
mod netem;
mod plain;
mod random;
mod setup;
mod socket;
mod trace;
mod udp;
mod world;

pub use content::{client_hello, pattern};
pub use errors::ErrorsPanic;
pub use host::{Behaviour, Host, TargetScript};
pub use ledger::{Ledger, Opening, Role, Side, SideId};
pub use nat::Nat;
pub use netem::{Counts, Impairments, Loss, Netem};
pub use plain::{Connection, PlainHost};
pub use random::Random;
pub use setup::{
    DOMAIN, VISITOR_ADDR, agent_addr, agent_config, agent_key, key, plain_addr, relay_addr, relay_config, relay_key,
    service,
};
pub use socket::{Pace, Socket};
pub use trace::{Record, Trace};
pub use udp::UdpLedger;
pub use world::{Captured, HostId, Memory, Packet, Site, World};
