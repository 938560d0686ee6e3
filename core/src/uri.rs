//! The relay's URI: where it is and which key it must prove to have, in one text.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::identity::{KeyError, PublicKey};
use crate::names::{normal_host, normal_ipv6};

/// A relay as `portal relay` prints it and `--relay` takes it:
/// `portal://<public key, base64url without padding>@host:port`.
///
/// Reading ignores white space around it and writes the host in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayUri {
    /// The relay's key, pinned: an agent talks to no other.
    pub key: PublicKey,
    /// A host name or a literal address, without brackets.
    pub host: String,
    /// The UDP port of the tunnel, not 0.
    pub port: u16,
}

impl fmt::Display for RelayUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, host, port } = self;
        let key = key.url_safe();
        if host.contains(':') {
            write!(f, "{SCHEME}{key}@[{host}]:{port}")
        } else {
            write!(f, "{SCHEME}{key}@{host}:{port}")
        }
    }
}

impl FromStr for RelayUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let rest = strip_scheme(text.trim()).ok_or(UriError::MissingScheme)?;
        // The key first: one in `wg`'s alphabet has slashes, and must not be taken for the end of the address.
        let (key, address) = rest.split_once('@').ok_or(UriError::MissingKey)?;
        if key.is_empty() {
            return Err(UriError::MissingKey);
        }
        let key = PublicKey::from_url_safe(key)?;

        let end = address.find(['/', '?', '#']).unwrap_or(address.len());
        let (address, trailing) = address.split_at(end);
        if !trailing.is_empty() {
            return Err(UriError::Trailing(trailing.to_owned()));
        }
        let (host, port) = split_port(address)?;
        let port = port.filter(|port| !port.is_empty()).ok_or(UriError::MissingPort)?;
        Ok(Self {
            key,
            host,
            port: parse_port(port)?,
        })
    }
}

/// Why a text is not a relay URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It does not start with `portal://`.
    #[error("a relay URI starts with portal:// (it reads portal://KEY@HOST:PORT)")]
    MissingScheme,
    /// There is no key in front of an `@`.
    #[error("the relay's key is missing: copy the whole URI that the relay printed (portal://KEY@HOST:PORT)")]
    MissingKey,
    /// What stands in front of the `@` is not a key.
    #[error("the key in front of the @ is not a relay's: {0}")]
    BadKey(#[from] KeyError),
    /// There is nothing between the `@` and the port.
    #[error("the host is missing behind the @")]
    MissingHost,
    /// The host is neither a host name nor an address.
    #[error("{0:?} is neither a host name nor an address")]
    BadHost(String),
    /// An IPv6 address stands without brackets, so where the port begins is anybody's guess.
    #[error("an IPv6 address is written in brackets: [{0}]:PORT")]
    MissingBrackets(String),
    /// There is no port behind the host.
    #[error("the port is missing behind the host (HOST:PORT); the relay prints it")]
    MissingPort,
    /// The port is not a number from 1 to 65535.
    #[error("{0:?} is not a port: a port is a number from 1 to 65535")]
    BadPort(String),
    /// Something follows the port.
    #[error("nothing may follow the port, but {0:?} does")]
    Trailing(String),
}

const SCHEME: &str = "portal://";

/// Schemes are the same in either case (RFC 3986, section 3.1).
fn strip_scheme(text: &str) -> Option<&str> {
    let scheme = text.get(..SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| &text[SCHEME.len()..])
}

