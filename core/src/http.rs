//! The front of an HTTP/1 connection: which host a request is for; and the short answers that the relay gives itself.
//!
//! Source: RFC 9112, sections 2.2 and 3; RFC 9110, sections 4.2, 7.2 and 7.8. Whoever routes or authorises must use the
//! one [`RequestHead`] for both, and nothing else read from the bytes: two readers that see two hosts are a way around.

use crate::names::{normal_host, normal_ipv6};

/// The longest request head, in bytes, with the empty line behind it.
pub const MAX_LEN: usize = 16 * 1024;

/// The most header fields a request may have.
pub const MAX_HEADERS: usize = 100;

/// The head of a request, as far as it matters to whoever passes it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The method, case kept (`GET`).
    pub method: String,
    /// The request target as sent (`/path?query`, or one of the rarer forms of RFC 9112, section 3.2).
    pub target: String,
    /// The host asked for, in lower case, without port, brackets and the dot at its end: of the target if that names
    /// one, otherwise of the Host field. `None` only for HTTP/1.0.
    pub host: Option<String>,
    /// The port that stands behind the host.
    pub host_port: Option<u16>,
    /// Whether the client asks to go on with another protocol, such as WebSocket, on this connection.
    pub upgrade: bool,
    /// How many bytes the head takes, with the empty line behind it. The body follows.
    pub len: usize,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a request head: call again with more bytes behind these.
    Incomplete,
    /// A whole request head.
    Complete(RequestHead),
}

/// Reads the request head at the front of `bytes`, which is everything received so far, from the start of the request;
/// at most [`MAX_LEN`] of it is looked at.
///
/// Stricter than RFC 9112 allows a server to be: every line must end in CR LF, because readers differ over a lone LF.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeadError> {
    let full = bytes.len() >= MAX_LEN;
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    if bytes.starts_with(PREFACE) {
        return Err(HeadError::Http2);
    }
    // The parser would already mind the version.
    if PREFACE.starts_with(bytes) {
        return Ok(Parsed::Incomplete);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes)? {
        httparse::Status::Complete(len) => Ok(Parsed::Complete(head(&request, &bytes[..len])?)),
        httparse::Status::Partial if full => Err(HeadError::TooLong),
        httparse::Status::Partial => Ok(Parsed::Incomplete),
    }
}

/// Why bytes are not a request head that can be routed. Each but [`HeadError::Http2`] deserves a response of status
/// 400, [`HeadError::TooLong`] and [`HeadError::TooManyHeaders`] one of 431.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The head does not end within [`MAX_LEN`].
    #[error("the request head is longer than {MAX_LEN} bytes")]
    TooLong,
    /// There are more than [`MAX_HEADERS`] header fields.
    #[error("the request has more than {MAX_HEADERS} header fields")]
    TooManyHeaders,
    /// The bytes are not of HTTP/1.0 or 1.1.
    #[error("not an HTTP/1 request: {0}")]
    Malformed(&'static str),
    /// There is more than one Host field (RFC 9112, section 3.2).
    #[error("the request has several Host fields")]
    DuplicateHost,
    /// The Host field or the target's authority is no host with perhaps a port.
    #[error("the request's host is not a host name or address")]
    BadHost,
    /// A request of HTTP/1.1 has no Host field (RFC 9112, section 3.2).
    #[error("the request has no Host field")]
    MissingHost,
    /// The client speaks HTTP/2 without asking first (RFC 9113, section 3.3).
    #[error("HTTP/2 without TLS is not served here")]
    Http2,
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        use httparse::Error as E;
        match error {
            E::TooManyHeaders => Self::TooManyHeaders,
            E::HeaderName => Self::Malformed("a header field's name is not one"),
            E::HeaderValue => Self::Malformed("a header field's value has control characters"),
            E::NewLine => Self::Malformed("a line does not end in CR LF"),
            E::Version => Self::Malformed("the version is neither HTTP/1.0 nor HTTP/1.1"),
            _ => Self::Malformed("the request line is not one"),
        }
    }
}

