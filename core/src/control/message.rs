//! The control channel's messages, version 1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The protocol version spoken here.
pub(crate) const VERSION: u32 = 1;

/// The port inside the tunnel on which a relay takes control channels.
pub(crate) const PORT: u16 = 1;

/// What a service is, and so how its visitors are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// Plain HTTP, by the Host header.
    Http,
    /// TLS that the agent ends, by the server name; the local target gets plain bytes.
    Https,
    /// TLS that the local target ends itself, by the server name.
    Tls,
    /// A TCP port of its own.
    Tcp,
    /// A UDP port of its own.
    Udp,
}

/// A text that names no [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind \"{0}\": use http, https, tls, tcp or udp")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            "tls" => Ok(Self::Tls),
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(UnknownKind(other.to_owned())),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Why a relay refuses a key or a service, as a word that programs can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalCode {
    /// The key has no grant on this relay.
    NotGranted,
    /// The key's grant does not cover the name, port or kind.
    NotAllowed,
    /// The name belongs to another key.
    NameTaken,
    /// The name is no DNS label.
    NameInvalid,
    /// The port is in use.
    PortBusy,
    /// The port is outside the relay's range.
    PortOutOfRange,
    /// The relay does not serve this kind.
    KindUnavailable,
    /// The relay, or the key, has as many as it may have.
    LimitReached,
    /// The two ends speak no common version.
    Version,
    /// A message that the relay does not know.
    Unsupported,
    /// A code from a later version.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// Whether the same request may be granted later without the agent changing anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NotGranted | Self::NotAllowed | Self::PortBusy | Self::LimitReached | Self::NameTaken
        )
    }
}

/// Agent to relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToRelay {
    /// Opens the channel. An equal `instance` says that this is the same agent process as before, whose flows still live.
    Hello {
        version: u32,
        #[serde(default)]
        agent: String,
        #[serde(default)]
        caps: Vec<String>,
        #[serde(default)]
        instance: u64,
    },
    /// Asks for a lease.
    Register {
        id: String,
        kind: Kind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// Gives a lease back.
    Unregister { lease: u64 },
    /// The agent ends.
    Goaway {
        #[serde(default)]
        reason: String,
    },
    /// A type from a later version.
    #[serde(other)]
    Unknown,
}

/// Relay to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToAgent {
    /// Answers a hello. Another `instance` than before says that the relay has forgotten all flows.
    Welcome {
        version: u32,
        #[serde(default)]
        relay: String,
        #[serde(default)]
        domain: String,
        #[serde(default)]
        caps: Vec<String>,
        /// How long leases live while nothing is heard on the channel.
        ttl_s: u32,
        #[serde(default)]
        instance: u64,
    },
    /// The service `id` can be reached at `public`; its flows come to `service_port`.
    Granted {
        id: String,
        lease: u64,
        public: String,
        service_port: u16,
    },
    /// The service `id` gets no lease.
    Refused {
        id: String,
        code: RefusalCode,
        message: String,
    },
    /// A lease has ended.
    Revoked {
        lease: u64,
        code: RefusalCode,
        message: String,
    },
    /// The relay ends the channel. With a code: the whole key is refused.
    Goaway {
        #[serde(default)]
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<RefusalCode>,
    },
    /// The relay did not understand a message.
    Error { code: RefusalCode, message: String },
    /// A type from a later version.
    #[serde(other)]
    Unknown,
}
