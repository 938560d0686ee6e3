//! `portal relay`: the public end, with what it remembers.

mod check;
mod peers;
mod reload;

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portal_core::uri::RelayUri;
use portal_core::{Access, Ingress, Limits, Relay, RelayConfig, RelayEvent, Status, Transport};
use portal_runtime_tokio::{Driver, Handle, Handlers};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::cli::{AccessMode, Output, RelayArgs};
use crate::config::Given;
use crate::failure::{Exit, Explain, Failure};
use crate::keyfile;
use crate::process::{self, Hangups, Signals};
use crate::report::relay::RelayReport;
use crate::report::{Console, Say};
use crate::sockets::{self, BindError};
use crate::state::control::{Answer, ControlSocket, RELAY_SOCKET, Request};
use crate::state::{Book, StateDir, StateError};
use crate::values::{Domain, Listen, Switch};

/// How long a change waits to be written: others may come with it. A relay that is killed forgets what is not written,
/// and an agent that it forgot has to find out by itself that the relay is back, which takes it 15 s.
const WRITE_AFTER: Duration = Duration::from_millis(20);
/// How often is written at most.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// When a write that failed is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(10);
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
    config.admin = args.admin.addr();
    config.ports = args.ports.on().map(|range| range.0);
    config.ports_ip = udp.ip();
    config.access = access;
    config.bindings = book.bindings();
    config.recent = book.recent();
    config.mtu = args.mtu;
    config.limits = Limits::default();
    if let Some(memory) = args.memory {
        config.limits.memory = memory.0;
    }
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
    let runtime = process::runtime()?;
    let mode = Cell::new(args.access);
    let result = runtime.block_on(serve(config, socket, &uri, &state, book, &mode, given, &console));
    process::end(runtime);
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

/// Drives the relay until a signal.
#[expect(clippy::too_many_arguments, reason = "called once, with what `run` has made")]
async fn serve(
    config: RelayConfig,
    socket: std::net::UdpSocket,
    uri: &RelayUri,
    state: &StateDir,
    mut book: Book,
    mode: &Cell<AccessMode>,
    given: &Given,
    console: &Console,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let control = ControlSocket::bind(state.file(RELAY_SOCKET))?;
    let mut report = RelayReport::new(state.path().to_owned());
    let mut waiting = usize::from(config.http.is_some()) + usize::from(config.https.is_some());
    let relay = Relay::new(Instant::now(), config);
    let (driver, handle, mut events) =
        Driver::new(relay, socket, process::settings(), Handlers::new()).map_err(RelayError::Runtime)?;
    let running = driver.run();
    tokio::pin!(running);
    let answering = answer(control, handle.clone(), state.clone(), mode);
    tokio::pin!(answering);
    let reloading = reload::at_hangups(Hangups::new()?, &handle, state, mode, given, console);
    tokio::pin!(reloading);
    let mut write_at: Option<tokio::time::Instant> = None;
    let mut write_next = tokio::time::Instant::now();
    // One write at a time, or an older one could be the last to reach the disk.
    let mut writing: Option<JoinHandle<Result<(), StateError>>> = None;
    let mut failed: Option<Failure> = None;
    if waiting == 0 {
        say_uri(console, uri);
    }
    loop {
        tokio::select! {
            _ = &mut running => break,
            () = &mut answering => {}
            () = &mut reloading => {}
            Some(event) = events.recv() => {
                if book.note(&event) && write_at.is_none() {
                    write_at = Some((tokio::time::Instant::now() + WRITE_AFTER).max(write_next));
                }
                match &event {
                    RelayEvent::Listening { .. } if waiting > 0 => {
                        waiting -= 1;
                        if waiting == 0 {
                            say_uri(console, uri);
                        }
                    }
                    RelayEvent::ListenFailed { ingress, addr, error } => {
                        failed.get_or_insert_with(|| listen_failed(*ingress, *addr, *error).into());
                        handle.shutdown();
                        handle.shutdown();
                    }
                    RelayEvent::AdminFailed { addr, error } => {
                        failed.get_or_insert_with(|| BindError::of_admin(*addr, *error).into());
                        handle.shutdown();
                        handle.shutdown();
                    }
                    &RelayEvent::PeerPortFailed { key, transport, addr, error } => {
                        let error = BindError {
                            what: "visitors of a plain peer",
                            flag: "another port in its [[peer]]",
                            transport,
                            addr,
                            error,
                        };
                        failed.get_or_insert_with(|| Failure::from(error).within(&format!("peer {key}")));
                        handle.shutdown();
                        handle.shutdown();
                    }
                    RelayEvent::PlainPeersRefused { error } => {
                        failed.get_or_insert_with(|| error.clone().into());
                        handle.shutdown();
                        handle.shutdown();
                    }
                    _ => {}
                }
                if let Some(say) = report.take(Instant::now(), &event) {
                    console.say(say);
                }
            }
            () = tokio::time::sleep_until(write_at.unwrap_or_else(tokio::time::Instant::now)),
                if write_at.is_some() && writing.is_none() =>
            {
                write_at = None;
                write_next = tokio::time::Instant::now() + WRITE_EVERY;
                let draft = book.draft();
                writing = Some(tokio::task::spawn_blocking(move || draft.write()));
            }
            result = ended(&mut writing) => {
                if let Err(error) = result {
                    console.problem(format!("what the relay remembers cannot be kept: {error}; trying again"));
                    book.not_written();
                    write_at = Some(tokio::time::Instant::now() + WRITE_AGAIN);
                }
            }
            () = signals.recv() => {
                console.note("ending; a second signal ends at once");
                handle.shutdown();
            }
        }
    }
    while let Some(event) = events.try_recv() {
        book.note(&event);
    }
    if writing.is_some() && ended(&mut writing).await.is_err() {
        book.not_written();
    }
    book.draft().write()?;
    failed.map_or(Ok(()), Err)
}

