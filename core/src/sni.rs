//! The front of a TLS connection: which host name and protocols its ClientHello names, read without ending TLS.
//!
//! Source: RFC 8446, sections 4.1.2 (ClientHello) and 5.1 (records); RFC 6066, section 3 (server name); RFC 7301,
//! section 3.1 (ALPN). ClientHellos of TLS 1.0 to 1.3 have the same shape.

use std::borrow::Cow;

use crate::names::normal_host;

/// How many bytes from the start of a connection are looked at. Real ClientHellos have up to 2 KiB, those with
/// post-quantum key shares included.
pub const MAX_LEN: usize = 16 * 1024;

/// The most protocols a ClientHello may offer by ALPN. Real ones offer a handful; each one costs an allocation.
pub const MAX_PROTOCOLS: usize = 64;

/// A record with the fatal alert `unrecognized_name` (RFC 6066, section 3): nobody here has the name asked for.
pub const ALERT_UNRECOGNIZED_NAME: [u8; 7] = [RECORD_ALERT, 3, 3, 0, 2, 2, 112];

/// A record with the fatal alert `internal_error` (RFC 8446, section 6.2): the name is known, its service cannot be
/// reached.
pub const ALERT_INTERNAL_ERROR: [u8; 7] = [RECORD_ALERT, 3, 3, 0, 2, 2, 80];

/// What a ClientHello says to whoever must choose a server for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name asked for, in lower case and without the dot at its end. An IPv4 address, which RFC 6066 forbids
    /// but some clients send, comes out like a name.
    pub server_name: Option<String>,
    /// The application protocols offered, the preferred one first; empty if the client did not say.
    pub alpn: Vec<Vec<u8>>,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a ClientHello: call again with more bytes behind these.
    Incomplete,
    /// A whole ClientHello.
    Complete(ClientHello),
}

/// Reads the ClientHello at the front of a TLS connection. `bytes` is everything received so far, from the start; at
/// most [`MAX_LEN`] of it is looked at.
///
/// The message may span several records, split anywhere. An error comes as soon as the records and the message's head
/// rule a ClientHello out; its body is looked at once it is whole. Nothing is allocated before that.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ClientHelloError> {
    let full = bytes.len() >= MAX_LEN;
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    match message(bytes)? {
        Some(message) => Ok(Parsed::Complete(parse_body(&message)?)),
        None if full => Err(ClientHelloError::TooLong),
        None => Ok(Parsed::Incomplete),
    }
}

/// Why bytes are not a ClientHello that can be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientHelloError {
    /// They are no TLS record, or one of another content than handshake.
    #[error("not TLS: the connection does not begin with a handshake record")]
    NotTls,
    /// A record is empty, or longer than a record may be.
    #[error("a TLS record of {0} bytes, outside 1 to 16384")]
    BadRecordLength(usize),
    /// The first handshake message is another.
    #[error("TLS begins with handshake message {0}, not with a ClientHello")]
    NotClientHello(u8),
    /// The ClientHello does not end within [`MAX_LEN`].
    #[error("the ClientHello is longer than {MAX_LEN} bytes")]
    TooLong,
    /// Lengths inside the ClientHello contradict one another.
    #[error("the ClientHello is malformed: its {0} does not fit")]
    Malformed(&'static str),
    /// An extension that may come once comes twice, so that different readers would see different names.
    #[error("the ClientHello has extension {0} twice")]
    DuplicateExtension(u16),
    /// There is more than one host name, which RFC 6066 forbids.
    #[error("the ClientHello names several hosts")]
    SeveralNames,
    /// The name is no ASCII host name.
    #[error("the server name in the ClientHello is not a host name")]
    BadName,
    /// More than [`MAX_PROTOCOLS`] protocols are offered.
    #[error("the ClientHello offers more than {MAX_PROTOCOLS} protocols")]
    TooManyProtocols,
}

const RECORD_ALERT: u8 = 21;
const RECORD_HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
/// RFC 8446, section 5.1.
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const HANDSHAKE_HEADER: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_TYPE_HOST: u8 = 0;

