//! The command line.

mod agent;
mod completions;
mod peer;
mod service;
mod status;
mod tunnel;
mod wg_conf;

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use portal_core::Kind;
use portal_core::identity::{KeyError, PublicKey};
use portal_core::names::LabelPattern;

pub(crate) use self::agent::{AgentArgs, UplinkArgs};
pub(crate) use self::completions::CompletionsArgs;
pub(crate) use self::peer::{LeaseArgs, PeerArgs};
pub(crate) use self::service::ServiceArgs;
pub(crate) use self::status::{HealthArgs, StatusArgs};
pub(crate) use self::tunnel::{PacketArgs, TunnelArgs};
pub(crate) use self::wg_conf::WgConfArgs;
use crate::runtime::VERSION;
use crate::values::{ByteRate, Domain, Listen, PortRange, Switch};

/// Puts a service that runs behind a NAT on a public address.
///
/// A relay on a machine with a public address and an agent next to the service keep one WireGuard tunnel between them,
/// in user space: no root, no kernel module.
#[derive(Debug, Parser)]
#[command(name = "portal", version = VERSION, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  portal expose 3000                    try it: http://<name>.localhost:8080/, with a relay of its own
  portal relay --domain t.example.com   on the public machine; prints the relay's URI
  portal expose 3000 --relay URI        on yours; prints its key and waits for a grant
  portal grant KEY                      on the public machine; the service is up

Every flag can be given as an environment variable: --relay as PORTAL_RELAY; those of relay and
agent also in the file that --config names. PORTAL_LOG=debug shows more.";

/// What is printed, and how.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Print results as one JSON object a line
    #[arg(long, global = true, env = "PORTAL_JSON", value_parser = FalseyValueParser::new(), hide_env = true)]
    pub(crate) json: bool,
    /// Say nothing but results and problems
    #[arg(long, short, global = true, env = "PORTAL_QUIET", value_parser = FalseyValueParser::new(), hide_env = true)]
    pub(crate) quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put a local service, a file or a folder on a public address
    #[command(after_help = EXPOSE_EXAMPLES)]
    Expose(ExposeArgs),
    /// Run an agent with the services that a file names
    #[command(after_help = agent::EXAMPLES)]
    Agent(AgentArgs),
    /// Run a relay: the public end
    #[command(after_help = RELAY_EXAMPLES)]
    Relay(RelayArgs),
    /// Make and show keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// On the relay: serve a key, at once and from now on
    ///
    /// Without further flags the key may lease everything. A later grant of the same key replaces the earlier one.
    #[command(after_help = GRANT_EXAMPLES)]
    Grant(GrantArgs),
    /// On the relay: serve a key no longer; its connections end
    Revoke(RevokeArgs),
    /// Show how the relay and the agents are that run here
    #[command(after_help = status::STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Tell by the exit code whether visitors can be served: 0 if so, 1 if not
    #[command(after_help = status::HEALTH_EXAMPLES)]
    Health(HealthArgs),
    /// Print the wg-quick file for a plain WireGuard peer in an agent's place
    ///
    /// The kernel, wireguard-go or a phone can serve visitors without a portal of its own: its service listens on its
    /// overlay address. The relay's file names the peer in a `[[peer]]` table.
    #[command(after_help = wg_conf::EXAMPLES)]
    WgConf(WgConfArgs),
    /// Print what a shell needs to complete portal's commands and flags
    #[command(after_help = completions::EXAMPLES)]
    Completions(CompletionsArgs),
}

const EXPOSE_EXAMPLES: &str = "\
Targets:
  3000, localhost:3000, http://host:3000   a web server, found by its name: http://<name>.<domain>/
  ./site, report.pdf                       a folder or a file, served by portal itself
  unix:/run/app.sock                       a web server on a Unix socket
  https://host:8443                        a web server that speaks TLS; visitors see this agent's certificate
  tls://host:8443                          a TLS server; its own certificate is what visitors see
  tcp://host:22, udp://host:53             anything else, on a port of the relay

