//! What size of buffers a flow needs, and when it moves to get them.
//!
//! A flow begins small: with next to nothing until its connection is established, then with enough for a small request
//! and its answer. Its receive buffer grows when more than it holds arrives within a few round trips and is taken as fast; the
//! other end may then send more at a time. Its send buffer grows when what is on its way nearly fills it and the other end
//! would take more. Both shrink when they are far larger than what was moved of late. Before a move whatever was sent must
//! be acknowledged; so a flow that wishes to move takes no more from its owner, which costs it up to a round trip. Hence
//! the steps are large, and a wish that cannot be had is dropped for a while.

use std::time::{Duration, Instant};

use super::house::{Builder, House, Start};
use super::wire::{UNSCALED_WINDOW, Wire};
use super::{FlowId, Stack};
use crate::budget::{Budget, BufferClass, Buffers};
use crate::resources::Resources;

/// What one flow moved of late, and what it wishes.
#[derive(Debug)]
pub(super) struct Need {
    /// Neither buffer is ever larger.
    most: BufferClass,
    /// When counting of what arrives began.
    since: Instant,
    /// Bytes that have arrived since then.
    arrived: usize,
    /// When it was last looked at whether the buffers are too large.
    looked: Instant,
    /// Bytes that have arrived since then.
    arrived_since_look: usize,
    /// The socket is still the one in which the connection was opened.
    fresh: bool,
    wish: Option<Wish>,
    /// Nothing is wished before.
    content_until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    buffers: Buffers,
    /// When it is given up.
    ends: Instant,
}

/// What arrives within so many round trips counts for the receive buffer: where the window is what holds the other end
/// back, it is filled once in each. Over short ones a window that is larger than that would only be slower memory.
const SPELL_ROUND_TRIPS: u32 = 8;
const SHORTEST_SPELL: Duration = Duration::from_millis(5);
const LONGEST_SPELL: Duration = Duration::from_secs(1);
/// How long a wish holds the owner back, beside two round trips, and at most.
const WISH_LASTS: Duration = Duration::from_millis(200);
const WISH_LASTS_AT_MOST: Duration = Duration::from_secs(2);
/// How long nothing is wished after a wish that could not be had.
const CONTENT: Duration = Duration::from_secs(1);
/// How often it is looked at whether the buffers of a flow are too large.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// After how much silence a flow needs no buffers; one that has grown would have to grow again.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_OF_LARGE: Duration = Duration::from_secs(5);
/// The same while memory is short: who comes new needs them more than who may say something again.
const SILENCE_WHEN_SHORT: Duration = Duration::from_millis(20);
const SILENCE_OF_LARGE_WHEN_SHORT: Duration = Duration::from_millis(200);

/// After how much silence a flow with such buffers needs none, if it is to hurry or not.
pub(super) fn silence(buffers: Buffers, hurries: bool) -> Duration {
    let is_large = buffers.bytes() > Buffers::both(BufferClass::FIRST).bytes();
    match (is_large, hurries) {
        (false, false) => SILENCE,
        (true, false) => SILENCE_OF_LARGE,
        (false, true) => SILENCE_WHEN_SHORT,
        (true, true) => SILENCE_OF_LARGE_WHEN_SHORT,
    }
}

impl Need {
    pub(super) fn new(now: Instant, most: BufferClass) -> Self {
        Self {
            most,
            since: now,
            arrived: 0,
            looked: now,
            arrived_since_look: 0,
            fresh: true,
            wish: None,
            content_until: now,
        }
    }

    /// Both buffers are at most of this class.
    pub(super) fn most(&self) -> BufferClass {
        self.most
    }

    /// Bytes have arrived.
    pub(super) fn arrived(&mut self, now: Instant, bytes: usize, round_trip: Option<Duration>) {
        let spell = round_trip.map_or(LONGEST_SPELL, |took| {
            (took * SPELL_ROUND_TRIPS).clamp(SHORTEST_SPELL, LONGEST_SPELL)
        });
        if now.saturating_duration_since(self.since) > spell {
            (self.since, self.arrived) = (now, 0);
        }
        self.arrived += bytes;
        self.arrived_since_look += bytes;
    }

    /// The bytes that have arrived since it was last looked at whether the buffers are too large.
    pub(super) fn arrived_since_look(&self) -> usize {
        self.arrived_since_look
    }

    /// What a flow gets once its connection is established, instead of what it `has`.
    fn first(&self, has: Buffers, start: Start, budget: &Budget) -> Start {
        let affordable = start.within(self.most, budget, 0, has.bytes());
        affordable.unwrap_or(Start { buffers: has, ..start })
    }

    /// The flow wishes to move, as soon as what was sent is acknowledged and what was received is taken.
    pub(super) fn wishes(&self) -> bool {
        self.wish.is_some()
    }

    /// When its wish is given up.
    pub(super) fn wish_ends(&self) -> Option<Instant> {
        self.wish.map(|wish| wish.ends)
    }

    /// There is no reason to wait for a move any more. Returns whether there was one.
    pub(super) fn give_up(&mut self, now: Instant) -> bool {
        self.content_until = now + CONTENT;
        self.wish.take().is_some()
    }

    /// The flow has moved, or has got its first house after a sleep.
    pub(super) fn moved(&mut self, now: Instant) {
        (self.since, self.arrived) = (now, 0);
        self.fresh = false;
        self.wish = None;
    }

