//! How much of a connection may be on its way, so that it does not queue up in front of others and itself.
//!
//! A sender that goes by losses fills whatever queue stands before the slowest part of a path: that of a modem, or the socket
//! buffer of an end that is short of time. All that shares the path then waits behind it. The round trip tells: where it is
//! far above the shortest there was, the connection may have no more on its way than passes in the time that it should take.
//! If that does not make it shorter, others fill the queue, or the path has jitter: that much is let be.

use std::time::{Duration, Instant};

/// What the round trips of one connection say. Times in microseconds: there are many connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    /// The shortest round trips of the spell before this one, and of this one.
    shortest: [u32; 2],
    /// When this spell began.
    since: Option<Instant>,
    /// The round trips measured since it was last looked whether a queue stands: how many, and in all the time that they
    /// took and the bytes that passed.
    count: u32,
    time: u64,
    bytes: u64,
    /// The most that may be on its way.
    limit: u32,
    /// A spell has ended: the queue is to be emptied once, or its length would be taken for that of the path.
    empties: bool,
    /// How long a round trip took, and how much was on its way, before anything was taken back; until it can be told what
    /// that has done.
    before: Option<(u32, u64)>,
    /// By how much round trips are longer whatever is on its way, by jitter or by a queue that others fill: nothing is held
    /// back for that.
    jitter: u32,
    /// The last measurement of that.
    others: u32,
    /// Other flows wait behind this one's bytes.
    has_company: bool,
    /// Something was taken back since this was last asked.
    was_shortened: bool,
}

/// A path may have changed after so long: what was measured two spells ago is forgotten.
const SPELL: Duration = Duration::from_secs(10);
/// After so many round trips it is looked whether a queue stands.
const ROUND_TRIPS: u32 = 4;
/// A queue may hold half of what the path itself does, and what passes in this time: processes, too, wait for their turn.
const SLACK: u32 = 500;
/// And in this time while others wait: then jitter, too, is to be short, as long as it is no more than what the turns of
/// busy processes make. More of it is the queue of others, to whom nothing is to be left.
const IN_COMPANY: u32 = 50;
const TURNS: u32 = 5_000;
/// No less than this many bytes may be on its way: trains, not packets, are what ends work with.
const LEAST: u32 = 64 << 10;
/// And while others wait.
const LEAST_IN_COMPANY: u32 = 16 << 10;

impl Default for Queue {
    fn default() -> Self {
        Self {
            shortest: [u32::MAX; 2],
            since: None,
            count: 0,
            time: 0,
            bytes: 0,
            limit: u32::MAX,
            empties: false,
            before: None,
            jitter: 0,
            others: 0,
            has_company: false,
            was_shortened: false,
        }
    }
}

impl Queue {
    /// The most bytes that may be on their way.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether less may be on its way than before, since this was last asked.
    pub(super) fn take_shortened(&mut self) -> bool {
        std::mem::take(&mut self.was_shortened)
    }

