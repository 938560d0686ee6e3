//! Rates of keys: a bucket for each key that has one, and who waits for it.
//!
//! A stream moves bytes only against an allowance that was taken out of its key's bucket. When the bucket cannot give
//! one, the stream takes its turn behind those that wait already, and is neither read nor written until the turn comes.
//! Each direction has turns of its own, or a download would leave nothing for the upload beside it. What a stream does
//! not use it gives back at once. Datagrams do not wait: one that the bucket cannot pay for is dropped.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::Node;
use crate::identity::PublicKey;
use crate::machine::StreamId;
use crate::timers::TimerQueue;

/// The directions of a stream, by its kernel socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// From the socket into the flow.
    Fill,
    /// From the flow to the socket.
    Drain,
}

/// What a stream has to do with its key's rate.
#[derive(Debug, Default)]
pub(crate) struct Metered {
    key: Option<PublicKey>,
    lanes: [Place; 2],
}

/// A direction's.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Bytes it may move.
    allowance: u64,
    /// Its turn, if it waits.
    turn: Option<u64>,
}

impl Metered {
    /// Whether this direction stands still until its turn.
    pub(crate) fn waits(&self, lane: Lane) -> bool {
        self.lanes[lane as usize].turn.is_some()
    }
}

/// Bytes that a stream may move right now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    bytes: u64,
    /// Whose they are; nobody's if there is no rate.
    key: Option<PublicKey>,
}

impl Hand {
    /// As many as there are.
    const FREE: Self = Self {
        bytes: u64::MAX,
        key: None,
    };

    /// The most bytes of `len` that may be moved.
    pub(super) fn most_of(self, len: usize) -> usize {
        usize::try_from(self.bytes).map_or(len, |most| most.min(len))
    }

    /// Whether there is a rate at all.
    pub(super) fn is_free(self) -> bool {
        self.key.is_none()
    }
}

/// The buckets of a machine: one for each key that was given a rate.
#[derive(Debug)]
pub(crate) struct Meters {
    meters: BTreeMap<PublicKey, Meter>,
    /// When the first of those that wait may go on.
    due: TimerQueue<PublicKey>,
    turns: u64,
}

#[derive(Debug)]
struct Meter {
    bucket: Bucket,
    /// Part of what the streams are charged.
    waiting: BTreeMap<u64, (StreamId, Lane)>,
}

/// Bytes that may be moved, in billionths of a byte: what a second brings is then exact at any rate.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    /// For all. Below zero after bytes that could not wait.
    level: i128,
    /// For datagrams alone: set aside while streams wait, who would have it all otherwise.
    datagrams: i128,
    at: Instant,
}

/// Those that wait are looked after no more often.
const STEP: Duration = Duration::from_millis(1);
const BILLION: i128 = 1_000_000_000;

impl Bucket {
    fn new(now: Instant, rate: u64) -> Self {
        let mut bucket = Self {
            rate,
            level: 0,
            datagrams: 0,
            at: now,
        };
        bucket.level = bucket.burst();
        bucket
    }

    /// What a turn brings: the bytes of 20 ms, but enough for a read to be worth it, and not so much that a turn is long.
    fn quantum(&self) -> u64 {
        (self.rate / 50).clamp(1024, 64 * 1024)
    }

    /// The most that it holds: 100 ms, but enough for a few turns and for any datagram.
    fn burst(&self) -> i128 {
        let bytes = (self.rate / 10).max(2 * self.quantum()).max(8 * 1024);
        i128::from(bytes) * BILLION
    }

