//! What keys may have at a time, over all their leases: connections, and bytes a second.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::access::Access;
use crate::identity::PublicKey;

/// How many connections keys may have, and have.
#[derive(Debug)]
pub(super) struct Quotas {
    most: BTreeMap<PublicKey, NonZeroU32>,
    open: BTreeMap<PublicKey, u32>,
}

impl Quotas {
    pub(super) fn new(access: &Access) -> Self {
        Self {
            most: access.flows(),
            open: BTreeMap::new(),
        }
    }

    /// Other grants hold from now on. Connections that are open stay.
    pub(super) fn set(&mut self, access: &Access) {
        self.most = access.flows();
    }

    /// Counts a connection of a key. False if it has as many as it may.
    #[must_use]
    pub(super) fn open(&mut self, key: PublicKey) -> bool {
        let open = self.open.entry(key).or_default();
        let may = self.most.get(&key).is_none_or(|most| *open < most.get());
        *open += u32::from(may);
        if *open == 0 {
            self.open.remove(&key);
        }
        may
    }

    /// A connection has ended.
    pub(super) fn close(&mut self, key: &PublicKey) {
        if let Some(open) = self.open.get_mut(key) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(key);
            }
        }
    }

    /// How many connections are counted.
    pub(super) fn count(&self) -> usize {
        self.open.values().map(|&open| open as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Grant;

    #[test]
    fn connections_of_a_key_are_counted_and_capped() {
        let (one, two) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        let narrow = Grant {
            flows: NonZeroU32::new(2),
            ..Grant::all(one)
        };
        let mut quotas = Quotas::new(&Access::Granted(vec![narrow, Grant::all(two)]));
        assert!(quotas.open(one) && quotas.open(one) && !quotas.open(one));
        assert!((0..100).all(|_| quotas.open(two)));
        quotas.close(&one);
        assert!(quotas.open(one) && !quotas.open(one));
        quotas.set(&Access::Open);
        assert!(quotas.open(one));
        (0..3).for_each(|_| quotas.close(&one));
        (0..100).for_each(|_| quotas.close(&two));
        assert_eq!((quotas.count(), quotas.open.len()), (0, 0));
    }
}
