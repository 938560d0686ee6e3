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
}

impl Clock {
    pub(super) fn new(now: Instant) -> Self {
        let clock = Self {
            epoch: now,
            latest: now,
        };
        clock.lend();
        clock
    }

    /// Makes `now` the time boringtun reads; an earlier `now` counts as the latest one seen.
    pub(super) fn enter(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.lend();
        self.latest
    }

    /// The next of the instants, `step` apart, that all look at together, at or after `at`: what many wait for then
    /// costs one turn, not one for each.
    pub(super) fn shared(&self, at: Instant, step: Duration) -> Instant {
        let steps = at.duration_since(self.epoch).as_nanos().div_ceil(step.as_nanos());
        u32::try_from(steps).map_or(at, |steps| self.epoch + step * steps)
    }

    fn lend(&self) {
        MockClock::set_time(Duration::from_secs(1) + self.latest.duration_since(self.epoch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    #[test]
    fn shared_instants_are_whole_steps_and_never_early() {
        let epoch = some_instant();
        let clock = Clock::new(epoch);
        let step = Duration::from_millis(250);
        for (asked, given) in [(0, 0), (1, 250), (250, 250), (251, 500), (10_999, 11_000)] {
            let shared = clock.shared(epoch + Duration::from_millis(asked), step);
            assert_eq!(shared, epoch + Duration::from_millis(given), "{asked} ms");
        }
    }
}
