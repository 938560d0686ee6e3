//! Flows without a socket: those that were silent for a while.
//!
//! A quiet flow needs no socket and no buffers; what its wire is like is enough to give it others. While it sleeps, signs
//! of life are answered and asked for here, at the times at which smoltcp would, and when its owner wants one. Anything
//! else wakes it: a packet of the other end, or something to send.

use std::time::{Duration, Instant};

use super::congestion::Congestion;
use super::flow::Flow;
use super::house::{Builder, DEAD_SECONDS, HOUSE_STATE, House, KEEP_ALIVE_SECONDS, Start};
use super::need::silence;
use super::segment::{self, Head, Way};
use super::{FlowId, Owner, Stack};
use crate::budget::{Budget, BufferClass, Buffers};
use crate::resources::Resources;

/// When a flow that found no memory to wake tries again.
const RETRY: Duration = Duration::from_millis(200);
const KEEP_ALIVE: Duration = Duration::from_secs(KEEP_ALIVE_SECONDS);
const DEAD: Duration = Duration::from_secs(DEAD_SECONDS);

impl Flow {
    /// When a sleeping flow has something to do next.
    pub(super) fn next_sign(&self) -> Instant {
        let ask = self.heard.max(self.asked) + KEEP_ALIVE;
        ask.min(self.heard + DEAD)
    }

    /// After how much silence it sleeps, with these buffers. Who wakes it has something to say, and is to have the time for it
    /// however busy the machine is: a thousand flows that fall asleep again before it is their turn would never say it.
    pub(super) fn silence(&self, buffers: Buffers, budget: &Budget) -> Duration {
        silence(buffers, budget.is_short() && !self.just_woken)
    }

    /// The window that is told while the flow sleeps: what it gets when it wakes.
    fn sleeping_window(&self) -> usize {
        self.wire.promised().min(BufferClass::FIRST.bytes())
    }
}

impl Stack {
    /// Takes its house from a flow that is quiet and was silent for a while. Returns whether there is an acknowledgement in
    /// the slot of the next packet, which takes back a large window.
    pub(super) fn fall_asleep(&mut self, now: Instant, id: FlowId, resources: &mut Resources) -> bool {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let Some(house) = flow.house.as_ref().filter(|house| house.is_quiet()) else {
            return false;
        };
        let silent_for = now.saturating_duration_since(flow.active_at);
        if silent_for < flow.silence(house.buffers, &resources.budget) || flow.seen.is_ending() {
            return false;
        }
        let before = flow.charge();
        flow.house = None;
        // The path may be another one when it wakes (RFC 5681, section 4.1).
        flow.wire.congestion = Congestion::new(flow.wire.remote_mss());
        flow.need.give_up(now);
        resources.budget.release(before - flow.charge());
        resources.counters.flows_slept += 1;
        let window = flow.sleeping_window();
        if !flow.wire.is_news(window) {
            return false;
        }
        let told = flow.wire.acknowledgement(window);
        let (own, key) = (self.address, flow.key);
        self.next
            .put(|room| segment::write(room, own, &key, Way::Out, told).len());
        true
    }

