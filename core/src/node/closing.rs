//! A machine's end: nothing new is accepted, and what was on its way arrives.

use std::time::{Duration, Instant};

use super::Node;

/// How long the last packets may go unanswered, counted from when the last stream ended. Long enough to send again what
/// was lost more than once, short enough for somebody who waits at a terminal for an end whose other side is gone.
const LINGER: Duration = Duration::from_secs(2);

impl<X, E> Node<X, E> {
    /// From now on the machine only finishes what it has.
    pub(crate) fn begin_closing(&mut self, now: Instant) {
        self.lingers_until.get_or_insert(now + LINGER);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lingers_until.is_some()
    }

    /// Notes that there are streams still, if there are. To be called after each input.
    pub(crate) fn follow_closing(&mut self, now: Instant) {
        if self.lingers_until.is_some() && self.stream_count() > 0 {
            self.lingers_until = Some(now + LINGER);
        }
    }

    /// Whether nothing is left to do: the streams have ended, and the far ends know it or had the time to.
    pub(crate) fn is_finished(&self) -> bool {
        self.lingers_until
            .is_some_and(|until| self.stream_count() == 0 && self.stack.is_drained() && !self.lingers(until))
    }

    /// When the end no longer waits for far ends.
    pub(super) fn linger_timeout(&self) -> Option<Instant> {
        self.lingers_until
            .filter(|&until| self.stream_count() == 0 && self.lingers(until))
    }

    fn lingers(&self, until: Instant) -> bool {
        self.latest < until && self.stack.has_open_flows()
    }
}
