//! Names of targets, and what a failed connection means to the machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portal_core::DialError;

use crate::listener::is_exhaustion;

/// How long one address may keep the next one waiting (RFC 8305, section 5).
pub const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// How long an answer is used for further dials. Thousands of dials a second to one name must not be as many look-ups.
pub const NAME_TTL: Duration = Duration::from_secs(5);

/// How many names are remembered.
pub const MAX_NAMES: usize = 256;

/// A Unix socket whose queue is full says so at once instead of waiting; this is the first pause before another try.
pub const UNIX_RETRY: Duration = Duration::from_millis(5);

/// And the longest.
pub const UNIX_RETRY_MAX: Duration = Duration::from_millis(200);

/// A host that is an address already.
#[must_use]
pub fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port))
}

/// The addresses of a host that no server is asked for.
#[must_use]
pub fn well_known(host: &str, port: u16) -> Option<Vec<SocketAddr>> {
    if let Some(addr) = literal(host, port) {
        return Some(vec![addr]);
    }
    // RFC 6761, section 6.3. IPv4 first, as UDP cannot tell that the other is meant.
    host.eq_ignore_ascii_case("localhost")
        .then(|| vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()])
}

/// The addresses, each with this port.
#[must_use]
pub fn with_port(addrs: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    addrs
        .iter()
        .map(|addr| {
            let mut addr = *addr;
            addr.set_port(port);
            addr
        })
        .collect()
}

/// What the machine is told when connecting failed.
#[must_use]
pub fn dial_error(error: &io::Error) -> DialError {
    use io::ErrorKind as Kind;
    if is_exhaustion(error) {
        return DialError::Exhausted;
    }
    match error.kind() {
        Kind::ConnectionRefused => DialError::Refused,
        Kind::NotFound => DialError::NotFound,
        Kind::TimedOut => DialError::TimedOut,
        Kind::PermissionDenied => DialError::PermissionDenied,
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown | Kind::AddrNotAvailable => {
            DialError::Unreachable
        }
        Kind::OutOfMemory => DialError::Exhausted,
        Kind::Unsupported => DialError::Unsupported,
        _ => DialError::Other,
    }
}

/// Which of two failures of one dial is told. "Refused" tells more than "this host has no IPv6".
#[must_use]
pub fn tells_more(old: DialError, new: DialError) -> DialError {
    if matches!(old, DialError::Unresolved | DialError::Unreachable) {
        new
    } else {
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_localhost_need_no_look_up() {
        assert_eq!(well_known("::1", 7), Some(vec!["[::1]:7".parse().unwrap()]));
        assert_eq!(well_known("LocalHost", 7).unwrap().len(), 2);
        assert_eq!(well_known("portal.invalid", 7), None);
    }

    #[test]
    fn a_refusal_tells_more_than_a_missing_network() {
        let (refused, unreachable) = (DialError::Refused, DialError::Unreachable);
        assert_eq!(tells_more(unreachable, refused), refused);
        assert_eq!(tells_more(refused, unreachable), refused);
    }
}