Output:
  The public address goes to stdout. On a terminal a QR code of it follows, if it fits (not with
  --no-qr, NO_COLOR, or for tcp and udp). Each connection that has ended is a line on stderr: the
  visitor's address, and bytes received and sent. --quiet leaves out both. --json makes lines on
  stdout: {\"event\":\"granted\",\"public\":...} and, without --quiet, {\"event\":\"connection\",
  \"service\":...,\"visitor\":...,\"received\":...,\"sent\":...,\"finished\":...}.

Examples:
  portal expose 3000
  portal expose 3000 --kind https
  portal expose 3000 --relay portal://KEY@relay.example.com:51820 --name blog
  PORTAL_RELAY=portal://... portal expose tcp://localhost:22";

const RELAY_EXAMPLES: &str = "\
Examples:
  portal relay --domain t.example.com
      with DNS records for t.example.com and *.t.example.com that lead here
  portal relay --domain 203.0.113.5 --ports 20000-20999
      without a domain: TCP and UDP ports only
  portal relay --domain t.example.com --http 127.0.0.1:8080 --https off
      behind a web server that passes *.t.example.com on
  portal relay --config /etc/portal/relay.toml
      with lines like: domain = \"t.example.com\"; flags by their long names";

const GRANT_EXAMPLES: &str = "\
Examples:
  portal grant KEY                             everything
  portal grant KEY --name blog --name 'blog-*' the names blog, blog-1, blog-new, ...
  portal grant KEY --kind tcp --port 20000-20009
  portal grant KEY --flows 100 --rate 10M      at most 100 connections, and 10 MiB a second";

/// `portal expose`.
#[derive(Args, Debug)]
pub(crate) struct ExposeArgs {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    #[command(flatten)]
    pub(crate) uplink: UplinkArgs,
    /// Where the relay of its own takes visitors [default: 127.0.0.1:8080, or the next free port]
    #[arg(long, value_name = "ADDR", env = "PORTAL_HTTP", hide_env_values = true)]
    pub(crate) http: Option<Listen>,
    /// Show no QR code of the address
    #[arg(long, env = "PORTAL_NO_QR", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) no_qr: bool,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
}

/// Whether a command only looks at what it was given.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CheckArgs {
    /// Check flags, variables, files and keys, say what would be run, and end
    #[arg(long, env = "PORTAL_CHECK", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) check: bool,
}

/// `portal relay`.
#[derive(Args, Debug)]
pub(crate) struct RelayArgs {
    /// A file that sets what is not set by flags or variables
    #[arg(long, value_name = "FILE", env = "PORTAL_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// The domain under which names are given out, or the address of this machine if only ports are
    #[arg(long, env = "PORTAL_DOMAIN", hide_env_values = true)]
    pub(crate) domain: Option<Domain>,
    /// Where agents come in, by UDP; its address is also where leased ports are opened [default: port 51820 of every address]
    #[arg(long, value_name = "ADDR", env = "PORTAL_UDP", hide_env_values = true)]
    pub(crate) udp: Option<Listen>,
    /// Where HTTP visitors come in, or off [default: port 80 of every address]
    #[arg(long, value_name = "ADDR", env = "PORTAL_HTTP", hide_env_values = true)]
    pub(crate) http: Option<Switch<Listen>>,
    /// Where TLS visitors come in, or off [default: port 443 of every address]
    #[arg(long, value_name = "ADDR", env = "PORTAL_HTTPS", hide_env_values = true)]
    pub(crate) https: Option<Switch<Listen>>,
    /// The ports for tcp and udp services, or off
    #[arg(
        long,
        value_name = "A-B",
        env = "PORTAL_PORTS",
        default_value = "20000-29999",
        hide_env_values = true
    )]
    pub(crate) ports: Switch<PortRange>,
    /// The relay's key, made on first use [default: relay.key in the state directory]
    #[arg(long, value_name = "FILE", env = "PORTAL_KEY", hide_env_values = true)]
    pub(crate) key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Who is served: keys with a grant, or everybody
    #[arg(long, env = "PORTAL_ACCESS", value_enum, default_value_t = AccessMode::Granted, hide_env_values = true)]
    pub(crate) access: AccessMode,
    /// The host in the printed URI, if agents reach the relay by another name than its domain
    #[arg(long, value_name = "HOST", env = "PORTAL_URI_HOST", hide_env_values = true)]
    pub(crate) uri_host: Option<Domain>,
    #[command(flatten)]
    pub(crate) tunnel: TunnelArgs,
    #[command(flatten)]
    pub(crate) check: CheckArgs,
}

