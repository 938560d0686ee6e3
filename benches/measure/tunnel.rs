//! What is compared: programs that lead visitors from one place to a service in another.

use std::io;
use std::net::SocketAddr;

use crate::portal::{Build, Pair, Setting};
use crate::process::{Process, Usage};
use crate::worker::{Server, Service, local};

/// Where a tunnel's client and its service run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place<'a> {
    /// A network namespace other than that of relay and visitors.
    pub(crate) far: Option<&'a str>,
    /// The relay's address for a client there.
    pub(crate) near_addr: Option<&'a str>,
}

/// A program with a relay and a client of its own kind.
pub(crate) trait Peer {
    /// With its version.
    fn name(&self) -> String;
    /// Starts both for a service that listens on every address at the client's place.
    fn start(&self, service: u16, place: Place<'_>) -> io::Result<Ends>;
    /// Where it can run. On loopback unless it says otherwise.
    fn place(&self) -> Place<'_> {
        Place::default()
    }
    /// Whether it can run in any place that it is given.
    fn goes_far(&self) -> bool {
        false
    }
    /// Whether its relay can be killed and started again by itself.
    fn restarts(&self) -> bool {
        true
    }
}

/// The running ends of a tunnel.
pub(crate) struct Ends {
    /// Where visitors connect.
    pub(crate) addr: SocketAddr,
    pub(crate) relay: Process,
    pub(crate) client: Process,
    /// Keys and configuration, for as long as the tunnel runs.
    pub(crate) _state: Option<tempfile::TempDir>,
}

/// A tunnel with its service.
pub(crate) struct Tunnel {
    pub(crate) addr: SocketAddr,
    pub(crate) ends: Ends,
    _server: Server,
}

impl Tunnel {
    pub(crate) fn start(peer: &dyn Peer, service: Service) -> io::Result<Self> {
        Self::start_at(peer, service, peer.place())
    }

    pub(crate) fn start_at(peer: &dyn Peer, service: Service, place: Place<'_>) -> io::Result<Self> {
        let server = Server::start(service, place.far)?;
        let ends = peer.start(server.port, place)?;
        Ok(Self {
            addr: ends.addr,
            ends,
            _server: server,
        })
    }

    /// What relay and client use.
    pub(crate) fn usage(&self) -> io::Result<[Usage; 2]> {
        Ok([self.ends.relay.usage()?, self.ends.client.usage()?])
    }

    /// Seconds of processor time of both so far.
    pub(crate) fn cpu(&self) -> io::Result<f64> {
        Ok(self.usage()?.iter().map(|usage| usage.cpu).sum())
    }
}

impl Peer for Build {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn goes_far(&self) -> bool {
        true
    }

    fn start(&self, service: u16, place: Place<'_>) -> io::Result<Ends> {
        let setting = Setting {
            namespace: place.far,
            relay: place.near_addr,
            ..Setting::default()
        };
        let pair = Pair::start(self, service, setting)?;
        let addr = match place.near_addr {
            Some(addr) => SocketAddr::new(addr.parse().map_err(io::Error::other)?, pair.port),
            None => local(pair.port),
        };
        Ok(Ends {
            addr,
            relay: pair.relay,
            client: pair.agent,
            _state: Some(pair.state),
        })
    }
}
