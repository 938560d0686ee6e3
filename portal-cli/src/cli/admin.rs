//! What relay and agents have for operators, and what goes with the commands that ask them.

use std::net::SocketAddr;

use clap::Args;

use crate::values::LocalListen;

/// Where a running relay or agent can be asked over HTTP.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct AdminArgs {
    /// Where /metrics, /healthz, /readyz and /status are answered, for whoever can connect: there is no password, so it
    /// belongs on loopback (a port alone is there) or on a private address [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "PORTAL_ADMIN", hide_env_values = true)]
    pub(crate) admin: Option<LocalListen>,
}

impl AdminArgs {
    /// The address, if there is one.
    pub(crate) fn addr(self) -> Option<SocketAddr> {
        self.admin.map(|listen| listen.0)
    }
}
