//! `portal expose`: an agent with one service.

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portal_core::identity::SecretKey;
use portal_core::uri::RelayUri;
use portal_core::{Agent, AgentConfig, Kind, Limits, Service, Target};
use portal_runtime_tokio::{Driver, Handlers};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::{ExposeArgs, Output};
use crate::embedded::Embedded;
use crate::failure::{Exit, Explain, Failure};
use crate::folder::{Folder, FolderError};
use crate::keyfile::{self, KeyFileError};
use crate::process::{self, Signals};
use crate::report::Console;
use crate::report::agent::{AgentReport, Hopeless, Verdict};
use crate::target::{Offer, Place};
use crate::{sockets, state};

/// How the agent names the folder server to its runtime.
const FOLDER: &str = "folder";
/// How long the look at the target at the start may take.
const PROBE: Duration = Duration::from_secs(2);
/// Agents that one user can run on one machine without naming a key for each.
const MAX_AGENTS: u32 = 64;

/// Runs the command until it is told to end.
pub(crate) fn run(args: ExposeArgs, output: Output) -> Result<(), Failure> {
    let offer = Offer::parse(&args.target)?;
    check(&args, &offer)?;
    let (target, handlers) = match &offer.place {
        Place::Server(target) => (target.clone(), Handlers::new()),
        Place::Files(path) => {
            let folder = Folder::open(path, args.hidden)?;
            let handlers = Handlers::new().with(FOLDER, move |connection: UnixStream| {
                let folder = folder.clone();
                tokio::spawn(async move { folder.serve(connection).await });
            });
            (Target::Handler(FOLDER.into()), handlers)
        }
    };
    process::raise_descriptor_limit();
    let AgentKey {
        secret,
        made,
        _reserved,
    } = agent_key(args.key, args.relay.is_some())?;
    let mut limits = Limits {
        peers: 8,
        ..Limits::default()
    };
    if let Some(memory) = args.memory {
        limits.memory = memory.0;
    }
    let (relay, embedded) = match args.relay {
        Some(uri) => (uri, None),
        None => {
            let http = args.http.map(|listen| listen.0);
            let embedded = Embedded::start(offer.kind, http, Limits { peers: 64, ..limits })?;
            (embedded.uri.clone(), Some(embedded))
        }
    };
    let key = secret.public_key();
    let mut config = AgentConfig::new(secret, keyfile::random()?, relay.clone());
    config.name = concat!("portal ", env!("CARGO_PKG_VERSION")).into();
    config.limits = limits;
    config.mtu = args.mtu;
    config.services.push(Service {
        name: args.name,
        port: args.port,
        ..Service::new(offer.service_id(&key), offer.kind, target.clone())
    });
    let bind = if embedded.is_some() {
        IpAddr::from([127, 0, 0, 1])
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = sockets::bind_udp(SocketAddr::new(bind, 0))?;

    let console = Console::new(output);
    let report = AgentReport::new(offer.text.clone(), relay.clone(), key, args.once);
    let runtime = process::runtime()?;
    if let Some(path) = made {
        console.note(format!("a new key was made: {}", path.display()));
    }
    let result = runtime.block_on(async {
        if embedded.is_none() {
            console.note(format!(
                "exposing {} by relay {}, with the key {key}",
                offer.text,
                place(&relay)
            ));
        }
        if offer.kind != Kind::Udp {
            tokio::spawn(probe(target, console.clone()));
        }
        serve(config, socket, handlers, report, &console).await
    });
    process::end(runtime);
    drop(embedded);
    console.finish();
    result
}

/// Drives the agent until a signal, or until its relay makes it hopeless.
async fn serve(
    config: AgentConfig,
    socket: std::net::UdpSocket,
    handlers: Handlers,
    mut report: AgentReport,
    console: &Console,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let agent = Agent::new(Instant::now(), config);
    let (driver, handle, mut events) =
        Driver::new(agent, socket, process::settings(), handlers).map_err(ExposeError::Runtime)?;
    let running = driver.run();
    tokio::pin!(running);
    let mut hopeless: Option<Hopeless> = None;
    loop {
        tokio::select! {
            _ = &mut running => break,
            Some(event) = events.recv() => {
                match report.take(Instant::now(), event, &mut |say| console.say(say)) {
                    Verdict::GoOn => {}
                    Verdict::End(reason) => {
                        hopeless = Some(reason);
                        handle.shutdown();
                        handle.shutdown();
                    }
                }
            }
            () = signals.recv() => {
                console.note("ending; a second signal ends at once");
                handle.shutdown();
            }
        }
    }
    hopeless.map_or(Ok(()), |reason| Err(reason.into()))
}

/// Options that contradict the target.
fn check(args: &ExposeArgs, offer: &Offer) -> Result<(), ExposeError> {
    match offer.kind {
        Kind::Http | Kind::Https | Kind::Tls if args.port.is_some() => Err(ExposeError::Port(offer.kind)),
        Kind::Tcp | Kind::Udp if args.name.is_some() => Err(ExposeError::Name(offer.kind)),
        Kind::Tcp | Kind::Udp if args.http.is_some() => Err(ExposeError::Http(offer.kind)),
        _ => Ok(()),
    }
}

/// An agent's key.
struct AgentKey {
    secret: SecretKey,
    /// The file, if it was made just now.
    made: Option<PathBuf>,
    /// Keeps other agents from using it.
    _reserved: Option<File>,
}

/// The key named, or the first of the user's own that no other agent uses now.
fn agent_key(named: Option<PathBuf>, reserve: bool) -> Result<AgentKey, Failure> {
    let take = |path: PathBuf| -> Result<AgentKey, KeyFileError> {
        let (secret, made) = keyfile::load_or_create(&path)?;
        let reserved = if reserve { Some(keyfile::reserve(&path)?) } else { None };
        Ok(AgentKey {
            secret,
            made: made.then_some(path),
            _reserved: reserved,
        })
    };
    if let Some(path) = named {
        return Ok(take(path)?);
    }
    let directory = state::user_state_dir().ok_or(KeyFileError::NoHome)?;
    let mut last = None;
    for number in 1..=MAX_AGENTS {
        let name = if number == 1 {
            "agent.key".to_owned()
        } else {
            format!("agent-{number}.key")
        };
        match take(directory.join(name)) {
            Err(error @ KeyFileError::InUse(_)) => last = Some(error),
            taken => return Ok(taken?),
        }
    }
    Err(last.unwrap_or(KeyFileError::NoHome).into())
}

/// Says at the start if nothing answers at the target: it may come later, but often the port is wrong.
async fn probe(target: Target, console: Console) {
    let reached = match &target {
        Target::Host { host, port } => {
            let connect = TcpStream::connect((host.as_str(), *port));
            tokio::time::timeout(PROBE, connect)
                .await
                .map(|connected| connected.map(drop))
        }
        Target::Unix(path) => tokio::time::timeout(PROBE, UnixStream::connect(path))
            .await
            .map(|connected| connected.map(drop)),
        _ => return,
    };
    let cause = match reached {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".into(),
    };
    console.problem(format!(
        "nothing takes connections at {target} now ({cause})\n  help: start the service, or check the address; visitors \
         are let in as soon as it is there"
    ));
}

fn place(relay: &RelayUri) -> Target {
    Target::Host {
        host: relay.host.clone(),
        port: relay.port,
    }
}

/// Why a target cannot be exposed.
#[derive(Debug, thiserror::Error)]
enum ExposeError {
    #[error("--port does not go with the kind {0}, whose visitors come by name")]
    Port(Kind),
    #[error("--name does not go with the kind {0}, whose visitors come by port")]
    Name(Kind),
    #[error("--http does not go with the kind {0}, whose visitors come by port")]
    Http(Kind),
    #[error("preparing the tunnel's socket: {0}")]
    Runtime(std::io::Error),
}

impl Explain for ExposeError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Port(_) => Some("use --name, or a tcp:// or udp:// target".into()),
            Self::Name(_) | Self::Http(_) => Some("use --port, or an http:// or tls:// target".into()),
            Self::Runtime(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Port(_) | Self::Name(_) | Self::Http(_) => Exit::Misuse,
            Self::Runtime(_) => Exit::Failed,
        }
    }
}

impl Explain for FolderError {}
