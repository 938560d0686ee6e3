//! UDP associations: what stands for what, for as long as datagrams come. The least recently used makes room.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::seed::{Map, Random};
use crate::timers::TimerQueue;

/// How long an association may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// What an association's entries here and at its owner's are charged, rounded up.
pub(crate) const ENTRIES: usize = 512;

/// No association can be made, and none makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

/// A bounded table from `K` to `V`.
#[derive(Debug)]
pub(crate) struct Associations<K, V> {
    entries: Map<K, V>,
    idle: TimerQueue<K>,
    capacity: usize,
    charge: usize,
}

impl<K: Copy + Ord + Hash, V> Associations<K, V> {
    /// For so many, each of which is charged `charge`.
    pub(crate) fn new(capacity: usize, charge: usize, random: &mut Random) -> Self {
        Self {
            entries: Map::with_hasher(random.hasher()),
            idle: TimerQueue::new(),
            capacity: capacity.max(1),
            charge,
        }
    }

    /// The association, its idle time started anew.
    pub(crate) fn touch(&mut self, now: Instant, key: K) -> Option<&mut V> {
        let value = self.entries.get_mut(&key)?;
        self.idle.set(key, now + IDLE);
        Some(value)
    }

    /// Whether there is such an association.
    pub(crate) fn has(&self, key: K) -> bool {
        self.entries.contains_key(&key)
    }

    /// The associations, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }

    /// Makes sure that there is room for one more association; returns the one that made it. `Err` if there is none to
    /// make room and no memory left.
    pub(crate) fn make_room(&mut self, budget: &mut Budget) -> Result<Option<(K, V)>, NoMemory> {
        if self.entries.len() < self.capacity && budget.charge(self.charge) {
            return Ok(None);
        }
        // The room of the evicted one passes to the new one, charge and all.
        let key = self.idle.pop_first().ok_or(NoMemory)?;
        Ok(self.entries.remove_entry(&key))
    }

    /// Adds an association for which [`Associations::make_room`] has made room.
    pub(crate) fn insert(&mut self, now: Instant, key: K, value: V) {
        self.entries.insert(key, value);
        self.idle.set(key, now + IDLE);
    }

    pub(crate) fn remove(&mut self, key: K, budget: &mut Budget) -> Option<V> {
        let value = self.entries.remove(&key)?;
        self.idle.clear(key);
        budget.release(self.charge);
        Some(value)
    }

    /// Takes an association that was silent for too long.
    pub(crate) fn pop_idle(&mut self, now: Instant, budget: &mut Budget) -> Option<(K, V)> {
        let key = self.idle.pop_due(now)?;
        budget.release(self.charge);
        self.entries.remove_entry(&key)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What they are charged in all.
    pub(crate) fn held(&self) -> usize {
        self.entries.len() * self.charge
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
        let mut budget = Budget::new(4 * ENTRIES);
        let mut table = Associations::new(2, ENTRIES, &mut Random::new([1; 32]));
        assert_eq!(table.make_room(&mut budget), Ok(None));
        table.insert(at(0), 'a', 1);
        assert_eq!(table.make_room(&mut budget), Ok(None));
        table.insert(at(1), 'b', 2);
        assert_eq!(table.touch(at(2), 'a'), Some(&mut 1));
        assert_eq!(table.make_room(&mut budget), Ok(Some(('b', 2))));
        table.insert(at(3), 'c', 3);
        assert_eq!(table.touch(at(3), 'b'), None);
        assert_eq!(table.next_timeout(), Some(at(62)));
        assert_eq!(table.pop_idle(at(61), &mut budget), None);
        assert_eq!(table.pop_idle(at(62), &mut budget), Some(('a', 1)));
        assert_eq!(table.keys_where(|_| true), vec!['c']);
        assert_eq!(budget.used(), table.held());
        assert_eq!(table.remove('c', &mut budget), Some(3));
        assert_eq!((table.next_timeout(), budget.used()), (None, 0));
        assert!(budget.charge(4 * ENTRIES));
        assert_eq!(table.make_room(&mut budget), Err(NoMemory));
    }
}
