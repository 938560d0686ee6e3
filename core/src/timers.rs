//! A queue of deadlines, at most one for each key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What many wait for, each in its own time and none in a hurry, is due at instants so far apart: a turn for all that
/// have come to it, not one for each.
const SHARED: Duration = Duration::from_millis(250);

/// The first of the shared instants at or after `at`, counted from `epoch`.
pub(crate) fn shared_instant(epoch: Instant, at: Instant) -> Instant {
    let steps = at.duration_since(epoch).as_nanos().div_ceil(SHARED.as_nanos());
    u32::try_from(steps).map_or(at, |steps| epoch + SHARED * steps)
}

/// Deadlines by key. Setting, clearing and taking cost the logarithm of the number of keys that have one; a key without
/// a deadline costs nothing.
#[derive(Debug)]
pub(crate) struct TimerQueue<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: BTreeMap<K, Instant>,
}

impl<K: Copy + Ord> TimerQueue<K> {
    pub(crate) fn new() -> Self {
        Self {
            by_time: BTreeSet::new(),
            by_key: BTreeMap::new(),
        }
    }

    /// Sets the key's deadline, whatever it was.
    pub(crate) fn set(&mut self, key: K, at: Instant) {
        if let Some(old) = self.by_key.insert(key, at) {
            if old == at {
                return;
            }
            self.by_time.remove(&(old, key));
        }
        self.by_time.insert((at, key));
    }

    /// Makes sure that the key's deadline is no later than `at`. For those who look again when it fires: a deadline that
    /// only moves back stays where it is, which spares the queue most of the work.
    pub(crate) fn set_no_later(&mut self, key: K, at: Instant) {
        if self.by_key.get(&key).is_none_or(|&old| at < old) {
            self.set(key, at);
        }
    }

    pub(crate) fn clear(&mut self, key: K) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes a key whose deadline is at or before `now`, the earliest first.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }

    /// Takes the key with the earliest deadline, due or not.
    pub(crate) fn pop_first(&mut self) -> Option<K> {
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    /// All keys that have a deadline, in their own order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        self.by_key.keys().copied()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.by_time.len(), self.by_key.len());
        self.by_key.len()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Tests need some instant to start from; which one does not matter.
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin, never compared with another clock"
    )]
    pub(crate) fn some_instant() -> Instant {
        Instant::now()
    }

    #[test]
    fn one_deadline_a_key_in_order_of_time() {
        let start = some_instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut queue = TimerQueue::new();
        queue.set('a', at(30));
        queue.set('b', at(20));
        queue.set('a', at(10));
        queue.set_no_later('b', at(25));
        queue.set_no_later('a', at(5));
        queue.set('c', at(1));
        queue.clear('c');
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next(), Some(at(5)));
        assert_eq!(queue.pop_due(at(4)), None);
        assert_eq!(queue.pop_due(at(40)), Some('a'));
        assert_eq!(queue.pop_due(at(40)), Some('b'));
        assert_eq!(queue.pop_due(at(40)), None);
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn shared_instants_are_whole_steps_and_never_early() {
        let epoch = some_instant();
        for (asked, given) in [(0, 0), (1, 250), (250, 250), (251, 500), (10_999, 11_000)] {
            let shared = shared_instant(epoch, epoch + Duration::from_millis(asked));
            assert_eq!(shared, epoch + Duration::from_millis(given), "{asked} ms");
        }
    }
}
