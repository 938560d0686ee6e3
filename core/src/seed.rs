//! Everything random in a machine grows from the one seed it was given.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

/// The machine's own generator.
#[derive(Debug)]
pub(crate) struct Random(ChaCha12Rng);

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A number below `bound`; the bias is below 2^-32 for the small bounds used here.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(((self.u64() >> 32) * u64::from(bound)) >> 32).expect("below a 32-bit bound")
    }

    /// A hasher for maps whose keys strangers choose: its seed is secret, and equal seeds give equal orders.
    pub(crate) fn hasher(&mut self) -> Hasher {
        Hasher(FixedState::with_seed(self.u64()))
    }
}

/// See [`Random::hasher`].
#[derive(Clone, Debug)]
pub(crate) struct Hasher(FixedState);

impl BuildHasher for Hasher {
    type Hasher = <FixedState as BuildHasher>::Hasher;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

/// A map for keys that strangers choose.
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, Hasher>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers_and_below_stays_below() {
        let (mut a, mut b) = (Random::new([7; 32]), Random::new([7; 32]));
        for bound in 1..200 {
            assert!(a.below(bound) < bound);
            b.below(bound);
        }
        assert_eq!(a.u64(), b.u64());
        assert_eq!(a.hasher().hash_one(5), b.hasher().hash_one(5));
        assert_ne!(a.hasher().hash_one(5), a.hasher().hash_one(5));
    }
}
