//! In place of TLS on a stream's way, where this was built without the feature `tls`: no stream has any.

use std::time::Instant;

use crate::stack::{FlowId, Stack};
use crate::tls::{TlsAcceptor, TlsConnector, TlsError};

/// What no stream has. What could be done with it is in the full build.
#[derive(Debug)]
pub(crate) enum Tls {}

/// Whose TLS cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(dead_code, reason = "nothing begins, so nothing fails")]
pub(crate) enum Failed {
    Visitor,
    Target { untrusted: bool, began: bool },
}

/// What became of a farewell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(dead_code, reason = "nobody is there to be told")]
pub(crate) enum Said {
    NotYet,
    All,
    OtherProtocol,
}

/// The most bytes taken in at a time.
pub(crate) const CHUNK: usize = 1;

impl Tls {
    pub(crate) fn start(
        visitor: Option<&TlsAcceptor>,
        target: Option<&TlsConnector>,
    ) -> Result<Option<Box<Self>>, TlsError> {
        match (visitor, target) {
            (None, None) => Ok(None),
            (Some(visitor), _) => match *visitor {},
            (None, Some(target)) => match *target {},
        }
    }

    pub(crate) fn charge(&self) -> usize {
        match *self {}
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub(crate) fn ends_here(&self) -> bool {
        match *self {}
    }

    pub(crate) fn say_farewell(&mut self, _page: &[u8]) -> Said {
        match *self {}
    }

    pub(crate) fn to_socket(&self) -> &[u8] {
        match *self {}
    }

    pub(crate) fn took(&mut self, _count: usize) {
        match *self {}
    }

    pub(crate) fn has_ended(&self) -> bool {
        match *self {}
    }

    pub(crate) fn has_target_ended(&self) -> bool {
        match *self {}
    }

    pub(crate) fn is_flow_closed(&self) -> bool {
        match *self {}
    }

    pub(crate) fn can_take(&self) -> bool {
        match *self {}
    }

    pub(crate) fn take(&mut self, _now: Instant, _bytes: &[u8]) -> Result<(), Failed> {
        match *self {}
    }

    pub(crate) fn socket_ended(&mut self) -> Result<(), Failed> {
        match *self {}
    }

    pub(crate) fn pump(&mut self, _now: Instant, _flow: FlowId, _stack: &mut Stack) -> Result<(), Failed> {
        match *self {}
    }
}
