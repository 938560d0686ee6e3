//! What is done about losses that smoltcp finds only by its timer, whose shortest time is 200 ms.
//!
//! It sends again what is missing after three acknowledgements that say the same. But nothing says so where the last packets
//! of a flight are lost, and of several that are missing it sends the first one only. So an acknowledgement that ends before
//! what was on its way when the first was sent again brings the next one at once (NewReno, RFC 6582), and a flight that nobody
//! answers within two round trips is asked after by its first packet (a probe for tail loss, RFC 8985, section 7). A SYN is
//! sent once more after the same time, if others before it have shown how long a round trip to the peer takes.
//!
//! smoltcp is asked for the first two by made-up acknowledgements that say the same. It knows nothing of the third.

use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::flow::Flow;
use super::house::{Builder, House};
use super::segment::{self, HEADERS, Way, is_after};
use super::{FlowId, Stack};
use crate::resources::Resources;

/// What a flow knows of what it has lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recovery {
    /// Acknowledgements in a row that say the same.
    same: u8,
    /// Behind what was on its way when the first missing packet was sent again, and when that was; until all of it is
    /// acknowledged.
    until: Option<(u32, Instant)>,
    /// Behind what was on its way when the timer had all of it sent again, until all of it is acknowledged; and behind what
    /// of it has gone again.
    again: Option<(u32, u32)>,
    /// A packet is to be sent again.
    wanted: bool,
    /// One was asked for, and has not been sent.
    asked: bool,
    /// When the flight is asked after, or the SYN.
    probe_at: Option<Instant>,
    /// It was, and has not arrived as a whole.
    probed: bool,
}

/// What a packet that goes again says of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is the first of a flight that goes again.
    Found,
    /// All of the flight goes again, by the timer.
    TimedOut,
    /// The same, of a flight of which it was known before that something is missing.
    TimedOutAgain,
}

/// So many acknowledgements that say the same have smoltcp send a packet again. The first of ours may be news.
const SAME: u8 = 3;
/// An end may be busy for so long before it answers.
pub(super) const BUSY: Duration = Duration::from_millis(10);
/// One packet is mended in a round trip. Where that takes longer than this and than so many of them, as most of a flight is
/// missing, smoltcp's timer does better: all of it goes again then.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENT_FOR: u32 = 8;

impl Recovery {
    /// Bytes go for the first time.
    pub(super) fn sent(&mut self, now: Instant, round_trip: Option<Duration>) {
        if !self.probed {
            self.probe_at = round_trip.map(|round_trip| now + 2 * round_trip + BUSY);
        }
    }

    /// The bytes from `seq` to `end` go again; `sent` is behind all that have gone. What that says, where it says something
    /// new.
    pub(super) fn sent_again(&mut self, now: Instant, seq: u32, end: u32, sent: u32) -> Option<Loss> {
        self.probe_at = None;
        if std::mem::take(&mut self.asked) || (self.same >= SAME && !self.goes_on()) {
            let is_news = self.until.is_none();
            self.until.get_or_insert((sent, now));
            return is_news.then_some(Loss::Found);
        }
        // By the timer: all of them go again.
        let was_known = self.until.take().is_some();
        let Some((until, behind)) = self.again.replace((sent, end)) else {
            return Some(if was_known { Loss::TimedOutAgain } else { Loss::TimedOut });
        };
        self.again = Some((until, end));
        is_after(behind, seq).then_some(Loss::TimedOutAgain)
    }

    /// Whether it is known already that something is missing: acknowledgements that say the same are no news then. An end
    /// that gets again what it has says so too.
    pub(super) fn goes_on(&self) -> bool {
        self.until.is_some() || self.again.is_some()
    }

    /// Whether packets are missing that are sent again one after the other.
    pub(super) fn is_mending(&self) -> bool {
        self.until.is_some()
    }