/// A whole HTTP/1.1 response, after which the connection is closed.
///
/// Adds `content-type` (HTML if `body` starts with `<!doctype html>`, otherwise plain text), `content-length`,
/// `cache-control: no-store` and `connection: close`; `extra_headers` must not repeat these. Control characters, and so
/// line ends, are dropped from `reason` and `extra_headers`: a value taken from the request cannot add lines.
#[must_use]
pub fn response(status: u16, reason: &str, extra_headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    const DOCTYPE: &str = "<!doctype html>";
    let html = body
        .get(..DOCTYPE.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(DOCTYPE));
    let kind = if html {
        "text/html; charset=utf-8"
    } else {
        "text/plain; charset=utf-8"
    };
    response_of(status, reason, extra_headers, kind, body)
}

/// The same, with a body of this content type.
pub(crate) fn response_of(
    status: u16,
    reason: &str,
    extra_headers: &[(&str, &str)],
    kind: &str,
    body: &str,
) -> Vec<u8> {
    let length = body.len();

    let mut out = format!("HTTP/1.1 {status:03} ");
    push_clean(&mut out, reason);
    out.push_str("\r\n");
    for (name, value) in extra_headers {
        push_clean(&mut out, name);
        out.push_str(": ");
        push_clean(&mut out, value);
        out.push_str("\r\n");
    }
    out.push_str(&format!(
        "content-type: {kind}\r\ncontent-length: {length}\r\ncache-control: no-store\r\n\
         connection: close\r\n\r\n"
    ));
    out.push_str(body);
    out.into_bytes()
}

/// What a visitor sees whose service cannot be reached.
pub(crate) fn bad_gateway() -> Vec<u8> {
    let text = "502 Bad Gateway: the service behind this address does not answer\n";
    response(502, "Bad Gateway", &[], text)
}

/// How a client begins HTTP/2 (RFC 9113, section 3.4), as far as it looks like a request line.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

fn push_clean(out: &mut String, text: &str) {
    out.extend(text.chars().filter(|c| !c.is_control()));
}

fn head(request: &httparse::Request<'_, '_>, bytes: &[u8]) -> Result<RequestHead, HeadError> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed("the request line is not one"));
    };
    // The parser takes a lone LF for a line's end, but no lone CR.
    if bytes
        .iter()
        .zip(bytes.iter().skip(1))
        .any(|(&before, &b)| b == b'\n' && before != b'\r')
        || bytes.first() == Some(&b'\n')
    {
        return Err(HeadError::Malformed("a line does not end in CR LF"));
    }

    let mut field = None;
    let (mut has_upgrade, mut connection_upgrade) = (false, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("host") {
            if field.replace(header.value).is_some() {
                return Err(HeadError::DuplicateHost);
            }
        } else if header.name.eq_ignore_ascii_case("upgrade") {
            has_upgrade = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            connection_upgrade |= header
                .value
                .split(|&b| b == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        }
    }
    // Checked even where the target's host wins: who gets the request next may look here.
    let field = field.map(parse_authority).transpose()?;
    if field.is_none() && version == 1 {
        return Err(HeadError::MissingHost);
    }
    let named = match authority(method, target)? {
        Some(authority) => Some(parse_authority(authority.as_bytes())?),
        None => field,
    };
    let (host, host_port) = match named {
        Some((host, port)) => (Some(host), port),
        None => (None, None),
    };
    Ok(RequestHead {
        method: method.to_owned(),
        target: target.to_owned(),
        host,
        host_port,
        // A server ignores the field in HTTP/1.0 (RFC 9110, section 7.8).
        upgrade: has_upgrade && connection_upgrade && version == 1,
        len: bytes.len(),
    })
}