    /// Looks whether other buffers than those there are would serve better.
    fn consider(&mut self, now: Instant, house: &House, wire: &mut Wire, budget: &Budget) {
        let has = house.buffers;
        if let Some(wish) = self.wish {
            if now >= wish.ends {
                self.give_up(now);
            }
            return;
        }
        let flight = usize::try_from(wire.most_in_flight).unwrap_or(usize::MAX);
        let mut wanted = has;
        // One whose owner does not keep up is not slow for want of a window.
        let keeps_up = house.socket().recv_queue() == 0;
        if keeps_up && self.arrived >= has.receive + has.receive / 2 && now >= self.content_until {
            wanted.receive = self.larger(has.receive, self.most, budget);
            if !wire.scales() {
                wanted.receive = wanted.receive.min(UNSCALED_WINDOW.max(has.receive));
            }
        }
        let fills = flight >= has.send - has.send / 4 && wire.remote_window() > has.send;
        if fills && now >= self.content_until {
            let enough = BufferClass::holding(wire.remote_window());
            wanted.send = self.larger(has.send, self.most.min(enough), budget);
        }
        if now.saturating_duration_since(self.looked) >= LOOK_EVERY {
            self.looked = now;
            let arrived = std::mem::take(&mut self.arrived_since_look);
            wanted.receive = smaller(wanted.receive, 2 * arrived);
            if !fills {
                wanted.send = smaller(wanted.send, 4 * flight);
            }
            wire.most_in_flight = wire.in_flight();
        }
        if wanted != has {
            let lasts = WISH_LASTS + wire.round_trip.unwrap_or_default() * 2;
            self.wish = Some(Wish {
                buffers: wanted,
                ends: now + lasts.min(WISH_LASTS_AT_MOST),
            });
        }
    }

    /// The next size that the budget allows, if any.
    fn larger(&self, has: usize, most: BufferClass, budget: &Budget) -> usize {
        let next = BufferClass::holding(has + 1).min(most);
        let affordable = budget.affordable(next, 1, 0, has).map_or(0, BufferClass::bytes);
        affordable.max(has)
    }
}

/// The size that holds so many bytes, if it is smaller.
fn smaller(has: usize, enough: usize) -> usize {
    let class = BufferClass::holding(enough).max(BufferClass::FIRST);
    has.min(class.bytes())
}

impl Stack {
    /// Moves a flow that needs other buffers and is quiet. Returns whether there is an acknowledgement in the slot of the
    /// next packet that tells of it.
    pub(super) fn follow_need(&mut self, now: Instant, id: FlowId, resources: &mut Resources) -> bool {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let Some(house) = &flow.house else { return false };
        if !flow.seen.established || flow.seen.is_ending() {
            if flow.need.wishes() {
                flow.need.give_up(now);
                self.touch(id);
            }
            return false;
        }
        let wished = flow.need.wishes();
        flow.need.consider(now, house, &mut flow.wire, &resources.budget);
        let is_quiet = house.is_quiet() && !flow.wire.has_holes();
        let start = match flow.need.wish {
            Some(wish) if is_quiet => Some(Start {
                buffers: wish.buffers,
                window: 0,
            }),
            None if flow.need.fresh && is_quiet => {
                let start = self.precedents.start(now, flow.peer, &resources.budget);
                Some(flow.need.first(house.buffers, start, &resources.budget))
            }
            _ => None,
        };
        if wished && !flow.need.wishes() {
            // The owner was held back for it.
            self.touch(id);
        }
        let Some(start) = start else { return false };
        if !self.move_flow(now, id, start, resources) {
            return false;
        }
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        flow.wire.outgoing(now, self.next.packet_mut());
        true
    }

    /// Moves a flow whose connection was just established out of the house in which it waited for that, before anything is
    /// sent. What the other end should hear of it is queued.
    pub(super) fn move_in(&mut self, now: Instant, id: FlowId, resources: &mut Resources) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        let Some(house) = flow.house.as_ref().filter(|house| house.is_quiet()) else {
            return;
        };
        let peer = flow.peer;
        let start = self.precedents.start(now, peer, &resources.budget);
        let start = flow.need.first(house.buffers, start, &resources.budget);
        // The next packet may have been made already, for another flow.
        std::mem::swap(&mut self.reply, &mut self.next);
        if self.move_flow(now, id, start, resources)
            && let Some(flow) = self.flows.get_mut(id.0)
        {
            flow.wire.outgoing(now, self.next.packet_mut());
        }
        std::mem::swap(&mut self.reply, &mut self.next);
        self.push_reply(peer);
    }

    /// Moves a quiet flow. Returns whether the other end should hear of it: what to tell it is in the slot of the next
    /// packet, as the socket made it.
    fn move_flow(&mut self, now: Instant, id: FlowId, start: Start, resources: &mut Resources) -> bool {
        let smoltcp_now = self.smoltcp_instant(now);
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        let before = flow.charge();
        let Some(house) = &flow.house else { return false };
        let after = before - house.buffers.bytes() + start.buffers.bytes();
        let wished = flow.need.wishes();
        if !resources.budget.recharge(before, after) {
            flow.need.give_up(now);
            self.touch(id);
            return false;
        }
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.next,
        };
        let is_news = flow.wire.is_news(start.buffers.receive);
        let house = House::take_over(&mut builder, smoltcp_now, &flow.key, &mut flow.wire, start);
        debug_assert!(house.is_some(), "a quiet flow can move");
        let has_moved = house.is_some();
        if let Some(house) = house {
            flow.house = Some(house);
            flow.need.moved(now);
            resources.counters.buffers_changed += u64::from(before != after);
        } else {
            flow.need.give_up(now);
            let undone = resources.budget.recharge(after, before);
            debug_assert!(undone, "what was charged before can be charged again");
        }
        let tells = has_moved && is_news && !self.next.is_empty();
        if !tells {
            self.next.clear();
        }
        if wished {
            self.touch(id);
        }
        tells
    }
}