    /// The other end acknowledges all in front of `ack`; `in_flight` bytes are left.
    pub(super) fn acknowledged(&mut self, now: Instant, ack: u32, in_flight: u32, round_trip: Option<Duration>) {
        self.same = 0;
        self.until = self.until.filter(|&(until, _)| is_after(until, ack));
        self.again = self.again.filter(|&(until, _)| is_after(until, ack));
        let patience = PATIENCE.max(PATIENT_FOR * round_trip.unwrap_or_default());
        self.wanted = self
            .until
            .is_some_and(|(_, since)| now.saturating_duration_since(since) < patience);
        if in_flight == 0 {
            (self.probe_at, self.probed) = (None, false);
        } else {
            self.sent(now, round_trip);
        }
    }

    /// It says what it has said before.
    pub(super) fn said_again(&mut self) {
        self.same = self.same.saturating_add(1);
    }
}

impl Stack {
    /// Has the next packet of a flow sent that is missing, after an acknowledgement that shows that it is.
    pub(super) fn mend(&mut self, now: Instant, id: FlowId) {
        let takes = |flow: &mut Flow| std::mem::take(&mut flow.wire.recovery.wanted);
        if !self.flows.get_mut(id.0).is_some_and(takes) {
            return;
        }
        let smoltcp_now = self.smoltcp_instant(now);
        let mut builder = Builder {
            interface: &mut self.interface,
            mtu: self.config.mtu,
            own: self.address,
            slot: &mut self.reply,
        };
        if let Some(flow) = self.flows.get_mut(id.0) {
            flow.send_again(&mut builder, smoltcp_now);
        }
    }

    /// The next packet opens a flow: it goes once more if nobody answers.
    pub(super) fn expect_answer(&mut self, now: Instant, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id.0).filter(|flow| !flow.wire.repeated) {
            flow.wire.recovery.sent(now, self.precedents.round_trip(flow.peer));
        }
    }

    /// Asks after a SYN that nobody has answered for too long. Returns whether it is in the slot of the next packet.
    pub(super) fn ask_after_syn(&mut self, now: Instant, id: FlowId, resources: &mut Resources) -> bool {
        let Some(flow) = self.flows.get_mut(id.0) else {
            return false;
        };
        if flow.state() != State::SynSent || flow.probe_at().is_none_or(|at| at > now) {
            return false;
        }
        flow.wire.recovery.probe_at = None;
        let mss = u16::try_from(self.config.mtu - HEADERS).unwrap_or(u16::MAX);
        let syn = flow.wire.open_again(mss);
        let (own, key) = (self.address, flow.key);
        self.next
            .put(|room| segment::write(room, own, &key, Way::Out, syn).len());
        resources.counters.syn_probes += 1;
        true
    }
}