/// What the target names as its authority, by the forms of RFC 9112, section 3.2.
fn authority<'a>(method: &str, target: &'a str) -> Result<Option<&'a str>, HeadError> {
    // The authority form, of this method only.
    if method == "CONNECT" {
        return Ok(Some(target));
    }
    // The origin form, and the asterisk form, of one method only.
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(None);
    }
    // The absolute form.
    match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            Ok(Some(&rest[..end]))
        }
        _ => Err(HeadError::Malformed("the target is neither a path nor an http URL")),
    }
}

/// A host and perhaps a port (RFC 3986, section 3.2). User information is refused (RFC 9110, section 4.2.4), and so is
/// an empty host (section 4.2.1).
fn parse_authority(text: &[u8]) -> Result<(String, Option<u16>), HeadError> {
    let (host, rest) = if let Some(text) = text.strip_prefix(b"[") {
        let end = text.iter().position(|&b| b == b']').ok_or(HeadError::BadHost)?;
        (normal_ipv6(&text[..end]), &text[end + 1..])
    } else {
        let end = text.iter().position(|&b| b == b':').unwrap_or(text.len());
        (normal_host(&text[..end]), &text[end..])
    };
    let host = host.ok_or(HeadError::BadHost)?;
    let port = match rest {
        [] => None,
        [b':', digits @ ..] => parse_port(digits)?,
        _ => return Err(HeadError::BadHost),
    };
    Ok((host, port))
}

