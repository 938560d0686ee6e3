//! What relay and agents have in common: their tunnel, what they may use, and who can ask them.

use std::net::SocketAddr;

use clap::Args;
use portal_core::Limits;

use crate::machine;
use crate::values::{LocalListen, MemorySize};

/// What can be set at both ends of a tunnel.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TunnelArgs {
    /// The most memory for connections and their buffers [default: a quarter of what the machine or
    /// the cgroup has, at most 256M]
    #[arg(long, value_name = "SIZE", env = "PORTAL_MEMORY", hide_env_values = true)]
    memory: Option<MemorySize>,
    #[command(flatten)]
    pub(crate) packets: PacketArgs,
    /// Where /metrics, /healthz, /readyz and /status are answered, for whoever can connect: there is no password, so it
    /// belongs on loopback (a port alone is there) or on a private address [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "PORTAL_ADMIN", hide_env_values = true)]
    admin: Option<LocalListen>,
}

/// What packets are like.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct PacketArgs {
    /// The largest packet inside the tunnel, 1280 to 1420
    #[arg(long, env = "PORTAL_MTU", default_value_t = portal_core::DEFAULT_MTU, hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(1280..=1420))]
    pub(crate) mtu: u16,
}

impl TunnelArgs {
    /// What may be used at most.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            memory: self.memory.map_or_else(machine::usual_memory, |memory| memory.0),
            ..Limits::default()
        }
    }

    /// Where operators are answered, if they are.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin.map(|listen| listen.0)
    }
}
