//! Kernel streams as tokio holds them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use portal_adapter::stream::{self, KernelStream, Pump, Visit};
use portal_core::{Machine, StreamId};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::wake::Source;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket and what the machine and the kernel have said about it.
#[derive(Debug)]
pub(crate) struct Stream {
    held: Held,
    pump: Pump,
}

/// A socket and its place on the ready list.
#[derive(Debug)]
struct Held {
    socket: Socket,
    source: Source,
}

impl Stream {
    /// Both directions are tried on the first visit; that also registers the wakers.
    pub(crate) fn new(socket: Socket, source: Source) -> Self {
        Self {
            held: Held { socket, source },
            pump: Pump::default(),
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.held.source
    }

    /// The machine has room.
    pub(crate) fn want_read(&mut self) {
        self.pump.want_read = true;
    }

    /// The machine has bytes.
    pub(crate) fn want_write(&mut self) {
        self.pump.want_write = true;
    }

    /// Moves bytes both ways until the machine or the kernel has no more, or the bound is reached.
    pub(crate) fn visit<M: Machine>(&mut self, machine: &mut M, now: Instant, id: StreamId) -> Visit {
        self.held.source.visited();
        self.pump.visit(&mut self.held, machine, now, id)
    }

    /// Sends FIN.
    pub(crate) fn shutdown(&self) {
        stream::shutdown(&self.held);
    }

    /// Sends RST and drops the socket.
    pub(crate) fn abort(self) {
        stream::reset_on_drop(&self.held);
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Held {
    fn try_io(&self, interest: Interest, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let attempt = || call(&SockRef::from(self));
        match &self.socket {
            Socket::Tcp(stream) => stream.try_io(interest, attempt),
            Socket::Unix(stream) => stream.try_io(interest, attempt),
        }
    }
}

impl KernelStream for Held {
    fn try_read(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, call)
    }

    fn try_write(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, call)
    }

    fn is_readable(&mut self) -> bool {
        let cx = &mut self.source.context();
        match &self.socket {
            Socket::Tcp(stream) => stream.poll_read_ready(cx).is_ready(),
            Socket::Unix(stream) => stream.poll_read_ready(cx).is_ready(),
        }
    }

    fn is_writable(&mut self) -> bool {
        let cx = &mut self.source.context();
        match &self.socket {
            Socket::Tcp(stream) => stream.poll_write_ready(cx).is_ready(),
            Socket::Unix(stream) => stream.poll_write_ready(cx).is_ready(),
        }
    }
}
