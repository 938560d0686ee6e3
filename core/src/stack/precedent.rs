//! What connections with a peer needed of late, so that a new one need not find it out again (RFC 9040, section 6: sharing
//! in time).
//!
//! A flow begins with the buffers and the congestion window that are enough for most. Where those before it were held back
//! by them, it begins with more: what a page names, each over a connection of its own, is there a few round trips earlier.
//! A loss takes back what was too much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::congestion::FIRST_WINDOW;
use super::flow::Flow;
use super::house::Start;
use crate::budget::{Budget, BufferClass, Buffers};
use crate::wg::PeerId;

/// By peer; only those of which more is known than the usual.
#[derive(Debug, Default)]
pub(super) struct Precedents {
    peers: BTreeMap<PeerId, Precedent>,
}

/// What the flows of one peer needed. [`crate::wg::PEER_CHARGE`] has it in.
#[derive(Clone, Copy, Debug)]
struct Precedent {
    /// What one may have on its way at once.
    window: usize,
    /// When one last needed more than the usual buffer for sending, and for receiving.
    sent: Option<Instant>,
    received: Option<Instant>,
    /// How long a round trip took when it was last noted.
    round_trip: Option<Duration>,
}

/// After so long a path may be another one (RFC 7661, section 4.4).
const LASTS: Duration = Duration::from_secs(300);
/// The largest congestion window to begin with: four times that of RFC 6928. Several connections are opened at once.
const MOST: usize = 4 * FIRST_WINDOW;
/// What a flow begins with, at most, if the usual was not enough for others.
const LARGER: BufferClass = BufferClass::holding(MOST);

impl Precedents {
    /// Notes how a flow fares that has nothing to send for the moment.
    pub(super) fn learn(&mut self, now: Instant, flow: &Flow) {
        let usual = BufferClass::FIRST.bytes();
        let flight = usize::try_from(flow.wire.most_in_flight).unwrap_or(usize::MAX);
        let needs_to_send = fills(flight, usual);
        let needs_to_receive = flow.need.arrived_since_look() > usual;
        // One that has little to say tells nothing.
        if !needs_to_send && !needs_to_receive {
            return;
        }
        let known = self.peers.entry(flow.peer).or_insert(Precedent::NOTHING);
        known.round_trip = flow.wire.round_trip.or(known.round_trip);
        if needs_to_send {
            known.sent = Some(now);
            if fills(flight, known.window) {
                let window = if flow.wire.repeated { flight / 2 } else { flight * 2 };
                known.window = window.clamp(FIRST_WINDOW, MOST);
            }
        }
        if needs_to_receive {
            known.received = Some(now);
        }
    }

    /// Notes how long a round trip takes, as a flow has measured it by its handshake.
    pub(super) fn measured(&mut self, flow: &Flow) {
        if let Some(round_trip) = flow.wire.round_trip {
            let known = self.peers.entry(flow.peer).or_insert(Precedent::NOTHING);
            known.round_trip = Some(round_trip);
        }
    }

    /// How long a round trip to a peer takes, as far as that is known.
    pub(super) fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        self.peers.get(&peer)?.round_trip
    }

    /// What a flow of a peer begins with. More than the usual only while most of the budget is free: flows that wait for a
    /// large window are to find it.
    pub(super) fn start(&self, now: Instant, peer: PeerId, budget: &Budget) -> Start {
        match self.peers.get(&peer) {
            Some(known) if budget.is_ample() => known.start(now),
            _ => Start::USUAL,
        }
    }

    /// Of how many peers more is known than the usual.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// The peer is no longer known.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }
}

impl Precedent {
    const NOTHING: Self = Self {
        window: FIRST_WINDOW,
        sent: None,
        received: None,
        round_trip: None,
    };

    fn start(&self, now: Instant) -> Start {
        let class = |needed| {
            if is_fresh(now, needed) {
                LARGER
            } else {
                BufferClass::FIRST
            }
        };
        Start {
            buffers: Buffers {
                receive: class(self.received).bytes(),
                send: class(self.sent).bytes(),
            },
            window: if is_fresh(now, self.sent) { self.window } else { 0 },
        }
    }
}

