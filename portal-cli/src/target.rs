//! What `portal expose` is given: a port, an address, a socket, a file or a folder.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use portal_core::identity::{PublicKey, derived_name};
use portal_core::{Kind, Target};

use crate::failure::{Exit, Explain};
use crate::values;

/// A target, and as what visitors get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// As it was given.
    pub(crate) text: String,
    /// What visitors speak, unless they are to speak something else.
    pub(crate) kind: Kind,
    /// It is spoken to in TLS.
    pub(crate) tls: bool,
    /// Where it is.
    pub(crate) place: Place,
}

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A server, to be dialled.
    Server(Target),
    /// A file or a folder, to be served by this program.
    Files(PathBuf),
}

/// The host of a bare port.
const HERE: &str = "127.0.0.1";

/// The longest name for a service that a relay takes, in bytes.
const MAX_ID: usize = 128;

impl Offer {
    /// Reads a target. A bare number is a port, whatever files there are; what has a slash is a path.
    pub(crate) fn parse(given: &OsStr) -> Result<Self, TargetError> {
        let lossy = given.to_string_lossy();
        let offer = |kind, place| Self {
            text: lossy.clone().into_owned(),
            kind,
            tls: false,
            place,
        };
        let Some(text) = given.to_str() else {
            return existing(Path::new(given)).map(|path| offer(Kind::Http, Place::Files(path)));
        };
        if text.is_empty() {
            return Err(TargetError::Unknown(String::new()));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let (kind, target) = with_scheme(&scheme.to_ascii_lowercase(), rest)?;
            return Ok(Self {
                tls: kind == Kind::Https,
                ..offer(kind, Place::Server(target))
            });
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(offer(Kind::Http, Place::Server(unix(path)?)));
        }
        let path = Path::new(text);
        if text.contains('/') || text == "." || text == ".." {
            return existing(path).map(|path| offer(Kind::Http, Place::Files(path)));
        }
        let server = authority(text, None);
        match server {
            Ok(target) => Ok(offer(Kind::Http, Place::Server(target))),
            Err(_) if path.exists() => Ok(offer(Kind::Http, Place::Files(path.to_owned()))),
            Err(error @ TargetError::Port(_)) => Err(error),
            Err(_) => Err(TargetError::Unknown(text.to_owned())),
        }
    }

    /// The service's own name, from which its public name or port follows: the target as it was given, so that both
    /// stay the same from one start to the next. What is wished for tells services with one target apart.
    pub(crate) fn service_id(&self, wish: Option<&str>) -> String {
        let text = match wish {
            Some(wish) => format!("{}#{wish}", self.text),
            None => self.text.clone(),
        };
        if text.len() <= MAX_ID {
            return text;
        }
        // A digest of the text alone: any key would do, as long as it stays the same.
        let digest = derived_name(&PublicKey::from_bytes([0; 32]), &text);
        let end = text.floor_char_boundary(MAX_ID - digest.len() - 1);
        format!("{}~{digest}", &text[..end])
    }
}

/// A service's own name, as a person gives it.
pub(crate) fn service_id(text: &str) -> Result<String, IdError> {
    match text.len() {
        0 => Err(IdError::Empty),
        1..=MAX_ID if text.chars().any(char::is_control) => Err(IdError::Control),
        1..=MAX_ID => Ok(text.to_owned()),
        length => Err(IdError::Length(length)),
    }
}

/// Why a text is no name of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdError {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// It cannot be shown on one line.
    #[error("it has control characters")]
    Control,
    /// No relay takes it.
    #[error("it has {0} bytes, and may have {MAX_ID}")]
    Length(usize),
}

/// Why a text is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// No such scheme.
    #[error("{0}:// is not something that portal can expose")]
    Scheme(String),
    /// No such port.
    #[error("{0:?} is not a port: a port is a number from 1 to 65535")]
    Port(String),
    /// A host without a port.
    #[error("the port of {0:?} is missing")]
    MissingPort(String),
    /// No such host.
    #[error("{0:?} is neither a host name nor an address")]
    Host(String),
    /// An IPv6 address whose end nobody can tell.
    #[error("the IPv6 address {0} needs brackets in front of a port")]
    Brackets(String),
    /// Something behind the address.
    #[error("{0:?} is behind the address: a whole server is exposed, not one path of it")]
    Trailing(String),
    /// A socket without a path.
    #[error("the path of the socket is missing behind unix:")]
    UnixPath,
    /// No such path.
    #[error("there is no file or folder {}", .0.display())]
    NoFile(PathBuf),
    /// None of all that.
    #[error("{0:?} is neither a port, nor HOST:PORT, nor a file or folder here")]
    Unknown(String),
}

