//! The tunnel's UDP socket, free ports, and what to say when the system refuses an address.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use portal_core::Transport;

use crate::failure::Explain;
use crate::runtime;
pub(crate) use crate::runtime::usable;

/// Binds a UDP socket; one on `[::]` takes IPv4 as well, and falls back to it where the machine has no IPv6.
pub(crate) fn bind_udp(addr: SocketAddr) -> Result<UdpSocket, BindError> {
    let addr = usable(addr);
    runtime::bind_udp(addr).map_err(|error| BindError {
        what: "agents",
        flag: "--udp",
        transport: Transport::Udp,
        addr,
        error: error.kind(),
    })
}

/// The address itself, or with a free TCP port if it has port 0: the public address needs the number beforehand.
pub(crate) fn with_port(addr: SocketAddr) -> SocketAddr {
    if addr.port() == 0 {
        return free_tcp(addr, 1).unwrap_or(addr);
    }
    addr
}

/// The first of `count` TCP ports from `addr` on that is free; any free port if `addr` has port 0.
pub(crate) fn free_tcp(addr: SocketAddr, count: u16) -> Option<SocketAddr> {
    (0..count)
        .filter_map(|step| addr.port().checked_add(step))
        .find_map(|port| TcpListener::bind((addr.ip(), port)).ok()?.local_addr().ok())
}

/// The system refused an address.
#[derive(Debug, thiserror::Error)]
#[error("listening for {what} on {transport} {addr}: {}", cause(*.error, *.addr))]
pub(crate) struct BindError {
    /// Who was to come in.
    pub(crate) what: &'static str,
    /// By which flag the address is set.
    pub(crate) flag: &'static str,
    /// TCP or UDP.
    pub(crate) transport: Transport,
    /// The address.
    pub(crate) addr: SocketAddr,
    /// Why.
    pub(crate) error: io::ErrorKind,
}

impl BindError {
    /// The address for operators was refused.
    pub(crate) fn of_admin(addr: SocketAddr, error: io::ErrorKind) -> Self {
        Self {
            what: "operators",
            flag: "--admin",
            transport: Transport::Tcp,
            addr,
            error,
        }
    }
}

impl Explain for BindError {
    fn help(&self) -> Option<String> {
        let (flag, port) = (self.flag, self.addr.port());
        Some(match self.error {
            io::ErrorKind::AddrInUse => {
                let option = match self.transport {
                    Transport::Tcp => "-ltnp",
                    Transport::Udp => "-lunp",
                };
                format!(
                    "see which program holds it with: ss {option} 'sport = :{port}'\nstop that one (another portal? a \
                     web server?), or choose another address with {flag}"
                )
            }
            io::ErrorKind::PermissionDenied if port < 1024 => format!(
                "ports below 1024 need a permission: sudo setcap cap_net_bind_service=+ep {}\nor: sudo sysctl \
                 net.ipv4.ip_unprivileged_port_start={port}\nor choose another port with {flag}",
                program()
            ),
            io::ErrorKind::AddrNotAvailable => {
                format!("`ip addr` shows the addresses of this machine; choose one with {flag}, or 0.0.0.0 for all")
            }
            _ => format!("choose another address with {flag}"),
        })
    }
}

fn cause(error: io::ErrorKind, addr: SocketAddr) -> String {
    match error {
        io::ErrorKind::AddrInUse => "the address is in use by another program".into(),
        io::ErrorKind::AddrNotAvailable => format!("{} is not an address of this machine", addr.ip()),
        other => other.to_string(),
    }
}

fn program() -> String {
    match std::env::current_exe() {
        Ok(path) => path.display().to_string(),
        Err(_) => "portal".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_names_who_to_ask() {
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = bind_udp(held.local_addr().unwrap()).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(error.help().unwrap().contains("ss -lunp"));
        let denied = BindError {
            what: "HTTP visitors",
            flag: "--http",
            transport: Transport::Tcp,
            addr: "0.0.0.0:80".parse().unwrap(),
            error: io::ErrorKind::PermissionDenied,
        };
        assert_eq!(
            denied.to_string(),
            "listening for HTTP visitors on tcp 0.0.0.0:80: permission denied"
        );
        assert!(denied.help().unwrap().contains("cap_net_bind_service=+ep"));
    }

    #[test]
    fn the_next_free_port_is_found() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        assert_eq!(free_tcp(addr, 1), None);
        assert_ne!(free_tcp(addr, 50), Some(addr));
        let any = free_tcp("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        assert_ne!(any.port(), 0);
        assert_eq!(with_port(addr), addr);
        assert_ne!(with_port("127.0.0.1:0".parse().unwrap()).port(), 0);
    }
}