/// The host, checked, and what stands behind its colon.
fn split_port(address: &str) -> Result<(String, Option<&str>), UriError> {
    if let Some(rest) = address.strip_prefix('[') {
        let bad_host = || UriError::BadHost(address.to_owned());
        let (literal, rest) = rest.split_once(']').ok_or_else(bad_host)?;
        let host = normal_ipv6(literal.as_bytes()).ok_or_else(bad_host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(UriError::Trailing(rest.to_owned())),
        };
    }
    // Either all of it, or what is left without a port.
    if address.parse::<Ipv6Addr>().is_ok() {
        return Err(UriError::MissingBrackets(address.to_owned()));
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    if host.is_empty() {
        return Err(UriError::MissingHost);
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        return Err(UriError::MissingBrackets(host.to_owned()));
    }
    // A dot at the end stays: it keeps a resolver from trying its search list.
    match normal_host(host.as_bytes()) {
        Some(_) => Ok((host.to_ascii_lowercase(), port)),
        None => Err(UriError::BadHost(host.to_owned())),
    }
}

fn parse_port(text: &str) -> Result<u16, UriError> {
    // `u16::from_str` would take a plus sign.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(UriError::BadPort(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo";

    fn parse(rest: &str) -> Result<RelayUri, UriError> {
        format!("portal://{KEY}@{rest}").parse()
    }

    #[test]
    fn good() {
        let key = PublicKey::from_url_safe(KEY).unwrap();
        for (rest, host, port) in [
            ("relay.example.com:51820", "relay.example.com", 51820),
            ("Relay.Example.com.:1", "relay.example.com.", 1),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
            ("[2001:DB8::1]:51820", "2001:db8::1", 51820),
            ("localhost:51820 \n", "localhost", 51820),
        ] {
            assert_eq!(
                parse(rest),
                Ok(RelayUri {
                    key,
                    host: host.to_owned(),
                    port
                }),
                "{rest}"
            );
        }
        assert!(format!(" PORTAL://{KEY}@h:1").parse::<RelayUri>().is_ok());
        assert_eq!(
            parse("[2001:db8::1]:1").unwrap().to_string(),
            format!("portal://{KEY}@[2001:db8::1]:1")
        );
    }

    #[test]
    fn bad() {
        let whole = |text: &str| text.parse::<RelayUri>().unwrap_err();
        assert_eq!(whole(""), UriError::MissingScheme);
        assert_eq!(whole("https://example.com"), UriError::MissingScheme);
        assert_eq!(whole("portal:/ä"), UriError::MissingScheme);
        assert_eq!(whole("relay.example.com:51820"), UriError::MissingScheme);
        assert_eq!(whole("portal://relay.example.com:51820"), UriError::MissingKey);
        assert_eq!(whole("portal://@relay.example.com:51820"), UriError::MissingKey);
        assert_eq!(
            whole("portal://abc@h:1"),
            UriError::BadKey(KeyError::Length { expected: 43, found: 3 })
        );
        let in_wgs_alphabet = KEY.replace('_', "/");
        assert_eq!(
            whole(&format!("portal://{in_wgs_alphabet}@h:1")),
            UriError::BadKey(KeyError::NotBase64Url)
        );

        let rest = |text: &str| parse(text).unwrap_err();
        assert_eq!(rest(""), UriError::MissingHost);
        assert_eq!(rest(":51820"), UriError::MissingHost);
        assert_eq!(rest("a b:1"), UriError::BadHost("a b".to_owned()));
        assert_eq!(rest("a@b:1"), UriError::BadHost("a@b".to_owned()));
        assert_eq!(rest("[::1:1"), UriError::BadHost("[::1:1".to_owned()));
        assert_eq!(rest("[192.0.2.1]:1"), UriError::BadHost("[192.0.2.1]:1".to_owned()));
        assert_eq!(rest("2001:db8::1"), UriError::MissingBrackets("2001:db8::1".to_owned()));
        assert_eq!(
            rest("2001:db8::1:51820"),
            UriError::MissingBrackets("2001:db8::1".to_owned())
        );
        assert_eq!(rest("h"), UriError::MissingPort);
        assert_eq!(rest("h:"), UriError::MissingPort);
        assert_eq!(rest("[::1]"), UriError::MissingPort);
        assert_eq!(rest("h:0"), UriError::BadPort("0".to_owned()));
        assert_eq!(rest("h:+1"), UriError::BadPort("+1".to_owned()));
        assert_eq!(rest("h:65536"), UriError::BadPort("65536".to_owned()));
        assert_eq!(rest("h:1/"), UriError::Trailing("/".to_owned()));
        assert_eq!(rest("h:1?a"), UriError::Trailing("?a".to_owned()));
        assert_eq!(rest("[::1]x:1"), UriError::Trailing("x:1".to_owned()));
    }

    proptest! {
        #[test]
        fn round_trips(bytes: [u8; 32], host in "[a-z][a-z0-9]{0,9}(\\.[a-z0-9]{1,9}){0,3}", address: u128,
            v6: bool, port in 1u16..)
        {
            let host = if v6 { Ipv6Addr::from(address).to_string() } else { host };
            let uri = RelayUri { key: PublicKey::from_bytes(bytes), host, port };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }

        #[test]
        fn any_text_is_handled(text in ".{0,80}", rest in "[a:@\\[\\]./%0-9]{0,20}") {
            let _ = text.parse::<RelayUri>();
            if let Ok(uri) = parse(&rest) {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }
    }
}