    fn refill(&mut self, now: Instant, streams_wait: bool) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let mut new = i128::try_from(passed).unwrap_or(i128::MAX / BILLION) * i128::from(self.rate);
        if streams_wait {
            let aside = (new / 2).min(self.burst() / 2 - self.datagrams).max(0);
            self.datagrams += aside;
            new -= aside;
        }
        self.level = (self.level + new).min(self.burst());
    }

    /// Takes a turn's allowance.
    fn take_turn(&mut self) -> Option<u64> {
        let turn = i128::from(self.quantum()) * BILLION;
        if self.level < turn {
            return None;
        }
        self.level -= turn;
        Some(self.quantum())
    }

    /// Takes a datagram's bytes.
    fn take_datagram(&mut self, bytes: u64, streams_wait: bool) -> bool {
        let price = i128::from(bytes) * BILLION;
        if self.datagrams >= price {
            self.datagrams -= price;
            return true;
        }
        if streams_wait || self.level < price {
            return false;
        }
        self.level -= price;
        true
    }

    fn put(&mut self, bytes: u64) {
        self.level = (self.level + i128::from(bytes) * BILLION).min(self.burst());
    }

    /// How long it takes until it has a turn's allowance.
    fn until_turn(&self) -> Duration {
        let lacks = (i128::from(self.quantum()) * BILLION - self.level).max(0);
        let nanos = lacks / i128::from(self.rate) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2)).max(STEP)
    }
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self {
            meters: BTreeMap::new(),
            due: TimerQueue::new(),
            turns: 0,
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.due.next()
    }

    /// What a direction of a stream may move now: `None` if it has to wait for its turn.
    fn ask(&mut self, now: Instant, id: StreamId, lane: Lane, metered: &mut Metered) -> Option<Hand> {
        let place = &mut metered.lanes[lane as usize];
        let Some((key, meter)) = metered.key.and_then(|key| Some((key, self.meters.get_mut(&key)?))) else {
            return Some(Hand::FREE);
        };
        let in_hand = |bytes| Hand { bytes, key: Some(key) };
        if place.allowance > 0 {
            return Some(in_hand(std::mem::take(&mut place.allowance)));
        }
        if place.turn.is_some() {
            return None;
        }
        meter.bucket.refill(now, !meter.waiting.is_empty());
        if meter.waiting.is_empty()
            && let Some(allowance) = meter.bucket.take_turn()
        {
            return Some(in_hand(allowance));
        }
        self.turns += 1;
        place.turn = Some(self.turns);
        meter.waiting.insert(self.turns, (id, lane));
        self.due.set_no_later(key, now + meter.bucket.until_turn());
        None
    }

    /// A stream is no more.
    pub(crate) fn leave(&mut self, metered: &Metered) {
        let Some((key, meter)) = metered.key.and_then(|key| Some((key, self.meters.get_mut(&key)?))) else {
            return;
        };
        for place in metered.lanes {
            meter.bucket.put(place.allowance);
            if let Some(turn) = place.turn {
                meter.waiting.remove(&turn);
            }
        }
        if meter.waiting.is_empty() {
            self.due.clear(key);
        }
    }

    /// The next whose turn has come, with its allowance.
    fn next_turn(&mut self, now: Instant, key: &PublicKey) -> Option<(StreamId, Lane, u64)> {
        let meter = self.meters.get_mut(key)?;
        meter.bucket.refill(now, !meter.waiting.is_empty());
        let first = meter.waiting.first_entry()?;
        match meter.bucket.take_turn() {
            Some(allowance) => {
                let (id, lane) = first.remove();
                Some((id, lane, allowance))
            }
            None => {
                self.due.set(*key, now + meter.bucket.until_turn());
                None
            }
        }
    }

    /// Asserts what must always hold of those that wait, each of which `metered` finds.
    pub(crate) fn check_invariants<'a>(&self, waiting: usize, metered: impl Fn(StreamId) -> Option<&'a Metered>) {
        let mut seen = 0;
        for (key, meter) in &self.meters {
            for (&turn, &(id, lane)) in &meter.waiting {
                let metered = metered(id).expect("who waits is there");
                assert_eq!(metered.key.as_ref(), Some(key), "it waits for its own key");
                assert_eq!(metered.lanes[lane as usize].turn, Some(turn), "it knows that it waits");
                seen += 1;
            }
            assert!(
                meter.waiting.is_empty() || self.due.keys().any(|due| due == *key),
                "waiting ends"
            );
        }
        assert_eq!(seen, waiting, "who believes to wait does");
    }
}

impl<X, E> Node<X, E> {
    /// Sets the rates of all keys, in bytes a second; those not named have none.
    pub(crate) fn set_rates(&mut self, now: Instant, rates: &BTreeMap<PublicKey, NonZeroU64>) {
        let mut free = Vec::new();
        self.meters.meters.retain(|key, meter| {
            let stays = rates.contains_key(key);
            if !stays {
                free.extend(meter.waiting.values().copied());
                self.meters.due.clear(*key);
            }
            stays
        });
        for (key, rate) in rates {
            let Some(meter) = self.meters.meters.get_mut(key) else {
                let meter = Meter {
                    bucket: Bucket::new(now, rate.get()),
                    waiting: BTreeMap::new(),
                };
                self.meters.meters.insert(*key, meter);
                continue;
            };
            meter.bucket.refill(now, !meter.waiting.is_empty());
            meter.bucket.rate = rate.get();
            meter.bucket.refill(now, false);
            if !meter.waiting.is_empty() {
                self.meters.due.set(*key, now + meter.bucket.until_turn());
            }
        }
        for (id, lane) in free {
            self.go_on(id, lane, 0);
        }
    }

    /// Counts a stream for its key from now on, and what was read of it so far.
    pub(crate) fn meter(&mut self, id: StreamId, key: PublicKey) {
        if let Some(stream) = self.stream_mut(id) {
            stream.metered.key = Some(key);
            let bytes = stream.bytes_read();
            if let Some(meter) = self.meters.meters.get_mut(&key) {
                meter.bucket.level -= i128::from(bytes) * BILLION;
            }
        }
    }

