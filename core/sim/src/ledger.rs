//! The reference model: what each side of each connection has sent and received.
//!
//! Nothing is stored but counts. A side's bytes begin with an opening that holds its number; the rest follows from that
//! number and their place. So what arrives tells who sent it, and whether it is right.

use std::collections::{BTreeMap, BTreeSet};

use crate::content::{client_hello, fill, identify, matches};

/// Names one side of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SideId(pub u64);

/// Which side of a connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A visitor at a relay.
    Visitor,
    /// A target at an agent.
    Target,
}

/// How a side begins what it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With its number only.
    Raw,
    /// With an HTTP request for this host.
    Http(String),
    /// With a TLS ClientHello for this name.
    Tls(String),
}

/// One side, as the model sees it.
#[derive(Clone, Debug)]
pub struct Side {
    /// Visitor or target.
    pub role: Role,
    /// The target's port, so that a visitor who ends up at another target is found out; 0 if any will do.
    pub place: u16,
    /// Bytes sent.
    pub sent: u64,
    /// A FIN was sent behind them.
    pub fin_sent: bool,
    /// Bytes received.
    pub received: u64,
    /// A FIN was received behind them.
    pub fin_received: bool,
    /// It was reset, by itself, by the machine or with its process.
    pub broken: bool,
    /// Its socket is gone.
    pub over: bool,
    /// The other side, once its number was received.
    pub peer: Option<SideId>,
    /// What it received is the relay's own answer.
    pub answered: bool,
    opening: Vec<u8>,
    early: Vec<u8>,
}

/// All sides that matter still. See the module docs.
#[derive(Debug, Default)]
pub struct Ledger {
    sides: BTreeMap<SideId, Side>,
    opened: u64,
    /// Connections that ended with nothing broken, every byte and both FINs received.
    whole: u64,
    verified: u64,
}

impl Side {
    /// What it sent and what it receives no longer belong together.
    fn is_torn(&self) -> bool {
        self.broken || self.answered
    }
}

