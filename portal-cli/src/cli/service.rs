//! What there is to say about one service: flags of `portal expose`, keys of a `[[service]]` table.

use std::ffi::OsString;

use clap::Args;
use clap::builder::FalseyValueParser;

use crate::target::service_id;

/// One service.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServiceArgs {
    /// What to expose: PORT, HOST:PORT, a file or a folder, tcp://, udp://, tls://, http://, unix:PATH
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
    /// Serve names that start with a dot as well
    #[arg(long, env = "PORTAL_HIDDEN", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) hidden: bool,
}
