//! Connections that are being made.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::Poll;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::net::{TcpStream, UnixStream};
use portal_adapter::names::{NEXT_ADDRESS, UNIX_RETRY, UNIX_RETRY_MAX, dial_error, tells_more};
use portal_adapter::system::Token;
use portal_core::{DialError, StreamId};

use crate::watched::{Kernel, Watched};

/// A connection to one target: its addresses are raced, each with a head start over the next; the first connection wins,
/// the others are dropped.
#[derive(Debug)]
pub(crate) struct Dial {
    id: StreamId,
    whereto: Whereto,
    attempts: Vec<Watched<Kernel>>,
    failure: DialError,
    /// When the next address may be tried.
    next: Instant,
    /// When patience ends.
    ends: Instant,
    /// The timer that is set for it.
    pub(crate) timer: Option<Instant>,
}

#[derive(Debug)]
enum Whereto {
    /// Its name is being looked up.
    Unknown { host: String, port: u16 },
    /// Those that were not tried yet.
    Hosts(VecDeque<SocketAddr>),
    /// A Unix socket whose queue may be full, and the pause before another try.
    Unix(PathBuf, Duration),
}

impl Dial {
    /// To a host whose addresses are not known yet.
    pub(crate) fn unknown(now: Instant, id: StreamId, host: String, port: u16, patience: Duration) -> Self {
        Self::new(now, id, Whereto::Unknown { host, port }, patience)
    }

    /// To a host.
    pub(crate) fn host(now: Instant, id: StreamId, addrs: Vec<SocketAddr>, patience: Duration) -> Self {
        Self::new(now, id, Whereto::Hosts(addrs.into()), patience)
    }

    /// To a Unix socket.
    pub(crate) fn unix(now: Instant, id: StreamId, path: PathBuf, patience: Duration) -> Self {
        Self::new(now, id, Whereto::Unix(path, UNIX_RETRY), patience)
    }

    fn new(now: Instant, id: StreamId, whereto: Whereto, patience: Duration) -> Self {
        Self {
            id,
            whereto,
            attempts: Vec::new(),
            failure: DialError::Unresolved,
            next: now,
            ends: now + patience,
            timer: None,
        }
    }

    /// The name that it waits for.
    pub(crate) fn awaits(&self) -> Option<(&str, u16)> {
        match &self.whereto {
            Whereto::Unknown { host, port } => Some((host, *port)),
            _ => None,
        }
    }

    /// Its name was looked up.
    pub(crate) fn resolved(&mut self, addrs: Vec<SocketAddr>) {
        self.whereto = Whereto::Hosts(addrs.into());
    }

