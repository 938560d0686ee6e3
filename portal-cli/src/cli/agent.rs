//! `portal agent`, and what it has in common with `portal expose`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use portal_core::uri::RelayUri;

use super::{CheckArgs, TunnelArgs};

/// Shown below the help of `portal agent`.
pub(super) const EXAMPLES: &str = "\
The file:
  relay = \"portal://KEY@relay.example.com:51820\"
  key = \"/etc/portal/agent.key\"

  [[service]]
  target = \"3000\"
  name = \"blog\"

  [[service]]
  target = \"tcp://localhost:22\"

Every flag can stand in it by its long name; a flag or a PORTAL_ variable that is given goes
before it. A [[service]] has the keys that `portal expose` has for its target, and `id`, which
tells services with one target apart.";

/// `portal agent`.
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// The file that names the services, and what else there is to set
    #[arg(long, value_name = "FILE", env = "PORTAL_CONFIG", hide_env_values = true)]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) uplink: UplinkArgs,
    /// What the agent calls itself to the relay, for people
    #[arg(long, env = "PORTAL_NAME", hide_env_values = true)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
}

/// The way to the relay.
#[derive(Args, Clone, Debug)]
pub(crate) struct UplinkArgs {
    /// The relay, as `portal relay` prints it; without one, `portal expose` starts its own on this machine
    #[arg(long, value_name = "URI", env = "PORTAL_RELAY", hide_env_values = true)]
    pub(crate) relay: Option<RelayUri>,
    /// The agent's key, made on first use [default: agent.key in ~/.local/state/portal]
    #[arg(long, value_name = "FILE", env = "PORTAL_KEY", hide_env_values = true)]
    pub(crate) key: Option<PathBuf>,
    /// Fail instead of trying again if the relay does not answer or refuses
    #[arg(long, env = "PORTAL_ONCE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) tunnel: TunnelArgs,
}