/// The body of the first handshake message, without its head, if it is whole.
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, ClientHelloError> {
    // First only measure: how much of the message is there, and how much must be.
    let mut head = [0; HANDSHAKE_HEADER];
    let mut seen = 0;
    let mut needed = None;
    let mut records = Records(bytes);
    let mut first = None;
    while let Some(fragment) = records.next_fragment()? {
        if first.is_none() {
            first = Some(fragment);
        }
        // The head may be split as well.
        for (place, byte) in head.iter_mut().skip(seen).zip(fragment) {
            *place = *byte;
        }
        seen += fragment.len();
        if seen > 0 && head[0] != HANDSHAKE_CLIENT_HELLO {
            return Err(ClientHelloError::NotClientHello(head[0]));
        }
        if seen >= HANDSHAKE_HEADER && needed.is_none() {
            let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if RECORD_HEADER + HANDSHAKE_HEADER + length > MAX_LEN {
                return Err(ClientHelloError::TooLong);
            }
            needed = Some(HANDSHAKE_HEADER + length);
        }
        if needed.is_some_and(|needed| seen >= needed) {
            break;
        }
    }
    let (Some(needed), Some(first)) = (needed, first) else {
        return Ok(None);
    };
    if seen < needed {
        return Ok(None);
    }
    // What follows the message in its last record is the server's business.
    if let Some(message) = first.get(HANDSHAKE_HEADER..needed) {
        return Ok(Some(Cow::Borrowed(message)));
    }
    let mut message = Vec::with_capacity(needed);
    let mut records = Records(bytes);
    while message.len() < needed {
        let Some(fragment) = records.next_fragment()? else {
            return Ok(None);
        };
        let take = fragment.len().min(needed - message.len());
        message.extend_from_slice(&fragment[..take]);
    }
    message.drain(..HANDSHAKE_HEADER);
    Ok(Some(Cow::Owned(message)))
}

/// Walks over handshake records.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// What the next record holds, as far as it is there; `None` at the end of what is there.
    fn next_fragment(&mut self) -> Result<Option<&'a [u8]>, ClientHelloError> {
        // The minor version says nothing (RFC 8446, section 5.1), but a major one other than 3 was never used.
        match *self.0 {
            [kind, ..] if kind != RECORD_HANDSHAKE => return Err(ClientHelloError::NotTls),
            [_, major, ..] if major != 3 => return Err(ClientHelloError::NotTls),
            _ => {}
        }
        let Some((header, rest)) = self.0.split_first_chunk::<RECORD_HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err(ClientHelloError::BadRecordLength(length));
        }
        let (fragment, rest) = rest.split_at(length.min(rest.len()));
        self.0 = rest;
        Ok((!fragment.is_empty()).then_some(fragment))
    }
}

fn parse_body(body: &[u8]) -> Result<ClientHello, ClientHelloError> {
    let mut body = Reader(body);
    body.take(2 + 32, "version and random")?;
    body.vector_u8("session id")?;
    body.vector_u16("list of cipher suites")?;
    body.vector_u8("list of compression methods")?;
    let mut hello = ClientHello::default();
    // Before TLS 1.3 there may be none at all.
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(body.vector_u16("list of extensions")?);
    body.end("list of extensions")?;

    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.is_empty() {
        let kind = extensions.u16("extension")?;
        let data = Reader(extensions.vector_u16("extension")?);
        let seen = match kind {
            EXTENSION_SERVER_NAME => &mut seen_name,
            EXTENSION_ALPN => &mut seen_alpn,
            _ => continue,
        };
        if std::mem::replace(seen, true) {
            return Err(ClientHelloError::DuplicateExtension(kind));
        }
        if kind == EXTENSION_SERVER_NAME {
            hello.server_name = parse_server_name(data)?;
        } else {
            hello.alpn = parse_alpn(data)?;
        }
    }
    Ok(hello)
}

/// RFC 6066, section 3. Names of other types than host name have the same shape in every reader there is.
fn parse_server_name(mut data: Reader<'_>) -> Result<Option<String>, ClientHelloError> {
    const WHAT: &str = "server name";
    let mut list = Reader(data.vector_u16(WHAT)?);
    data.end(WHAT)?;
    if list.is_empty() {
        return Err(ClientHelloError::Malformed(WHAT));
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8(WHAT)?;
        let name = list.vector_u16(WHAT)?;
        if kind != NAME_TYPE_HOST {
            continue;
        }
        let name = normal_host(name).ok_or(ClientHelloError::BadName)?;
        if found.replace(name).is_some() {
            return Err(ClientHelloError::SeveralNames);
        }
    }
    Ok(found)
}

