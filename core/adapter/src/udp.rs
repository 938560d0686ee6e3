//! Public and local UDP sockets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockRef, Type};

use crate::addr;
use crate::stats::Stats;

/// The largest datagram there is.
pub const MAX_DATAGRAM: usize = 65_535;

/// How many datagrams one socket may hand over in a visit.
const VISIT_DATAGRAMS: usize = 64;

/// A UDP socket as a runtime holds it.
pub trait Datagrams: AsFd {
    /// One system call that receives. `WouldBlock`, by the call or by `call`, clears what is known of the readiness.
    ///
    /// # Errors
    /// Those of the call, and `WouldBlock` without calling if the socket is known to be empty.
    fn try_read<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R>;

    /// One system call that sends: see [`Datagrams::try_read`].
    ///
    /// # Errors
    /// Those of the call, and `WouldBlock` without calling if the socket is known to be full.
    fn try_write<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R>;

    /// Whether there may be something to receive after a `WouldBlock`. If not, a visit follows when there is.
    fn is_readable(&mut self) -> bool;

    /// Whether there may be room to send after a `WouldBlock`. If not, a visit follows when there is.
    fn is_writable(&mut self) -> bool;

    /// Receives one datagram, by [`Datagrams::try_read`].
    ///
    /// # Errors
    /// As there.
    fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Receives one datagram on a connected socket, by [`Datagrams::try_read`].
    ///
    /// # Errors
    /// As there.
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A public socket, which knows each datagram's sender, or a local one, connected to its target.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    is_v6: bool,
    target: Option<SocketAddr>,
}

/// What a visit of a UDP socket came to.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Datagrams received.
    pub datagrams: usize,
    /// The bound was reached.
    pub again: bool,
}

/// Binds a non-blocking public socket; `[::]` takes IPv4 too.
///
/// # Errors
/// If the system refuses.
pub fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // No SO_REUSEADDR: for UDP it would let two processes share the port and one of them starve.
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Opens a non-blocking socket connected to the first of `targets` that takes it. Never waits.
///
/// # Errors
/// That of the last target; `NotFound` if there is none.
pub fn connect(targets: &[SocketAddr]) -> io::Result<UdpSocket> {
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
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    Ok(socket)
}

impl Udp {
    /// What has to be known about a socket.
    ///
    /// # Errors
    /// If the system does not say where it is bound.
    pub fn new(socket: &UdpSocket) -> io::Result<Self> {
        Ok(Self {
            is_v6: socket.local_addr()?.is_ipv6(),
            target: socket.peer_addr().ok(),
        })
    }

    /// Hands what has arrived to `take`, with its sender.
    pub fn visit(
        self,
        socket: &mut impl Datagrams,
        buffer: &mut [u8],
        stats: &mut Stats,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) -> Visit {
        let mut visit = Visit {
            datagrams: 0,
            again: true,
        };
        for _ in 0..VISIT_DATAGRAMS {
            let received = match self.target {
                Some(target) => socket.recv(buffer).map(|n| (n, target)),
                None => socket.recv_from(buffer),
            };
            match received {
                Ok((n, remote)) => {
                    visit.datagrams += 1;
                    stats.udp_rx_datagrams += 1;
                    take(addr::canonical(remote), &buffer[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !socket.is_readable() {
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
    /// The runtime's idea of readiness is not asked: a new socket would seem full until the first event.
    pub fn send(self, socket: &impl AsFd, remote: Option<SocketAddr>, payload: &[u8], stats: &mut Stats) {
        let socket = SockRef::from(socket);
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