/// Waits for the write that is under way; for ever if there is none.
async fn ended(writing: &mut Option<JoinHandle<Result<(), StateError>>>) -> Result<(), StateError> {
    let Some(task) = writing else {
        return std::future::pending().await;
    };
    let result = task.await;
    *writing = None;
    // It is never cancelled, and a panic ends the process.
    result.unwrap_or(Ok(()))
}

/// Answers `portal grant`, `portal revoke` and `portal status` for as long as the relay runs.
async fn answer(control: ControlSocket, handle: Handle<Relay>, state: StateDir, mode: &Cell<AccessMode>) {
    let act = async |request| match request {
        Request::Status => match handle.call(|relay, now| relay.status(now)).await {
            Ok(status) => Answer {
                ok: true,
                status: Some(Status::Relay(status)),
                ..Answer::default()
            },
            Err(error) => Answer::failed(&error),
        },
        Request::Reload => match access(mode.get(), &state) {
            Ok(access) => {
                let open = access == Access::Open;
                match handle.call(move |relay, now| relay.set_access(now, access)).await {
                    Ok(()) => Answer {
                        ok: true,
                        open,
                        ..Answer::default()
                    },
                    Err(error) => Answer::failed(&error),
                }
            }
            Err(failure) => Answer::failed(&failure),
        },
    };
    control.serve(act).await;
}

fn access(mode: AccessMode, state: &StateDir) -> Result<Access, Failure> {
    Ok(match mode {
        AccessMode::Open => Access::Open,
        AccessMode::Granted => Access::Granted(state.grants()?),
    })
}

fn say_uri(console: &Console, uri: &RelayUri) {
    console.say(Say::Result(
        uri.to_string(),
        json!({"event": "ready", "uri": uri.to_string()}),
    ));
    console.note(format!(
        "the relay runs; agents reach it with: portal expose TARGET --relay {uri}"
    ));
}

fn listen_failed(ingress: Ingress, addr: SocketAddr, error: std::io::ErrorKind) -> BindError {
    let (what, flag) = match ingress {
        Ingress::Http => ("HTTP visitors", "--http"),
        Ingress::Https => ("TLS visitors", "--https"),
    };
    BindError {
        what,
        flag,
        transport: Transport::Tcp,
        addr,
        error,
    }
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