    /// Whether a datagram of a key may pass. One that may not is counted.
    pub(crate) fn meter_datagram(&mut self, now: Instant, key: &PublicKey, bytes: usize) -> bool {
        let Some(meter) = self.meters.meters.get_mut(key) else {
            return true;
        };
        let streams_wait = !meter.waiting.is_empty();
        meter.bucket.refill(now, streams_wait);
        let passes = meter.bucket.take_datagram(bytes as u64, streams_wait);
        if !passes {
            self.resources.counters.drop_udp_rate += 1;
        }
        passes
    }

    /// What a direction of a stream may move now; `None` if it waits for its turn. What is in hand must come back by
    /// [`Node::moved`].
    pub(super) fn allowance(&mut self, now: Instant, id: StreamId, lane: Lane) -> Option<Hand> {
        if self.meters.meters.is_empty() || !self.could_move(id, lane) {
            return Some(Hand::FREE);
        }
        let (meters, Some(stream)) = self.meters_and_stream(id) else {
            return Some(Hand::FREE);
        };
        meters.ask(now, id, lane, &mut stream.metered)
    }

    /// A stream has moved so many bytes of those in hand, of `offered` that there were. If there were more than it moved,
    /// or none, the rest is for others, who may have their turn: returns whether the machine has to look after them.
    pub(super) fn moved(
        &mut self,
        now: Instant,
        id: StreamId,
        lane: Lane,
        hand: Hand,
        bytes: usize,
        offered: usize,
    ) -> bool {
        let Some(key) = hand.key else {
            return false;
        };
        let rest = hand.bytes.saturating_sub(bytes as u64);
        let (meters, stream) = self.meters_and_stream(id);
        // It may have ended with these bytes, which it has used up all the same.
        if let Some(stream) = stream.filter(|_| bytes > 0 && bytes == offered) {
            stream.metered.lanes[lane as usize].allowance = rest;
            return false;
        }
        match meters.meters.get_mut(&key) {
            Some(meter) if rest > 0 => meter.bucket.put(rest),
            _ => return false,
        }
        self.take_turns(now, &key)
    }

    /// Lets those go on whose turn has come.
    pub(super) fn meters_due(&mut self, now: Instant) {
        while let Some(key) = self.meters.due.pop_due(now) {
            self.take_turns(now, &key);
        }
    }

    fn take_turns(&mut self, now: Instant, key: &PublicKey) -> bool {
        let mut any = false;
        while let Some((id, lane, allowance)) = self.meters.next_turn(now, key) {
            any = true;
            self.go_on(id, lane, allowance);
        }
        any
    }

    fn go_on(&mut self, id: StreamId, lane: Lane, allowance: u64) {
        if let Some(stream) = self.stream_mut(id) {
            stream.metered.lanes[lane as usize] = Place { allowance, turn: None };
            self.service(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    #[test]
    fn a_second_brings_the_rate_whatever_the_steps() {
        let start = some_instant();
        for (rate, step) in [(1, 7_000_000), (333, 1_000_003), (10_000_000, 999_983)] {
            let mut bucket = Bucket::new(start, rate);
            bucket.level = -1_000_000 * BILLION;
            let (mut now, before) = (start, bucket.level);
            for _ in 0..1000 {
                now += Duration::from_nanos(step);
                bucket.refill(now, false);
            }
            let expected = 1000 * i128::from(step) * i128::from(rate);
            assert_eq!((bucket.level - before).min(-before), expected.min(-before), "{rate}");
        }
    }

    #[test]
    fn waiting_streams_leave_half_to_datagrams_and_no_more() {
        let start = some_instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(start, 1_000_000);
        assert!(!bucket.take_datagram(1000, true), "nothing is set aside yet");
        assert!(bucket.take_datagram(1000, false));
        bucket.level = 0;
        bucket.refill(at(20), true);
        assert_eq!((bucket.level, bucket.datagrams), (10_000 * BILLION, 10_000 * BILLION));
        assert!(bucket.take_datagram(10_000, true) && !bucket.take_datagram(1, true));
        bucket.refill(at(1000), true);
        assert_eq!(bucket.datagrams, bucket.burst() / 2);
        assert_eq!(bucket.level, bucket.burst());
    }

    #[test]
    fn a_turn_is_never_out_of_reach() {
        for rate in [1, 1000, 50_000, 10_000_000, 100_000_000_000] {
            let bucket = Bucket::new(some_instant(), rate);
            assert!(i128::from(bucket.quantum()) * BILLION * 2 <= bucket.burst(), "{rate}");
            assert!(bucket.until_turn() >= STEP);
        }
    }
}
