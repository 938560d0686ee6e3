//! Packets for the tunnel: whose turn it is, and when a flow must be looked at again.

use std::time::{Duration, Instant};

use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::State;

use super::house::Builder;
use super::{FlowId, Stack};
use crate::budget::Budget;
use crate::resources::Resources;
use crate::timers::shared_instant;
use crate::wg::{PeerId, padded};

/// Packets a flow may send before the next flow of its peer has its turn.
const FLOW_QUANTUM: u32 = 32;
/// How long a peer may be without a session before its flows count as dead: as long as a flow's own patience.
const UNREACHABLE: Duration = Duration::from_secs(300);
/// A deadline smoltcp calls "now" although it had nothing to send is looked at again after this.
const STALLED: Duration = Duration::from_millis(5);

impl Stack {
    /// Makes the next packet, if there is one for a peer that is `ready`, and says for whom and how long it is. Peers that
    /// are not ready are named to `call` and skipped until [`Stack::resume`]; UDP packets for them are dropped.
    pub(crate) fn peek_packet(
        &mut self,
        now: Instant,
        ready: impl Fn(PeerId) -> bool,
        mut call: impl FnMut(PeerId),
        resources: &mut Resources,
    ) -> Option<(PeerId, usize)> {
        while let Some((peer, packet)) = self.queue.front() {
            if ready(peer) {
                return Some((peer, packet.len()));
            }
            call(peer);
            resources.counters.drop_udp_queue += 1;
            self.queue.pop();
        }
        loop {
            if let Some((peer, _)) = self.next_of {
                if ready(peer) {
                    return Some((peer, padded(self.next.len(), self.config.mtu)));
                }
                // The session went while the packet waited. TCP will send it again.
                self.next.clear();
                self.next_of = None;
            }
            let (peer, id) = self.schedule.front()?;
            if !ready(peer) {
                self.schedule.pause_peer();
                self.unreachable.set_no_later(peer, now + UNREACHABLE);
                call(peer);
                continue;
            }
            if self.egress(now, id, resources) {
                self.next.make_ready();
                self.next_of = Some((peer, id));
            }
        }
    }

    /// The packet that [`Stack::peek_packet`] spoke of.
    pub(crate) fn packet(&self) -> &[u8] {
        match self.queue.front() {
            Some((_, packet)) => packet,
            None => self.next.padded(padded(self.next.len(), self.config.mtu)),
        }
    }

    /// That packet has gone.
    pub(crate) fn take_packet(&mut self) {
        if self.queue.front().is_some() {
            self.queue.pop();
        } else {
            self.next.advance();
            if self.next.is_empty() {
                self.next_of = None;
            }
        }
    }

    /// A train for the front peer is full: the next peer goes on.
    pub(crate) fn rotate_peer(&mut self) {
        self.schedule.rotate_peer();
    }

    /// A peer can be sent to again.
    pub(crate) fn resume(&mut self, peer: PeerId) {
        self.schedule.resume(peer);
        self.unreachable.clear(peer);
    }

    /// Whether no packet waits that could be sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.queue.front().is_none() && self.next_of.is_none() && self.schedule.is_idle()
    }

    /// Lets a flow make one packet into the slot. Returns whether it did; if not, the flow leaves the schedule.
    fn egress(&mut self, now: Instant, id: FlowId, resources: &mut Resources) -> bool {
        let smoltcp_now = self.smoltcp_instant(now);
        let Some(flow) = self.flows.get_mut(id.0) else {
            self.schedule.finish_flow();
            return false;
        };
        if std::mem::take(&mut flow.moved_bytes) {
            flow.active_at = now;
            flow.just_woken = false;
        }
        if flow.house.is_none() {
            return self.egress_asleep(now, id, resources);
        }
        flow.drop_unread();
        if flow.sent_in_turn >= FLOW_QUANTUM {
            flow.sent_in_turn = 0;
            self.schedule.rotate_flow();
            return false;
        }
        if self.follow_need(now, id, resources) || self.ask_after_syn(now, id, resources) {
            return true;
        }
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.next,
        };
        flow.correct_window(&mut builder, smoltcp_now);
        flow.delay.end();
        let asks = flow.ask_after_tail(&mut builder, now, smoltcp_now);
        resources.counters.tail_probes += u64::from(asks);
        let Some(house) = &mut flow.house else { return false };
        #[cfg(test)]
        {
            self.polls += 1;
        }
        let polled = builder.give_turn(house, flow.ended.unwrap_or(smoltcp_now), &flow.key);
        let changed = flow.observe();
        if polled != PollResult::None && !self.next.is_empty() {
            if !flow.seen.established {
                self.add_early(id);
                self.expect_answer(now, id);
            }
            let Some(flow) = self.flows.get_mut(id.0) else {
                return false;
            };
            flow.wire.outgoing(now, self.next.packet_mut());
            flow.unacknowledged = 0;
            let has_bytes = flow.seen.established && flow.wire.in_flight() > 0;
            flow.delay.sent(now, flow.heard, has_bytes);
            flow.sent_in_turn += self.next.packets();
            if changed {
                self.touch(id);
            }
            return true;
        }
        flow.queued = false;
        flow.sent_in_turn = 0;
        self.precedents.learn(now, flow);
        self.company.note(now, flow.peer, id, flow.wire.in_flight());
        self.schedule.finish_flow();
        if changed {
            self.touch(id);
        }
        let tells = self.fall_asleep(now, id, resources);
        self.arm(now, id, &resources.budget);
        self.settle(id, resources);
        tells
    }

    /// Sets a flow's timer to what smoltcp waits for.
    fn arm(&mut self, now: Instant, id: FlowId, budget: &Budget) {
        let smoltcp_now = self.smoltcp_instant(now);
        let Some(flow) = self.flows.get_mut(id.0) else {
            return;
        };
        let is_early = flow.delay.take_timer();
        let Some(house) = &flow.house else {
            let due = flow.next_sign().max(now + STALLED);
            return self.timers.set(id, due);
        };
        // What is left of a connection in TIME-WAIT is unread bytes: see `segment`.
        let due = match flow.seen.state {
            Some(State::TimeWait) => None,
            _ => self.interface.poll_at(smoltcp_now, &house.set),
        };
        // One that is not quiet comes here again when it is.
        let is_quiet = house.is_quiet();
        let lull = flow.active_at + flow.silence(house.buffers, budget);
        let lull = if budget.is_short() {
            lull
        } else {
            shared_instant(self.epoch, lull)
        };
        let lull = (is_quiet && !flow.seen.is_ending()).then_some(lull);
        let wish_ends = flow.need.wish_ends();
        let probe_at = flow.probe_at();
        let due = due.map(|due| self.instant_of(due));
        match due.into_iter().chain(lull).chain(wish_ends).chain(probe_at).min() {
            // Where bytes are on their way the timer moves with each packet, and it is left; now it would only be a turn
            // for nothing.
            Some(due) if is_quiet || is_early => self.timers.set(id, due.max(now + STALLED)),
            Some(due) => self.timers.set_no_later(id, due.max(now + STALLED)),
            None => self.timers.clear(id),
        }
    }
}
