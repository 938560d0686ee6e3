//! What there is to say about a plain WireGuard peer: keys of a `[[peer]]` table, some of them flags of `portal wg-conf`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use portal_core::identity::PublicKey;
use portal_core::{Kind, PlainLease};

use super::public_key;

/// A `[[peer]]` table of the relay's file: a peer with one lease. Several with one key are one peer with several.
#[derive(Args, Clone, Debug)]
pub(crate) struct PeerArgs {
    /// The peer's public key
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    pub(crate) key: PublicKey,
    /// A file with what `wg genpsk` made, if the peer has it as its PresharedKey
    #[arg(long, value_name = "FILE")]
    pub(crate) preshared_key: Option<PathBuf>,
    /// The peer's address and port, as in 203.0.113.7:51820, for the relay to call it [default: the peer calls]
    #[arg(long, value_name = "ADDR")]
    pub(crate) endpoint: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
}

/// What a plain peer serves.
#[derive(Args, Clone, Debug)]
pub(crate) struct LeaseArgs {
    /// The kind of service: http, tls, tcp or udp
    #[arg(long, env = "PORTAL_KIND", default_value_t = Kind::Http, hide_env = true)]
    pub(crate) kind: Kind,
    /// The public name, for http and tls
    #[arg(long, env = "PORTAL_NAME", hide_env = true)]
    pub(crate) name: Option<String>,
    /// The public port, for tcp and udp
    #[arg(long, env = "PORTAL_PORT", hide_env = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Where the service listens on the peer's overlay address [default: 80 for http, 443 for tls, else the public port]
    #[arg(long, value_name = "PORT", env = "PORTAL_TARGET_PORT", hide_env = true,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) target_port: Option<u16>,
    /// Begin each connection with a PROXY protocol v2 header, which names the visitor to the service
    #[arg(long, env = "PORTAL_PROXY_HEADER", value_parser = FalseyValueParser::new(), hide_env = true)]
    pub(crate) proxy_header: bool,
}

impl LeaseArgs {
    /// The lease as the relay takes it. Whether it can be is checked there.
    pub(crate) fn lease(&self) -> PlainLease {
        PlainLease {
            kind: self.kind,
            name: self.name.clone(),
            port: self.port,
            target_port: self.target_port(),
            proxy_header: self.proxy_header,
        }
    }

    /// Where the service listens.
    pub(crate) fn target_port(&self) -> u16 {
        self.target_port.or(self.port).unwrap_or(match self.kind {
            Kind::Tls => 443,
            _ => 80,
        })
    }
}