impl Explain for TargetError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Scheme(_) => {
                "use http://, https://, tcp://, udp:// or tls:// in front of HOST:PORT, or unix:PATH".into()
            }
            Self::Port(_) | Self::Host(_) => "write it like 3000, localhost:3000 or tcp://192.168.1.5:22".into(),
            Self::MissingPort(_) => "write HOST:PORT".into(),
            Self::Brackets(address) => format!("write [{address}]:PORT"),
            Self::Trailing(_) => "leave it out; visitors add their path to the public address".into(),
            Self::UnixPath => "write it like unix:/run/app.sock".into(),
            Self::NoFile(_) => "check the spelling, and the directory that it is relative to".into(),
            Self::Unknown(text) if values::is_host_name(text) => {
                format!("for a server write {text}:PORT; for a file or folder check the spelling")
            }
            Self::Unknown(_) => {
                "examples: portal expose 3000, portal expose ./site, portal expose tcp://host:22".into()
            }
        })
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoFile(_) => Exit::Failed,
            _ => Exit::Misuse,
        }
    }
}

fn with_scheme(scheme: &str, rest: &str) -> Result<(Kind, Target), TargetError> {
    let (kind, usual_port) = match scheme {
        "http" => (Kind::Http, Some(80)),
        "https" => (Kind::Https, Some(443)),
        "tls" => (Kind::Tls, Some(443)),
        "tcp" => (Kind::Tcp, None),
        "udp" => (Kind::Udp, None),
        "unix" => return Ok((Kind::Http, unix(rest)?)),
        _ => return Err(TargetError::Scheme(scheme.to_owned())),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (address, trailing) = rest.split_at(end);
    if !matches!(trailing, "" | "/") {
        return Err(TargetError::Trailing(trailing.to_owned()));
    }
    Ok((kind, authority(address, usual_port)?))
}

/// A port, a host and a port, or a host alone if its port is known.
fn authority(text: &str, usual_port: Option<u16>) -> Result<Target, TargetError> {
    let port = |text: &str| values::port(text).map_err(|_| TargetError::Port(text.to_owned()));
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(host(HERE, port(text)?));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(TargetError::Brackets(text.to_owned()));
    }
    let (name, port_text) = match text.strip_prefix('[') {
        Some(rest) => {
            let (literal, rest) = rest.split_once(']').ok_or_else(|| TargetError::Host(text.to_owned()))?;
            let address: Ipv6Addr = literal.parse().map_err(|_| TargetError::Host(text.to_owned()))?;
            let port_text = match rest.strip_prefix(':') {
                Some(port) => Some(port),
                None if rest.is_empty() => None,
                None => return Err(TargetError::Trailing(rest.to_owned())),
            };
            (address.to_string(), port_text)
        }
        None => match text.rsplit_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    if name.parse::<IpAddr>().is_err() && !name.is_empty() && !values::is_host_name(name.trim_end_matches('.')) {
        return Err(TargetError::Host(name));
    }
    let port = match (port_text, usual_port) {
        (Some(text), _) => port(text)?,
        (None, Some(usual)) if !name.is_empty() => usual,
        (None, _) => return Err(TargetError::MissingPort(text.to_owned())),
    };
    Ok(host(if name.is_empty() { HERE } else { &name }, port))
}

fn host(host: &str, port: u16) -> Target {
    Target::Host {
        host: host.to_owned(),
        port,
    }
}

fn unix(path: &str) -> Result<Target, TargetError> {
    if path.is_empty() {
        return Err(TargetError::UnixPath);
    }
    Ok(Target::Unix(path.into()))
}

fn existing(path: &Path) -> Result<PathBuf, TargetError> {
    // What cannot be looked at, for want of permission, is for whoever opens it to explain.
    match path.try_exists() {
        Ok(false) => Err(TargetError::NoFile(path.to_owned())),
        Ok(true) | Err(_) => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<(Kind, String), TargetError> {
        let offer = Offer::parse(OsStr::new(text))?;
        assert_eq!(offer.text, text);
        Ok(match offer.place {
            Place::Server(target) => (offer.kind, target.to_string()),
            Place::Files(path) => (offer.kind, format!("files {}", path.display())),
        })
    }

    #[test]
    fn servers() {
        for (text, kind, target) in [
            ("3000", Kind::Http, "127.0.0.1:3000"),
            (":3000", Kind::Http, "127.0.0.1:3000"),
            ("localhost:3000", Kind::Http, "localhost:3000"),
            ("[::1]:3000", Kind::Http, "[::1]:3000"),
            ("http://10.0.0.5:8000", Kind::Http, "10.0.0.5:8000"),
            ("http://10.0.0.5:8000/", Kind::Http, "10.0.0.5:8000"),
            ("HTTP://box", Kind::Http, "box:80"),
            ("http://[::1]", Kind::Http, "[::1]:80"),
            ("https://box", Kind::Https, "box:443"),
            ("https://box:8443/", Kind::Https, "box:8443"),
            ("tls://box", Kind::Tls, "box:443"),
            ("tls://127.0.0.1:8443", Kind::Tls, "127.0.0.1:8443"),
            ("tcp://5432", Kind::Tcp, "127.0.0.1:5432"),
            ("tcp://db.internal:5432", Kind::Tcp, "db.internal:5432"),
            ("udp://127.0.0.1:53", Kind::Udp, "127.0.0.1:53"),
            ("unix:/run/app.sock", Kind::Http, "unix:/run/app.sock"),
            ("unix:///run/app.sock", Kind::Http, "unix:/run/app.sock"),
        ] {
            assert_eq!(parse(text), Ok((kind, target.to_owned())), "{text}");
        }
    }

    #[test]
    fn refusals_say_what_to_write() {
        use TargetError as E;
        for (text, error) in [
            ("", E::Unknown("".into())),
            ("localhost", E::Unknown("localhost".into())),
            ("no such thing", E::Unknown("no such thing".into())),
            ("0", E::Port("0".into())),
            ("70000", E::Port("70000".into())),
            ("localhost:99999", E::Port("99999".into())),
            ("./no-such-folder", E::NoFile("./no-such-folder".into())),
            ("ftp://box", E::Scheme("ftp".into())),
            ("tcp://box", E::MissingPort("box".into())),
            ("tcp://", E::MissingPort("".into())),
            ("tcp://::1", E::Brackets("::1".into())),
            ("http://box/admin", E::Trailing("/admin".into())),
            ("http://a b:80", E::Host("a b".into())),
            ("http://user@box:80", E::Host("user@box".into())),
            ("unix:", E::UnixPath),
        ] {
            assert_eq!(parse(text), Err(error.clone()), "{text}");
            assert!(error.help().is_some_and(|help| !help.is_empty()));
            let is_missing = matches!(error, E::NoFile(_));
            assert_eq!(error.exit(), if is_missing { Exit::Failed } else { Exit::Misuse });
        }
    }

    #[test]
    fn files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(parse(path), Ok((Kind::Http, format!("files {path}"))));
        assert_eq!(parse("."), Ok((Kind::Http, "files .".into())));
        // In this crate's directory.
        assert_eq!(parse("src"), Ok((Kind::Http, "files src".into())));
        assert_eq!(parse("Cargo.toml"), Ok((Kind::Http, "files Cargo.toml".into())));
    }

    #[test]
    fn the_service_id_is_the_text_unless_that_is_too_long() {
        let offer = |text: String| Offer {
            text,
            kind: Kind::Http,
            tls: false,
            place: Place::Files(".".into()),
        };
        assert_eq!(offer("3000".into()).service_id(None), "3000");
        assert_eq!(offer("3000".into()).service_id(Some("blog")), "3000#blog");
        let (one, other) = (offer("ä".repeat(100) + "1"), offer("ä".repeat(100) + "2"));
        assert!(one.service_id(None).len() <= MAX_ID);
        assert_ne!(one.service_id(None), other.service_id(None));
        assert_eq!(one.service_id(None), one.service_id(None));
    }

    #[test]
    fn ids_of_people() {
        assert_eq!(service_id("my blog"), Ok("my blog".into()));
        assert_eq!(service_id(""), Err(IdError::Empty));
        assert_eq!(service_id("a\nb"), Err(IdError::Control));
        assert_eq!(service_id(&"x".repeat(129)), Err(IdError::Length(129)));
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in ".{0,40}", rest in "[a:@\\[\\]./0-9]{0,12}") {
            let _ = Offer::parse(OsStr::new(&text));
            for scheme in ["http", "https", "tcp", "tls", "udp", "unix"] {
                let _ = Offer::parse(OsStr::new(&format!("{scheme}://{rest}")));
            }
        }
    }
}
