//! Inner packets: what dispatch needs to know of one, and writing the UDP ones.

use std::net::Ipv6Addr;
use std::ops::Range;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket, UdpRepr};

/// What an inner packet is, as far as dispatch must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inner {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: Payload,
}

/// The part above IP and the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// A TCP segment.
    Tcp {
        /// A connection's first segment: SYN without ACK or RST.
        opens: bool,
        /// Whether it carries data.
        has_data: bool,
    },
    /// A UDP datagram: where in the packet its contents lie.
    Udp(Range<usize>),
}

/// IPv6 and UDP headers together.
pub(crate) const UDP_HEADERS: usize = 48;

/// Reads the headers of an IPv6 packet. Extension headers and fragments are not known here.
pub(crate) fn parse(packet: &[u8]) -> Option<Inner> {
    let ip = Ipv6Packet::new_checked(packet).ok()?;
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    let end = ip.header_len() + usize::from(ip.payload_len());
    let body = packet.get(ip.header_len()..end)?;
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(body).ok()?;
            Some(Inner {
                source,
                destination,
                source_port: tcp.src_port(),
                destination_port: tcp.dst_port(),
                payload: Payload::Tcp {
                    opens: tcp.syn() && !tcp.ack() && !tcp.rst(),
                    has_data: !tcp.payload().is_empty(),
                },
            })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(body).ok()?;
            let start = ip.header_len() + 8;
            Some(Inner {
                source,
                destination,
                source_port: udp.src_port(),
                destination_port: udp.dst_port(),
                payload: Payload::Udp(start..start + udp.payload().len()),
            })
        }
        _ => None,
    }
}

/// Writes a UDP packet into `packet`, which has [`UDP_HEADERS`] bytes more than `payload`.
pub(crate) fn write_udp(packet: &mut [u8], source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16), payload: &[u8]) {
    let repr = Ipv6Repr {
        src_addr: source.0,
        dst_addr: destination.0,
        next_header: IpProtocol::Udp,
        payload_len: 8 + payload.len(),
        hop_limit: 64,
    };
    let mut ip = Ipv6Packet::new_unchecked(packet);
    repr.emit(&mut ip);
    let mut udp = UdpPacket::new_unchecked(ip.payload_mut());
    UdpRepr {
        src_port: source.1,
        dst_port: destination.1,
    }
    .emit(
        &mut udp,
        &IpAddress::Ipv6(source.0),
        &IpAddress::Ipv6(destination.0),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_packet_reads_back_as_it_was_written() {
        let (a, b) = ("fd01::1".parse().unwrap(), "fd02::2".parse().unwrap());
        for payload in [&b""[..], b"x", b"some payload"] {
            let mut packet = vec![0; UDP_HEADERS + payload.len()];
            write_udp(&mut packet, (a, 7), (b, 53), payload);
            let inner = parse(&packet).unwrap();
            assert_eq!(
                (
                    inner.source,
                    inner.source_port,
                    inner.destination,
                    inner.destination_port
                ),
                (a, 7, b, 53)
            );
            let Payload::Udp(range) = inner.payload else {
                panic!("not UDP")
            };
            assert_eq!(&packet[range], payload);
            let ip = Ipv6Packet::new_checked(&packet[..]).unwrap();
            let udp = UdpPacket::new_checked(ip.payload()).unwrap();
            assert!(udp.verify_checksum(&IpAddress::Ipv6(a), &IpAddress::Ipv6(b)));
            for cut in 0..packet.len() {
                assert_eq!(parse(&packet[..cut]), None);
            }
        }
    }
}