impl Flow {
    /// When it is to be looked at by [`Flow::ask_after_tail`] or [`Stack::ask_after_syn`].
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let may_be_asked = || self.is_tail() || self.state() == State::SynSent;
        self.wire.recovery.probe_at.filter(|_| may_be_asked())
    }

    /// Tells the socket if less may be on its way than it believes.
    pub(super) fn correct_window(&mut self, builder: &mut Builder<'_>, now: smoltcp::time::Instant) {
        let has_less = std::mem::take(&mut self.wire.has_less);
        let Some(house) = self
            .house
            .as_mut()
            .filter(|house| has_less && takes_acknowledgements(house))
        else {
            return;
        };
        let unread = house.socket().recv_queue();
        let unacknowledged = house.socket().send_queue();
        if let Some(correction) = self.wire.correction(unread, self.seen.remote_fin, unacknowledged) {
            builder.feed(house, now, &self.key, correction);
            debug_assert!(builder.slot.is_empty(), "{:?}", house.socket().state());
            builder.slot.clear();
        }
    }

    /// Has the first packet of a flight sent again, if that has not been answered for too long. Returns whether it did.
    pub(super) fn ask_after_tail(
        &mut self,
        builder: &mut Builder<'_>,
        now: Instant,
        smoltcp_now: smoltcp::time::Instant,
    ) -> bool {
        if self.probe_at().is_none_or(|at| at > now) || self.is_overdue(builder, smoltcp_now) {
            return false;
        }
        (self.wire.recovery.probe_at, self.wire.recovery.probed) = (None, true);
        self.send_again(builder, smoltcp_now)
    }

    /// Whether all that there is to say is on its way: no acknowledgement of anything behind it will show what is missing.
    fn is_tail(&self) -> bool {
        let unsent = |queued| self.wire.has_unsent(queued);
        self.house
            .as_ref()
            .is_some_and(|house| self.seen.established && !unsent(house.socket().send_queue()))
    }

    /// Whether smoltcp sends all of it again anyway.
    fn is_overdue(&self, builder: &mut Builder<'_>, now: smoltcp::time::Instant) -> bool {
        let timer = self
            .house
            .as_ref()
            .and_then(|house| builder.interface.poll_at(now, &house.set));
        timer.is_some_and(|at| at <= now)
    }

    /// Has the first packet sent again that is not acknowledged. False if there is none with bytes, or no room for it.
    fn send_again(&mut self, builder: &mut Builder<'_>, now: smoltcp::time::Instant) -> bool {
        let Some(house) = self.house.as_mut().filter(|house| takes_acknowledgements(house)) else {
            return false;
        };
        let unread = house.socket().recv_queue();
        let unacknowledged = house.socket().send_queue();
        let Some(repetition) = self.wire.repetition(unread, self.seen.remote_fin, unacknowledged) else {
            return false;
        };
        self.wire.recovery.asked = true;
        for _ in 0..=SAME {
            builder.feed(house, now, &self.key, repetition);
            // It has nothing to say to that; if it had, it would be no answer to the other end.
            debug_assert!(builder.slot.is_empty(), "{:?}", house.socket().state());
            builder.slot.clear();
        }
        true
    }
}

/// Whether a house has bytes that are not acknowledged, in a state in which it listens to acknowledgements of them.
fn takes_acknowledgements(house: &House) -> bool {
    let socket = house.socket();
    matches!(socket.state(), State::Established | State::FinWait1 | State::CloseWait) && socket.send_queue() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    const SENT: u32 = 1000;

    #[test]
    fn the_timer_takes_a_flight_for_lost_once_however_many_packets_go_again() {
        let now = some_instant();
        let mut recovery = Recovery::default();
        let again = |recovery: &mut Recovery, seq| recovery.sent_again(now, seq, seq + 100, SENT);
        assert_eq!(again(&mut recovery, 0), Some(Loss::TimedOut));
        assert_eq!(again(&mut recovery, 100), None);
        recovery.acknowledged(now, 200, 800, None);
        assert_eq!(again(&mut recovery, 200), None, "it goes on where it was");
        assert_eq!(again(&mut recovery, 300), None);
        assert_eq!(again(&mut recovery, 200), Some(Loss::TimedOutAgain));
        assert!(recovery.goes_on() && !recovery.is_mending());
        recovery.acknowledged(now, SENT, 0, None);
        assert!(!recovery.goes_on());
        assert_eq!(again(&mut recovery, SENT), Some(Loss::TimedOut));
    }

    #[test]
    fn what_is_mended_is_one_loss_and_the_timer_may_take_it_over() {
        let now = some_instant();
        let mut recovery = Recovery::default();
        (0..SAME).for_each(|_| recovery.said_again());
        assert_eq!(recovery.sent_again(now, 0, 100, SENT), Some(Loss::Found));
        recovery.acknowledged(now, 300, 700, None);
        assert!(recovery.is_mending() && recovery.wanted);
        recovery.asked = true;
        assert_eq!(recovery.sent_again(now, 300, 400, SENT), None);
        assert_eq!(recovery.sent_again(now, 300, 400, SENT), Some(Loss::TimedOutAgain));
        assert!(!recovery.is_mending());
    }
}
