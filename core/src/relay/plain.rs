//! Plain WireGuard peers in an agent's place: the kernel, wireguard-go, a phone.
//!
//! A plain peer has no control channel: its leases come from the relay's configuration and are there from the start, and
//! its flows go to ports of its overlay address, where its services listen. The tunnel is up when the peer has shaken
//! hands; the relay calls it if it knows where it is, and a visitor who comes before that waits a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::access::Refusal;
use super::ingress::{Ingress, Role, Way};
use super::leases::{Lease, LeaseId, Place, Via};
use super::{Relay, RelayConfig, RelayEvent};
use crate::control::{Kind, RefusalCode};
use crate::identity::{PresharedKey, PublicKey};
use crate::machine::{Path, StreamId};
use crate::names::{LabelError, check_label};
use crate::wg::PeerId;

/// A WireGuard peer that is no agent, and what it serves.
#[derive(Clone, Debug)]
pub struct PlainPeer {
    /// Its public key. No agent may use it beside.
    pub key: PublicKey,
    /// What it shares with the relay beyond the keys.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is; the relay calls it there. Without one the relay waits for its call.
    pub endpoint: Option<SocketAddr>,
    /// What it serves.
    pub leases: Vec<PlainLease>,
}

/// What a plain peer serves at one name or port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainLease {
    /// How its visitors are told apart.
    pub kind: Kind,
    /// The public name, for the kinds that have one.
    pub name: Option<String>,
    /// The public port, for the kinds that have one. It may lie outside [`RelayConfig::ports`].
    pub port: Option<u16>,
    /// The port of the peer's overlay address on which the service listens.
    pub target_port: u16,
    /// A PROXY v2 header comes first on each connection and names the visitor.
    pub proxy_header: bool,
}

/// Why plain peers cannot be as the configuration has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlainPeerError {
    /// A peer cannot have the relay's key.
    #[error("the plain peer {0} has this relay's own key")]
    OwnKey(PublicKey),
    /// Two peers have one key.
    #[error("the plain peer {0} is there twice")]
    Repeated(PublicKey),
    /// There are more than the relay may have.
    #[error("there are {given} plain peers, and the relay may have {most} peers in all")]
    TooMany {
        /// How many there are.
        given: usize,
        /// How many there may be.
        most: usize,
    },
    /// One has more leases than a key may have.
    #[error("the plain peer {key} has {given} leases, and a key may have {most}")]
    TooManyLeases {
        /// Whose.
        key: PublicKey,
        /// How many there are.
        given: usize,
        /// How many there may be.
        most: usize,
    },
    /// A lease has no name or port, or one that its kind does not have.
    #[error("the plain peer {key} has a {kind} lease, which needs a {} and has no {}", place_of(*.kind).0, place_of(*.kind).1)]
    WrongPlace {
        /// Whose.
        key: PublicKey,
        /// The lease's kind.
        kind: Kind,
    },
    /// A name is no DNS label.
    #[error("the plain peer {key} has the name \"{name}\", which cannot be used: {error}")]
    BadName {
        /// Whose.
        key: PublicKey,
        /// The name.
        name: String,
        /// Why.
        error: LabelError,
    },
    /// TLS for an `https` lease ends at the agent, and this is none.
    #[error(
        "the plain peer {0} has an https lease, but it is no agent that could end TLS: let its service do that, with the kind tls"
    )]
    NoTls(PublicKey),
    /// Port 0 stands for no port.
    #[error("the plain peer {0} has a lease with port 0")]
    PortZero(PublicKey),
    /// The header is one of TCP.
    #[error("the plain peer {0} has a udp lease with a PROXY header, which only TCP connections have")]
    HeaderOverUdp(PublicKey),
    /// The relay does not take visitors of this kind.
    #[error("the plain peer {key} has a {kind} lease, but this relay takes no {kind} visitors: start it with {flag}")]
    KindUnavailable {
        /// Whose.
        key: PublicKey,
        /// The lease's kind.
        kind: Kind,
        /// What has to be switched on.
        flag: &'static str,
    },
    /// Two peers, or two leases of one, have one name or port.
    #[error("the plain peers {first} and {second} both have the {place}")]
    Conflict {
        /// The name or port.
        place: String,
        /// Who has it.
        first: PublicKey,
        /// Who has it too; perhaps the same.
        second: PublicKey,
    },
    /// A name or port belongs to another key from an earlier run.
    #[error("the plain peer {key} has the {place}, which belongs to the agent {owner} already")]
    Bound {
        /// The name or port.
        place: String,
        /// The peer.
        key: PublicKey,
        /// Whose it is.
        owner: PublicKey,
    },
}

