//! `portal status` and `portal health`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

use crate::values::LocalListen;

/// Shown below the help of `portal status`.
pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  portal status                      the relay and the agents that run here
  portal status --watch              the same every 2 s, with rates
  portal status --json | jq .leases  one object a line for each
  sudo portal status --state-dir /var/lib/portal";

/// Shown below the help of `portal health`.
pub(super) const HEALTH_EXAMPLES: &str = "\
Examples:
  portal health                      by the socket of what runs here
  portal health --admin 127.0.0.1:9090
  HEALTHCHECK CMD [\"portal\", \"health\"]   in a Dockerfile";

/// Where running portals are looked for.
#[derive(Args, Clone, Debug)]
pub(crate) struct PlaceArgs {
    /// Look in this directory alone: a relay's state directory, or one that holds the keys of agents [default: the usual
    /// ones of the system and of this user]
    #[arg(long, value_name = "DIR", env = "PORTAL_STATE_DIR", hide_env_values = true)]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `portal status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Go on showing it, with rates, until interrupted
    #[arg(long, env = "PORTAL_WATCH", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) watch: bool,
    /// Seconds between two looks of --watch
    #[arg(long, value_name = "SECONDS", env = "PORTAL_EVERY", default_value_t = 2, hide_env_values = true,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) every: u64,
}

/// `portal health`.
#[derive(Args, Debug)]
pub(crate) struct HealthArgs {
    /// Ask at this --admin address of a relay or an agent, rather than by its socket
    #[arg(long, value_name = "ADDR", env = "PORTAL_ADMIN", hide_env_values = true)]
    pub(crate) admin: Option<LocalListen>,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}
