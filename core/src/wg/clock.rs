//! The injected clock that boringtun reads.

use std::time::{Duration, Instant};

use mock_instant::MockClock;

/// Lends a machine's time to boringtun, whose `mock-instant` clock is a thread-local.
///
/// Each machine counts from its own first instant and sets the thread-local at every entry into boringtun, so several
/// machines can share a thread and one machine may move between threads. Within a machine the time never runs back.
#[derive(Debug)]
pub(super) struct Clock {
    epoch: Instant,
    latest: Instant,
    /// What boringtun reads.
    lent: Duration,
}

/// Where its time begins: not at zero, from which nothing can be taken away.
const FIRST: Duration = Duration::from_secs(1);

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        let clock = Self {
            epoch: now,
            latest: now,
            lent: FIRST,
        };
        clock.lend();
        clock
    }

    /// The machine's first instant.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Makes `now` the time boringtun reads; an earlier `now` counts as the latest one seen.
    pub(super) fn enter(&mut self, now: Instant) -> Instant {
        if now > self.latest {
            self.latest = now;
            self.lent = FIRST + now.duration_since(self.epoch);
        }
        self.lend();
        self.latest
    }

    fn lend(&self) {
        MockClock::set_time(self.lent);
    }
}
