//! What there is to say about one service: flags of `portal expose`, keys of a `[[service]]` table.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use portal_core::Kind;

use crate::target::service_id;

/// One service.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServiceArgs {
    /// What to expose: PORT, HOST:PORT, a file or a folder, http://, https://, tcp://, udp://, tls://, unix:PATH
    #[arg(env = "PORTAL_TARGET", hide_env = true)]
    pub(crate) target: OsString,
    /// The public name to ask for [default: one that follows from the key and the target]
    #[arg(long, env = "PORTAL_NAME", hide_env_values = true)]
    pub(crate) name: Option<String>,
    /// The public port to ask for, for tcp:// and udp:// [default: one that follows from the key and the target]
    #[arg(long, env = "PORTAL_PORT", hide_env_values = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// The agent's own name for the service, in place of the target: the public name follows from it
    #[arg(long, env = "PORTAL_ID", hide_env_values = true, value_parser = service_id)]
    pub(crate) id: Option<String>,
    /// What visitors speak: http, https, tls, tcp or udp [default: what the target is]
    #[arg(long, env = "PORTAL_KIND", hide_env_values = true)]
    pub(crate) kind: Option<Kind>,
    /// The certificate for https visitors, with those that lead to its root, as PEM [default: one of a development authority
    /// on this machine]
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTAL_CERT",
        hide_env_values = true,
        requires = "cert_key"
    )]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of that certificate, as PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTAL_CERT_KEY",
        hide_env_values = true,
        requires = "cert"
    )]
    pub(crate) cert_key: Option<PathBuf>,
    /// Let https visitors speak HTTP/2: the target takes it without TLS
    #[arg(long, env = "PORTAL_HTTP2", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) http2: bool,
    /// Tell the target who the visitor is, by a PROXY protocol v2 header in front of each connection
    #[arg(long, env = "PORTAL_PROXY", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) proxy: bool,
    /// The root certificates that an https:// target may show one of, as PEM [default: the system's; none are asked of
    /// targets on this machine]
    #[arg(long, value_name = "FILE", env = "PORTAL_TARGET_CA", hide_env_values = true)]
    pub(crate) target_ca: Option<PathBuf>,
    /// Believe an https:// target whatever certificate it shows
    #[arg(long, env = "PORTAL_TARGET_INSECURE", value_parser = FalseyValueParser::new(), hide_env_values = true,
        conflicts_with = "target_ca")]
    pub(crate) target_insecure: bool,
    /// Serve names that start with a dot as well
    #[arg(long, env = "PORTAL_HIDDEN", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) hidden: bool,
}
