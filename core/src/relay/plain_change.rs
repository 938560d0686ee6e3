//! Plain peers that come, go and change while the relay runs.

use std::collections::BTreeMap;
use std::time::Instant;

use super::ingress::{Ingress, Listener, Role};
use super::leases::{Lease, LeaseId, Via};
use super::plain::{PlainLease, PlainPeer, PlainPeerError};
use super::{Binding, Relay};
use crate::identity::PublicKey;
use crate::machine::Path;
use crate::node::{End, Owned as _};
use crate::wg::PeerId;

/// How many peers that are gone are remembered with their addresses: few enough to need no account.
const REMEMBERED: usize = 64;

impl Relay {
    /// Changes the plain peers, at once. Leases that are not there any more end with their visitors, and peers that are
    /// not are forgotten; what stays the same goes on, its connections too. A name or port may pass from one to another.
    ///
    /// # Errors
    /// The peers cannot be as they are here. Then nothing changes, unless there was no room for the last of them.
    pub fn set_plain_peers(&mut self, now: Instant, peers: Vec<PlainPeer>) -> Result<(), PlainPeerError> {
        let now = self.node.clamp(now);
        let peers = self.checked(peers)?;
        let given = peers.len();
        let mut wanted: BTreeMap<PublicKey, PlainPeer> = peers.into_iter().map(|peer| (peer.key, peer)).collect();
        let known: Vec<PeerId> = self.plain.0.keys().copied().collect();
        let mut staying = Vec::new();
        for id in known {
            let same = self.node.wg.key(id).and_then(|key| wanted.remove(&key));
            let keeps_secret = |peer: &PlainPeer| {
                self.plain
                    .0
                    .get(&id)
                    .is_some_and(|known| known.shared == peer.preshared_key)
            };
            match same {
                Some(peer) if keeps_secret(&peer) => {
                    self.drop_plain_leases(id, &peer.leases);
                    staying.push((id, peer));
                }
                // A session ends with the secret that it rests on.
                Some(peer) => {
                    self.forget_plain_peer(id);
                    wanted.insert(peer.key, peer);
                }
                None => self.forget_plain_peer(id),
            }
        }
        // Only now every place is free that somebody leaves.
        for (id, peer) in staying {
            self.change_plain_peer(now, id, &peer);
        }
        let mut room = Ok(());
        for peer in wanted.into_values() {
            let remembered = self.make_way_for(peer.key);
            if !self.add_plain_peer(now, peer, remembered) {
                let most = self.plain.0.len();
                room = Err(PlainPeerError::TooMany { given, most });
            }
        }
        for ingress in [Ingress::Http, Ingress::Https] {
            let is_open = |(_, listener): (_, &Listener)| listener.open && listener.role == Role::Shared(ingress);
            if self.listeners.iter().any(is_open) {
                self.announce_plain_names(ingress);
            }
        }
        self.settle(now);
        room
    }

    /// The peers, if they can be as they are, beside the agents with the names and ports that those have by now.
    fn checked(&mut self, peers: Vec<PlainPeer>) -> Result<Vec<PlainPeer>, PlainPeerError> {
        let mut bindings: Vec<_> = self.leases.bindings().collect();
        bindings.retain(|binding| {
            let (Binding::Name { key, .. } | Binding::Port { key, .. }) = binding;
            !self.is_plain_key(key) || self.config.bindings.contains(binding)
        });
        self.config.plain_peers = peers;
        let of_earlier_runs = std::mem::replace(&mut self.config.bindings, bindings);
        let checked = self.config.check_plain_peers();
        self.config.bindings = of_earlier_runs;
        let peers = std::mem::take(&mut self.config.plain_peers);
        checked.map(|()| peers)
    }

    fn is_plain_key(&self, key: &PublicKey) -> bool {
        self.node.wg.peer_of(key).is_some_and(|id| self.plain.has(id))
    }

    fn change_plain_peer(&mut self, now: Instant, id: PeerId, peer: &PlainPeer) {
        for lease in &peer.leases {
            if !self.plain_leases(id).any(|(_, there)| is_as(there, lease)) {
                self.add_plain_lease(id, peer.key, lease);
            }
        }
        let Some(known) = self.plain.0.get_mut(&id) else { return };
        if std::mem::replace(&mut known.endpoint, peer.endpoint) != peer.endpoint
            && let Some(remote) = peer.endpoint
        {
            self.node.wg.set_path(id, Path { remote, local_ip: None });
            self.node.wg.call(now, id, true);
        }
    }

    /// Somebody with this key may be there already: an agent, or the peer itself, who came before the configuration named
    /// it. It could have no secret then. Returns where it is, or was when the configuration named it before: it goes on
    /// believing in a session that is no more, until it is called.
    fn make_way_for(&mut self, key: PublicKey) -> Option<Path> {
        let Some(id) = self.node.wg.peer_of(&key) else {
            let known = self.config.recent.iter().position(|(recent, _)| *recent == key)?;
            let (_, remote) = self.config.recent.remove(known);
            return Some(Path { remote, local_ip: None });
        };
        let path = self.node.wg.path(id);
        self.forget_peer(id);
        self.node.wg.drop_peer(id, &mut self.node.resources);
        path
    }

    fn forget_plain_peer(&mut self, id: PeerId) {
        self.drop_plain_leases(id, &[]);
        self.plain.0.remove(&id);
        if let (Some(key), Some(path)) = (self.node.wg.key(id), self.node.wg.path(id)) {
            self.config.recent.truncate(REMEMBERED - 1);
            self.config.recent.insert(0, (key, path.remote));
        }
        self.node.wg.drop_peer(id, &mut self.node.resources);
    }

    /// Ends the leases of a peer but those that are among `kept`.
    fn drop_plain_leases(&mut self, id: PeerId, kept: &[PlainLease]) {
        let gone: Vec<LeaseId> = self
            .plain_leases(id)
            .filter(|(_, lease)| !kept.iter().any(|kept| is_as(lease, kept)))
            .map(|(lease, _)| lease)
            .collect();
        for lease in gone {
            for visitor in self.node.streams_where(|visitor| visitor.lease == Some(lease)) {
                self.node.drop_stream(visitor, End::Dropped);
            }
            if let Some(dropped) = self.drop_lease(lease) {
                self.leases
                    .unbind(&dropped, &self.config.bindings, &mut self.node.resources);
            }
        }
    }

    fn plain_leases(&self, id: PeerId) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases
            .iter()
            .filter(move |(_, lease)| lease.peer == id && lease.via != Via::Agent)
    }
}

/// Whether a lease is what the configuration asks for.
fn is_as(lease: &Lease, wanted: &PlainLease) -> bool {
    lease.kind == wanted.kind
        && lease.asked == (wanted.name.clone(), wanted.port)
        && lease.service_port == wanted.target_port
        && lease.via
            == Via::Plain {
                proxy_header: wanted.proxy_header,
            }
}
