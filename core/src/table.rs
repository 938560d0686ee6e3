//! A bounded table whose entries are named by an index and a generation, so that a stale name finds nothing.

use slab::Slab;

/// A place in a [`Table`]: where, and the how-manieth use of the table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// See the module docs.
///
/// Entries lie by themselves: they need not move, all at once, when the table grows, and the memory of each is back when
/// it goes, wherever in the table the last ones are.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Slab<(u32, Box<T>)>,
    inserted: u32,
    capacity: usize,
}

impl<T> Table<T> {
    /// A table that refuses an entry beyond `capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            entries: Slab::new(),
            inserted: 0,
            capacity: capacity.min(u32::MAX as usize),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Adds an entry that may want to know its own key, unless the table is full.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        self.inserted = self.inserted.wrapping_add(1);
        let vacant = self.entries.vacant_entry();
        let key = Key {
            index: u32::try_from(vacant.key()).ok()?,
            generation: self.inserted,
        };
        vacant.insert((key.generation, Box::new(make(key))));
        Some(key)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (generation, value) = self.entries.get(key.index as usize)?;
        (*generation == key.generation).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        (*generation == key.generation).then_some(value)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        Some(*self.entries.remove(key.index as usize).1)
    }

    /// All entries in the order of their indices (deterministic).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().map(|(index, (generation, value))| {
            let index = u32::try_from(index).expect("insert_with only gives out 32-bit indices");
            (
                Key {
                    index,
                    generation: *generation,
                },
                &**value,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_and_a_full_table_refuses() {
        let mut table = Table::new(1);
        let first = table.insert_with(|_| 'a').unwrap();
        assert_eq!(table.insert_with(|_| 'b'), None);
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert_with(|_| 'b').unwrap();
        assert_eq!(first.index, second.index);
        assert_eq!((table.get(first), table.get(second)), (None, Some(&'b')));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.len(), 1);
    }
}
