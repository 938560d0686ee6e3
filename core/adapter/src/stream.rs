//! Kernel streams: bytes from the socket into the machine's buffers and back, without a buffer in between.
//!
//! A failure is found by reading or writing. So a reset that comes after the end of file stays unseen until the machine
//! has bytes to write.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use portal_core::{ByteStream, Machine, StreamId};
use socket2::SockRef;

/// How many bytes a stream may move in one visit, before the others have their turn.
const VISIT_BYTES: usize = 64 * 1024;

/// After this many tries that moved nothing though the runtime said "ready", other sockets come first.
const IDLE_TRIES: usize = 3;

/// A broken pipe is an error, not a signal that ends the program.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const NO_SIGNAL: i32 = 0;

/// A connected socket as a runtime holds it.
pub trait KernelStream: AsFd {
    /// One system call that reads. `WouldBlock`, by the call or by `call`, clears what is known of the readiness.
    ///
    /// # Errors
    /// Those of the call, and `WouldBlock` without calling if the socket is known to be empty.
    fn try_read(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize>;

    /// One system call that writes: see [`KernelStream::try_read`].
    ///
    /// # Errors
    /// Those of the call, and `WouldBlock` without calling if the socket is known to be full.
    fn try_write(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize>;

    /// Whether there may be something to read after a `WouldBlock`, the end of file included. If not, a visit follows
    /// when there is.
    fn is_readable(&mut self) -> bool;

    /// Whether there may be room to write after a `WouldBlock`. If not, a visit follows when there is.
    fn is_writable(&mut self) -> bool;
}

/// What the machine has said about a stream.
#[derive(Debug)]
pub struct Pump {
    /// The machine has room. Whether the kernel has bytes is known to the runtime.
    pub want_read: bool,
    /// The machine has bytes. Whether the kernel has room is known to the runtime.
    pub want_write: bool,
    /// The end of file was read, or the machine has ended the stream.
    read_ended: bool,
}

/// What a visit came to.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Bytes moved, both ways together.
    pub moved: usize,
    /// What is to be done with the stream.
    pub then: Then,
}

/// What is to be done with a stream after a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing until the kernel or the machine speaks up.
    Wait,
    /// Visit it again: its bound was reached.
    Again,
    /// Drop it: it failed, and the machine was told.
    Drop,
}

/// Both directions are tried on the first visit; that also tells the runtime what to wait for.
impl Default for Pump {
    fn default() -> Self {
        Self {
            want_read: true,
            want_write: true,
            read_ended: false,
        }
    }
}

impl Pump {
    /// Moves bytes both ways until the machine or the kernel has no more, or the bound is reached.
    pub fn visit<M: Machine>(
        &mut self,
        socket: &mut impl KernelStream,
        machine: &mut M,
        now: Instant,
        id: StreamId,
    ) -> Visit {
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

        // Writing first: it frees memory.
        let mut idle = 0;
        while self.want_write {
            if visit.moved >= VISIT_BYTES || idle > IDLE_TRIES {
                visit.then = Then::Again;
                break;
            }
            let mut end = Io::default();
            let drained = bytes.drain(&mut |data| end.note(write(socket, data)));
            self.want_write = drained.is_some() && end.tried;
            visit.moved += drained.unwrap_or(0);
            idle = if drained.unwrap_or(0) == 0 { idle + 1 } else { 0 };
            if end.failed {
                bytes.abort();
                visit.then = Then::Drop;
                return visit;
            }
            if self.want_write && end.blocked && !socket.is_writable() {
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
            let filled = bytes.fill(&mut |room| end.note(read(socket, room)));
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
            if self.want_read && end.blocked && !socket.is_readable() {
                break;
            }
        }
        visit.moved += filled_bytes;
        visit
    }
}

/// Sends FIN.
pub fn shutdown(socket: &impl AsFd) {
    // Fails only if the connection is gone already, which reading or writing finds out.
    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
}

/// Makes dropping the socket send RST instead of FIN. A Unix socket knows no RST: its peer sees the end of file, or a
/// reset if it had sent something that was not read.
pub fn reset_on_drop(socket: &impl AsFd) {
    // Cannot fail on a TCP socket; if it did, the peer would see a FIN.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
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
    /// The kernel has nothing more for now: the readiness is cleared.
    drained: bool,
    eof: bool,
}

fn read(socket: &mut impl KernelStream, room: &mut [u8]) -> io::Result<Moved> {
    let wanted = room.len();
    let mut moved = once(wanted, |attempt| {
        socket.try_read(&mut |socket| {
            let mut socket: &socket2::Socket = socket;
            attempt(socket.read(room))
        })
    })?;
    moved.eof = moved.bytes == 0 && !moved.drained;
    Ok(moved)
}

fn write(socket: &mut impl KernelStream, data: &[u8]) -> io::Result<Moved> {
    once(data.len(), |attempt| {
        socket.try_write(&mut |socket| attempt(socket.send_with_flags(data, NO_SIGNAL)))
    })
}

/// One system call, if the runtime believes that the socket is ready.
///
/// A short count means that the kernel's queue is empty (or full), and epoll will report the next change: the readiness
/// is cleared right away, which spares the call that would say "would block".
fn once(
    wanted: usize,
    call: impl FnOnce(&mut dyn FnMut(io::Result<usize>) -> io::Result<usize>) -> io::Result<usize>,
) -> io::Result<Moved> {
    let mut short = None;
    let result = call(&mut |result| {
        let n = result?;
        if 0 < n && n < wanted && cfg!(any(target_os = "linux", target_os = "android")) {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
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
