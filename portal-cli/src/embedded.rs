//! A relay of the command's own, on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Instant;

use portal_core::identity::SecretKey;
use portal_core::uri::RelayUri;
use portal_core::{Access, Ingress, Kind, Limits, Relay, RelayConfig, RelayEvent, Transport};

use crate::failure::{Explain, Failure};
use crate::keyfile;
use crate::runtime::{self, Running, Servers};
use crate::sockets::{self, BindError};

/// A running relay that serves this machine only. It ends when this is dropped.
pub(crate) struct Embedded {
    /// How the agent reaches it.
    pub(crate) uri: RelayUri,
    relay: Option<Running<Relay>>,
}

/// Where visitors come in unless told otherwise.
const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
/// How many ports from there on are tried.
const TRIES: u16 = 100;
/// The ports of tcp and udp services.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_999;

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
        let waiting = usize::from(config.http.is_some()) + usize::from(config.https.is_some());
        let (tell, started) = mpsc::channel();
        let relay = Relay::new(Instant::now(), config);
        let take = Starting { waiting, tell }.take();
        let relay = runtime::start("relay", relay, socket, &Servers::default(), take).map_err(EmbeddedError::Start)?;
        let embedded = Self {
            uri,
            relay: Some(relay),
        };
        if waiting > 0 {
            started.recv().map_err(|_| EmbeddedError::Ended)??;
        }
        Ok(embedded)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.take() {
            // Whoever drops it has no patience left.
            relay.end_at_once();
            relay.join();
        }
    }
}

/// What is awaited of a relay that starts.
struct Starting {
    /// Listeners that are not there yet.
    waiting: usize,
    /// Hears that all are, or why one cannot be.
    tell: mpsc::Sender<Result<(), BindError>>,
}

impl Starting {
    /// Takes the relay's events, those after its start too.
    fn take(mut self) -> impl FnMut(Option<RelayEvent>) + Send {
        move |event| match event {
            Some(RelayEvent::Listening { .. }) if self.waiting > 0 => {
                self.waiting -= 1;
                if self.waiting == 0 {
                    let _ = self.tell.send(Ok(()));
                }
            }
            Some(RelayEvent::ListenFailed { ingress, addr, error }) => {
                let what = match ingress {
                    Ingress::Http => "HTTP visitors",
                    Ingress::Https => "TLS visitors",
                };
                let error = BindError {
                    what,
                    flag: "--http",
                    transport: Transport::Tcp,
                    addr,
                    error,
                };
                let _ = self.tell.send(Err(error));
            }
            event => tracing::debug!(?event, "embedded relay"),
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
