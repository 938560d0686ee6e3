//! The values of flags that are more than a text: sizes, ranges of ports, addresses to listen on. And sizes as text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A size in bytes: `268435456`, `256M`, `256MiB`, `1G`. Units are powers of 1024, for that is what memory comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySize(pub(crate) usize);

/// Below this the tables and queues alone would take it all.
pub(crate) const MIN_MEMORY: usize = 16 * 1024 * 1024;

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes = bytes(text)?;
        if bytes < MIN_MEMORY as u64 {
            return Err(ValueError::TooSmall);
        }
        usize::try_from(bytes)
            .map(Self)
            .map_err(|_| ValueError::Size(text.to_owned()))
    }
}

/// Bytes a second, written like a size: `500K`, `10M`, `10M/s`. Never none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRate(pub(crate) NonZeroU64);

impl FromStr for ByteRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rate = bytes(text.strip_suffix("/s").unwrap_or(text));
        let rate = rate.ok().and_then(NonZeroU64::new);
        // A TOML file has whole numbers up to this.
        let rate = rate.filter(|rate| i64::try_from(rate.get()).is_ok());
        rate.map(Self).ok_or_else(|| ValueError::Rate(text.to_owned()))
    }
}

fn bytes(text: &str) -> Result<u64, ValueError> {
    let bad = || ValueError::Size(text.to_owned());
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// A size for people, in the largest unit that leaves a whole part.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / 10;
    // Tenths in integers: a float would be off for the largest sizes.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[power as usize - 1])
}

/// A port or a range of ports, both ends included: `20000-29999`, `5432`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortRange(pub(crate) RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = port(first)?..=port(last)?;
        if range.is_empty() {
            return Err(ValueError::Backwards(text.to_owned()));
        }
        Ok(Self(range))
    }
}

/// Something that can be switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Switch<T> {
    /// `off`.
    Off,
    /// Anything else.
    On(T),
}

impl<T> Switch<T> {
    pub(crate) fn on(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<T: FromStr> FromStr for Switch<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::On)
    }
}

/// An address to listen on: `0.0.0.0:80`, `[::]:80`, or a port on every address: `80`, `:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) SocketAddr);

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Ok(addr) = text.parse() {
            return Ok(Self(addr));
        }
        let digits = text.strip_prefix(':').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Self((Ipv6Addr::UNSPECIFIED, port(digits)?).into()));
        }
        Err(ValueError::Listen(text.to_owned()))
    }
}

/// An address for operators: like [`Listen`], but a port alone is on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalListen(pub(crate) SocketAddr);

impl FromStr for LocalListen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let Listen(mut addr) = text.parse()?;
        if !text.contains(['.', '[']) {
            addr.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Ok(Self(addr))
    }
}

/// A relay's domain: a host name, or an address where only ports are given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    /// A host name in lower case, without a dot at the end.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl FromStr for Domain {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if !is_host_name(&name) {
            return Err(ValueError::Domain(text.to_owned()));
        }
        Ok(Self::Name(name))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Why a text is not such a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// No size.
    #[error("{0:?} is not a size: write it like 256M or 1G")]
    Size(String),
    /// No rate.
    #[error("{0:?} is not a rate: write it in bytes a second, like 500K or 10M")]
    Rate(String),
    /// Not enough to work with.
    #[error("it takes 16M at least")]
    TooSmall,
    /// No port.
    #[error("{0:?} is not a port: a port is a number from 1 to 65535")]
    Port(String),
    /// The last port is below the first.
    #[error("the range {0} ends below its start")]
    Backwards(String),
    /// No address.
    #[error("{0:?} is not an address to listen on: write it like 0.0.0.0:80, [::]:80 or 80")]
    Listen(String),
    /// No domain.
    #[error("{0:?} is not a domain: write it like tunnel.example.com")]
    Domain(String),
}

/// Reads a port number, 1 to 65535. `u16::from_str` alone would take a plus sign and 0.
pub(crate) fn port(text: &str) -> Result<u16, ValueError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(ValueError::Port(text.to_owned())),
    }
}

