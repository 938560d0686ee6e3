//! Sockets as tokio holds them, each with its place on the ready list.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use portal_adapter::stream::KernelStream;
use portal_adapter::system::{Queued, Token};
use portal_adapter::udp;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use portal_adapter::wake::Source;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Kernel {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Kernel,
    source: Source,
}

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: UdpSocket,
    source: Source,
}

impl Stream {
    pub(crate) fn new(socket: Kernel, source: Source) -> Self {
        Self { socket, source }
    }

    fn try_io(&self, interest: Interest, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let attempt = || call(&SockRef::from(self));
        match &self.socket {
            Kernel::Tcp(stream) => stream.try_io(interest, attempt),
            Kernel::Unix(stream) => stream.try_io(interest, attempt),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kernel::Tcp(stream) => stream.as_fd(),
            Kernel::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Queued for Stream {
    fn queue(&mut self, work: &mut VecDeque<Token>) {
        self.source.queue(work);
    }

    fn visited(&mut self) {
        self.source.visited();
    }
}

impl KernelStream for Stream {
    fn try_read(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, call)
    }

    fn try_write(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, call)
    }

    fn is_readable(&mut self) -> bool {
        let cx = &mut self.source.context();
        match &self.socket {
            Kernel::Tcp(stream) => stream.poll_read_ready(cx).is_ready(),
            Kernel::Unix(stream) => stream.poll_read_ready(cx).is_ready(),
        }
    }

    fn is_writable(&mut self) -> bool {
        let cx = &mut self.source.context();
        match &self.socket {
            Kernel::Tcp(stream) => stream.poll_write_ready(cx).is_ready(),
            Kernel::Unix(stream) => stream.poll_write_ready(cx).is_ready(),
        }
    }
}

impl Datagrams {
    pub(crate) fn new(socket: std::net::UdpSocket, source: Source) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, source })
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Queued for Datagrams {
    fn queue(&mut self, work: &mut VecDeque<Token>) {
        self.source.queue(work);
    }

    fn visited(&mut self) {
        self.source.visited();
    }
}

impl udp::Datagrams for Datagrams {
    fn try_read<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        self.socket.try_io(Interest::READABLE, || call(self))
    }

    fn try_write<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        self.socket.try_io(Interest::WRITABLE, || call(self))
    }

    fn is_readable(&mut self) -> bool {
        self.socket.poll_recv_ready(&mut self.source.context()).is_ready()
    }

    fn is_writable(&mut self) -> bool {
        self.socket.poll_send_ready(&mut self.source.context()).is_ready()
    }

    fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.try_recv_from(buffer)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.try_recv(buffer)
    }
}