/// The plain peers that there are.
#[derive(Debug, Default)]
pub(super) struct PlainPeers(pub(super) BTreeMap<PeerId, KnownPeer>);

/// What is kept of a plain peer beside its leases.
#[derive(Debug)]
pub(super) struct KnownPeer {
    pub(super) shared: Option<PresharedKey>,
    pub(super) endpoint: Option<SocketAddr>,
    /// Whether its tunnel is.
    up: bool,
}

/// How long a visitor waits for a connection to the service: as long as an agent has to accept one.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

impl RelayConfig {
    /// Checks that the plain peers can be as they are here. A [`Relay`] made with others than these has none at all and
    /// says why by [`RelayEvent::PlainPeersRefused`].
    pub fn check_plain_peers(&self) -> Result<(), PlainPeerError> {
        if self.plain_peers.len() > self.limits.peers {
            return Err(PlainPeerError::TooMany {
                given: self.plain_peers.len(),
                most: self.limits.peers,
            });
        }
        let mut bound: BTreeMap<String, PublicKey> = BTreeMap::new();
        for binding in &self.bindings {
            match binding {
                super::Binding::Name { name, key } => bound.insert(name_text(name), *key),
                super::Binding::Port { port, key, .. } => bound.insert(port_text(*port), *key),
            };
        }
        let own = self.secret.public_key();
        let mut keys = BTreeSet::new();
        let mut owners: BTreeMap<String, PublicKey> = BTreeMap::new();
        let mut places = BTreeSet::new();
        for peer in &self.plain_peers {
            let key = peer.key;
            if key == own {
                return Err(PlainPeerError::OwnKey(key));
            }
            if !keys.insert(key) {
                return Err(PlainPeerError::Repeated(key));
            }
            if peer.leases.len() > self.leases_per_key {
                return Err(PlainPeerError::TooManyLeases {
                    key,
                    given: peer.leases.len(),
                    most: self.leases_per_key,
                });
            }
            for lease in &peer.leases {
                self.check_lease(key, lease)?;
                let place = match (&lease.name, lease.port) {
                    (Some(name), _) => name_text(name),
                    (None, port) => port_text(port.unwrap_or(0)),
                };
                if let Some(&owner) = bound.get(&place).filter(|&&owner| owner != key) {
                    return Err(PlainPeerError::Bound { place, key, owner });
                }
                let first = *owners.entry(place.clone()).or_insert(key);
                if first != key || !places.insert((Way::of(lease.kind), place.clone())) {
                    return Err(PlainPeerError::Conflict {
                        place,
                        first,
                        second: key,
                    });
                }
            }
        }
        Ok(())
    }

    fn check_lease(&self, key: PublicKey, lease: &PlainLease) -> Result<(), PlainPeerError> {
        let kind = lease.kind;
        if kind == Kind::Https {
            return Err(PlainPeerError::NoTls(key));
        }
        if lease.name.is_some() != has_name(kind) || lease.port.is_some() == has_name(kind) {
            return Err(PlainPeerError::WrongPlace { key, kind });
        }
        if let Some(name) = &lease.name {
            check_label(name).map_err(|error| PlainPeerError::BadName {
                key,
                name: name.clone(),
                error,
            })?;
        }
        if lease.port == Some(0) || lease.target_port == 0 {
            return Err(PlainPeerError::PortZero(key));
        }
        if kind == Kind::Udp && lease.proxy_header {
            return Err(PlainPeerError::HeaderOverUdp(key));
        }
        let (missing, flag) = match Way::of(kind) {
            Way::Shared(Ingress::Http) => (self.http.is_none(), "--http"),
            Way::Shared(Ingress::Https) => (self.https.is_none(), "--https"),
            Way::Port(_) => (false, ""),
        };
        if missing {
            return Err(PlainPeerError::KindUnavailable { key, kind, flag });
        }
        Ok(())
    }
}

