//! The tunnel's socket, as both ends open it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Binds a UDP socket for a tunnel; one on `[::]` takes IPv4 as well, whatever the system's default is.
///
/// # Errors
/// If the system refuses the address.
pub fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// The address itself, or every IPv4 address instead of `[::]` where the machine has no IPv6.
#[must_use]
pub fn usable(addr: SocketAddr) -> SocketAddr {
    if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err() {
        return (Ipv4Addr::UNSPECIFIED, addr.port()).into();
    }
    addr
}
