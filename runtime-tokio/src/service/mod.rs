//! Services inside a program: their visitors arrive as connections, and no local port is open.
//!
//! A [`Tunnel`] is an agent, with a key of its own, that keeps the way to a relay. Each [`Listener`] on it is a service
//! with a public address, and hands out the visitors' connections, which read and write as sockets do.
//!
//! # When to use this, and when the command
//!
//! `portal expose` and `portal agent` need no change to the service, serve programs in any language, keep key and config
//! in files, and go on while the service restarts. Use this module where a program is to be reachable without a second
//! process, where its services come and go while it runs, where no other local user may reach it (a port on loopback is
//! open to all of them), or where each connection should know its visitor without a PROXY header to be parsed.
//!
//! The program keeps the key then: the public address belongs to it, so a service that is to stay where it is must come
//! back with the same [`SecretKey`]. Every visitor takes two file descriptors.
//!
//! # Example
//!
//! An axum app that knows its visitors. axum's `Listener` is implemented here and not by this crate, which would have to
//! follow axum's versions in its own if it did.
//!
//! ```
//! # #![allow(dead_code)]
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/relay/mod.rs"));
//! use std::net::SocketAddr;
//!
//! use axum::extract::ConnectInfo;
//! use axum::extract::connect_info::Connected;
//! use axum::serve::IncomingStream;
//! use axum::{Router, routing};
//! use portal_runtime_tokio::service::{Connect, Connection, Listener, Offer};
//!
//! struct Public(Listener);
//!
//! impl axum::serve::Listener for Public {
//!     type Io = Connection;
//!     type Addr = SocketAddr;
//!
//!     async fn accept(&mut self) -> (Connection, SocketAddr) {
//!         match self.0.accept().await {
//!             Ok(visitor) => visitor,
//!             // The tunnel has ended: nobody comes any more.
//!             Err(_) => std::future::pending().await,
//!         }
//!     }
//!
//!     fn local_addr(&self) -> std::io::Result<SocketAddr> {
//!         Err(std::io::ErrorKind::Unsupported.into())
//!     }
//! }
//!
//! #[derive(Clone)]
//! struct Visitor(SocketAddr);
//!
//! impl Connected<IncomingStream<'_, Public>> for Visitor {
//!     fn connect_info(stream: IncomingStream<'_, Public>) -> Self {
//!         Visitor(*stream.remote_addr())
//!     }
//! }
//!
//! async fn hello(ConnectInfo(visitor): ConnectInfo<Visitor>) -> String {
//!     format!("hello {}", visitor.0.ip())
//! }
//!
//! # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! # let relay = TestRelay::start().await;
//! # let (relay_uri, secret_key) = (relay.uri.clone(), SecretKey::from_bytes([7; 32]));
//! let tunnel = Connect::new(relay_uri, secret_key).start().await?;
//! let listener = tunnel.listen(Offer::http().name("hello"))?;
//! println!("at {}", listener.public_address().await?);
//!
//! let app = Router::new()
//!     .route("/", routing::get(hello))
//!     .into_make_service_with_connect_info::<Visitor>();
//! let server = tokio::spawn(async move { axum::serve(Public(listener), app).await });
//! # assert_eq!(relay.get("hello.localhost").await, "hello 127.0.0.1");
//!
//! // Later: no new visitors, some patience with those who are here.
//! tunnel.shutdown().await?;
//! # server.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # What ends when
//!
//! | what is dropped or called | what ends |
//! |---|---|
//! | a [`Connection`] | this visitor's connection: closed, or reset if bytes of the visitor's were left unread |
//! | a [`Listener`] | the service: its lease is given back, those who wait to be accepted are reset; accepted ones go on |
//! | the last [`Tunnel`] and [`Listener`] | the tunnel, as if by [`Tunnel::shutdown`], in the background |
//! | [`Tunnel::shutdown`] | all services; connections have [`Connect::grace`] to end, then they are reset |
//! | the tokio runtime | everything, at once |
//!
//! A relay that goes away ends nothing here. The tunnel looks for it for as long as it takes, tells so by
//! [`Tunnel::events`], and each service gets its address back. Connections survive a loss of the network for minutes, and a
//! move of this machine to another one; those of a relay that was restarted are reset.
//!
//! # Bounds
//!
//! [`Connect::memory`] bounds the bytes held for visitors; who does not fit is refused. Up to [`Offer::backlog`] visitors
//! wait for [`Listener::accept`]; those beyond are refused and told of as [`AgentEvent::TargetFailed`]. A connection that is
//! not read holds its visitor back by TCP's own means. A machine that serves thousands of visitors needs a limit of
//! descriptors to match (`ulimit -n`).