impl PlainPeers {
    /// Whether this peer is a plain one.
    pub(super) fn has(&self, peer: PeerId) -> bool {
        self.0.contains_key(&peer)
    }

    /// Those that have a session.
    pub(super) fn up(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().filter(|(_, known)| known.up).map(|(&peer, _)| peer)
    }
}

impl Relay {
    /// Makes the plain peers and their leases, and calls those whose place is known.
    pub(super) fn add_plain_peers(&mut self, now: Instant) {
        let checked = self.config.check_plain_peers();
        let peers = std::mem::take(&mut self.config.plain_peers);
        if let Err(error) = checked {
            return self.node.event(RelayEvent::PlainPeersRefused { error });
        }
        let given = peers.len();
        for (number, peer) in peers.into_iter().enumerate() {
            let recent = self.config.recent.iter().find(|(key, _)| *key == peer.key);
            let remembered = recent.map(|&(_, remote)| Path { remote, local_ip: None });
            if !self.add_plain_peer(now, peer, remembered) {
                let error = PlainPeerError::TooMany { given, most: number };
                return self.node.event(RelayEvent::PlainPeersRefused { error });
            }
        }
    }

    /// Adds a peer with its leases and calls it. The configured place counts for more than the `remembered` one: only its
    /// owner knows that it has changed. Returns whether there was room for it.
    pub(super) fn add_plain_peer(&mut self, now: Instant, peer: PlainPeer, remembered: Option<Path>) -> bool {
        let configured = peer.endpoint.map(|remote| Path { remote, local_ip: None });
        let node = &mut self.node;
        let added = node.wg.add_peer_sharing(
            now,
            peer.key,
            peer.preshared_key.as_ref(),
            configured.or(remembered),
            &mut node.resources,
        );
        let Some(id) = added else { return false };
        self.node.wg.set_pinned(id, true);
        let known = KnownPeer {
            shared: peer.preshared_key,
            endpoint: peer.endpoint,
            up: false,
        };
        self.plain.0.insert(id, known);
        for lease in &peer.leases {
            self.add_plain_lease(id, peer.key, lease);
        }
        self.node.wg.call(now, id, false);
        true
    }

