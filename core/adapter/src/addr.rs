//! Addresses as the machine sees them and as a socket wants them.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The form the machine sees: an IPv4 address is one, also when it came through a dual-stack socket.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

/// The form a socket of this family takes; `None` if it cannot send there.
pub(crate) fn for_socket(addr: SocketAddr, socket_is_v6: bool) -> Option<SocketAddr> {
    match (addr, socket_is_v6) {
        (SocketAddr::V4(v4), true) => Some(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
        (SocketAddr::V6(_), false) => None,
        _ => Some(addr),
    }
}

/// The source address for a datagram to `remote`, in the form a socket of this family takes. `None` leaves the choice to
/// the kernel.
pub(crate) fn source(local: Option<IpAddr>, remote: SocketAddr, socket_is_v6: bool) -> Option<IpAddr> {
    let local = local?;
    if local.is_unspecified() || local.is_multicast() || local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    Some(match local {
        IpAddr::V4(v4) if socket_is_v6 => v4.to_ipv6_mapped().into(),
        _ => local,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mapped_addresses_stay_at_the_socket() {
        let (v4, mapped, v6) = (
            addr("192.0.2.1:5"),
            addr("[::ffff:192.0.2.1]:5"),
            addr("[2001:db8::1]:5"),
        );
        assert_eq!((canonical(mapped), canonical(v4), canonical(v6)), (v4, v4, v6));
        assert_eq!(for_socket(v4, true), Some(mapped));
        assert_eq!(for_socket(v4, false), Some(v4));
        assert_eq!(for_socket(v6, true), Some(v6));
        assert_eq!(for_socket(v6, false), None);
    }

    #[test]
    fn a_source_of_the_other_family_is_left_out() {
        let (v4, v6) = (addr("192.0.2.1:5"), addr("[2001:db8::1]:5"));
        assert_eq!(source(Some(v4.ip()), v4, false), Some(v4.ip()));
        assert_eq!(
            source(Some(v4.ip()), v4, true),
            Some("::ffff:192.0.2.1".parse().unwrap())
        );
        assert_eq!(source(Some(v4.ip()), v6, true), None);
        assert_eq!(source(Some("0.0.0.0".parse().unwrap()), v4, false), None);
        assert_eq!(source(None, v4, false), None);
    }
}