mod connection;
mod error;
mod listener;
mod offer;
mod registry;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portal_core::{Agent, AgentConfig};
use tokio::sync::{broadcast, watch};

pub use self::connection::Connection;
pub use self::error::{AddressError, CutShort, Ended, ListenError, StartError};
pub use self::listener::Listener;
pub use self::offer::Offer;
use self::registry::Registry;
use crate::{Driver, Events, Handle, Handlers, Settings, Stats, bind_udp, usable};
pub use portal_core::AgentEvent;
pub use portal_core::identity::{PublicKey, SecretKey};
pub use portal_core::uri::RelayUri;

/// Events that may wait for an observer; the eldest go first.
const OBSERVED: usize = 256;

/// Events that may wait inside. More than one turn of an agent makes, or a flood of visitors would hide a lease.
const QUEUED: usize = 8192;

/// How the way to a relay is to be kept; [`Connect::start`] begins.
#[derive(Debug)]
pub struct Connect {
    config: AgentConfig,
    seeded: bool,
    bind: SocketAddr,
    settings: Settings,
}

impl Connect {
    /// By this relay, as the owner of this key. The relay has to know the key, unless it serves everybody.
    #[must_use]
    pub fn new(relay: RelayUri, secret: SecretKey) -> Self {
        let mut config = AgentConfig::new(secret, [0; 32], relay);
        config.name = concat!("portal ", env!("CARGO_PKG_VERSION")).into();
        Self {
            config,
            seeded: false,
            bind: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            settings: Settings {
                event_queue: QUEUED,
                ..Settings::default()
            },
        }
    }

    /// What the program calls itself to the relay, for its owner.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Bytes for visitors and the tunnel, 256 MiB unless set, at least 4 MiB. Not part of it: what the kernel keeps for
    /// sockets.
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        self.config.limits.memory = bytes;
        self
    }

    /// Visitors at a time, over all services; 32,768 unless set.
    #[must_use]
    pub fn visitors(mut self, count: usize) -> Self {
        self.config.limits.streams = count;
        self
    }

    /// The MTU inside the tunnel, 1280 unless set; the relay must have the same.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.config.mtu = mtu;
        self
    }

    /// Where the tunnel's UDP socket is bound, a port that is free unless set.
    #[must_use]
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = addr;
        self
    }

    /// How long a shutdown waits for connections that are open, 30 s unless set.
    #[must_use]
    pub fn grace(mut self, patience: Duration) -> Self {
        self.settings.shutdown_grace = patience;
        self
    }

    /// Where everything random grows from that is no key; drawn from the system unless set. Never twice the same: it is
    /// meant for tests that repeat a run.
    #[must_use]
    pub fn seed(mut self, seed: [u8; 32]) -> Self {
        self.config.seed = seed;
        self.seeded = true;
        self
    }

    /// Begins to keep the way to the relay. Does not wait for it: a relay that is away is looked for without end.
    ///
    /// # Errors
    /// If the wishes cannot be met, or the system refuses the tunnel's socket.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn start(mut self) -> Result<Tunnel, StartError> {
        if !(1280..=1420).contains(&self.config.mtu) {
            return Err(StartError::Mtu(self.config.mtu));
        }
        if !self.seeded {
            getrandom::fill(&mut self.config.seed).map_err(StartError::Seed)?;
        }
        let addr = usable(self.bind);
        let failed = |source| StartError::Socket { addr, source };
        let socket = bind_udp(addr).map_err(failed)?;
        let (key, handlers) = (self.config.secret.public_key(), Handlers::new());
        // tokio's clock, so that tests can hold it.
        let agent = Agent::new(tokio::time::Instant::now().into_std(), self.config);
        let (driver, handle, events) = Driver::new(agent, socket, self.settings, handlers.clone()).map_err(failed)?;
        let registry = Arc::new(Registry::new(handlers));
        let (observed, _) = broadcast::channel(OBSERVED);
        let (end, ended) = watch::channel(None);
        let running = Running {
            key,
            handle: handle.clone(),
            registry: Arc::clone(&registry),
            observed: observed.downgrade(),
            ended,
        };
        tokio::spawn(supervise(driver, handle, events, registry, observed, end));
        Ok(Tunnel {
            running: Arc::new(running),
        })
    }
}