    /// Does for a sleeping flow whose turn it is what is due. Returns whether a packet is in the slot of the next one.
    pub(super) fn egress_asleep(&mut self, now: Instant, id: FlowId, resources: &mut Resources) -> bool {
        #[cfg(test)]
        {
            self.polls += 1;
        }
        if let Some(flow) = self.flows.get_mut(id.0)
            && !flow.seen.aborted
            && now >= flow.heard + DEAD
        {
            flow.abort();
            self.touch(id);
        }
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let (own, key) = (self.address, flow.key);
        let repr = if flow.seen.aborted {
            (!std::mem::replace(&mut flow.reset_sent, true)).then(|| flow.wire.reset())
        } else if flow.wakes {
            if self.wake(now, id, true, resources) {
                return !self.next.is_empty();
            }
            None
        } else if now >= flow.next_sign() {
            flow.asked = now;
            let window = flow.sleeping_window();
            Some(flow.wire.keep_alive(window))
        } else {
            None
        };
        if let Some(repr) = repr {
            self.next
                .put(|room| segment::write(room, own, &key, Way::Out, repr).len());
        }
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.queued = false;
            flow.sent_in_turn = 0;
            if flow.seen.aborted {
                self.timers.clear(id);
            } else {
                let due = if flow.wakes { now + RETRY } else { flow.next_sign() };
                self.timers.set_no_later(id, due);
            }
        }
        self.schedule.finish_flow();
        self.settle(id, resources);
        !self.next.is_empty()
    }

    /// Asks the other end for a sign of life: an acknowledgement, or a reset if it does not know the connection. The owner
    /// sees it in [`FlowView::heard`](super::FlowView::heard). Bytes that are on their way ask by themselves.
    pub(crate) fn ask(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return;
        };
        if !flow.seen.established || flow.seen.is_ending() || flow.wire.in_flight() > 0 {
            return;
        }
        flow.asked = now;
        let question = flow.wire.keep_alive(flow.wire.promised());
        let (own, key, peer) = (self.address, flow.key, flow.peer);
        self.reply
            .put(|room| segment::write(room, own, &key, Way::Out, question).len());
        self.push_reply(peer);
    }

    /// A packet for a sleeping flow. Returns whether it is dealt with; if not, the flow is awake.
    pub(super) fn ingress_asleep(
        &mut self,
        now: Instant,
        id: FlowId,
        packet: &mut [u8],
        resources: &mut Resources,
    ) -> bool {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return true;
        };
        if flow.seen.aborted {
            return true;
        }
        let peer = flow.peer;
        let flow_is_channel = flow.owner == Owner::Channel;
        if let Some(asks) = flow.wire.is_mere_sign_of_life(packet) {
            flow.heard = now;
            flow.wire.incoming(now, packet, || false);
            if asks {
                let window = flow.sleeping_window();
                let answer = flow.wire.acknowledgement(window);
                let (own, key) = (self.address, flow.key);
                self.reply
                    .put(|room| segment::write(room, own, &key, Way::Out, answer).len());
                self.push_reply(peer);
            }
            if flow_is_channel {
                self.touch(id);
            }
            return true;
        }
        // Bytes are acknowledged, and the window is told with that.
        let tells = Head::of(packet).is_none_or(|head| head.payload == 0);
        std::mem::swap(&mut self.reply, &mut self.next);
        let awake = self.wake(now, id, tells, resources);
        std::mem::swap(&mut self.reply, &mut self.next);
        self.push_reply(peer);
        // If there is no memory now, it is as if the network had lost the packet.
        !awake
    }

    /// Gives a sleeping flow a socket and buffers again, if there is memory. If it `tells`, what the other end should hear of
    /// it is in the slot of the next packet.
    fn wake(&mut self, now: Instant, id: FlowId, tells: bool, resources: &mut Resources) -> bool {
        let smoltcp_now = self.smoltcp_instant(now);
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let budget = &mut resources.budget;
        let start = self.precedents.start(now, flow.peer, budget);
        // Flows that are there come before new ones: they may have the last of the budget.
        let start = start.within(flow.need.most(), budget, HOUSE_STATE, 0).unwrap_or(Start {
            buffers: Buffers::both(BufferClass::SMALLEST),
            ..start
        });
        let buffers = start.buffers;
        if !budget.charge(HOUSE_STATE + buffers.bytes()) {
            resources.counters.wakes_delayed += 1;
            return false;
        }
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.next,
        };
        let is_news = tells && flow.wire.is_news(buffers.receive);
        let house = House::take_over(&mut builder, smoltcp_now, &flow.key, &mut flow.wire, start);
        debug_assert!(house.is_some(), "a sleeping flow can wake");
        let Some(house) = house else {
            resources.budget.release(HOUSE_STATE + buffers.bytes());
            self.next.clear();
            return false;
        };
        flow.house = Some(house);
        flow.wakes = false;
        flow.just_woken = true;
        flow.active_at = now;
        flow.need.moved(now);
        flow.resume_ending();
        if is_news && !self.next.is_empty() {
            flow.wire.outgoing(now, self.next.packet_mut());
        } else {
            self.next.clear();
        }
        self.timers.clear(id);
        self.touch(id);
        true
    }
}
