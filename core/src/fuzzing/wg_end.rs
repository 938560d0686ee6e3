//! One end of WireGuard, moved by hand.

use std::net::SocketAddr;
use std::time::Instant;

use crate::identity::{PublicKey, SecretKey};
use crate::machine::Path;
use crate::resources::Resources;
use crate::seed::Random;
use crate::wg::{DATA_OVERHEAD, PLAIN_BUFFER, PeerId, Wg};

/// An end with one peer that it may know from the start or get to know by a handshake.
pub struct WgEnd {
    wg: Wg,
    resources: Resources,
    other: PublicKey,
    own: PublicKey,
    plain: Vec<u8>,
}

/// The length of the packets that are sealed: an IPv6 header and a number.
const PACKET_LEN: usize = 48;
const PEERS: usize = 4;
const MEMORY: usize = 1 << 20;

impl WgEnd {
    /// An end with the key `own` whose peer has the key `other`. Without a `path` to the peer it is told by a handshake.
    ///
    /// # Panics
    /// If a peer has no room among none.
    #[must_use]
    pub fn new(now: Instant, own: &SecretKey, other: PublicKey, path: Option<SocketAddr>) -> Self {
        let mut random = Random::new(*own.as_bytes());
        let mut wg = Wg::new(now, own, PEERS, path.is_none(), &mut random);
        let mut resources = Resources::new(MEMORY);
        if let Some(remote) = path {
            let id = wg.add_peer(now, other, Some(path_to(remote)), &mut resources);
            wg.set_pinned(id.expect("room for one"), true);
        }
        Self {
            wg,
            resources,
            other,
            own: own.public_key(),
            plain: vec![0; PLAIN_BUFFER],
        }
    }

    /// Starts a handshake, `again` even if one is under way.
    pub fn call(&mut self, now: Instant, again: bool) {
        if let Some(id) = self.peer() {
            self.wg.call(now, id, again);
        }
    }

    /// A datagram with a packet that carries the number, if there is a session.
    pub fn seal(&mut self, now: Instant, number: u64) -> Option<Vec<u8>> {
        let id = self.peer()?;
        let mut packet = [0; PACKET_LEN];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[6] = 59;
        packet[8..24].copy_from_slice(&self.own.overlay_address().octets());
        packet[24..40].copy_from_slice(&self.other.overlay_address().octets());
        packet[40..].copy_from_slice(&number.to_be_bytes());
        let mut datagram = vec![0; 148.max(PACKET_LEN + DATA_OVERHEAD)];
        let len = self.wg.seal(now, id, &packet, &mut datagram)?;
        datagram.truncate(len);
        Some(datagram)
    }

    /// Takes a datagram, and returns the number in it if it is one of [`WgEnd::seal`].
    pub fn open(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Option<u64> {
        let opened = self
            .wg
            .open(now, path_to(from), datagram, &mut self.plain, &mut self.resources);
        let (id, len) = opened?;
        assert_eq!(Some(id), self.peer(), "there is one peer");
        assert_eq!(len, PACKET_LEN);
        self.plain[40..48].try_into().map(u64::from_be_bytes).ok()
    }

    /// Messages that are not data, and where they are to go.
    pub fn control(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut buffer = [0; 148];
        std::iter::from_fn(|| {
            let (path, len) = self.wg.poll_control(&mut buffer)?;
            Some((path.remote, buffer[..len].to_vec()))
        })
        .collect()
    }

    /// Does what is due, after which nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.wg.handle_timeout(now, &mut self.resources);
        assert!(self.wg.poll_timeout().is_none_or(|due| due > now), "deadlines move on");
        while self.wg.poll_event().is_some() {}
    }

    /// When something is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wg.poll_timeout()
    }

    /// Says where the peer is, as an agent does before it calls a relay that does not answer.
    pub fn set_path(&mut self, remote: SocketAddr) {
        if let Some(id) = self.peer() {
            self.wg.set_path(id, path_to(remote));
        }
    }

    /// Where the peer is thought to be.
    #[must_use]
    pub fn path(&self) -> Option<SocketAddr> {
        Some(self.wg.path(self.peer()?)?.remote)
    }

    /// Whether packets can be sealed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.peer().is_some_and(|id| self.wg.is_ready(id))
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.wg.check_invariants(), self.resources.budget.used());
    }

    fn peer(&self) -> Option<PeerId> {
        self.wg.peer_of(&self.other)
    }
}

fn path_to(remote: SocketAddr) -> Path {
    Path { remote, local_ip: None }
}
