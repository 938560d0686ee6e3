//! One direction of a link: what a network does to datagrams, with the core's own shape of interface.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::random::Random;

/// What a link does to what crosses it. The default carries everything at once and whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impairments {
    /// How long a datagram takes.
    pub latency: Duration,
    /// By how much longer it may take, drawn evenly. Jitter alone does not reorder.
    pub jitter: Duration,
    /// Which datagrams are lost.
    pub loss: Loss,
    /// How many in a million arrive twice.
    pub duplicate: u32,
    /// How many in a million are held back by [`Impairments::reorder_by`], so that later ones overtake them.
    pub reorder: u32,
    /// How long those are held back.
    pub reorder_by: Duration,
    /// Bytes a second; 0 for no limit.
    pub rate: u64,
    /// Bytes that wait for the rate; what comes on top is dropped (tail drop).
    pub queue: usize,
    /// The longest datagram that passes, headers included; longer ones vanish.
    pub mtu: usize,
    /// Nothing passes.
    pub partitioned: bool,
}

/// Which datagrams are lost. Shares are out of a million.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None.
    None,
    /// Each by itself, with this chance.
    Random(u32),
    /// In bursts (Gilbert and Elliott): a good and a bad state, left with a chance at each datagram.
    Bursts {
        /// From good to bad.
        worsen: u32,
        /// From bad to good.
        recover: u32,
        /// Lost in the good state.
        in_good: u32,
        /// Lost in the bad state.
        in_bad: u32,
    },
}

/// What a link has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams taken in.
    pub taken: u64,
    /// Datagrams handed out.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub queue_full: u64,
    /// Dropped because they were too long.
    pub too_long: u64,
    /// Dropped by a partition.
    pub cut: u64,
    /// Delivered a second time.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
}

/// One direction of a link, as a state machine: datagrams go in, and come out when they arrive.
#[derive(Clone, Debug)]
pub struct Netem<T> {
    impairments: Impairments,
    random: Random,
    in_bad_state: bool,
    busy_until: Option<Instant>,
    last_arrival: Option<Instant>,
    number: u64,
    on_the_way: BTreeMap<(Instant, u64), T>,
    counts: Counts,
}

impl Default for Impairments {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Loss::None,
            duplicate: 0,
            reorder: 0,
            reorder_by: Duration::from_millis(5),
            rate: 0,
            queue: usize::MAX,
            mtu: usize::MAX,
            partitioned: false,
        }
    }
}

impl<T: Clone> Netem<T> {
    /// A link whose chances follow from `seed`.
    #[must_use]
    pub fn new(impairments: Impairments, seed: u64) -> Self {
        Self {
            impairments,
            random: Random::new(seed),
            in_bad_state: false,
            busy_until: None,
            last_arrival: None,
            number: 0,
            on_the_way: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// What it does from now on. What is on its way already arrives as it would have.
    pub fn impairments_mut(&mut self) -> &mut Impairments {
        &mut self.impairments
    }

    /// What it does.
    #[must_use]
    pub fn impairments(&self) -> &Impairments {
        &self.impairments
    }

    /// What it has done.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many datagrams are on their way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.on_the_way.len()
    }

    /// Takes a datagram of `len` bytes, headers included.
    pub fn handle_datagram(&mut self, now: Instant, len: usize, datagram: T) {
        self.counts.taken += 1;
        if self.impairments.partitioned {
            self.counts.cut += 1;
            return;
        }
        if len > self.impairments.mtu {
            self.counts.too_long += 1;
            return;
        }
        let Some(sent) = self.transmit(now, len) else {
            self.counts.queue_full += 1;
            return;
        };
        if self.is_lost() {
            self.counts.lost += 1;
            return;
        }
        let in_order = sent + self.impairments.latency + self.random.duration(self.impairments.jitter);
        let arrival = if self.random.chance(self.impairments.reorder) {
            self.counts.reordered += 1;
            in_order + self.impairments.reorder_by
        } else {
            let arrival = self.last_arrival.map_or(in_order, |last| in_order.max(last));
            self.last_arrival = Some(arrival);
            arrival
        };
        if self.random.chance(self.impairments.duplicate) {
            self.counts.duplicated += 1;
            let second = arrival + self.random.duration(self.impairments.reorder_by);
            self.put(second, datagram.clone());
        }
        self.put(arrival, datagram);
    }

    /// A datagram that has arrived by `now`.
    pub fn poll_datagram(&mut self, now: Instant) -> Option<T> {
        let entry = self.on_the_way.first_entry().filter(|entry| entry.key().0 <= now)?;
        self.counts.delivered += 1;
        Some(entry.remove())
    }

    /// When the next datagram arrives.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.on_the_way.first_key_value().map(|(&(at, _), _)| at)
    }

    fn put(&mut self, arrival: Instant, datagram: T) {
        self.number += 1;
        self.on_the_way.insert((arrival, self.number), datagram);
    }

    /// When the last byte has left, or `None` if the queue is full.
    fn transmit(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let rate = self.impairments.rate;
        if rate == 0 {
            return Some(now);
        }
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let waiting = u128::from(rate) * (start - now).as_nanos() / 1_000_000_000;
        if waiting + len as u128 > self.impairments.queue as u128 {
            return None;
        }
        let takes = (len as u128 * 1_000_000_000).div_ceil(u128::from(rate));
        let end = start + Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX));
        self.busy_until = Some(end);
        Some(end)
    }

    fn is_lost(&mut self) -> bool {
        match self.impairments.loss {
            Loss::None => false,
            Loss::Random(share) => self.random.chance(share),
            Loss::Bursts {
                worsen,
                recover,
                in_good,
                in_bad,
            } => {
                let leave = if self.in_bad_state { recover } else { worsen };
                if self.random.chance(leave) {
                    self.in_bad_state = !self.in_bad_state;
                }
                self.random.chance(if self.in_bad_state { in_bad } else { in_good })
            }
        }
    }
}

#[cfg(test)]
mod tests;