/// The way to a relay, on which services listen. Clones are the same one. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Tunnel {
    running: Arc<Running>,
}

impl Tunnel {
    /// Offers a service from now on. Does not wait for its address: [`Listener::public_address`] does.
    ///
    /// # Errors
    /// If the offer cannot be met whatever the relay says, or the tunnel has ended.
    pub fn listen(&self, offer: Offer) -> Result<Listener, ListenError> {
        Listener::new(offer, &self.running)
    }

    /// What happens from now on: the relay's coming and going, leases, visitors that have left or could not be let in.
    ///
    /// An observer that is slow misses the eldest. It ends with the tunnel.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        match self.running.observed.upgrade() {
            Some(observed) => observed.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// The key that the relay has to grant.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.running.key
    }

    /// The counters of the sockets.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.running.handle.stats()
    }

    /// Ends all services, and waits for the connections that are open. Called again meanwhile, it ends those too.
    ///
    /// # Errors
    /// If some had to be cut.
    pub async fn shutdown(&self) -> Result<(), CutShort> {
        self.running.handle.shutdown();
        let mut ended = self.running.ended.clone();
        // An error says that the runtime has dropped what drives the tunnel.
        let clean = ended
            .wait_for(Option::is_some)
            .await
            .is_ok_and(|clean| *clean == Some(true));
        if clean { Ok(()) } else { Err(CutShort) }
    }
}

/// A tunnel that is kept for as long as somebody has this.
#[derive(Debug)]
struct Running {
    key: PublicKey,
    handle: Handle<Agent>,
    registry: Arc<Registry>,
    observed: broadcast::WeakSender<AgentEvent>,
    /// Whether all had ended by itself, once it has.
    ended: watch::Receiver<Option<bool>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // A shutdown that was asked for is not to be hastened.
        if !self.handle.is_shutting_down() {
            self.handle.shutdown();
        }
    }
}

/// Takes what the agent says to those whom it concerns, and their wishes to the agent, until the end.
async fn supervise(
    driver: Driver<Agent>,
    handle: Handle<Agent>,
    mut events: Events<AgentEvent>,
    registry: Arc<Registry>,
    observed: broadcast::Sender<AgentEvent>,
    end: watch::Sender<Option<bool>>,
) {
    // A task of its own: a call waits for it.
    let driving = tokio::spawn(driver.run());
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { break };
                registry.take(&event);
                // Nobody has to look.
                let _ = observed.send(event);
            }
            () = registry.changed() => {
                for services in registry.offers() {
                    // If it fails the driver has ended, and so do the events.
                    let _ = handle.call(|agent, now: Instant| agent.set_services(now, services)).await;
                }
            }
        }
    }
    registry.end();
    let clean = driving.await.is_ok_and(|finished| finished.clean);
    let _ = end.send(Some(clean));
}