/// Whether this is a host name as DNS has them (RFC 1123, section 2.1), underscores allowed as they are in use.
pub(crate) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |text: &str| text.parse::<MemorySize>().map(|size| size.0);
        assert_eq!(size("268435456"), Ok(1 << 28));
        assert_eq!(size("256M"), Ok(1 << 28));
        assert_eq!(size("256 MiB"), Ok(1 << 28));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("16384k"), Ok(1 << 24));
        assert_eq!(size("15M"), Err(ValueError::TooSmall));
        for bad in ["", "M", "1.5G", "-1M", "+1G", "12 parsecs", "99999999999G", "0x10M"] {
            assert!(matches!(size(bad), Err(ValueError::Size(_))), "{bad}");
        }
    }

    #[test]
    fn rates() {
        let rate = |text: &str| text.parse::<ByteRate>().map(|rate| rate.0.get());
        assert_eq!(rate("1"), Ok(1));
        assert_eq!(rate("500K"), Ok(500 << 10));
        assert_eq!(rate("10M/s"), Ok(10 << 20));
        for bad in ["", "0", "0M", "/s", "fast", "10M/h", "-1", "9999999999G"] {
            assert_eq!(rate(bad), Err(ValueError::Rate(bad.into())));
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }

    #[test]
    fn ranges() {
        let range = |text: &str| text.parse::<PortRange>().map(|range| range.0);
        assert_eq!(range("20000-29999"), Ok(20000..=29999));
        assert_eq!(range("53"), Ok(53..=53));
        assert_eq!(range("9-3"), Err(ValueError::Backwards("9-3".into())));
        for bad in ["", "-", "1-", "-5", "0-10", "1-65536", "+1-2", "1..2", "a-b", "1-2-3"] {
            assert!(matches!(range(bad), Err(ValueError::Port(_))), "{bad}");
        }
        assert_eq!("off".parse::<Switch<PortRange>>(), Ok(Switch::Off));
        assert_eq!("7".parse::<Switch<PortRange>>(), Ok(Switch::On(PortRange(7..=7))));
    }

    #[test]
    fn listening_addresses() {
        let listen = |text: &str| text.parse::<Listen>().map(|listen| listen.0.to_string());
        assert_eq!(listen("0.0.0.0:80").unwrap(), "0.0.0.0:80");
        assert_eq!(listen("[::1]:80").unwrap(), "[::1]:80");
        assert_eq!(listen("80").unwrap(), "[::]:80");
        assert_eq!(listen(":80").unwrap(), "[::]:80");
        assert!(matches!(listen("70000"), Err(ValueError::Port(_))));
        for bad in ["", "localhost:80", "1.2.3.4", ":", "::1"] {
            assert!(matches!(listen(bad), Err(ValueError::Listen(_))), "{bad}");
        }
    }

    #[test]
    fn an_operators_port_is_on_loopback() {
        let listen = |text: &str| text.parse::<LocalListen>().map(|listen| listen.0.to_string());
        for text in ["9090", ":9090", "127.0.0.1:9090"] {
            assert_eq!(listen(text).unwrap(), "127.0.0.1:9090", "{text}");
        }
        assert_eq!(listen("0.0.0.0:1").unwrap(), "0.0.0.0:1");
        assert_eq!(listen("[::]:1").unwrap(), "[::]:1");
        assert!(listen("localhost:1").is_err());
    }

    #[test]
    fn domains() {
        let domain = |text: &str| text.parse::<Domain>();
        assert_eq!(
            domain("Tunnel.Example.com."),
            Ok(Domain::Name("tunnel.example.com".into()))
        );
        assert_eq!(domain("192.0.2.1"), Ok(Domain::Address([192, 0, 2, 1].into())));
        assert_eq!(domain("[2001:db8::1]"), domain("2001:db8::1"));
        for bad in [
            "",
            ".",
            "https://example.com",
            "a b",
            "example.com:80",
            "-a.b",
            "*.example.com",
        ] {
            assert_eq!(domain(bad), Err(ValueError::Domain(bad.into())), "{bad}");
        }
    }
}