/// RFC 7301, section 3.1.
fn parse_alpn(mut data: Reader<'_>) -> Result<Vec<Vec<u8>>, ClientHelloError> {
    const WHAT: &str = "list of protocols";
    let mut list = Reader(data.vector_u16(WHAT)?);
    data.end(WHAT)?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector_u8(WHAT)?;
        if protocol.is_empty() {
            return Err(ClientHelloError::Malformed(WHAT));
        }
        if protocols.len() == MAX_PROTOCOLS {
            return Err(ClientHelloError::TooManyProtocols);
        }
        protocols.push(protocol.to_owned());
    }
    if protocols.is_empty() {
        return Err(ClientHelloError::Malformed(WHAT));
    }
    Ok(protocols)
}

/// Takes TLS's presentation language (RFC 8446, section 3) from the front of a slice; `what` names the thing in the
/// error if it does not fit.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self, what: &'static str) -> Result<(), ClientHelloError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(ClientHelloError::Malformed(what))
        }
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(ClientHelloError::Malformed(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, ClientHelloError> {
        Ok(self.take(1, what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, ClientHelloError> {
        let bytes = self.take(2, what)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self, what: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let len = self.u8(what)?;
        self.take(len.into(), what)
    }

    fn vector_u16(&mut self, what: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let len = self.u16(what)?;
        self.take(len.into(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use proptest::prelude::*;

    fn hello(name: Option<&str>, alpn: &[&[u8]]) -> Parsed {
        Parsed::Complete(ClientHello {
            server_name: name.map(str::to_owned),
            alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(),
        })
    }

    /// What rustls sends first when it connects to `name`.
    fn real(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake bytes in records of `size` bytes.
    fn in_records(handshake: &[u8], size: usize) -> Vec<u8> {
        let record = |fragment: &[u8]| {
            let length = u16::try_from(fragment.len()).unwrap().to_be_bytes();
            [&[22, 3, 1], &length[..], fragment].concat()
        };
        handshake.chunks(size).flat_map(record).collect()
    }

    fn vector_u16(parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        [&u16::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
    }

    fn extension(kind: u8, data: &[u8]) -> Vec<u8> {
        [&[0, kind][..], &vector_u16(&[data])].concat()
    }

    fn name_entry(kind: u8, name: &[u8]) -> Vec<u8> {
        [&[kind][..], &vector_u16(&[name])].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        extension(0, &vector_u16(&[&name_entry(0, name)]))
    }

    /// A handshake message with this body.
    fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind], &length[1..], body].concat()
    }

    /// A ClientHello in one record, everything before `tail` as a client may send it.
    fn with_tail(tail: &[u8]) -> Vec<u8> {
        let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], tail].concat();
        in_records(&handshake(1, &body), 16384)
    }

    fn with_extensions(extensions: &[&[u8]]) -> Vec<u8> {
        with_tail(&vector_u16(extensions))
    }

    fn assert_every_split(bytes: &[u8], expected: &Parsed) {
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(Parsed::Incomplete), "{len} of {}", bytes.len());
        }
        assert_eq!(parse(bytes).as_ref(), Ok(expected));
        let more = [bytes, b"\x14\x03\x03\x00\x01\x01"].concat();
        assert_eq!(parse(&more).as_ref(), Ok(expected));
    }

    #[test]
    fn real_hellos_split_anywhere() {
        let bytes = real("Blog.Example.com", &[b"h2", b"http/1.1"]);
        assert_every_split(&bytes, &hello(Some("blog.example.com"), &[b"h2", b"http/1.1"]));
        assert_every_split(&real("a.b", &[]), &hello(Some("a.b"), &[]));
        assert_every_split(&real("192.0.2.1", &[b"x"]), &hello(None, &[b"x"]));
    }

    #[test]
    fn real_hello_in_records_of_any_size() {
        let bytes = real("blog.example.com", &[b"h2"]);
        let handshake = &bytes[5..];
        for size in 1..=handshake.len() {
            let framed = in_records(handshake, size);
            assert_eq!(parse(&framed), Ok(hello(Some("blog.example.com"), &[b"h2"])), "{size}");
        }
        for size in [1, 3, 4, 5, 100] {
            assert_every_split(&in_records(handshake, size), &hello(Some("blog.example.com"), &[b"h2"]));
        }
    }

    #[test]
    fn rustls_takes_the_alerts() {
        for (record, expected) in [
            (ALERT_UNRECOGNIZED_NAME, rustls::AlertDescription::UnrecognisedName),
            (ALERT_INTERNAL_ERROR, rustls::AlertDescription::InternalError),
        ] {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let name = "a.b".try_into().unwrap();
            let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            connection.read_tls(&mut &record[..]).unwrap();
            assert_eq!(
                connection.process_new_packets().unwrap_err(),
                rustls::Error::AlertReceived(expected)
            );
        }
    }

    #[test]
    fn hand_made_hellos() {
        assert_eq!(parse(&with_tail(b"")), Ok(hello(None, &[])));
        assert_eq!(parse(&with_extensions(&[])), Ok(hello(None, &[])));
        assert_eq!(
            parse(&with_extensions(&[&server_name(b"A.b.")])),
            Ok(hello(Some("a.b"), &[]))
        );
        // A name of an unknown type beside the host name.
        let names = vector_u16(&[&name_entry(9, b"\xff"), &name_entry(0, b"a.b")]);
        assert_eq!(
            parse(&with_extensions(&[&extension(0, &names)])),
            Ok(hello(Some("a.b"), &[]))
        );
        // Unknown extensions, twice too.
        let unknown = extension(99, b"abc");
        assert_eq!(parse(&with_extensions(&[&unknown, &unknown])), Ok(hello(None, &[])));
    }

    #[test]
    fn bad_bodies() {
        use ClientHelloError as E;
        let error = |extensions: &[&[u8]]| parse(&with_extensions(extensions)).unwrap_err();
        let name = server_name(b"a.b");
        assert_eq!(error(&[&name, &name]), E::DuplicateExtension(0));
        let alpn = extension(16, b"\0\x03\x02h2");
        assert_eq!(error(&[&alpn, &alpn]), E::DuplicateExtension(16));
        for bad in [&b""[..], b".", b"a..b", b"a b", b"\xc3\xa4.b", b"[::1]", b"a.b\0"] {
            assert_eq!(error(&[&server_name(bad)]), E::BadName, "{bad:?}");
        }
        let two = vector_u16(&[&name_entry(0, b"a.b"), &name_entry(0, b"a.b")]);
        assert_eq!(error(&[&extension(0, &two)]), E::SeveralNames);
        for bad in [
            &b""[..],
            b"\0\0",
            b"\0\x05\0\0\x01a",
            b"\0\x04\0\0\x01ab",
            b"\0\x04\0\0\x02a",
        ] {
            assert_eq!(error(&[&extension(0, bad)]), E::Malformed("server name"), "{bad:?}");
        }
        for bad in [
            &b""[..],
            b"\0\0",
            b"\0\x01\0",
            b"\0\x02\x02h",
            b"\0\x03\x02h2x",
            b"\0\x04\x02h2",
        ] {
            assert_eq!(
                error(&[&extension(16, bad)]),
                E::Malformed("list of protocols"),
                "{bad:?}"
            );
        }
        let many = |count: usize| extension(16, &vector_u16(&[&b"\x01a".repeat(count)]));
        assert!(parse(&with_extensions(&[&many(64)])).is_ok());
        assert_eq!(error(&[&many(65)]), E::TooManyProtocols);
        assert_eq!(error(&[b"\0"]), E::Malformed("extension"));
        assert_eq!(error(&[b"\0\x63\0\x01"]), E::Malformed("extension"));
        assert_eq!(parse(&with_tail(b"\0")), Err(E::Malformed("list of extensions")));
        assert_eq!(parse(&with_tail(b"\0\0\0")), Err(E::Malformed("list of extensions")));
        let whole = with_tail(b"");
        for len in 0..whole.len() - 9 {
            let cut = in_records(&handshake(1, &whole[9..9 + len]), 16384);
            assert!(matches!(parse(&cut), Err(E::Malformed(_))), "{len}");
        }
    }

    #[test]
    fn errors_come_early() {
        use ClientHelloError as E;
        assert_eq!(parse(b"G"), Err(E::NotTls));
        assert_eq!(parse(b"\x15"), Err(E::NotTls));
        assert_eq!(parse(b"\x80\x2e\x01\x03\x01"), Err(E::NotTls), "the hello of SSL 2");
        assert_eq!(parse(b"\x16\x02"), Err(E::NotTls));
        assert_eq!(parse(b"\x16\x03\x01\0\0"), Err(E::BadRecordLength(0)));
        assert_eq!(parse(b"\x16\x03\x01\x40\x01"), Err(E::BadRecordLength(16385)));
        assert_eq!(parse(b"\x16\x03\x01\x40\0"), Ok(Parsed::Incomplete));
        assert_eq!(parse(b"\x16\x03\x01\x01\0\x02"), Err(E::NotClientHello(2)));
        assert_eq!(parse(b"\x16\x03\x01\x01\0\x01\x01\0\0"), Err(E::TooLong));
        assert_eq!(parse(b"\x16\x03\x01\x01\0\x01\0\x3f\xf8"), Err(E::TooLong));
        assert_eq!(parse(b"\x16\x03\x01\x01\0\x01\0\x3f\xf7"), Ok(Parsed::Incomplete));
        // Another content between the parts of the message.
        assert_eq!(parse(b"\x16\x03\x01\0\x02\x01\0\x15"), Err(E::NotTls));
        assert_eq!(
            parse(b"\x16\x03\x01\0\x02\x01\0\x16\x03\x03\0\0"),
            Err(E::BadRecordLength(0))
        );
    }

    #[test]
    fn limit_in_bytes() {
        let padding = |len: usize| with_extensions(&[&extension(21, &vec![0; len])]);
        let overhead = padding(0).len();
        let longest = padding(MAX_LEN - overhead);
        assert_eq!(longest.len(), MAX_LEN);
        assert_eq!(parse(&longest), Ok(hello(None, &[])));
        assert_eq!(parse(&longest[..MAX_LEN - 1]), Ok(Parsed::Incomplete));
        assert_eq!(
            parse(&padding(MAX_LEN - overhead + 1)[..20]),
            Err(ClientHelloError::TooLong)
        );
        // Many small records are counted with their heads.
        let spread = in_records(&longest[5..], 10);
        assert_eq!(parse(&spread), Err(ClientHelloError::TooLong));
        assert_eq!(parse(&spread[..MAX_LEN - 1]), Ok(Parsed::Incomplete));
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1usize..400) {
            let _ = parse(&bytes);
            let _ = parse(&in_records(&bytes, size));
            let _ = parse(&in_records(&handshake(1, &bytes), size));
            let _ = parse(&with_tail(&bytes));
            let _ = parse(&with_extensions(&[&bytes]));
            let _ = parse(&with_extensions(&[&extension(0, &bytes), &extension(16, &bytes)]));
        }

        #[test]
        fn changed_hellos_are_handled(at: proptest::sample::Index, value: u8, size in 1usize..400) {
            let mut handshake = with_extensions(&[&server_name(b"a.b"), &extension(16, b"\0\x03\x02h2")])[5..].to_vec();
            let at = at.index(handshake.len());
            handshake[at] = value;
            let framed = in_records(&handshake, size);
            let whole = parse(&framed);
            // The framing does not change what is read, and no part of it is taken for something else.
            prop_assert_eq!(&whole, &parse(&in_records(&handshake, 16384)));
            if matches!(whole, Ok(Parsed::Complete(_))) {
                for len in 0..framed.len() {
                    let part = parse(&framed[..len]);
                    prop_assert!(part == Ok(Parsed::Incomplete) || part == whole);
                }
            }
        }

        #[test]
        fn names_round_trip(name in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}", size in 1usize..80) {
            let handshake = with_extensions(&[&server_name(name.to_uppercase().as_bytes())])[5..].to_vec();
            prop_assert_eq!(parse(&in_records(&handshake, size)), Ok(hello(Some(&name), &[])));
        }
    }
}
