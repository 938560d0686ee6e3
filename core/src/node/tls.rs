//! TLS on a stream's way: the visitor's ends here, or the target is spoken to in TLS, or both.
//!
//! Bytes wait in two places only, one for each direction, and nothing more is taken in before they have gone; so each
//! side is read only as fast as the other takes it, as without TLS.

use std::io::{self, Read as _, Write as _};
use std::time::Instant;

use rustls::Connection;

use crate::stack::{FlowId, FlowView, Stack};
use crate::tls::{TlsAcceptor, TlsClock, TlsConnector, TlsError};

/// The TLS of one stream.
#[derive(Debug)]
pub(crate) struct Tls {
    /// Towards the flow.
    visitor: Option<Session>,
    /// Towards the socket.
    target: Option<Session>,
    to_socket: Vec<u8>,
    to_flow: Vec<u8>,
    /// The visitor sends nothing more.
    visitor_ended: bool,
    /// The target sends nothing more.
    target_ended: bool,
    flow_closed: bool,
}

#[derive(Debug)]
struct Session {
    connection: Connection,
    clock: TlsClock,
}

/// Whose TLS cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The visitor's. What is to be told about it is on its way through the flow.
    Visitor,
    /// The target's: whether it was its certificate, and whether its TLS had begun.
    Target { untrusted: bool, began: bool },
}

/// What became of a farewell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The handshake is under way.
    NotYet,
    /// It is on its way, or was before.
    All,
    /// The visitor has chosen a protocol in which it cannot be said.
    OtherProtocol,
}

/// The most bytes taken in at a time: what one TLS record holds (RFC 8446, section 5.1).
pub(crate) const CHUNK: usize = 16 * 1024;

/// What one session is charged: bytes that wait for either side, a record that is not whole, a record's contents that
/// were not taken yet, and rustls' own state.
const SESSION_CHARGE: usize = 72 * 1024;