/// Whether so many bytes leave little of the room there is.
fn fills(bytes: usize, room: usize) -> bool {
    bytes >= room - room / 4
}

fn is_fresh(now: Instant, noted: Option<Instant>) -> bool {
    noted.is_some_and(|noted| now.saturating_duration_since(noted) <= LASTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PublicKey;
    use crate::stack::FlowKey;
    use crate::timers::tests::some_instant;

    const MIB: usize = 1 << 20;

    struct Known {
        now: Instant,
        precedents: Precedents,
        budget: Budget,
        peer: PeerId,
    }

    impl Known {
        fn new() -> Self {
            Self {
                now: some_instant(),
                precedents: Precedents::default(),
                budget: Budget::new(64 * MIB),
                peer: PeerId::for_tests(1),
            }
        }

        /// A flow had so much on its way at most and has received so much.
        fn flow(&mut self, flight: usize, is_lossy: bool, received: usize) {
            let key = FlowKey {
                remote: PublicKey::from_bytes([1; 32]).overlay_address(),
                remote_port: 1,
                local_port: 2,
            };
            let buffers = Buffers::both(BufferClass::FIRST);
            let mut flow = Flow::new(self.now, self.peer, key, buffers, BufferClass::LARGEST, true);
            flow.wire.most_in_flight = u32::try_from(flight).unwrap();
            flow.wire.repeated = is_lossy;
            flow.need.arrived(self.now, received, None);
            self.precedents.learn(self.now, &flow);
        }

        fn start(&self) -> (usize, usize, usize) {
            let start = self.precedents.start(self.now, self.peer, &self.budget);
            (start.window, start.buffers.send, start.buffers.receive)
        }
    }

    const USUAL: usize = BufferClass::FIRST.bytes();
    const MORE: usize = LARGER.bytes();

    #[test]
    fn who_says_little_teaches_nothing() {
        let mut known = Known::new();
        for (flight, received) in [(0, 0), (10_000, 0), (0, USUAL)] {
            known.flow(flight, false, received);
            known.flow(flight, true, received);
        }
        assert_eq!(known.start(), (0, USUAL, USUAL));
        assert_eq!(known.precedents.len(), 0);
    }

    #[test]
    fn what_was_held_back_begins_with_more_in_that_direction_the_next_time() {
        let mut known = Known::new();
        known.flow(0, false, USUAL + 1);
        assert_eq!(known.start(), (0, USUAL, MORE));
        known.flow(14_600, false, 0);
        assert_eq!(known.start(), (29_200, MORE, MORE));
        known.flow(29_200, false, 0);
        known.flow(MOST, false, 0);
        assert_eq!(known.start(), (MOST, MORE, MORE), "and there it ends");
        known.flow(100, false, 100);
        assert_eq!(known.start(), (MOST, MORE, MORE), "a small one takes nothing back");
    }

    #[test]
    fn a_loss_takes_back_what_was_too_much() {
        let mut known = Known::new();
        known.flow(MOST, false, 0);
        known.flow(MOST, true, 0);
        assert_eq!(known.start().0, MOST / 2);
        known.flow(MOST / 2, true, 0);
        known.flow(MOST / 4, true, 0);
        assert_eq!(known.start().0, FIRST_WINDOW, "no less than without a precedent");
    }

    #[test]
    fn it_holds_for_minutes_and_for_that_peer_while_memory_is_ample() {
        let mut known = Known::new();
        known.flow(MOST, false, 0);
        let other = known.precedents.start(known.now, PeerId::for_tests(2), &known.budget);
        assert_eq!(other, Start::USUAL);
        assert!(known.budget.charge(20 * MIB));
        assert_eq!(known.start(), (0, USUAL, USUAL));
        known.budget.release(20 * MIB);
        known.now += LASTS;
        assert_eq!(known.start(), (MOST, MORE, USUAL));
        known.now += Duration::from_secs(1);
        assert_eq!(known.start(), (0, USUAL, USUAL));
        known.precedents.forget(known.peer);
        assert_eq!(known.precedents.len(), 0);
    }
}
