//! The PROXY protocol, version 2: how the relay tells the agent who the visitor is.
//!
//! Source: "The PROXY protocol, Versions 1 & 2", <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, section
//! 2.2. The header is 12 bytes of signature, a byte of version and command, a byte of family and transport, a
//! big-endian length, and as many bytes: two addresses and then TLVs (type, big-endian length, value).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The longest header that is read or written, in bytes, signature and all.
///
/// The format allows 65551; the largest TLV of use here is a host name.
pub const MAX_LEN: usize = 2048;

/// The longest unique id, in bytes (section 2.2.5).
pub const MAX_UNIQUE_ID: usize = 128;

/// What a proxy says about a TCP connection that it passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Who connected.
    pub source: SocketAddr,
    /// The address that was connected to.
    pub destination: SocketAddr,
    /// The host name that the client named, from TLS SNI (`PP2_TYPE_AUTHORITY`, section 2.2.2).
    pub authority: Option<String>,
    /// The application protocol, as ALPN names it (`PP2_TYPE_ALPN`, section 2.2.1).
    pub alpn: Option<Vec<u8>>,
    /// What tells the connection from all others, in the logs of both ends (`PP2_TYPE_UNIQUE_ID`, section 2.2.5): at
    /// most [`MAX_UNIQUE_ID`] bytes.
    pub unique_id: Option<Vec<u8>>,
}

impl ProxyHeader {
    /// Appends the header to `out`: one of TCP over IPv4 if both addresses are of IPv4, otherwise of TCP over IPv6,
    /// with an IPv4 address mapped (RFC 4291, section 2.5.5.2). A mapped address counts as IPv4.
    ///
    /// What [`parse`] would refuse is left out: a unique id above [`MAX_UNIQUE_ID`], and a TLV that would make the
    /// header longer than [`MAX_LEN`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&SIGNATURE);
        out.push(VERSION << 4 | COMMAND_PROXY);
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        // The length comes last, when it is known.
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
            out.extend_from_slice(&[TCP_OVER_IPV4, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        } else {
            out.extend_from_slice(&[TCP_OVER_IPV6, 0, 0]);
            out.extend_from_slice(&mapped(source).octets());
            out.extend_from_slice(&mapped(destination).octets());
        }
        out.extend_from_slice(&self.source.port().to_be_bytes());
        out.extend_from_slice(&self.destination.port().to_be_bytes());

        let unique_id = self.unique_id.as_deref().filter(|id| id.len() <= MAX_UNIQUE_ID);
        let tlvs = [
            (TLV_UNIQUE_ID, unique_id),
            (TLV_AUTHORITY, self.authority.as_ref().map(String::as_bytes)),
            (TLV_ALPN, self.alpn.as_deref()),
        ];
        for (kind, value) in tlvs {
            let Some(value) = value else { continue };
            let room = MAX_LEN - (out.len() - start);
            if value.len() + 3 <= room {
                out.push(kind);
                // Fits: it is below MAX_LEN.
                out.extend_from_slice(&(value.len() as u16).to_be_bytes());
                out.extend_from_slice(value);
            }
        }
        let length = (out.len() - start - FIXED_LEN) as u16;
        out[start + 14..start + FIXED_LEN].copy_from_slice(&length.to_be_bytes());
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header: call again with more bytes behind these.
    Incomplete,
    /// A whole header.
    Complete {
        /// What it says; `None` if the proxy speaks for itself (`LOCAL`) or does not say (`UNSPEC`), so that the
        /// connection's own addresses hold.
        header: Option<ProxyHeader>,
        /// How many bytes it takes. The connection's own bytes follow.
        len: usize,
    },
}

/// Reads the header at the front of a connection. `bytes` is everything received so far, from the start.
///
/// An error comes as soon as the bytes seen rule a header out. IPv4-mapped addresses come out as IPv4. TLVs of other
/// types are skipped; the checksum among them is not verified, TCP has one.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes[..seen] != SIGNATURE[..seen] {
        return Err(ProxyError::BadSignature);
    }
    let Some(&version_command) = bytes.get(12) else {
        return Ok(Parsed::Incomplete);
    };
    if version_command >> 4 != VERSION {
        return Err(ProxyError::BadVersion(version_command >> 4));
    }
    let local = match version_command & 0xf {
        COMMAND_LOCAL => true,
        COMMAND_PROXY => false,
        command => return Err(ProxyError::BadCommand(command)),
    };
    let Some(&family) = bytes.get(13) else {
        return Ok(Parsed::Incomplete);
    };
    // Of a LOCAL header only the length means something.
    let address_len = match family {
        _ if local => None,
        UNSPEC => None,
        TCP_OVER_IPV4 => Some(12),
        TCP_OVER_IPV6 => Some(36),
        _ => return Err(ProxyError::BadFamily(family)),
    };
    let Some(length) = bytes.get(14..FIXED_LEN) else {
        return Ok(Parsed::Incomplete);
    };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let len = FIXED_LEN + length;
    if len > MAX_LEN {
        return Err(ProxyError::TooLong(len));
    }
    if address_len.is_some_and(|needed| length < needed) {
        return Err(ProxyError::NoRoomForAddresses(length));
    }
    let Some(body) = bytes.get(FIXED_LEN..len) else {
        return Ok(Parsed::Incomplete);
    };
    let header = match address_len {
        Some(at) => Some(parse_body(body, at)?),
        None => None,
    };
    Ok(Parsed::Complete { header, len })
}

