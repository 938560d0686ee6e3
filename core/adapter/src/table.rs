//! Slots addressed by the machine's identities.

use portal_core::{ListenerId, StreamId, UdpId};

/// An identity with a dense index.
pub(crate) trait Id: Copy + Eq {
    /// It.
    fn index(self) -> usize;
}

impl Id for ListenerId {
    fn index(self) -> usize {
        ListenerId::index(self)
    }
}

impl Id for StreamId {
    fn index(self) -> usize {
        StreamId::index(self)
    }
}

impl Id for UdpId {
    fn index(self) -> usize {
        UdpId::index(self)
    }
}

/// What is held under each identity. An outdated identity of the same index finds nothing. Each lies by itself, so that
/// its memory is back when it goes.
#[derive(Debug)]
pub(crate) struct Table<I, T> {
    slots: Vec<Option<(I, Box<T>)>>,
    live: usize,
}

impl<I: Id, T> Table<I, T> {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            live: 0,
        }
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// What is held at an index now, and under which identity.
    pub(crate) fn at(&mut self, index: usize) -> Option<(I, &mut T)> {
        self.slots
            .get_mut(index)?
            .as_mut()
            .map(|(id, value)| (*id, &mut **value))
    }

    /// What is held under `id`.
    pub(crate) fn get_mut(&mut self, id: I) -> Option<&mut T> {
        match self.slots.get_mut(id.index()) {
            Some(Some((held, value))) if *held == id => Some(value),
            _ => None,
        }
    }

    /// Puts `value` under `id`. What an older identity of this index still held is dropped.
    pub(crate) fn insert(&mut self, id: I, value: T) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        if self.slots[id.index()].replace((id, Box::new(value))).is_none() {
            self.live += 1;
        }
    }

    /// Takes out what is held under `id`.
    pub(crate) fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.as_ref().is_none_or(|(held, _)| *held != id) {
            return None;
        }
        self.live -= 1;
        slot.take().map(|(_, value)| *value)
    }

    /// All, by index.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (I, &mut T)> {
        self.slots.iter_mut().flatten().map(|(id, value)| (*id, &mut **value))
    }

    /// Drops those that `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|(_, value)| !keep(value)) {
                *slot = None;
                self.live -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outdated_identity_finds_nothing() {
        let (old, new) = (StreamId::from_parts(3, 1), StreamId::from_parts(3, 2));
        let mut table = Table::new();
        table.insert(old, 'a');
        assert_eq!(table.remove(old), Some('a'));
        table.insert(new, 'b');
        assert_eq!(table.get_mut(old), None);
        assert_eq!((table.remove(old), table.len()), (None, 1));
        assert_eq!(table.get_mut(new), Some(&mut 'b'));
        table.retain(|_| false);
        assert_eq!((table.remove(new), table.len()), (None, 0));
    }
}