impl Tls {
    /// The sessions asked for, about to begin; `None` if there are none.
    pub(crate) fn start(
        visitor: Option<&TlsAcceptor>,
        target: Option<&TlsConnector>,
    ) -> Result<Option<Box<Self>>, TlsError> {
        let visitor = match visitor {
            Some(acceptor) => {
                let (connection, clock) = acceptor.start()?;
                Some(Session::new(connection.into(), clock))
            }
            None => None,
        };
        let target = match target {
            Some(connector) => {
                let (connection, clock) = connector.start()?;
                Some(Session::new(connection.into(), clock))
            }
            None => None,
        };
        if visitor.is_none() && target.is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(Self {
            visitor,
            target,
            to_socket: Vec::new(),
            to_flow: Vec::new(),
            visitor_ended: false,
            target_ended: false,
            flow_closed: false,
        })))
    }

    /// What the memory budget is charged for it.
    pub(crate) fn charge(&self) -> usize {
        SESSION_CHARGE * self.sessions().count()
    }

    /// Whether a handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.sessions().any(|session| session.connection.is_handshaking())
    }

    /// Whether the visitor's TLS ends here.
    pub(crate) fn ends_here(&self) -> bool {
        self.visitor.is_some()
    }

    /// Says an HTTP/1.1 response in place of the target, and that nothing follows.
    pub(crate) fn say_farewell(&mut self, page: &[u8]) -> Said {
        match &self.visitor {
            Some(visitor) if visitor.connection.is_handshaking() => Said::NotYet,
            Some(visitor)
                if visitor
                    .connection
                    .alpn_protocol()
                    .is_some_and(|name| name != b"http/1.1") =>
            {
                Said::OtherProtocol
            }
            _ if self.target_ended => Said::All,
            // Nothing else was said, so it fits.
            _ => {
                let _ = self.give_visitor(page);
                self.end_visitor();
                Said::All
            }
        }
    }

    /// Bytes for the socket.
    pub(crate) fn to_socket(&self) -> &[u8] {
        &self.to_socket
    }

    /// The socket has taken some of them.
    pub(crate) fn took(&mut self, count: usize) {
        self.to_socket.drain(..count);
        if self.to_socket.is_empty() {
            self.to_socket = Vec::new();
        }
    }

    /// Whether the visitor has said all, and the socket has got it.
    pub(crate) fn has_ended(&self) -> bool {
        self.visitor_ended && self.to_socket.is_empty()
    }

    /// Whether the target has said that it sends nothing more.
    pub(crate) fn has_target_ended(&self) -> bool {
        self.target_ended
    }

    /// Whether everything from the socket, and its end, is in the flow.
    pub(crate) fn is_flow_closed(&self) -> bool {
        self.flow_closed
    }

    /// Whether bytes from the socket can be taken in.
    pub(crate) fn can_take(&self) -> bool {
        let visitor_ready = !is_handshaking(self.visitor.as_ref());
        self.to_flow.is_empty() && !self.target_ended && (visitor_ready || is_handshaking(self.target.as_ref()))
    }

    /// Takes in bytes from the socket, at most [`CHUNK`].
    pub(crate) fn take(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Failed> {
        self.enter(now);
        let Some(target) = &mut self.target else {
            return self.give_visitor(bytes);
        };
        let mut rest = bytes;
        let mut plain = Vec::new();
        let mut ended = false;
        while !rest.is_empty() && !ended {
            // It cannot fail: its source is memory, and what it holds was taken out.
            if target.connection.read_tls(&mut rest).unwrap_or(0) == 0 {
                break;
            }
            let state = match target.connection.process_new_packets() {
                Ok(state) => state,
                Err(error) => return Err(failed_target(&error, &target.connection)),
            };
            let len = plain.len();
            plain.resize(len + state.plaintext_bytes_to_read(), 0);
            let _ = target.connection.reader().read_exact(&mut plain[len..]);
            ended = state.peer_has_closed();
        }
        target.write_into(&mut self.to_socket);
        self.give_visitor(&plain)?;
        if ended {
            return self.socket_ended();
        }
        Ok(())
    }

    /// The socket has reached its end: the visitor is told behind the last bytes. With a target that hung up in its
    /// handshake there is no TLS.
    pub(crate) fn socket_ended(&mut self) -> Result<(), Failed> {
        if is_handshaking(self.target.as_ref()) {
            return Err(Failed::Target {
                untrusted: false,
                began: false,
            });
        }
        self.end_visitor();
        Ok(())
    }

    /// The visitor is told that nothing more comes.
    fn end_visitor(&mut self) {
        self.target_ended = true;
        if let Some(visitor) = &mut self.visitor {
            visitor.connection.send_close_notify();
            visitor.write_into(&mut self.to_flow);
        }
    }

    /// Moves what can be moved between flow and socket.
    pub(crate) fn pump(&mut self, now: Instant, flow: FlowId, stack: &mut Stack) -> Result<(), Failed> {
        self.enter(now);
        let moved = self
            .shake_hands(flow, stack)
            .and_then(|()| self.take_from_flow(flow, stack));
        for (session, out) in [
            (&mut self.visitor, &mut self.to_flow),
            (&mut self.target, &mut self.to_socket),
        ] {
            if let Some(session) = session {
                session.write_into(out);
            }
        }
        if !self.to_flow.is_empty() {
            let sent = stack.send(flow, &self.to_flow);
            self.to_flow.drain(..sent);
            if self.to_flow.is_empty() {
                self.to_flow = Vec::new();
            }
        }
        if self.target_ended && self.to_flow.is_empty() && !self.flow_closed {
            self.flow_closed = true;
            stack.close(flow);
        }
        moved
    }

    /// Reads the visitor's part of the handshake, whatever the socket does.
    fn shake_hands(&mut self, flow: FlowId, stack: &mut Stack) -> Result<(), Failed> {
        let Some(visitor) = &mut self.visitor else {
            return Ok(());
        };
        while visitor.connection.is_handshaking() && visitor.read_from(flow, stack)? {}
        let has_left = |view: FlowView| view.remote_fin && !view.can_receive;
        if visitor.connection.is_handshaking() && stack.view(flow).is_some_and(has_left) {
            return Err(Failed::Visitor);
        }
        Ok(())
    }

    /// Takes bytes of the visitor out of the flow, if the socket has taken those before.
    fn take_from_flow(&mut self, flow: FlowId, stack: &mut Stack) -> Result<(), Failed> {
        while self.to_socket.is_empty()
            && !self.visitor_ended
            && !is_handshaking(self.visitor.as_ref())
            && !is_handshaking(self.target.as_ref())
        {
            let mut plain = vec![0; CHUNK];
            let read = match &mut self.visitor {
                Some(visitor) => match visitor.connection.reader().read(&mut plain) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if visitor.read_from(flow, stack)? {
                            continue;
                        }
                        None
                    }
                    // It said so itself, or broke off: either way nothing more comes.
                    Ok(0) | Err(_) => Some(0),
                    Ok(count) => Some(count),
                },
                None => stack.drain(flow, &mut |bytes| {
                    let count = bytes.len().min(CHUNK);
                    plain[..count].copy_from_slice(&bytes[..count]);
                    count
                }),
            };
            let count = match read {
                Some(count) => count,
                None if stack.view(flow).is_some_and(|view| view.remote_fin) => 0,
                None => return Ok(()),
            };
            plain.truncate(count);
            self.visitor_ended = count == 0;
            match &mut self.target {
                Some(target) if self.visitor_ended => {
                    target.connection.send_close_notify();
                    target.write_into(&mut self.to_socket);
                }
                Some(target) => {
                    let _ = target.connection.writer().write_all(&plain);
                    target.write_into(&mut self.to_socket);
                }
                None => self.to_socket = plain,
            }
        }
        Ok(())
    }

    fn give_visitor(&mut self, plain: &[u8]) -> Result<(), Failed> {
        match &mut self.visitor {
            Some(visitor) => {
                visitor
                    .connection
                    .writer()
                    .write_all(plain)
                    .map_err(|_| Failed::Visitor)?;
                visitor.write_into(&mut self.to_flow);
            }
            None => self.to_flow.extend_from_slice(plain),
        }
        Ok(())
    }

    fn enter(&self, now: Instant) {
        for session in self.sessions() {
            session.clock.enter(now);
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.visitor.iter().chain(&self.target)
    }
}

