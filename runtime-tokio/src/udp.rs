//! Public and local UDP sockets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::UdpSocket;

use crate::addr;
use crate::stats::Stats;
use crate::wake::Source;

/// The largest datagram there is.
pub(crate) const MAX_DATAGRAM: usize = 65_535;

/// How many datagrams one socket may hand over in a visit.
const VISIT_DATAGRAMS: usize = 64;

/// A public socket, which knows each datagram's sender, or a local one, connected to its target.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    is_v6: bool,
    target: Option<SocketAddr>,
    pub(crate) source: Source,
}

/// What a visit of a UDP socket came to.
pub(crate) struct Visit {
    /// Datagrams received.
    pub(crate) datagrams: usize,
    /// The bound was reached.
    pub(crate) again: bool,
}

/// Binds a public socket; `[::]` takes IPv4 too.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // No SO_REUSEADDR: for UDP it would let two processes share the port and one of them starve.
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Opens a socket connected to the first of `targets` that takes it. Never waits.
pub(crate) fn connect(targets: &[SocketAddr]) -> io::Result<UdpSocket> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for target in targets {
        match connect_one(*target) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn connect_one(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    UdpSocket::from_std(socket)
}

impl Udp {
    pub(crate) fn new(socket: UdpSocket, source: Source) -> io::Result<Self> {
        Ok(Self {
            is_v6: socket.local_addr()?.is_ipv6(),
            target: socket.peer_addr().ok(),
            socket,
            source,
        })
    }

    /// Hands what has arrived to `take`, with its sender.
    pub(crate) fn visit(
        &mut self,
        buffer: &mut [u8],
        stats: &mut Stats,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) -> Visit {
        self.source.visited();
        let mut visit = Visit {
            datagrams: 0,
            again: true,
        };
        for _ in 0..VISIT_DATAGRAMS {
            let received = match self.target {
                Some(target) => self.socket.try_recv(buffer).map(|n| (n, target)),
                None => self.socket.try_recv_from(buffer),
            };
            match received {
                Ok((n, remote)) => {
                    visit.datagrams += 1;
                    stats.udp_rx_datagrams += 1;
                    take(addr::canonical(remote), &buffer[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.poll_recv_ready(&mut self.source.context()).is_pending() {
                        visit.again = false;
                        break;
                    }
                }
                // A refused datagram (ICMP) says nothing about the next one: the target may be starting.
                Err(error) => tracing::debug!(%error, "receiving on a UDP socket failed"),
            }
        }
        visit
    }

    /// Sends one datagram, to `remote` or to the connected target. What does not fit into the kernel's queue is dropped:
    /// so do the networks that UDP is made for, and one slow socket must not hold up the others.
    ///
    /// tokio's idea of readiness is not asked: a new socket would seem full until the first event.
    pub(crate) fn send(&self, remote: Option<SocketAddr>, payload: &[u8], stats: &mut Stats) {
        let socket = SockRef::from(&self.socket);
        let result = match (self.target, remote) {
            (Some(_), _) => socket.send(payload),
            (None, Some(remote)) => match addr::for_socket(remote, self.is_v6) {
                Some(remote) => socket.send_to(payload, &remote.into()),
                None => Err(io::ErrorKind::Unsupported.into()),
            },
            (None, None) => Err(io::ErrorKind::NotConnected.into()),
        };
        // A connected socket reports the ICMP of an earlier datagram here, once, and does not send; the retry does.
        let result = match result {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => socket.send(payload),
            result => result,
        };
        match result {
            Ok(_) => stats.udp_tx_datagrams += 1,
            Err(error) => {
                tracing::debug!(%error, len = payload.len(), "sending on a UDP socket failed");
                stats.udp_tx_drops += 1;
            }
        }
    }
}