    /// Goes on, if there is something to go on with: an attempt has ended, an address is due, or patience is over.
    pub(crate) fn advance(&mut self, registry: &Registry, now: Instant) -> Poll<Result<Watched<Kernel>, DialError>> {
        loop {
            if let Some(connected) = self.look() {
                return Poll::Ready(Ok(connected));
            }
            if now >= self.ends {
                return Poll::Ready(Err(DialError::TimedOut));
            }
            let started = match &mut self.whereto {
                Whereto::Unknown { .. } => return Poll::Pending,
                Whereto::Unix(path, pause) => {
                    if !self.attempts.is_empty() || now < self.next {
                        return Poll::Pending;
                    }
                    match UnixStream::connect(path) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.next = now + *pause;
                            *pause = (*pause * 2).min(UNIX_RETRY_MAX);
                            return Poll::Pending;
                        }
                        Err(error) => return Poll::Ready(Err(dial_error(&error))),
                        Ok(stream) => Ok(Kernel::Unix(stream)),
                    }
                }
                Whereto::Hosts(addrs) => {
                    if !self.attempts.is_empty() && now < self.next {
                        return Poll::Pending;
                    }
                    let Some(addr) = addrs.pop_front() else {
                        return match self.attempts.is_empty() {
                            true => Poll::Ready(Err(self.failure)),
                            false => Poll::Pending,
                        };
                    };
                    self.next = now + NEXT_ADDRESS;
                    TcpStream::connect(addr).and_then(|stream| {
                        stream.set_nodelay(true)?;
                        Ok(Kernel::Tcp(stream))
                    })
                }
            };
            match started.and_then(|socket| Watched::new(registry, socket, Token::Stream(self.id))) {
                Ok(attempt) => self.attempts.push(attempt),
                Err(error) => self.failure = tells_more(self.failure, dial_error(&error)),
            }
        }
    }

    /// When it has to go on at the latest.
    pub(crate) fn due(&self) -> Instant {
        match &self.whereto {
            Whereto::Hosts(addrs) if !addrs.is_empty() => self.next.min(self.ends),
            Whereto::Unix(..) if self.attempts.is_empty() => self.next.min(self.ends),
            _ => self.ends,
        }
    }

    /// Looks at the attempts: one that is connected comes back, those that failed go.
    fn look(&mut self) -> Option<Watched<Kernel>> {
        let mut index = 0;
        while index < self.attempts.len() {
            match state(self.attempts[index].get()) {
                Ok(true) => return Some(self.attempts.swap_remove(index)),
                Ok(false) => index += 1,
                Err(error) => {
                    self.attempts.swap_remove(index);
                    self.failure = tells_more(self.failure, dial_error(&error));
                    if matches!(self.whereto, Whereto::Unix(..)) {
                        // There is nothing else to try.
                        self.whereto = Whereto::Hosts(VecDeque::new());
                    }
                }
            }
        }
        None
    }
}

/// Whether a socket is connected by now, or why it will not be.
fn state(socket: &Kernel) -> io::Result<bool> {
    let (error, peer) = match socket {
        Kernel::Tcp(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
        Kernel::Unix(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
    };
    if let Some(error) = error {
        return Err(error);
    }
    match peer {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use mio::{Events, Poll as Waiting};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Drives a dial to its end.
    fn end(mut dial: Dial, poll: &mut Waiting) -> Result<Watched<Kernel>, DialError> {
        let mut events = Events::with_capacity(8);
        loop {
            if let Poll::Ready(result) = dial.advance(poll.registry(), Instant::now()) {
                return result;
            }
            let wait = dial.due().saturating_duration_since(Instant::now());
            poll.poll(&mut events, Some(wait)).unwrap();
        }
    }

    #[test]
    fn the_next_address_is_tried_when_one_fails() {
        let mut poll = Waiting::new().unwrap();
        let (now, id) = (Instant::now(), StreamId::from_parts(0, 1));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        // Bound and not listening: refuses, and nobody else gets the port.
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent
            .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        let closed = silent.local_addr().unwrap().as_socket().unwrap();
        let dial = |addrs: &[SocketAddr]| Dial::host(now, id, addrs.to_vec(), PATIENCE);
        let connected = end(dial(&[closed, open]), &mut poll).unwrap();
        let Kernel::Tcp(stream) = connected.get() else { panic!() };
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert!(stream.nodelay().unwrap());
        assert_eq!(end(dial(&[closed, closed]), &mut poll).unwrap_err(), DialError::Refused);
        assert_eq!(end(dial(&[]), &mut poll).unwrap_err(), DialError::Unresolved);
        let missing = Dial::unix(now, id, "/nonexistent/socket".into(), PATIENCE);
        assert_eq!(end(missing, &mut poll).unwrap_err(), DialError::NotFound);
    }

    #[test]
    fn patience_ends() {
        let poll = Waiting::new().unwrap();
        let now = Instant::now();
        let id = StreamId::from_parts(0, 1);
        let mut dial = Dial::unknown(now, id, "portal.invalid".into(), 7, PATIENCE);
        assert_eq!(dial.awaits(), Some(("portal.invalid", 7)));
        assert_eq!(dial.due(), now + PATIENCE);
        assert!(dial.advance(poll.registry(), now).is_pending());
        assert!(matches!(
            dial.advance(poll.registry(), now + PATIENCE),
            Poll::Ready(Err(DialError::TimedOut))
        ));
    }
}
