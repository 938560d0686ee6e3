//! UDP associations: what stands for what, for as long as datagrams come. The least recently used makes room.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::seed::{Map, Random};
use crate::timers::TimerQueue;

/// How long an association may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// A bounded table from `K` to `V`.
#[derive(Debug)]
pub(crate) struct Associations<K, V> {
    entries: Map<K, V>,
    idle: TimerQueue<K>,
    capacity: usize,
}

impl<K: Copy + Ord + Hash, V> Associations<K, V> {
    pub(crate) fn new(capacity: usize, random: &mut Random) -> Self {
        Self {
            entries: Map::with_hasher(random.hasher()),
            idle: TimerQueue::new(),
            capacity: capacity.max(1),
        }
    }

    /// The association, its idle time started anew.
    pub(crate) fn touch(&mut self, now: Instant, key: K) -> Option<&mut V> {
        let value = self.entries.get_mut(&key)?;
        self.idle.set(key, now + IDLE);
        Some(value)
    }

    /// Adds an association; returns the one that made room for it.
    pub(crate) fn insert(&mut self, now: Instant, key: K, value: V) -> Option<(K, V)> {
        let evicted = (self.entries.len() >= self.capacity)
            .then(|| self.idle.pop_first())
            .flatten();
        let evicted = evicted.and_then(|key| self.entries.remove_entry(&key));
        self.entries.insert(key, value);
        self.idle.set(key, now + IDLE);
        evicted
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        self.idle.clear(key);
        self.entries.remove(&key)
    }

    /// Takes an association that was silent for too long.
    pub(crate) fn pop_idle(&mut self, now: Instant) -> Option<(K, V)> {
        let key = self.idle.pop_due(now)?;
        self.entries.remove_entry(&key)
    }

    /// The keys that `wanted` picks, in order.
    pub(crate) fn keys_where(&self, wanted: impl Fn(&K) -> bool) -> Vec<K> {
        self.idle.keys().filter(|key| wanted(key)).collect()
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.idle.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    #[test]
    fn the_least_recently_used_makes_room_and_silence_ends_one() {
        let start = some_instant();
        let at = |s| start + Duration::from_secs(s);
        let mut table = Associations::new(2, &mut Random::new([1; 32]));
        assert_eq!(table.insert(at(0), 'a', 1), None);
        assert_eq!(table.insert(at(1), 'b', 2), None);
        assert_eq!(table.touch(at(2), 'a'), Some(&mut 1));
        assert_eq!(table.insert(at(3), 'c', 3), Some(('b', 2)));
        assert_eq!(table.touch(at(3), 'b'), None);
        assert_eq!(table.next_timeout(), Some(at(62)));
        assert_eq!(table.pop_idle(at(61)), None);
        assert_eq!(table.pop_idle(at(62)), Some(('a', 1)));
        assert_eq!(table.keys_where(|_| true), vec!['c']);
        assert_eq!(table.remove('c'), Some(3));
        assert_eq!(table.next_timeout(), None);
    }
}