/// Why bytes are not a PROXY header of version 2 for a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// They do not begin with the signature.
    #[error("no PROXY protocol v2 signature: the other end does not send the header, or sends version 1")]
    BadSignature,
    /// The version is another than 2.
    #[error("PROXY protocol version {0}, not 2")]
    BadVersion(u8),
    /// The command is neither `LOCAL` nor `PROXY`.
    #[error("unknown PROXY protocol command {0}")]
    BadCommand(u8),
    /// Family and transport are neither TCP over IPv4 or IPv6 nor unspecified.
    #[error("PROXY protocol family {0:#04x} is not TCP over IPv4 or IPv6")]
    BadFamily(u8),
    /// The header would be longer than [`MAX_LEN`].
    #[error("the PROXY header has {0} bytes, more than {MAX_LEN}")]
    TooLong(usize),
    /// The length leaves no room for the addresses of the family.
    #[error("a PROXY header of length {0} has no room for its addresses")]
    NoRoomForAddresses(usize),
    /// A TLV runs over the header's end, or breaks off.
    #[error("a TLV of the PROXY header runs over its end")]
    BadTlv,
    /// The authority is not UTF-8.
    #[error("the authority in the PROXY header is not UTF-8")]
    BadAuthority,
    /// The unique id is longer than [`MAX_UNIQUE_ID`].
    #[error("the unique id in the PROXY header has {0} bytes, more than {MAX_UNIQUE_ID}")]
    UniqueIdTooLong(usize),
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and transport, length.
const FIXED_LEN: usize = 16;
const VERSION: u8 = 2;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_UNIQUE_ID: u8 = 0x05;

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// What follows the fixed part: two addresses and two ports in the first `tlvs_at` bytes, then TLVs.
fn parse_body(body: &[u8], tlvs_at: usize) -> Result<ProxyHeader, ProxyError> {
    let too_short = ProxyError::NoRoomForAddresses(body.len());
    let (addresses, mut rest) = body.split_at_checked(tlvs_at).ok_or(too_short)?;
    let (source, destination) = parse_addresses(addresses).ok_or(too_short)?;
    let mut header = ProxyHeader {
        source,
        destination,
        authority: None,
        alpn: None,
        unique_id: None,
    };
    while !rest.is_empty() {
        let (head, behind) = rest.split_first_chunk::<3>().ok_or(ProxyError::BadTlv)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, behind) = behind.split_at_checked(length).ok_or(ProxyError::BadTlv)?;
        rest = behind;
        match head[0] {
            TLV_ALPN => header.alpn = Some(value.to_owned()),
            TLV_AUTHORITY => {
                let text = std::str::from_utf8(value).map_err(|_| ProxyError::BadAuthority)?;
                header.authority = Some(text.to_owned());
            }
            TLV_UNIQUE_ID if length > MAX_UNIQUE_ID => {
                return Err(ProxyError::UniqueIdTooLong(length));
            }
            TLV_UNIQUE_ID => header.unique_id = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(header)
}

/// Two addresses of 4 or of 16 bytes and their two ports.
fn parse_addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (rest, ports) = bytes.split_last_chunk::<4>()?;
    let (source, destination) = rest.split_at(rest.len() / 2);
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        }
    };
    Some((
        SocketAddr::new(ip(source)?, u16::from_be_bytes([ports[0], ports[1]])),
        SocketAddr::new(ip(destination)?, u16::from_be_bytes([ports[2], ports[3]])),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            authority: None,
            alpn: None,
            unique_id: None,
        }
    }

    fn encoded(header: &ProxyHeader) -> Vec<u8> {
        let mut out = Vec::new();
        header.encode(&mut out);
        out
    }

    fn complete(bytes: &[u8]) -> Option<ProxyHeader> {
        match parse(bytes).unwrap() {
            Parsed::Complete { header, len } => {
                assert_eq!(len, bytes.len());
                header
            }
            Parsed::Incomplete => panic!("incomplete"),
        }
    }

    fn raw(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A".to_vec();
        bytes.extend_from_slice(&[version_command, family]);
        bytes.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// The bytes typed out from the specification.
    #[test]
    fn exact_bytes() {
        let mut header = header("192.0.2.1:4660", "198.51.100.2:443");
        let addresses = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 1, 187];
        assert_eq!(encoded(&header), raw(0x21, 0x11, &addresses));

        header.authority = Some("a.b".to_owned());
        header.alpn = Some(b"h2".to_vec());
        header.unique_id = Some(vec![7]);
        let tlvs = b"\x05\x00\x01\x07\x02\x00\x03a.b\x01\x00\x02h2";
        assert_eq!(encoded(&header), raw(0x21, 0x11, &[&addresses[..], &tlvs[..]].concat()));
    }

    #[test]
    fn mixed_and_mapped_addresses() {
        let mixed = header("192.0.2.1:1", "[2001:db8::1]:2");
        let bytes = encoded(&mixed);
        assert_eq!(bytes[13], 0x21);
        assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(complete(&bytes), Some(mixed));

        let mapped = header("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2");
        let plain = header("192.0.2.1:1", "192.0.2.2:2");
        assert_eq!(encoded(&mapped), encoded(&plain));
        assert_eq!(complete(&encoded(&mapped)), Some(plain));
    }

    #[test]
    fn appends() {
        let header = header("192.0.2.1:1", "192.0.2.2:2");
        let mut out = b"before".to_vec();
        header.encode(&mut out);
        assert_eq!(out[6..], encoded(&header));
    }

    #[test]
    fn bytes_behind_are_not_taken() {
        let header = header("192.0.2.1:1", "192.0.2.2:2");
        let mut bytes = encoded(&header);
        let len = bytes.len();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(
            parse(&bytes),
            Ok(Parsed::Complete {
                header: Some(header),
                len
            })
        );
    }

    #[test]
    fn local_and_unspecified() {
        assert_eq!(complete(&raw(0x20, 0x00, b"")), None);
        assert_eq!(complete(&raw(0x20, 0x11, b"short")), None);
        assert_eq!(complete(&raw(0x20, 0x31, &[0; 216])), None);
        assert_eq!(complete(&raw(0x21, 0x00, b"anything")), None);
    }

    #[test]
    fn errors_come_early() {
        let good = encoded(&header("192.0.2.1:1", "192.0.2.2:2"));
        for at in 0..12 {
            let mut bytes = good[..=at].to_vec();
            bytes[at] ^= 1;
            assert_eq!(parse(&bytes), Err(ProxyError::BadSignature));
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good[..=at].to_vec();
            bytes[at] = value;
            parse(&bytes).unwrap_err()
        };
        assert_eq!(with(12, 0x11), ProxyError::BadVersion(1));
        assert_eq!(with(12, 0x22), ProxyError::BadCommand(2));
        for family in [0x01, 0x10, 0x12, 0x13, 0x22, 0x31, 0x32, 0x41] {
            assert_eq!(with(13, family), ProxyError::BadFamily(family));
        }
        assert_eq!(with(15, 11), ProxyError::NoRoomForAddresses(11));
        let mut long = good[..16].to_vec();
        long[14..].copy_from_slice(&2033u16.to_be_bytes());
        assert_eq!(parse(&long), Err(ProxyError::TooLong(2049)));
        long[14..].copy_from_slice(&2032u16.to_be_bytes());
        assert_eq!(parse(&long), Ok(Parsed::Incomplete));
        assert_eq!(parse(b"PROXY TCP4 192.0.2.1"), Err(ProxyError::BadSignature));
    }

    #[test]
    fn tlvs() {
        let with = |tlvs: &[u8]| parse(&raw(0x21, 0x11, &[&[0; 12], tlvs].concat()));
        let plain = header("0.0.0.0:0", "0.0.0.0:0");
        for skipped in [&b""[..], b"\x04\x00\x02ab", b"\xee\x00\x00", b"\x03\x00\x04abcd"] {
            assert_eq!(
                with(skipped),
                Ok(Parsed::Complete {
                    header: Some(plain.clone()),
                    len: 28 + skipped.len()
                })
            );
        }
        for bad in [
            &b"\x04"[..],
            b"\x04\x00",
            b"\x04\x00\x01",
            b"\x04\xff\xffab",
            b"\x04\x00\x01ab",
        ] {
            assert_eq!(with(bad), Err(ProxyError::BadTlv), "{bad:?}");
        }
        assert_eq!(with(b"\x02\x00\x01\xff"), Err(ProxyError::BadAuthority));
        let id = |len: u8| [&[5, 0, len][..], &vec![1; usize::from(len)]].concat();
        assert!(with(&id(128)).is_ok());
        assert_eq!(with(&id(129)), Err(ProxyError::UniqueIdTooLong(129)));
    }

    #[test]
    fn what_would_be_refused_is_left_out() {
        let mut header = header("192.0.2.1:1", "192.0.2.2:2");
        header.authority = Some("a".repeat(MAX_LEN));
        header.alpn = Some(vec![1; 70_000]);
        header.unique_id = Some(vec![1; 129]);
        assert_eq!(
            complete(&encoded(&header)),
            Some(self::header("192.0.2.1:1", "192.0.2.2:2"))
        );
        header.authority = Some("a".repeat(MAX_LEN - 28 - 3));
        assert_eq!(encoded(&header).len(), MAX_LEN);
        assert_eq!(complete(&encoded(&header)).unwrap().authority, header.authority);
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        // Flow label and scope are not carried, and mapped addresses come out canonical.
        any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    prop_compose! {
        fn any_header()(
            source in any_address(),
            destination in any_address(),
            authority in proptest::option::of(".{0,40}"),
            alpn in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            unique_id in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=128)),
        ) -> ProxyHeader {
            ProxyHeader { source, destination, authority, alpn, unique_id }
        }
    }

    proptest! {
        #[test]
        fn round_trips_and_truncations(header in any_header()) {
            let bytes = encoded(&header);
            for len in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..len]), Ok(Parsed::Incomplete));
            }
            prop_assert_eq!(complete(&bytes), Some(header));
        }

        #[test]
        fn any_bytes_are_handled(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            command in 0x1fu8..0x23,
            family: u8,
        ) {
            let _ = parse(&bytes);
            for family in [family, UNSPEC, TCP_OVER_IPV4, TCP_OVER_IPV6] {
                if let Ok(Parsed::Complete { header: Some(header), .. }) = parse(&raw(command, family, &bytes)) {
                    prop_assert_eq!(complete(&encoded(&header)), Some(header));
                }
            }
        }
    }
}