impl Ledger {
    /// A new side that has sent nothing.
    pub fn open(&mut self, role: Role, place: u16, opening: &Opening) -> SideId {
        self.opened += 1;
        let id = self.opened;
        let opening = match opening {
            Opening::Raw => format!("RAW /{id:016x}\n").into_bytes(),
            Opening::Http(host) => format!("GET /{id:016x} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
            Opening::Tls(name) => client_hello(name, id),
        };
        let side = Side {
            role,
            place,
            sent: 0,
            fin_sent: false,
            received: 0,
            fin_received: false,
            broken: false,
            over: false,
            peer: None,
            answered: false,
            opening,
            early: Vec::new(),
        };
        self.sides.insert(SideId(id), side);
        SideId(id)
    }

    /// A side, unless it was forgotten.
    #[must_use]
    pub fn get(&self, id: SideId) -> Option<&Side> {
        self.sides.get(&id)
    }

    /// All sides that were not forgotten.
    pub fn iter(&self) -> impl Iterator<Item = (SideId, &Side)> {
        self.sides.iter().map(|(&id, side)| (id, side))
    }

    /// How many bytes were received and found right.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// How many connections came through whole, as far as [`Ledger::forget_ended`] has looked.
    #[must_use]
    pub fn whole(&self) -> u64 {
        self.whole
    }

    /// The length of a side's opening.
    #[must_use]
    pub fn opening_len(&self, id: SideId) -> u64 {
        self.sides.get(&id).map_or(0, |side| side.opening.len() as u64)
    }

    /// The next bytes that a side sends.
    ///
    /// # Panics
    /// If the side has sent its FIN.
    pub fn send(&mut self, id: SideId, room: &mut [u8]) {
        let Some(side) = self.sides.get_mut(&id) else { return };
        assert!(!side.fin_sent, "side {id:?} was read after its FIN");
        let from_opening = side.opening.get(side.sent as usize..).unwrap_or_default();
        let split = from_opening.len().min(room.len());
        room[..split].copy_from_slice(&from_opening[..split]);
        fill(id.0, side.sent + split as u64, &mut room[split..]);
        side.sent += room.len() as u64;
    }

    /// A side has sent its FIN.
    pub fn send_fin(&mut self, id: SideId) {
        if let Some(side) = self.sides.get_mut(&id) {
            side.fin_sent = true;
        }
    }

    /// A side's socket was written to.
    ///
    /// # Panics
    /// If these are not the next bytes that the other side sent, or there is another side already.
    pub fn receive(&mut self, id: SideId, bytes: &[u8]) {
        let Some(side) = self.sides.get_mut(&id) else { return };
        assert!(!side.fin_received, "side {id:?} received bytes after a FIN");
        // A page or an alert comes only to who has received nothing else.
        side.answered |= side.role == Role::Visitor && side.received == 0 && matches!(bytes[0], b'H' | 0x15);
        if side.answered {
            side.received += bytes.len() as u64;
            return;
        }
        if let Some(peer) = side.peer {
            let offset = side.received;
            side.received += bytes.len() as u64;
            return self.verify(id, peer, offset, bytes);
        }
        side.early.extend_from_slice(bytes);
        side.received += bytes.len() as u64;
        if let Some(number) = identify(&side.early) {
            let early = std::mem::take(&mut side.early);
            self.pair(id, SideId(number));
            self.verify(id, SideId(number), 0, &early);
        } else {
            assert!(
                side.early.len() < 32,
                "side {id:?} received bytes that nobody sent: {:x?}",
                side.early
            );
        }
    }

    /// A side's socket was shut.
    ///
    /// # Panics
    /// If the other side has not sent a FIN, or not all its bytes were received before.
    pub fn receive_fin(&mut self, id: SideId) {
        let Some(side) = self.sides.get_mut(&id) else { return };
        assert!(!side.fin_received, "side {id:?} received a second FIN");
        side.fin_received = true;
        let (received, peer) = (side.received, side.peer.filter(|_| !side.answered));
        if let Some(peer) = peer.and_then(|peer| self.sides.get(&peer)) {
            assert!(peer.fin_sent, "side {id:?} received a FIN that nobody sent");
            assert_eq!(
                received, peer.sent,
                "side {id:?} received a FIN before all the bytes of {peer:?}"
            );
        }
    }

    /// A side was reset: by itself, or by what is between.
    pub fn broke(&mut self, id: SideId) {
        if let Some(side) = self.sides.get_mut(&id) {
            side.broken = true;
            side.over = true;
        }
    }

    /// A side's socket was closed in good order.
    ///
    /// # Panics
    /// If its two FINs have not passed.
    pub fn closed(&mut self, id: SideId) {
        let Some(side) = self.sides.get_mut(&id) else { return };
        assert!(
            side.broken || side.fin_sent && side.fin_received,
            "side {id:?} was closed with its connection open: {side:?}"
        );
        side.over = true;
    }

    /// Forgets connections of which both sides are over.
    ///
    /// # Panics
    /// If one of them was not broken and yet not everything came through.
    pub fn forget_ended(&mut self) {
        let ended: BTreeSet<_> = self
            .sides
            .iter()
            .filter(|(_, side)| side.over)
            .filter(|(_, side)| {
                side.peer
                    .is_none_or(|peer| self.sides.get(&peer).is_none_or(|peer| peer.over))
            })
            .map(|(&id, _)| id)
            .collect();
        for &id in &ended {
            let side = &self.sides[&id];
            let Some(peer) = side.peer.and_then(|peer| self.sides.get(&peer)) else {
                continue;
            };
            if !side.is_torn() && !peer.is_torn() {
                assert_eq!(side.received, peer.sent, "side {id:?} ended well without all its bytes");
                assert!(peer.fin_sent && side.fin_received);
                self.whole += u64::from(side.role == Role::Visitor);
            }
        }
        // The other side may yet receive this one's first bytes: what has no other side stays a while.
        self.sides
            .retain(|id, side| !ended.contains(id) || side.peer.is_none() && id.0 + 1000 > self.opened);
    }

    /// What must hold after a long quiet time with everything healed: every byte and FIN sent was received, unless the
    /// connection broke, and then it broke at both ends.
    ///
    /// # Panics
    /// If it does not hold.
    pub fn check_quiet(&self) {
        for (id, side) in self.iter() {
            let Some((peer_id, peer)) = side.peer.and_then(|peer| Some((peer, self.get(peer)?))) else {
                let waits = side.role == Role::Visitor && !side.over && side.sent >= side.opening.len() as u64;
                assert!(!waits || side.answered, "side {id:?} waits for nobody: {side:?}");
                continue;
            };
            if side.is_torn() {
                assert!(
                    peer.over || peer.answered,
                    "{id:?} broke, and {peer_id:?} does not know: {peer:?}"
                );
            } else if !peer.is_torn() {
                assert_eq!(
                    side.received, peer.sent,
                    "{id:?} lacks bytes of {peer_id:?}: {side:?} {peer:?}"
                );
                assert_eq!(side.fin_received, peer.fin_sent, "{id:?} lacks the FIN of {peer_id:?}");
            }
        }
    }

    fn pair(&mut self, id: SideId, peer: SideId) {
        let (role, place) = (self.sides[&id].role, self.sides[&id].place);
        let other = self.sides.get_mut(&peer);
        let other = other.unwrap_or_else(|| panic!("side {id:?} received bytes of {peer:?}, which is not there"));
        assert_ne!(other.role, role, "{id:?} and {peer:?} are of one role");
        assert!(
            other.place == place || other.place == 0 || place == 0,
            "{id:?} is for port {place} and {peer:?} for port {}",
            other.place
        );
        assert!(
            other.peer.is_none_or(|known| known == id),
            "{peer:?} has the peer {:?}, not {id:?}",
            other.peer
        );
        other.peer = Some(id);
        if let Some(side) = self.sides.get_mut(&id) {
            side.peer = Some(peer);
        }
        // What the other side got before it knew us must be ours, and it will say so itself when it has enough.
    }

    fn verify(&mut self, id: SideId, peer: SideId, offset: u64, bytes: &[u8]) {
        let Some(other) = self.sides.get(&peer) else {
            panic!("side {id:?} receives from {peer:?}, which is forgotten");
        };
        let end = offset + bytes.len() as u64;
        assert!(
            end <= other.sent,
            "{id:?} received {end} bytes of {} that {peer:?} sent",
            other.sent
        );
        let from_opening = other.opening.get(offset as usize..).unwrap_or_default();
        let split = from_opening.len().min(bytes.len());
        assert!(
            bytes[..split] == from_opening[..split] && matches(peer.0, offset + split as u64, &bytes[split..]),
            "{id:?} received other bytes than {peer:?} sent, between {offset} and {end}"
        );
        self.verified += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests;