/// `*DIGIT`: nothing behind the colon is the scheme's port.
fn parse_port(digits: &[u8]) -> Result<Option<u16>, HeadError> {
    if digits.is_empty() {
        return Ok(None);
    }
    // `u16::from_str` would take a plus sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::BadHost);
    }
    let text = std::str::from_utf8(digits).map_err(|_| HeadError::BadHost)?;
    text.parse().map(Some).map_err(|_| HeadError::BadHost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(text: &str) -> RequestHead {
        match parse(text.as_bytes()) {
            Ok(Parsed::Complete(head)) => head,
            other => panic!("{other:?} of {text:?}"),
        }
    }

    fn error(text: &str) -> HeadError {
        parse(text.as_bytes()).unwrap_err()
    }

    /// The host read from a request with this Host field.
    fn host(value: &str) -> Result<(Option<String>, Option<u16>), HeadError> {
        match parse(format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").as_bytes())? {
            Parsed::Complete(head) => Ok((head.host, head.host_port)),
            Parsed::Incomplete => panic!("incomplete"),
        }
    }

    #[test]
    fn plain_request() {
        let text = "POST /a?b=c HTTP/1.1\r\nAccept: */*\r\nhOsT:  Blog.Example.com:8080 \r\n\r\n";
        let expected = RequestHead {
            method: "POST".to_owned(),
            target: "/a?b=c".to_owned(),
            host: Some("blog.example.com".to_owned()),
            host_port: Some(8080),
            upgrade: false,
            len: text.len(),
        };
        assert_eq!(complete(&format!("{text}body\n")), expected);
        for len in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..len]), Ok(Parsed::Incomplete), "{len}");
        }
        // RFC 9112, section 2.2: an empty line in front is skipped, and is part of the head.
        assert_eq!(complete(&format!("\r\n{text}")).len, text.len() + 2);
    }

    #[test]
    fn hosts() {
        let some = |name: &str, port| Ok((Some(name.to_owned()), port));
        assert_eq!(host("A.B."), some("a.b", None));
        assert_eq!(host("a.b:"), some("a.b", None));
        assert_eq!(host("a.b.:0080"), some("a.b", Some(80)));
        assert_eq!(host("192.0.2.1:1"), some("192.0.2.1", Some(1)));
        assert_eq!(host("[2001:DB8::1]"), some("2001:db8::1", None));
        assert_eq!(host("[::1]:65535"), some("::1", Some(65535)));
        for bad in [
            "",
            ":80",
            ".",
            "a..b",
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "u:p@a.b",
            "a:b",
            "a:+1",
            "a:1:2",
            "a:65536",
            "::1",
            "[::1",
            "[::1]1",
            "[::1]:x",
            "[a.b]",
            "[fe80::1%25eth0]",
            "bücher.example",
            "a%2eb",
            "a\\b",
            "a?b",
        ] {
            assert_eq!(host(bad), Err(HeadError::BadHost), "{bad}");
        }
        assert_eq!(error("GET / HTTP/1.1\r\n\r\n"), HeadError::MissingHost);
        assert_eq!(
            error("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
            HeadError::DuplicateHost
        );
        assert_eq!(
            error("GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n"),
            HeadError::DuplicateHost
        );
        assert_eq!(complete("GET / HTTP/1.0\r\n\r\n").host, None);
        assert_eq!(complete("GET / HTTP/1.0\r\nHost: a\r\n\r\n").host.as_deref(), Some("a"));
    }

    #[test]
    fn targets() {
        let with = |line: &str| format!("{line} HTTP/1.1\r\nHost: a.b:1\r\n\r\n");
        let named = |line: &str| {
            let head = complete(&with(line));
            (head.host.unwrap_or_default(), head.host_port)
        };
        let own = ("a.b".to_owned(), Some(1));
        assert_eq!(named("GET /x"), own);
        assert_eq!(named("GET //c.d/x"), own);
        assert_eq!(named("GET /http://c.d/x"), own);
        assert_eq!(named("OPTIONS *"), own);
        for line in [
            "GET http://C.D",
            "GET HTTP://c.d./x",
            "GET https://c.d?x",
            "GET http://c.d:/@a",
        ] {
            assert_eq!(named(line), ("c.d".to_owned(), None), "{line}");
        }
        assert_eq!(named("GET http://[::1]:2/"), ("::1".to_owned(), Some(2)));
        assert_eq!(named("CONNECT c.d:443"), ("c.d".to_owned(), Some(443)));
        assert_eq!(complete(&with("GET http://C.D/")).target, "http://C.D/");

        for line in ["GET *", "GET x", "GET ftp://c.d/", "GET c.d:80", "GET ://c.d"] {
            assert!(matches!(error(&with(line)), HeadError::Malformed(_)), "{line}");
        }
        for line in [
            "GET http://",
            "GET http:///x",
            "GET http://u@c.d/",
            "GET http://c.d\\x/",
            "CONNECT /",
        ] {
            assert_eq!(error(&with(line)), HeadError::BadHost, "{line}");
        }
        // The Host field is checked although the target's host wins.
        assert_eq!(error("GET http://c.d/ HTTP/1.1\r\n\r\n"), HeadError::MissingHost);
        assert_eq!(
            error("GET http://c.d/ HTTP/1.1\r\nHost: a b\r\n\r\n"),
            HeadError::BadHost
        );
        assert_eq!(
            complete("GET http://c.d/ HTTP/1.0\r\n\r\n").host.as_deref(),
            Some("c.d")
        );
    }

    #[test]
    fn upgrades() {
        let upgrade =
            |version: &str, fields: &str| complete(&format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n")).upgrade;
        assert!(upgrade("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        assert!(upgrade(
            "1.1",
            "upgrade: h2c\r\nConnection: keep-alive\r\nconnection: x, upgrade ,\r\n"
        ));
        assert!(!upgrade("1.1", "Upgrade: websocket\r\n"));
        assert!(!upgrade("1.1", "Connection: upgrade\r\n"));
        assert!(!upgrade("1.1", "Connection: no-upgrade\r\nUpgrade: websocket\r\n"));
        assert!(!upgrade("1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    }

    #[test]
    fn other_protocols_fail_early() {
        let malformed = |text: &str| assert!(matches!(error(text), HeadError::Malformed(_)), "{text:?}");
        malformed("\x16\x03\x01");
        malformed("GET / HTTP/1.2");
        malformed("GET / HTTP/2");
        malformed("GET  / HTTP/1.1\r\n");
        malformed("SSH-2.0-OpenSSH_10.0\r\n");
        for len in 0..PREFACE.len() {
            assert_eq!(parse(&PREFACE[..len]), Ok(Parsed::Incomplete));
        }
        assert_eq!(error("PRI * HTTP/2.0"), HeadError::Http2);
        assert_eq!(error("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), HeadError::Http2);
    }

    #[test]
    fn what_readers_see_differently_is_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: b\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        ] {
            assert!(matches!(error(text), HeadError::Malformed(_)), "{text:?}");
        }
    }

    #[test]
    fn limits() {
        let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        complete(&fields(100));
        assert_eq!(error(&fields(101)), HeadError::TooManyHeaders);

        let long = |len: usize| {
            let text = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n";
            text.replace("X: ", &format!("X: {}", "y".repeat(len - text.len())))
        };
        assert_eq!(complete(&long(MAX_LEN)).len, MAX_LEN);
        assert_eq!(error(&long(MAX_LEN + 1)), HeadError::TooLong);
        assert_eq!(error(&long(MAX_LEN + 1)[..MAX_LEN]), HeadError::TooLong);
        assert_eq!(parse(&long(MAX_LEN).as_bytes()[..MAX_LEN - 1]), Ok(Parsed::Incomplete));
        assert_eq!(error(&"A".repeat(MAX_LEN)), HeadError::TooLong);
    }

    #[test]
    fn responses() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(response(404, "Not Found", &[], "no such name: ä\n")),
            "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 17\r\n\
             cache-control: no-store\r\nconnection: close\r\n\r\nno such name: ä\n"
        );
        let page = text(response(502, "Bad Gateway", &[], "<!DOCTYPE html><p>x"));
        assert!(page.contains("\r\ncontent-type: text/html; charset=utf-8\r\n"));
        let moved = text(response(
            308,
            "Permanent\r\n Redirect",
            &[("location", "https://a/\r\nx: y")],
            "",
        ));
        assert!(moved.starts_with("HTTP/1.1 308 Permanent Redirect\r\nlocation: https://a/x: y\r\ncontent-type:"));
        assert!(moved.contains("\r\ncontent-length: 0\r\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            line in "(GET|CONNECT|OPTIONS) [!-~]{0,20}",
            host in "[ -~]{0,20}",
        ) {
            let _ = parse(&bytes);
            let _ = parse_authority(&bytes);
            let _ = parse(&[b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat());
            let text = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            if let Ok(Parsed::Complete(head)) = parse(text.as_bytes()) {
                prop_assert_eq!(head.len, text.len());
                let host = head.host.unwrap_or_default();
                prop_assert!(!host.is_empty() && host == host.to_ascii_lowercase());
            }
        }

        #[test]
        fn round_trips_and_truncations(
            path in "/[!-~]{0,20}",
            host in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}",
            port in proptest::option::of(any::<u16>()),
            values in proptest::collection::vec("[ -~]{0,20}", 0..5),
        ) {
            let mut text = format!("GET {path} HTTP/1.1\r\n");
            for (i, value) in values.iter().enumerate() {
                text.push_str(&format!("X-{i}: {value}\r\n"));
            }
            let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
            text.push_str(&format!("Host: {}{port_text}\r\n\r\n", host.to_uppercase()));
            for len in 0..text.len() {
                prop_assert_eq!(parse(&text.as_bytes()[..len]), Ok(Parsed::Incomplete));
            }
            let head = complete(&text);
            prop_assert_eq!((head.target, head.host, head.host_port), (path, Some(host), port));
        }

        #[test]
        fn responses_have_no_added_lines(reason in ".{0,20}", name: String, value: String, body: String) {
            let bytes = response(200, &reason, &[(&name, &value)], &body);
            let head = &bytes[..bytes.len() - body.len()];
            prop_assert!(bytes.ends_with(body.as_bytes()));
            prop_assert_eq!(head.iter().filter(|&&b| b == b'\n').count(), 7);
            prop_assert_eq!(head.iter().filter(|&&b| b == b'\r').count(), 7);
        }
    }
}