    /// A round trip took so long, in which so many bytes were acknowledged. `has_company`: other flows of the tunnel, which
    /// have little to say, wait behind them.
    pub(super) fn measured(&mut self, now: Instant, took: Duration, bytes: u32, has_company: bool) {
        self.has_company = has_company;
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) > SPELL {
            self.shortest = [self.shortest[1], u32::MAX];
            self.since = Some(now);
            self.empties = true;
        }
        self.shortest[1] = self.shortest[1].min(took);
        if took <= self.due() {
            self.limit = self.limit.saturating_add(self.limit / 8);
        }
        self.count += 1;
        self.time += u64::from(took);
        self.bytes += u64::from(bytes);
        if self.count == ROUND_TRIPS {
            self.look();
            (self.count, self.time, self.bytes) = (0, 0, 0);
        }
    }

    fn shortest(&self) -> u32 {
        self.shortest[0].min(self.shortest[1])
    }

    /// What a round trip may take.
    fn due(&self) -> u32 {
        let shortest = self.shortest();
        let path = shortest.saturating_add(shortest / 2);
        path.saturating_add(self.allowance())
    }

    /// How much longer than the path makes it a round trip may be.
    fn allowance(&self) -> u32 {
        if self.has_company && self.jitter <= TURNS {
            IN_COMPANY
        } else {
            self.jitter.saturating_add(SLACK)
        }
    }

    /// How much may be on its way in any case.
    fn least(&self) -> u32 {
        if self.has_company { LEAST_IN_COMPANY } else { LEAST }
    }

    /// Takes back what only queues up.
    fn look(&mut self) {
        let mean = u32::try_from(self.time / u64::from(self.count)).unwrap_or(u32::MAX);
        let passed = self.bytes / u64::from(self.count);
        self.judge(mean, passed);
        let time = if std::mem::take(&mut self.empties) && self.limit < u32::MAX {
            self.jitter = 0;
            self.shortest()
        } else {
            self.due()
        };
        if mean <= time || passed <= u64::from(self.least()) {
            return;
        }
        let passes = passed * u64::from(time) / u64::from(mean);
        self.limit = u32::try_from(passes).unwrap_or(u32::MAX).max(self.least());
        self.before.get_or_insert((mean, passed));
        self.was_shortened = true;
    }

    /// What round trips take whatever is on its way: that with the least on its way, or where the line through a measurement
    /// with much and one with less begins.
    fn judge(&mut self, mean: u32, passed: u64) {
        let ours = match self.before {
            _ if passed <= u64::from(self.least()) => 0,
            Some((was, much)) if passed <= much - much / 4 => {
                u64::from(was.saturating_sub(mean)) * passed / (much - passed)
            }
            _ => return,
        };
        self.before = None;
        let ours = u32::try_from(ours).unwrap_or(u32::MAX);
        let others = mean.saturating_sub(ours).saturating_sub(self.shortest());
        // Measurements waver: the smaller one of two.
        self.jitter = others.min(std::mem::replace(&mut self.others, others));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    const MS: Duration = Duration::from_millis(1);

    /// A path that takes `base` and then so many bytes a millisecond; the sender always has as much on its way as it may,
    /// up to `window`. Returns what it has on its way in the end, and how long a round trip takes.
    fn path(queue: &mut Queue, now: &mut Instant, base: Duration, rate: u32, window: u32) -> (u32, Duration) {
        let (mut flight, mut took) = (0, base);
        for _ in 0..400 {
            flight = window.min(queue.limit());
            took = base.max(MS * flight / rate);
            *now += took;
            queue.measured(*now, took, flight, false);
        }
        (flight, took)
    }

    #[test]
    fn a_queue_that_stands_is_kept_short() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        let rate = 100_000;
        queue.measured(now, 20 * MS, 1000, false);
        let (flight, took) = path(&mut queue, &mut now, 20 * MS, rate, 32 << 20);
        assert!(took < 60 * MS, "{took:?}");
        assert!(flight >= 20 * rate, "the path is full: {flight}");
    }

    #[test]
    fn nothing_is_held_back_where_no_queue_is() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        path(&mut queue, &mut now, 100 * MS, 1_000_000, 6 << 20);
        assert_eq!(queue.limit(), u32::MAX);
    }

    #[test]
    fn jitter_is_no_queue() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        let (mut passed, mut windows) = (0, 0);
        for round in 0..2_000_u32 {
            let took = MS * (10 + 5 * (round.wrapping_mul(2_654_435_761) >> 29));
            now += took;
            let flight = queue.limit().min(4 << 20);
            queue.measured(now, took, flight, false);
            (passed, windows) = (passed + u64::from(flight), windows + (4 << 20));
        }
        assert!(passed > windows / 2, "{passed} of {windows}");
    }

    #[test]
    fn what_does_not_get_shorter_is_no_queue_of_ours() {
        for took in [4, 6, 20, 100] {
            let (mut queue, mut now) = (Queue::default(), some_instant());
            queue.measured(now, 2 * MS, 1000, false);
            let (mut passed, mut windows) = (0, 0);
            for _ in 0..2_000 {
                now += took * MS;
                let flight = queue.limit().min(1 << 20);
                queue.measured(now, took * MS, flight, false);
                (passed, windows) = (passed + u64::from(flight), windows + (1 << 20));
            }
            assert!(passed > windows / 10 * 7, "{took} ms: {passed} of {windows}");
        }
    }

    /// As `what_does_not_get_shorter_is_no_queue_of_ours`, for a path whose round trips take `took` whatever is on its way:
    /// what share of a window of 1 MiB is on its way in the end.
    fn share(queue: &mut Queue, now: &mut Instant, took: Duration, has_company: bool) -> f64 {
        let mut flight = 0;
        for _ in 0..2_000 {
            *now += took;
            flight = queue.limit().min(1 << 20);
            queue.measured(*now, took, flight, has_company);
        }
        f64::from(flight) / f64::from(1 << 20)
    }

    #[test]
    fn who_has_company_leaves_no_more_on_its_way_than_the_path_needs() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        queue.measured(now, MS / 10, 1000, false);
        assert!(share(&mut queue, &mut now, 3 * MS, false) > 0.5);
        let in_company = share(&mut queue, &mut now, 3 * MS, true);
        assert!(in_company < 0.1, "{in_company}");
        assert!(queue.limit() >= LEAST_IN_COMPANY);
        assert!(share(&mut queue, &mut now, 3 * MS, false) > 0.5, "alone again");
    }

    #[test]
    fn the_queue_of_others_is_not_made_way_for_in_company_either() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        queue.measured(now, 2 * MS, 1000, true);
        let share = share(&mut queue, &mut now, 40 * MS, true);
        assert!(share > 0.5, "{share}");
    }

    #[test]
    fn a_longer_path_is_learned() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        path(&mut queue, &mut now, 2 * MS, 1_000_000, 6 << 20);
        let (flight, _) = path(&mut queue, &mut now, 150 * MS, 1_000_000, 6 << 20);
        assert_eq!(flight, 6 << 20);
    }

    #[test]
    fn who_has_little_on_its_way_is_not_held_back_for_others() {
        let (mut queue, mut now) = (Queue::default(), some_instant());
        queue.measured(now, MS, 1000, false);
        for _ in 0..100 {
            now += 50 * MS;
            queue.measured(now, 50 * MS, 1000, false);
        }
        assert_eq!(queue.limit(), u32::MAX);
    }
}