/// Who is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessMode {
    /// Everybody
    Open,
    /// Keys with a grant
    Granted,
}

/// Where a relay keeps its state.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// The relay's state directory [default: /var/lib/portal, or ~/.local/state/portal/relay where that is not writable]
    #[arg(long, value_name = "DIR", env = "PORTAL_STATE_DIR", hide_env_values = true)]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `portal key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key file and print its public key
    New {
        /// The file to make; never overwritten
        file: PathBuf,
    },
    /// Print the public key of a key file
    Show {
        /// A file made by `portal key new` or `wg genkey`
        file: PathBuf,
    },
}

/// `portal grant`.
#[derive(Args, Debug)]
pub(crate) struct GrantArgs {
    /// The agent's public key, as the agent and the relay's log show it
    #[arg(value_parser = public_key)]
    pub(crate) key: PublicKey,
    /// A name that it may ask for; * stands for any characters [default: every name]
    #[arg(
        long = "name",
        value_name = "PATTERN",
        env = "PORTAL_NAME",
        value_delimiter = ',',
        hide_env = true
    )]
    pub(crate) names: Vec<LabelPattern>,
    /// Ports that it may ask for [default: every port]
    #[arg(
        long = "port",
        value_name = "RANGE",
        env = "PORTAL_PORT",
        value_delimiter = ',',
        hide_env = true
    )]
    pub(crate) ports: Vec<PortRange>,
    /// A kind of service that it may offer: http, https, tls, tcp or udp [default: every kind]
    #[arg(long = "kind", env = "PORTAL_KIND", value_delimiter = ',', hide_env = true)]
    pub(crate) kinds: Vec<Kind>,
    /// The most connections at a time, over all its leases [default: no bound]
    #[arg(long, value_name = "N", env = "PORTAL_FLOWS", hide_env = true)]
    pub(crate) flows: Option<NonZeroU32>,
    /// The most bytes a second, both directions together, over all its leases, like 500K or 10M [default: no bound]
    #[arg(long, value_name = "SIZE", env = "PORTAL_RATE", hide_env = true)]
    pub(crate) rate: Option<ByteRate>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// `portal revoke`.
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    /// The agent's public key
    #[arg(value_parser = public_key)]
    pub(crate) key: PublicKey,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// In the form of `wg`, or as it stands in a URI.
fn public_key(text: &str) -> Result<PublicKey, KeyError> {
    match text.parse() {
        Err(KeyError::Length { found: 43, .. }) => PublicKey::from_url_safe(text),
        parsed => parsed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// A flag that a container cannot set is a flag that a container cannot use.
    #[test]
    fn every_flag_has_its_variable() {
        let command = Cli::command();
        let commands = command.get_subcommands().flat_map(|command| {
            let below: Vec<_> = command.get_subcommands().collect();
            if below.is_empty() { vec![command] } else { below }
        });
        for command in commands {
            for flag in command.get_opts() {
                let long = flag.get_long().expect("every flag has a long form");
                let expected = format!("PORTAL_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(
                    flag.get_env().and_then(|env| env.to_str()),
                    Some(expected.as_str()),
                    "--{long} of {}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn keys_in_both_forms() {
        let key = PublicKey::from_bytes([0xfb; 32]);
        assert_eq!(public_key(&key.to_string()), Ok(key));
        assert_eq!(public_key(&key.url_safe()), Ok(key));
        assert!(public_key("abc").is_err());
    }
}
