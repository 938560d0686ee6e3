//! Kernel streams: bytes from the socket into the machine's buffers and back, without a buffer in between.
//!
//! A failure is found by reading or writing. So a reset that comes after the end of file stays unseen until the machine
//! has bytes to write.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::task::{Context, Poll};
use std::time::Instant;

use portal_core::{ByteStream, Machine, StreamId};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::wake::Source;

/// How many bytes a stream may move in one visit, before the others have their turn.
const VISIT_BYTES: usize = 256 * 1024;

/// After this many tries that moved nothing though tokio said "ready", other sockets come first.
const IDLE_TRIES: usize = 3;

/// A broken pipe is an error, not a signal that ends the program.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const NO_SIGNAL: i32 = 0;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket and what the machine and the kernel have said about it.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    pub(crate) source: Source,
    /// The machine has room. Whether the kernel has bytes is known to tokio.
    pub(crate) want_read: bool,
    /// The machine has bytes. Whether the kernel has room is known to tokio.
    pub(crate) want_write: bool,
    /// The end of file was read, or the machine has ended the stream.
    read_ended: bool,
}

/// What a visit came to.
pub(crate) struct Visit {
    /// Bytes moved, both ways together.
    pub(crate) moved: usize,
    /// What is to be done with the stream.
    pub(crate) then: Then,
}

/// What is to be done with a stream after a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing until the kernel or the machine speaks up.
    Wait,
    /// Visit it again: its bound was reached.
    Again,
    /// Drop it: it failed, and the machine was told.
    Drop,
}

impl Stream {
    /// Both directions are tried on the first visit; that also registers the wakers.
    pub(crate) fn new(socket: Socket, source: Source) -> Self {
        Self {
            socket,
            source,
            want_read: true,
            want_write: true,
            read_ended: false,
        }
    }

    /// Moves bytes both ways until the machine or the kernel has no more, or the bound is reached.
    pub(crate) fn visit<M: Machine>(&mut self, machine: &mut M, now: Instant, id: StreamId) -> Visit {
        self.source.visited();
        self.want_read &= !self.read_ended;
        let mut visit = Visit {
            moved: 0,
            then: Then::Wait,
        };
        if !self.want_read && !self.want_write {
            return visit;
        }
        let Some(mut bytes) = machine.stream(now, id) else {
            // The machine has ended it; an action says how.
            (self.want_read, self.want_write, self.read_ended) = (false, false, true);
            return visit;
        };
        let cx = &mut self.source.context();

        // Writing first: it frees memory.
        let mut idle = 0;
        while self.want_write {
            if visit.moved >= VISIT_BYTES || idle > IDLE_TRIES {
                visit.then = Then::Again;
                break;
            }
            let mut end = Io::default();
            let drained = bytes.drain(&mut |data| end.note(self.socket.write(data)));
            self.want_write = drained.is_some() && end.tried;
            visit.moved += drained.unwrap_or(0);
            idle = if drained.unwrap_or(0) == 0 { idle + 1 } else { 0 };
            if end.failed {
                bytes.abort();
                visit.then = Then::Drop;
                return visit;
            }
            if self.want_write && end.blocked && self.socket.poll_write_ready(cx).is_pending() {
                break;
            }
        }

        let (mut filled_bytes, mut idle) = (0, 0);
        while self.want_read {
            if filled_bytes >= VISIT_BYTES || idle > IDLE_TRIES {
                visit.then = Then::Again;
                break;
            }
            let mut end = Io::default();
            let filled = bytes.fill(&mut |room| end.note(self.socket.read(room)));
            self.want_read = filled.is_some() && end.tried;
            filled_bytes += filled.unwrap_or(0);
            idle = if filled.unwrap_or(0) == 0 { idle + 1 } else { 0 };
            if end.failed {
                bytes.abort();
                visit.then = Then::Drop;
                break;
            }
            if end.eof {
                bytes.shutdown();
                (self.want_read, self.read_ended) = (false, true);
                break;
            }
            if self.want_read && end.blocked && self.socket.poll_read_ready(cx).is_pending() {
                break;
            }
        }
        visit.moved += filled_bytes;
        visit
    }

    /// Sends FIN.
    pub(crate) fn shutdown(&self) {
        // Fails only if the connection is gone already, which reading or writing finds out.
        let _ = self.socket.sock_ref().shutdown(Shutdown::Write);
    }

    /// Sends RST and drops the socket. A Unix socket knows no RST: its peer sees the end of file, or a reset if it had
    /// sent something that was not read.
    pub(crate) fn abort(self) {
        self.socket.reset_on_drop();
    }
}

/// How one read or write of the kernel socket ended.
#[derive(Default)]
struct Io {
    tried: bool,
    blocked: bool,
    failed: bool,
    eof: bool,
}

impl Io {
    fn note(&mut self, result: io::Result<Moved>) -> usize {
        self.tried = true;
        match result {
            Ok(moved) => {
                self.blocked = moved.drained;
                self.eof = moved.eof;
                moved.bytes
            }
            Err(error) => {
                self.failed = error.kind() != io::ErrorKind::Interrupted;
                0
            }
        }
    }
}

/// A read or write that did not fail.
struct Moved {
    bytes: usize,
    /// The kernel has nothing more for now: tokio's readiness is cleared.
    drained: bool,
    eof: bool,
}

impl Socket {
    fn read(&self, room: &mut [u8]) -> io::Result<Moved> {
        let wanted = room.len();
        let mut moved = self.once(Interest::READABLE, wanted, |mut socket| socket.read(room))?;
        moved.eof = moved.bytes == 0 && !moved.drained;
        Ok(moved)
    }

    fn write(&self, data: &[u8]) -> io::Result<Moved> {
        self.once(Interest::WRITABLE, data.len(), |socket| {
            socket.send_with_flags(data, NO_SIGNAL)
        })
    }

    /// One system call, if tokio believes that the socket is ready.
    ///
    /// A short count means that the kernel's queue is empty (or full), and epoll will report the next change: the
    /// readiness is cleared right away, as tokio's own streams do, which spares the call that would say "would block".
    fn once(
        &self,
        interest: Interest,
        wanted: usize,
        call: impl FnOnce(&socket2::Socket) -> io::Result<usize>,
    ) -> io::Result<Moved> {
        let socket = self.sock_ref();
        let mut short = None;
        let attempt = || {
            let n = call(&socket)?;
            if 0 < n && n < wanted && cfg!(any(target_os = "linux", target_os = "android")) {
                short = Some(n);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(n)
        };
        let result = match self {
            Self::Tcp(stream) => stream.try_io(interest, attempt),
            Self::Unix(stream) => stream.try_io(interest, attempt),
        };
        match result {
            Ok(bytes) => Ok(Moved {
                bytes,
                drained: false,
                eof: false,
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved {
                bytes: short.unwrap_or(0),
                drained: true,
                eof: false,
            }),
            Err(error) => Err(error),
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Makes dropping the socket send RST instead of FIN.
    pub(crate) fn reset_on_drop(&self) {
        if let Self::Tcp(stream) = self {
            // Cannot fail on a TCP socket; if it did, the peer would see a FIN.
            let _ = stream.set_zero_linger();
        }
    }

    fn sock_ref(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}