impl Session {
    fn new(mut connection: Connection, clock: TlsClock) -> Self {
        // What is handed to it was bounded before.
        connection.set_buffer_limit(None);
        Self { connection, clock }
    }

    /// Reads what the flow has; whether there was anything.
    fn read_from(&mut self, flow: FlowId, stack: &mut Stack) -> Result<bool, Failed> {
        let connection = &mut self.connection;
        let read = stack.drain(flow, &mut |mut bytes| connection.read_tls(&mut bytes).unwrap_or(0));
        if read.is_none_or(|count| count == 0) {
            return Ok(false);
        }
        match self.connection.process_new_packets() {
            Ok(_) => Ok(true),
            Err(error) => {
                tracing::debug!(%error, "a visitor's TLS failed");
                Err(Failed::Visitor)
            }
        }
    }

    fn write_into(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            // Into memory it cannot fail.
            if self.connection.write_tls(out).unwrap_or(0) == 0 {
                return;
            }
        }
    }
}

fn is_handshaking(session: Option<&Session>) -> bool {
    session.is_some_and(|session| session.connection.is_handshaking())
}

fn failed_target(error: &rustls::Error, connection: &Connection) -> Failed {
    tracing::debug!(%error, "the TLS of a target failed");
    Failed::Target {
        untrusted: matches!(error, rustls::Error::InvalidCertificate(_)),
        began: !connection.is_handshaking(),
    }
}
