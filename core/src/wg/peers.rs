//! The table of peers: who is in it, how one is found, and who makes room.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::Tunn;
use boringtun::x25519;

use super::{PEER_CHARGE, Peer, PeerId, Wg, WgEvent};
use crate::identity::{PresharedKey, PublicKey};
use crate::machine::Path;
use crate::resources::Resources;

impl Wg {
    /// Adds a peer, or finds the one with this key. A `path` makes it known where it can be reached. `None` if the table
    /// is full of pinned peers.
    pub(crate) fn add_peer(
        &mut self,
        now: Instant,
        key: PublicKey,
        path: Option<Path>,
        resources: &mut Resources,
    ) -> Option<PeerId> {
        self.add_peer_sharing(now, key, None, path, resources)
    }

    /// The same for a peer that may share a secret with us. What a known peer shares does not change.
    pub(crate) fn add_peer_sharing(
        &mut self,
        now: Instant,
        key: PublicKey,
        shared: Option<&PresharedKey>,
        path: Option<Path>,
        resources: &mut Resources,
    ) -> Option<PeerId> {
        if let Some(&id) = self.by_key.get(&key) {
            if let Some(peer) = self.peers.get_mut(id.0) {
                peer.path = path.or(peer.path);
            }
            return Some(id);
        }
        if self.peers.is_full() && !self.drop_oldest_stranger(resources) {
            return None;
        }
        if !resources.budget.charge(PEER_CHARGE) {
            return None;
        }
        let now = self.clock.enter(now);
        let index = loop {
            let index = self.random.u32() >> 8;
            if !self.by_index.contains_key(&index) {
                break index;
            }
        };
        let overlay = key.overlay_address();
        let tunn = Tunn::new(
            self.secret.clone(),
            x25519::PublicKey::from(*key.as_bytes()),
            shared.map(|shared| *shared.as_bytes()),
            None,
            index,
            Some(Arc::clone(&self.unlimited)),
        );
        let peer = Peer {
            tunn: Box::new(tunn),
            index,
            key,
            overlay,
            path,
            pinned: false,
            ready: false,
            handshaking: false,
            expired: false,
            unconfirmed: false,
            updated: now,
            heard: now,
        };
        let id = PeerId(self.peers.insert_with(|_| peer)?);
        self.by_index.insert(index, id);
        self.by_key.insert(key, id);
        self.by_overlay.insert(overlay, id);
        Some(id)
    }

    /// Forgets a peer and its sessions.
    pub(super) fn remove_peer(&mut self, id: PeerId, resources: &mut Resources) {
        if let Some(peer) = self.peers.remove(id.0) {
            resources.budget.release(PEER_CHARGE);
            self.by_index.remove(&peer.index);
            self.by_key.remove(&peer.key);
            self.by_overlay.remove(&peer.overlay);
            self.timers.clear(id);
        }
    }

    /// The same, at the wish of who is above. They hear of it as of one that was given up.
    pub(crate) fn drop_peer(&mut self, id: PeerId, resources: &mut Resources) {
        self.remove_peer(id, resources);
        self.events.push_back(WgEvent::Dropped(id));
    }

    /// A pinned peer is never dropped to make room or for its silence.
    pub(crate) fn set_pinned(&mut self, id: PeerId, pinned: bool) {
        if let Some(peer) = self.peers.get_mut(id.0) {
            peer.pinned = pinned;
        }
    }

    /// Says where a peer can be reached, before it has been heard from there.
    pub(crate) fn set_path(&mut self, id: PeerId, path: Path) {
        if let Some(peer) = self.peers.get_mut(id.0) {
            peer.path = Some(path);
        }
    }

    /// Whether there is a peer with this key.
    pub(crate) fn knows(&self, key: &PublicKey) -> bool {
        self.by_key.contains_key(key)
    }

    pub(crate) fn peer_of(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn key(&self, id: PeerId) -> Option<PublicKey> {
        self.peers.get(id.0).map(|peer| peer.key)
    }

    pub(crate) fn overlay(&self, id: PeerId) -> Option<Ipv6Addr> {
        self.peers.get(id.0).map(|peer| peer.overlay)
    }

    pub(crate) fn path(&self, id: PeerId) -> Option<Path> {
        self.peers.get(id.0)?.path
    }

    /// When the peer was heard last.
    pub(crate) fn heard(&self, id: PeerId) -> Option<Instant> {
        self.peers.get(id.0).map(|peer| peer.heard)
    }

    /// Whether packets can be sealed for the peer now.
    pub(crate) fn is_ready(&self, id: PeerId) -> bool {
        self.peers
            .get(id.0)
            .is_some_and(|peer| peer.ready && peer.path.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Asserts what must always hold, and returns what the peers are charged in all.
    pub(crate) fn check_invariants(&self) -> usize {
        assert_eq!(self.by_index.len(), self.peers.len(), "every peer has an index");
        assert_eq!(self.by_key.len(), self.peers.len(), "every peer has a key");
        assert_eq!(
            self.by_overlay.len(),
            self.peers.len(),
            "every peer has an overlay address"
        );
        self.peers.len() * PEER_CHARGE
    }

    pub(super) fn find(&self, receiver_index: u32, resources: &mut Resources) -> Option<PeerId> {
        let found = self.by_index.get(&(receiver_index >> 8)).copied();
        if found.is_none() {
            resources.counters.drop_unknown_index += 1;
        }
        found
    }

    pub(super) fn admit(&mut self, now: Instant, key: PublicKey, resources: &mut Resources) -> Option<PeerId> {
        if let Some(&id) = self.by_key.get(&key) {
            return Some(id);
        }
        if !self.admit_strangers {
            resources.counters.drop_unknown_key += 1;
            return None;
        }
        let added = self.add_peer(now, key, None, resources);
        if added.is_none() {
            resources.counters.drop_peers_full += 1;
        }
        added
    }

    /// Drops the peer that is not pinned and was silent the longest.
    fn drop_oldest_stranger(&mut self, resources: &mut Resources) -> bool {
        let oldest = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.pinned)
            .min_by_key(|(_, peer)| peer.heard);
        let Some(id) = oldest.map(|(key, _)| PeerId(key)) else {
            return false;
        };
        self.drop_peer(id, resources);
        true
    }
}
