//! Who else is in a tunnel: flows with little to say, which wait behind what a bulk transfer has on its way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::FlowId;
use crate::wg::PeerId;

/// By peer, the flow that had little to say last, and when that was.
#[derive(Debug, Default)]
pub(super) struct Company {
    peers: BTreeMap<PeerId, (FlowId, Instant)>,
}

/// Who has no more than this on its way waits for the other end, not for room.
const LITTLE: u32 = 16 << 10;
/// Who says something at all is expected to go on for so long.
const STAYS: Duration = Duration::from_millis(250);

impl Company {
    /// A flow has nothing more to send for the moment, and has so much on its way.
    pub(super) fn note(&mut self, now: Instant, peer: PeerId, flow: FlowId, in_flight: u32) {
        if (1..=LITTLE).contains(&in_flight) {
            self.peers.insert(peer, (flow, now));
        }
    }

    /// Whether another flow of its peer waits behind what this one sends.
    pub(super) fn has(&self, now: Instant, peer: PeerId, flow: FlowId) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|&(other, at)| other != flow && now.saturating_duration_since(at) <= STAYS)
    }

    /// Of how many peers something is noted.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// The peer is no longer known.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use crate::timers::tests::some_instant;

    #[test]
    fn who_has_said_little_of_late_is_company_for_others_of_its_peer() {
        let (mut company, now) = (Company::default(), some_instant());
        let mut flows = Table::new(2);
        let [one, another] = [(), ()].map(|()| FlowId(flows.insert_with(|_| ()).unwrap()));
        let [peer, stranger] = [1, 2].map(PeerId::for_tests);
        company.note(now, peer, one, 0);
        company.note(now, peer, one, LITTLE + 1);
        assert!(
            !company.has(now, peer, another),
            "one that says nothing, and one that says much"
        );
        company.note(now, peer, one, 1);
        assert!(company.has(now + STAYS, peer, another));
        assert!(
            !company.has(now + STAYS + Duration::from_millis(1), peer, another),
            "gone"
        );
        assert!(!company.has(now, peer, one), "itself");
        assert!(!company.has(now, stranger, another), "another tunnel");
        assert_eq!(company.len(), 1);
        company.forget(peer);
        assert_eq!(company.len(), 0);
    }
}
