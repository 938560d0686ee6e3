//! A relay of the command's own, on loopback, on a thread of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use portal_core::identity::SecretKey;
use portal_core::uri::RelayUri;
use portal_core::{Access, Ingress, Kind, Limits, Relay, RelayConfig, RelayEvent, Transport};
use portal_runtime_tokio::{Driver, Handle, Handlers};

use crate::failure::{Explain, Failure};
use crate::sockets::{self, BindError};
use crate::{keyfile, process};

/// A running relay that serves this machine only. It ends when this is dropped.
pub(crate) struct Embedded {
    /// How the agent reaches it.
    pub(crate) uri: RelayUri,
    handle: Handle<Relay>,
    thread: Option<JoinHandle<()>>,
}

/// Where visitors come in unless told otherwise.
const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// How many ports from there on are tried.
const TRIES: u16 = 100;
/// The ports of tcp and udp services.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_999;

/// The relay's machine said that it is ready, or why it cannot be.
type Started = Result<(), BindError>;

impl Embedded {
    /// Starts a relay for one service of this kind, with visitors at `http` if that is given.
    pub(crate) fn start(kind: Kind, http: Option<SocketAddr>, limits: Limits) -> Result<Self, Failure> {
        let secret = SecretKey::from_bytes(keyfile::random()?);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let socket = sockets::bind_udp(SocketAddr::new(loopback, 0))?;
        let addr = socket.local_addr().map_err(EmbeddedError::Start)?;
        let uri = RelayUri {
            key: secret.public_key(),
            host: addr.ip().to_string(),
            port: addr.port(),
        };
        // Browsers look up every name below localhost themselves; ports are open on this address only.
        let domain = match kind {
            Kind::Http | Kind::Https | Kind::Tls => "localhost",
            _ => "127.0.0.1",
        };
        let mut config = RelayConfig::new(secret, keyfile::random()?, domain.into());
        config.access = Access::Open;
        config.sole_lease_answers = true;
        config.limits = limits;
        let visitors_at = |usual: SocketAddr| match http {
            Some(asked) => sockets::with_port(asked),
            None => sockets::free_tcp(usual, TRIES).unwrap_or(usual),
        };
        match kind {
            Kind::Http => config.http = Some(visitors_at(HTTP)),
            Kind::Https | Kind::Tls => config.https = Some(visitors_at(HTTPS)),
            _ => {
                config.ports = Some(PORTS);
                config.ports_ip = loopback;
            }
        }
        let (tell, started) = mpsc::channel::<(Handle<Relay>, Started)>();
        let runtime = process::runtime()?;
        let thread = std::thread::Builder::new()
            .name("relay".into())
            .spawn(move || {
                runtime.block_on(run(config, socket, &tell));
                process::end(runtime);
            })
            .map_err(EmbeddedError::Start)?;
        let (handle, result) = started.recv().map_err(|_| EmbeddedError::Ended)?;
        let embedded = Self {
            uri,
            handle,
            thread: Some(thread),
        };
        result?;
        Ok(embedded)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Twice: whoever drops it has no patience left.
        self.handle.shutdown();
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(config: RelayConfig, socket: std::net::UdpSocket, tell: &mpsc::Sender<(Handle<Relay>, Started)>) {
    let mut waiting = usize::from(config.http.is_some()) + usize::from(config.https.is_some());
    let relay = Relay::new(Instant::now(), config);
    let (driver, handle, mut events) = match Driver::new(relay, socket, process::settings(), Handlers::new()) {
        Ok(started) => started,
        Err(error) => {
            tracing::error!(%error, "starting the relay");
            return;
        }
    };
    if waiting == 0 {
        let _ = tell.send((handle.clone(), Ok(())));
    }
    let running = driver.run();
    tokio::pin!(running);
    loop {
        tokio::select! {
            _ = &mut running => return,
            Some(event) = events.recv() => match event {
                RelayEvent::Listening { .. } if waiting > 0 => {
                    waiting -= 1;
                    if waiting == 0 {
                        let _ = tell.send((handle.clone(), Ok(())));
                    }
                }
                RelayEvent::ListenFailed { ingress, addr, error } => {
                    let what = match ingress {
                        Ingress::Http => "HTTP visitors",
                        Ingress::Https => "TLS visitors",
                    };
                    let error = BindError { what, flag: "--http", transport: Transport::Tcp, addr, error };
                    let _ = tell.send((handle.clone(), Err(error)));
                }
                event => tracing::debug!(?event, "embedded relay"),
            },
        }
    }
}

/// Why there is no relay on this machine.
#[derive(Debug, thiserror::Error)]
enum EmbeddedError {
    #[error("starting a relay on this machine: {0}")]
    Start(std::io::Error),
    #[error("the relay on this machine ended at its start")]
    Ended,
}

impl Explain for EmbeddedError {
    fn help(&self) -> Option<String> {
        Some("or name a relay that runs already with --relay".into())
    }
}
