//! Why something of a service does not work.

use std::io;
use std::net::SocketAddr;

use portal_core::names::LabelError;
use portal_core::{Kind, RefusalCode};

/// Why a tunnel cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The MTU cannot be had.
    #[error("an MTU of {0} inside the tunnel: choose 1280 to 1420")]
    Mtu(u16),
    /// The system gives no random numbers.
    #[error("drawing a seed from the system's random generator: {0}")]
    Seed(getrandom::Error),
    /// The system refuses the tunnel's socket.
    #[error("opening the tunnel's UDP socket on {addr}: {source}")]
    Socket {
        /// Where it was to be bound.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a service cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another listener of this tunnel has the id.
    #[error("the service {0:?} listens on this tunnel already: set another id")]
    IdTaken(String),
    /// A name was wished for where visitors come by port, or the other way round.
    #[error("visitors of {kind} come by {comes_by}: wish for a {comes_by}, or for nothing")]
    Misfit {
        /// What is offered.
        kind: Kind,
        /// What may be wished for.
        comes_by: &'static str,
    },
    /// The name wished for is none.
    #[error("{name:?} cannot be a name: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: LabelError,
    },
    /// The tunnel has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Why a service has no public address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The relay refuses it, and would again.
    #[error("the relay refuses the service: {message}")]
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people, in the relay's words.
        message: String,
    },
    /// The tunnel has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// The tunnel was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel has ended")]
pub struct Ended;

impl From<Ended> for io::Error {
    fn from(ended: Ended) -> Self {
        Self::new(io::ErrorKind::NotConnected, ended)
    }
}

/// Connections were still open when a shutdown's patience was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connections that were still open when the time was up have been cut")]
pub struct CutShort;
