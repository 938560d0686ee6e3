//! `portal wg-conf`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use portal_core::identity::PublicKey;
use portal_core::uri::RelayUri;

use super::{LeaseArgs, PacketArgs, public_key};

/// Shown below the help of `portal wg-conf`.
pub(super) const EXAMPLES: &str = "\
Examples:
  (umask 077; portal wg-conf --key wg.key --relay URI --name blog --target-port 8080 > portal.conf)
      the whole file, with the private key, for its owner only
  portal wg-conf \"$(wg pubkey < wg.key)\" --relay URI
      the same without the private key, to be filled in on the peer's own machine
  portal wg-conf KEY --relay-side --kind tcp --port 20022 --target-port 22 >> relay.toml
      the relay's half; send the relay a SIGHUP then";

/// `portal wg-conf`.
#[derive(Args, Debug)]
pub(crate) struct WgConfArgs {
    /// The peer's public key; its private key is then filled in by hand
    #[arg(value_name = "KEY", value_parser = public_key)]
    pub(crate) peer: Option<PublicKey>,
    /// The peer's key file, as `wg genkey` or `portal key new` made it: what is printed is then a secret
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTAL_KEY",
        hide_env_values = true,
        conflicts_with = "peer"
    )]
    pub(crate) key: Option<PathBuf>,
    /// The relay, as `portal relay` prints it
    #[arg(long, value_name = "URI", env = "PORTAL_RELAY", hide_env_values = true)]
    pub(crate) relay: Option<RelayUri>,
    /// A file with what `wg genpsk` made; the relay needs the same: what is printed is then a secret
    #[arg(long, value_name = "FILE", env = "PORTAL_PRESHARED_KEY", hide_env_values = true)]
    pub(crate) preshared_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) packets: PacketArgs,
    /// Print the `[[peer]]` table for the relay's file instead
    #[arg(long, env = "PORTAL_RELAY_SIDE", value_parser = FalseyValueParser::new(), hide_env = true)]
    pub(crate) relay_side: bool,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
}
