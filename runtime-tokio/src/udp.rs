//! UDP sockets as tokio holds them: the tunnel's, public and local ones.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use portal_adapter::Stats;
use portal_adapter::udp::{self, Datagrams, Visit};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::wake::Source;

/// A socket and its place on the ready list.
#[derive(Debug)]
pub(crate) struct Held {
    socket: UdpSocket,
    pub(crate) source: Source,
}

/// A public or local socket.
#[derive(Debug)]
pub(crate) struct Udp {
    held: Held,
    facts: udp::Udp,
}

impl Udp {
    pub(crate) fn new(socket: std::net::UdpSocket, source: Source) -> io::Result<Self> {
        Ok(Self {
            facts: udp::Udp::new(&socket)?,
            held: Held::new(socket, source)?,
        })
    }

    pub(crate) fn source(&self) -> &Source {
        &self.held.source
    }

    /// Hands what has arrived to `take`, with its sender.
    pub(crate) fn visit(&mut self, buffer: &mut [u8], stats: &mut Stats, take: impl FnMut(SocketAddr, &[u8])) -> Visit {
        self.held.source.visited();
        self.facts.visit(&mut self.held, buffer, stats, take)
    }

    /// Sends one datagram, to `remote` or to the connected target.
    pub(crate) fn send(&self, remote: Option<SocketAddr>, payload: &[u8], stats: &mut Stats) {
        self.facts.send(&self.held, remote, payload, stats);
    }
}

impl Held {
    pub(crate) fn new(socket: std::net::UdpSocket, source: Source) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, source })
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Datagrams for Held {
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
