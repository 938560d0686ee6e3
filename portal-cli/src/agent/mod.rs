//! Runs an agent with its services: what `portal expose` and `portal agent` have in common.

mod control;
mod key;
mod reload;
mod service;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portal_core::uri::RelayUri;
use portal_core::{Agent, AgentConfig, AgentEvent, Kind, Limits, Service, Target};
use portal_runtime_tokio::{Driver, Handlers};
use serde_json::json;
use tokio::net::{TcpStream, UnixStream};

pub(crate) use self::key::AgentKey;
pub(crate) use self::reload::{Again, Reload};
pub(crate) use self::service::Prepared;
use crate::cli::{Output, UplinkArgs};
use crate::failure::{Explain, Failure};
use crate::keyfile;
use crate::process::{self, Hangups, Signals};
use crate::report::agent::{AgentReport, Verdict};
use crate::report::{self, Console};
use crate::sockets::{self, BindError};
use crate::state::control::ControlSocket;

/// How long the look at a target at the start may take.
const PROBE: Duration = Duration::from_secs(2);

/// An agent that is about to run.
pub(crate) struct Plan {
    /// What it calls itself, for people.
    pub(crate) name: Option<String>,
    pub(crate) relay: RelayUri,
    pub(crate) key: AgentKey,
    pub(crate) services: Vec<Prepared>,
    /// Where its socket is.
    pub(crate) bind: IpAddr,
    pub(crate) limits: Limits,
    pub(crate) mtu: u16,
    /// Where operators ask it how it is.
    pub(crate) admin: Option<SocketAddr>,
    /// How its services change while it runs. Without, it has one and ends with it.
    pub(crate) reload: Option<Reload>,
    /// Trouble with the relay is the end.
    pub(crate) once: bool,
    /// Addresses that a browser opens are shown as QR codes too.
    pub(crate) codes: bool,
}

impl Plan {
    /// Runs the agent until a signal, or until its relay makes it hopeless.
    pub(crate) fn run(self, output: Output) -> Result<(), Failure> {
        let key = self.key.secret.public_key();
        let version = concat!("portal ", env!("CARGO_PKG_VERSION"));
        let mut config = AgentConfig::new(self.key.secret.clone(), keyfile::random()?, self.relay.clone());
        config.name = match &self.name {
            Some(name) => format!("{name}, {version}"),
            None => version.into(),
        };
        config.limits = self.limits;
        config.mtu = self.mtu;
        config.admin = self.admin;
        config.services = self.services.iter().map(Prepared::service).collect();
        let handlers = Handlers::new();
        for service in &self.services {
            service.add_handler(&handlers);
        }
        let socket = sockets::bind_udp(SocketAddr::new(self.bind, 0))?;

        let console = Console::new(output);
        let mut report = AgentReport::new(self.relay.clone(), key, self.reload.is_none(), self.once);
        if self.codes {
            report.show_codes();
        }
        report.set_services(self.services.iter().map(Prepared::named));
        let runtime = process::runtime()?;
        if let Some(path) = &self.key.made {
            console.note(format!("a new key was made: {}", path.display()));
        }
        let result = runtime.block_on(async {
            // A relay of the command's own goes without saying.
            if !self.bind.is_loopback() {
                console.note(format!(
                    "exposing {} by relay {}, with the key {key}",
                    texts(&self.services),
                    place(&self.relay)
                ));
            }
            if let Some(authority) = self.services.iter().find_map(Prepared::authority) {
                console.note(authority.advice());
            }
            for service in &config.services {
                tokio::spawn(probe(service.clone(), console.clone()));
            }
            let control = control::open(&self.key, &console);
            serve(config, socket, handlers, report, self.reload, control, &console).await
        });
        process::end(runtime);
        console.finish();
        result
    }
}

/// What an agent may use at most.
pub(crate) fn limits(args: &UplinkArgs) -> Limits {
    let mut limits = Limits {
        peers: 8,
        ..Limits::default()
    };
    if let Some(memory) = args.memory {
        limits.memory = memory.0;
    }
    limits
}

/// Says what would be run, having looked at the key too. Opens no socket and makes no file.
pub(crate) fn check(uplink: &UplinkArgs, services: &[Prepared], output: Output) -> Result<(), Failure> {
    let (file, key) = AgentKey::look(uplink.key.as_deref())?;
    let relay = uplink.relay.as_ref().map(place);
    let by = match &relay {
        Some(relay) => format!("relay {relay}"),
        None => "a relay of its own on this machine".into(),
    };
    let with = match &key {
        Some(key) => format!("the key {key} ({})", file.display()),
        None => format!("a new key, to be made in {}", file.display()),
    };
    let listed: Vec<_> = services
        .iter()
        .map(|service| json!({"id": service.id(), "target": service.text(), "kind": service.kind().to_string()}))
        .collect();
    report::print_result(
        output,
        &format!("ready to expose {} by {by}\nwith {with}", texts(services)),
        &json!({
            "event": "checked",
            "services": listed,
            "relay": relay.map(|relay| relay.to_string()),
            "key": key,
            "key_file": file.to_string_lossy(),
        }),
    );
    Ok(())
}

/// Drives the agent.
async fn serve(
    config: AgentConfig,
    socket: std::net::UdpSocket,
    handlers: Handlers,
    report: AgentReport,
    reload: Option<Reload>,
    control: Option<ControlSocket>,
    console: &Console,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let report = RefCell::new(report);
    let offered = config.services.clone();
    let agent = Agent::new(Instant::now(), config);
    let (driver, handle, mut events) =
        Driver::new(agent, socket, process::settings(), handlers.clone()).map_err(AgentError::Runtime)?;
    let running = driver.run();
    tokio::pin!(running);
    let reload = reload.map(|reload| Hangups::new().map(|hangups| (reload, hangups)));
    let reload = reload.transpose()?;
    let reloading = async {
        match reload {
            Some((reload, hangups)) => reload.run(hangups, offered, &handle, &handlers, &report, console).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(reloading);
    let answering = control::answer(control, &handle);
    tokio::pin!(answering);
    let mut failed: Option<Failure> = None;
    loop {
        tokio::select! {
            _ = &mut running => break,
            () = &mut reloading => {}
            () = &mut answering => {}
            Some(event) = events.recv() => {
                if let AgentEvent::AdminFailed { addr, error } = event {
                    failed.get_or_insert_with(|| BindError::of_admin(addr, error).into());
                    handle.shutdown();
                    handle.shutdown();
                    continue;
                }
                match report.borrow_mut().take(Instant::now(), event, &mut |say| console.say(say)) {
                    Verdict::GoOn => {}
                    Verdict::End(reason) => {
                        failed.get_or_insert_with(|| reason.into());
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
    // The connections that ended last have their lines too.
    while let Some(event) = events.try_recv() {
        let _ = report
            .borrow_mut()
            .take(Instant::now(), event, &mut |say| console.say(say));
    }
    failed.map_or(Ok(()), Err)
}

/// Says at the start if nothing answers at the target: it may come later, but often the port is wrong.
async fn probe(service: Service, console: Console) {
    let target = &service.target;
    let reached = match target {
        // Nobody answers there until there is something to answer.
        _ if service.kind == Kind::Udp => return,
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

/// The targets in one line.
fn texts(services: &[Prepared]) -> String {
    let texts: Vec<_> = services.iter().map(Prepared::text).collect();
    texts.join(", ")
}

fn place(relay: &RelayUri) -> Target {
    Target::Host {
        host: relay.host.clone(),
        port: relay.port,
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("preparing the tunnel's socket: {0}")]
    Runtime(std::io::Error),
}

impl Explain for AgentError {}
