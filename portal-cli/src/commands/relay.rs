//! `portal relay`: the public end, with what it remembers.

mod check;
mod keep;
mod peers;
mod reload;
mod serve;

use std::net::SocketAddr;

use portal_core::uri::RelayUri;
use portal_core::{Access, RelayConfig};

use crate::cli::{AccessMode, Output, RelayArgs};
use crate::config::Given;
use crate::failure::{Exit, Explain, Failure};
use crate::report::Console;
use crate::state::StateDir;
use crate::values::{Domain, Listen, Switch};
use crate::{keyfile, process, sockets};

/// The usual ports.
const UDP: u16 = 51_820;
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Runs the command until it is told to end.
pub(crate) fn run(args: RelayArgs, given: &Given, output: Output) -> Result<(), Failure> {
    let domain = args.domain.clone().ok_or(RelayError::NoDomain)?;
    let state = StateDir::locate(args.state.state_dir.as_deref())?;
    if args.check.check {
        return check::check(&args, &state, given, output);
    }
    let addresses = Addresses::of(&args, &domain);
    state.make()?;
    let _lock = state.lock()?;
    let book = state.book()?;
    let access = access(args.access, &state)?;
    let key_file = args.key.unwrap_or_else(|| state.file("relay.key"));
    let (secret, made) = keyfile::load_or_create(&key_file)?;

    let udp = sockets::usable(addresses.udp);
    let socket = sockets::bind_udp(udp)?;
    let udp = socket.local_addr().map_err(RelayError::Runtime)?;
    let host = domain.to_string();
    let tcp = |addr| sockets::with_port(sockets::usable(addr));
    let key = secret.public_key();
    let public_host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let mut config = RelayConfig::new(secret, keyfile::random()?, public_host);
    config.http = addresses.http.map(tcp);
    config.https = addresses.https.map(tcp);
    config.admin = args.tunnel.admin();
    config.ports = args.ports.on().map(|range| range.0);
    config.ports_ip = udp.ip();
    config.access = access;
    config.bindings = book.bindings();
    config.recent = book.recent();
    config.mtu = args.tunnel.packets.mtu;
    config.limits = args.tunnel.limits();
    peers::add(&mut config, given)?;
    let uri_host = args.uri_host.map_or(host, |host| host.to_string());
    let uri = RelayUri {
        key,
        host: uri_host,
        port: udp.port(),
    };

    process::raise_descriptor_limit();
    let console = Console::new(output);
    if made {
        console.note(format!("a new key was made: {}", key_file.display()));
    }
    if args.access == AccessMode::Open {
        console.note("everybody is served: --access open");
    }
    let setup = serve::Setup {
        config,
        socket,
        uri,
        state,
        book,
        mode: args.access,
        given,
    };
    let result = setup.serve(&console);
    console.finish();
    result
}

/// Where a relay is to listen, before the machine is asked.
struct Addresses {
    udp: SocketAddr,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
}

impl Addresses {
    fn of(args: &RelayArgs, domain: &Domain) -> Self {
        let any = |port: u16| -> SocketAddr { (std::net::Ipv6Addr::UNSPECIFIED, port).into() };
        // Names cannot be given out below an address: without a domain only ports are served, unless asked for otherwise.
        let ingress = |given: &Option<Switch<Listen>>, port: u16| match given {
            Some(switch) => switch.clone().on().map(|listen| listen.0),
            None => matches!(domain, Domain::Name(_)).then(|| any(port)),
        };
        Self {
            udp: args.udp.map_or_else(|| any(UDP), |listen| listen.0),
            http: ingress(&args.http, HTTP),
            https: ingress(&args.https, HTTPS),
        }
    }
}

fn access(mode: AccessMode, state: &StateDir) -> Result<Access, Failure> {
    Ok(match mode {
        AccessMode::Open => Access::Open,
        AccessMode::Granted => Access::Granted(state.grants()?),
    })
}

/// Why a relay cannot run.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the relay's domain is missing")]
    NoDomain,
    #[error("preparing the tunnel's socket: {0}")]
    Runtime(std::io::Error),
}

impl Explain for RelayError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoDomain => Some(
                "name it with --domain, as in: portal relay --domain tunnel.example.com\nwithout a domain, give this \
                 machine's public address: then TCP and UDP ports are served"
                    .into(),
            ),
            Self::Runtime(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoDomain => Exit::Misuse,
            Self::Runtime(_) => Exit::Failed,
        }
    }
}
