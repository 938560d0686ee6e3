//! The parsers of foreign bytes, each against another reader of the same format or against itself.

use std::time::Instant;

use portal_cli::fuzzing::FileOf;
use portal_core::names::{LabelPattern, check_label};
use portal_core::proxy::{self, ProxyHeader};
use portal_core::uri::RelayUri;
use portal_core::{fuzzing, http, sni};
use rustls::server::Acceptor;

/// A configuration file: it is read the same way each time, and what is wrong with it is said in one line, with its place.
pub fn config_file(data: &[u8]) {
    const NAME: &str = "the.toml";
    let Some((&which, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let command = if which & 1 == 0 { FileOf::Agent } else { FileOf::Relay };
    let read = portal_cli::fuzzing::config_file(command, NAME, text);
    assert_eq!(portal_cli::fuzzing::config_file(command, NAME, text), read);
    if let Err(told) = read {
        assert!(!told.trim().is_empty(), "something is said");
        let place = told.split_once(NAME).and_then(|(_, rest)| rest.strip_prefix(", line "));
        if let Some(rest) = place {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let line: usize = number.parse().expect("a number");
            assert!((1..=text.split('\n').count()).contains(&line), "{told}");
        }
        assert!(!told.contains('\n'), "it is one line: {told:?}");
    }
}

/// Frames of the control channel; the first byte says where they are cut.
pub fn control_frames(data: &[u8]) {
    if let Some((&step, bytes)) = data.split_first() {
        fuzzing::control_frames(bytes, usize::from(step));
    }
}

/// Packets inside the tunnel, against smoltcp's parsers.
pub fn inner_packet(data: &[u8]) {
    fuzzing::inner_packet(Instant::now(), data);
}

/// The PROXY header: what is read is what would be written.
pub fn proxy_header(data: &[u8]) {
    match proxy::parse(data) {
        Ok(proxy::Parsed::Complete { header, len }) => {
            assert!(len <= data.len() && len <= proxy::MAX_LEN);
            assert_eq!(
                proxy::parse(&data[..len - 1]),
                Ok(proxy::Parsed::Incomplete),
                "it ends where it ends"
            );
            if let Some(header) = header {
                assert_eq!(read_again(&header), header);
            }
        }
        Ok(proxy::Parsed::Incomplete) => assert!(data.len() < proxy::MAX_LEN),
        Err(error) => assert_eq!(
            proxy::parse(&[data, b"more"].concat()),
            Err(error),
            "an error stays one"
        ),
    }
}

fn read_again(header: &ProxyHeader) -> ProxyHeader {
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    match proxy::parse(&bytes) {
        Ok(proxy::Parsed::Complete {
            header: Some(header),
            len,
        }) if len == bytes.len() => header,
        other => panic!("{other:?}"),
    }
}

/// The ClientHello: whatever rustls takes, we read the same name and protocols in it, and where the bytes are cut does not
/// matter.
pub fn client_hello(data: &[u8]) {
    let ours = sni::parse(data);
    for cut in cuts(data.len()) {
        match sni::parse(&data[..cut]) {
            Ok(sni::Parsed::Complete(hello)) => assert_eq!(ours, Ok(sni::Parsed::Complete(hello))),
            Ok(sni::Parsed::Incomplete) => {}
            Err(error) => assert_eq!(ours, Err(error), "an error stays one"),
        }
    }
    let mut acceptor = Acceptor::default();
    let mut rest = data;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let Some(name) = theirs.server_name() else { return };
                let Ok(sni::Parsed::Complete(ours)) = &ours else {
                    // We bound what we look at, and mind what no client sends.
                    assert!(
                        !matches!(ours, Ok(sni::Parsed::Incomplete)),
                        "rustls has read a whole ClientHello"
                    );
                    return;
                };
                assert_eq!(ours.server_name.as_deref(), Some(name.to_ascii_lowercase().as_str()));
                let protocols: Vec<_> = theirs.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
                assert_eq!(ours.alpn, protocols);
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// The request head, against httparse: nobody may see another host than we do.
pub fn http_head(data: &[u8]) {
    let ours = http::parse(data);
    for cut in cuts(data.len()) {
        match http::parse(&data[..cut]) {
            Ok(http::Parsed::Complete(head)) => assert_eq!(ours, Ok(http::Parsed::Complete(head))),
            Ok(http::Parsed::Incomplete) | Err(_) => {}
        }
    }
    let Ok(http::Parsed::Complete(head)) = ours else {
        return;
    };
    assert!(head.len <= data.len() && head.len <= http::MAX_LEN);
    assert!(data[..head.len].ends_with(b"\r\n\r\n"));
    let mut headers = [httparse::EMPTY_HEADER; http::MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(data).expect("what we take, httparse takes");
    assert_eq!(parsed, httparse::Status::Complete(head.len));
    assert_eq!(request.method, Some(head.method.as_str()));
    assert_eq!(request.path, Some(head.target.as_str()));
    let hosts: Vec<_> = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"))
        .collect();
    assert!(hosts.len() <= 1, "two hosts are a way around");
    if let (Some(host), [field]) = (&head.host, &hosts[..])
        && head.target.starts_with('/')
    {
        let field = String::from_utf8_lossy(field.value).to_ascii_lowercase();
        // An IPv6 address is written in one way here, and in many by others.
        assert!(
            field.starts_with(host.as_str()) || field.starts_with('['),
            "{host:?} is not in {field:?}"
        );
    }
}

/// Texts that people and peers write: labels, patterns of labels, and the relay's URI.
pub fn names_and_uris(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(uri) = text.parse::<RelayUri>() {
        assert_eq!(uri.to_string().parse(), Ok(uri.clone()), "{uri}");
        assert_ne!(uri.port, 0);
    }
    let (pattern, label) = text.split_once('\n').unwrap_or((&text, ""));
    if let Ok(pattern) = pattern.parse::<LabelPattern>() {
        assert!(!pattern.matches(label) || check_label(label).is_ok());
        assert_eq!(
            pattern.matches(label),
            matches_by_definition(&pattern.to_string(), label) && check_label(label).is_ok()
        );
    }
}

/// By the definition: every `*` stands for any characters. All ways are followed at once, so that no pattern takes long.
fn matches_by_definition(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Where in the text the part of the pattern that was read can end.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for sign in pattern.chars() {
        if sign == '*' {
            let first = ends.iter().position(|&end| end).unwrap_or(ends.len());
            ends[first..].fill(true);
        } else {
            for at in (0..text.len()).rev() {
                ends[at + 1] = ends[at] && text[at] == sign;
            }
            ends[0] = false;
        }
    }
    ends[text.len()]
}

/// Where to cut: everywhere, and beyond what clients send now and then.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).filter(move |&at| at < 1024 || at.is_multiple_of(61) || at + 3 > len)
}
