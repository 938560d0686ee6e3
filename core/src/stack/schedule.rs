//! Who may send next: peers take turns, and within a peer its flows.

use std::collections::{BTreeMap, VecDeque};

use super::FlowId;
use crate::wg::PeerId;

/// Flows that may have something to send, by peer.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    peers: BTreeMap<PeerId, Turns>,
    order: VecDeque<PeerId>,
}

#[derive(Debug, Default)]
struct Turns {
    flows: VecDeque<FlowId>,
    in_order: bool,
    paused: bool,
}

impl Schedule {
    /// Puts a flow at the end of its peer's line. The caller makes sure that it is there at most once.
    pub(super) fn push(&mut self, peer: PeerId, flow: FlowId) {
        let turns = self.peers.entry(peer).or_default();
        turns.flows.push_back(flow);
        if !turns.in_order && !turns.paused {
            turns.in_order = true;
            self.order.push_back(peer);
        }
    }

    /// The peer whose turn it is, and the flow whose turn it is there.
    pub(super) fn front(&self) -> Option<(PeerId, FlowId)> {
        let &peer = self.order.front()?;
        let &flow = self.peers.get(&peer)?.flows.front()?;
        Some((peer, flow))
    }

    /// The front flow has nothing to send.
    pub(super) fn finish_flow(&mut self) {
        let Some(&peer) = self.order.front() else {
            return;
        };
        let Some(turns) = self.peers.get_mut(&peer) else {
            return;
        };
        turns.flows.pop_front();
        if turns.flows.is_empty() {
            self.order.pop_front();
            self.peers.remove(&peer);
        }
    }

    /// The front flow had its share: the next one of the same peer goes on.
    pub(super) fn rotate_flow(&mut self) {
        let Some(&peer) = self.order.front() else {
            return;
        };
        if let Some(turns) = self.peers.get_mut(&peer) {
            turns.flows.rotate_left(1.min(turns.flows.len()));
        }
    }

    /// The front peer had its share: the next peer goes on.
    pub(super) fn rotate_peer(&mut self) {
        self.order.rotate_left(1.min(self.order.len()));
    }

    /// The front peer cannot send until [`Schedule::resume`].
    pub(super) fn pause_peer(&mut self) {
        if let Some(peer) = self.order.pop_front()
            && let Some(turns) = self.peers.get_mut(&peer)
        {
            turns.in_order = false;
            turns.paused = true;
        }
    }

    pub(super) fn resume(&mut self, peer: PeerId) {
        if let Some(turns) = self.peers.get_mut(&peer) {
            turns.paused = false;
            if !turns.in_order && !turns.flows.is_empty() {
                turns.in_order = true;
                self.order.push_back(peer);
            }
        }
    }

    /// A flow of a peer that cannot send is no more. Returns whether that was the peer's last: then it waits no longer.
    pub(super) fn leave(&mut self, peer: PeerId, flow: FlowId) -> bool {
        let Some(turns) = self.peers.get_mut(&peer).filter(|turns| turns.paused) else {
            return false;
        };
        turns.flows.retain(|&other| other != flow);
        let is_last = turns.flows.is_empty();
        if is_last {
            self.peers.remove(&peer);
        }
        is_last
    }

    pub(super) fn is_paused(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|turns| turns.paused)
    }

    /// The peer is no longer known.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.order.retain(|&other| other != peer);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.order.is_empty()
    }
}