    /// A shared listener is open: the plain peers' names there can be reached.
    pub(super) fn announce_plain_names(&mut self, ingress: Ingress) {
        let waiting: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| {
                lease.via != Via::Agent && !lease.active && matches!(lease.place, Place::Name(at, _) if at == ingress)
            })
            .map(|(id, lease)| (id, lease.kind, lease.place.clone()))
            .collect();
        for (id, kind, place) in waiting {
            // Only now the port is known for sure.
            if let (Ok(public), Some(lease)) = (self.public_address(kind, &place), self.leases.get_mut(id)) {
                lease.public = public;
                self.announce(id);
            }
        }
    }

    /// The port of a plain peer's lease could not be opened.
    pub(super) fn plain_port_failed(&mut self, id: LeaseId, error: io::ErrorKind) {
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        let (key, place) = (lease.key, lease.place.clone());
        self.drop_lease(id);
        self.node.resources.counters.leases_refused += 1;
        if let Place::Port(transport, port) = place {
            let addr = SocketAddr::new(self.config.ports_ip, port);
            self.node.event(RelayEvent::PeerPortFailed {
                key,
                transport,
                addr,
                error,
            });
        }
    }

    /// A peer has a session where it had none.
    pub(super) fn plain_up(&mut self, peer: PeerId) {
        let Some(known) = self.plain.0.get_mut(&peer).filter(|known| !known.up) else {
            return;
        };
        known.up = true;
        if let (Some(key), Some(path)) = (self.node.wg.key(peer), self.node.wg.path(peer)) {
            let remote = path.remote;
            self.node.event(RelayEvent::PeerUp { key, remote });
            self.note_address(peer);
        }
    }

    /// A peer has no session any more.
    pub(super) fn plain_down(&mut self, peer: PeerId) {
        if let Some(known) = self.plain.0.get_mut(&peer)
            && std::mem::replace(&mut known.up, false)
            && let Some(key) = self.node.wg.key(peer)
        {
            self.node.event(RelayEvent::PeerDown { key });
        }
    }

    /// A peer was heard from elsewhere. Before its tunnel is up that proves nothing.
    pub(super) fn plain_moved(&mut self, peer: PeerId) {
        if self.plain.0.get(&peer).is_some_and(|known| known.up)
            && let (Some(key), Some(path)) = (self.node.wg.key(peer), self.node.wg.path(peer))
        {
            let remote = path.remote;
            self.node.event(RelayEvent::PeerMoved { key, remote });
            self.note_address(peer);
        }
    }

    /// Why a plain peer's key is refused if an agent comes with it.
    pub(super) fn refuses_plain(&mut self, peer: PeerId, key: &PublicKey) -> Option<Refusal> {
        if !self.plain.has(peer) {
            return None;
        }
        self.node.resources.counters.refused_plain_key += 1;
        let message = format!(
            "the key {key} is that of a plain WireGuard peer in this relay's configuration, so it serves no agent: start \
             the agent with a key of its own, or take the peer out of the configuration"
        );
        Some(Refusal::new(RefusalCode::NotAllowed, message))
    }

    /// A visitor's flow to a plain peer was opened: its time begins, and the peer is called if it has to be.
    ///
    /// An agent's lease ends with its tunnel. A plain peer's does not, and TCP's own timers stand still for a peer that
    /// cannot be sent to.
    pub(super) fn await_plain_peer(&mut self, now: Instant, id: StreamId, peer: PeerId) {
        if !self.plain.has(peer) {
            return;
        }
        self.node.stream_deadlines.set(id, now + CONNECT_DEADLINE);
        if !self.node.wg.is_ready(peer) {
            self.node.wg.call(now, peer, false);
        }
    }

    /// A visitor's time is over. Returns whether it was the time for its flow to come about.
    pub(super) fn plain_overdue(&mut self, id: StreamId) -> bool {
        let flow = self.node.stream(id).and_then(|stream| stream.flow);
        let Some(view) = flow.and_then(|flow| self.node.stack.view(flow)) else {
            return false;
        };
        if !view.established {
            self.node.break_stream(id);
        }
        true
    }

    pub(super) fn add_plain_lease(&mut self, peer: PeerId, key: PublicKey, lease: &PlainLease) {
        let (kind, name, port) = (lease.kind, lease.name.as_deref(), lease.port);
        let service = format!("port {}", lease.target_port);
        // The binding holds for this run. It is not told: the configuration is what it comes from.
        let resources = &mut self.node.resources;
        let picked = match Way::of(kind) {
            Way::Shared(ingress) => self.leases.pick_name(ingress, &key, &service, name, resources),
            Way::Port(transport) => {
                let range = port.unwrap_or_default()..=port.unwrap_or_default();
                self.leases
                    .pick_port(transport, &key, &service, port, &range, resources)
            }
        };
        let inserted = picked.and_then(|(place, _)| {
            let lease = Lease {
                peer,
                key,
                service: service.clone(),
                kind,
                asked: (lease.name.clone(), port),
                public: self.public_address(kind, &place)?,
                place,
                service_port: lease.target_port,
                via: Via::Plain {
                    proxy_header: lease.proxy_header,
                },
                listener: None,
                active: false,
                visitors: 0,
            };
            let place = lease.place.clone();
            let id = self.leases.insert(lease, &mut self.node.resources)?;
            Ok((id, place))
        });
        match inserted {
            Ok((id, Place::Port(transport, port))) => {
                let addr = SocketAddr::new(self.config.ports_ip, port);
                let listener = self.listen(Role::Port(id), addr, transport);
                if let Some(lease) = self.leases.get_mut(id) {
                    lease.listener = listener;
                }
            }
            // Its shared listener is on its way.
            Ok((_, Place::Name(..))) => {}
            Err(refusal) => {
                self.node.resources.counters.leases_refused += 1;
                let (code, message) = (refusal.code, refusal.message);
                self.node.event(RelayEvent::Refused {
                    key,
                    service,
                    code,
                    message,
                });
            }
        }
    }
}

fn has_name(kind: Kind) -> bool {
    matches!(Way::of(kind), Way::Shared(_))
}

/// What a lease of a kind has, and what it does not have.
fn place_of(kind: Kind) -> (&'static str, &'static str) {
    if has_name(kind) {
        ("name", "port")
    } else {
        ("port", "name")
    }
}

fn name_text(name: &str) -> String {
    format!("name {name}")
}

fn port_text(port: u16) -> String {
    format!("port {port}")
}
