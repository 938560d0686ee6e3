//! The one memory budget from which buffers are charged, and the sizes that a flow's buffers may have.

/// What the kernel holds for a socket of ours, whatever waits in it: a TCP socket with its inode, file and places in
/// tables is 3.6 KiB in Linux 6. A cgroup counts it as ours, and so does the budget.
pub(crate) const KERNEL_SOCKET: usize = 4 * 1024;

/// How many bytes a machine may commit, and how many it has.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: usize,
}

/// The sizes of a flow's two ring buffers in bytes. The one for receiving is the window, and the one for sending holds
/// what is not acknowledged: rate is at most the smaller of the two, here and there, a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffers {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

/// The size of one of a flow's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BufferClass(usize);

/// Classes and the share of the budget in percent up to which each is handed out: plenty of memory, large windows. The
/// rest above the last share is for flows that are there already and come to need a buffer again.
const CLASSES: [(BufferClass, usize); 5] = [
    (BufferClass::LARGEST, 40),
    (BufferClass(1024 * 1024), 55),
    (BufferClass(128 * 1024), 70),
    (BufferClass::FIRST, 85),
    (BufferClass::SMALLEST, 95),
];

/// Above this share of the budget in percent it is short.
const SHORT: usize = 60;

/// Up to this share of the budget in percent it is ample: most of what may be used before the largest class is no longer
/// handed out is left.
const AMPLE: usize = 10;

impl BufferClass {
    /// The smallest class, for which flows are refused rather than shrunk any further.
    pub(crate) const SMALLEST: Self = Self(4 * 1024);

    /// What a flow begins with: the first ten packets (RFC 6928) fit, and most requests and answers.
    pub(crate) const FIRST: Self = Self(16 * 1024);

    /// Nobody gets a larger one: 400 Mbit/s over a round trip of 100 ms need 5 MB, and a window that is told with a scale
    /// of 7 can be 8 MiB.
    pub(crate) const LARGEST: Self = Self(6 * 1024 * 1024);

    /// Its size in bytes.
    pub(crate) const fn bytes(self) -> usize {
        self.0
    }

    /// The smallest class that holds so many bytes, or the largest there is.
    pub(crate) const fn holding(bytes: usize) -> Self {
        let mut at = CLASSES.len() - 1;
        while at > 0 && CLASSES[at].0.0 < bytes {
            at -= 1;
        }
        CLASSES[at].0
    }
}

impl Buffers {
    /// Two of the same size.
    pub(crate) const fn both(class: BufferClass) -> Self {
        Self {
            receive: class.bytes(),
            send: class.bytes(),
        }
    }

    /// Bytes of both.
    pub(crate) fn bytes(self) -> usize {
        self.receive + self.send
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: 0 }
    }

    /// Bytes there are in all.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether next to nothing is used: who needs much will find it, whatever others get.
    pub(crate) fn is_ample(&self) -> bool {
        self.used.saturating_mul(100) <= self.limit.saturating_mul(AMPLE)
    }

    /// Whether so much is used that who can do with less should.
    pub(crate) fn is_short(&self) -> bool {
        self.used.saturating_mul(100) > self.limit.saturating_mul(SHORT)
    }

    /// Bytes charged now.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Charges `bytes` if they are left.
    #[must_use]
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        if bytes > self.limit.saturating_sub(self.used) {
            return false;
        }
        self.used += bytes;
        true
    }

    /// Charges what is there already and cannot be refused, beyond the limit too.
    pub(crate) fn charge_regardless(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Gives back what was charged.
    pub(crate) fn release(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used, "more released than was charged");
        self.used = self.used.saturating_sub(bytes);
    }

    /// Changes what was charged for one thing from `old` to `new` bytes, if that is possible.
    #[must_use]
    pub(crate) fn recharge(&mut self, old: usize, new: usize) -> bool {
        if new > old {
            return self.charge(new - old);
        }
        self.release(old - new);
        true
    }

    /// The largest class up to `most` of which `count` buffers may be handed out, given the budget's fill, to a flow that
    /// gives back `held` bytes for them and costs `more` besides. `None` if even the smallest is too much.
    pub(crate) fn affordable(&self, most: BufferClass, count: usize, more: usize, held: usize) -> Option<BufferClass> {
        let others = self.used.saturating_sub(held) + more;
        let fits = |&(class, share): &(BufferClass, usize)| {
            (others + count * class.bytes()).saturating_mul(100) <= self.limit.saturating_mul(share)
        };
        let picked = CLASSES.into_iter().filter(|&(class, _)| class <= most).find(fits);
        picked.map(|(class, _)| class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_shrink_with_the_budget_and_are_refused_before_its_end() {
        let limit = 64 * 1024 * 1024;
        let mut budget = Budget::new(limit);
        let mut classes = Vec::new();
        while let Some(class) = budget.affordable(BufferClass::LARGEST, 2, 100, 0) {
            assert!(budget.charge(2 * class.bytes() + 100));
            classes.push(class);
        }
        assert!(classes.is_sorted_by(|a, b| a >= b));
        assert_eq!(classes.first(), Some(&BufferClass::LARGEST));
        assert_eq!(classes.last(), Some(&BufferClass::SMALLEST));
        assert!(budget.used() <= limit / 100 * 96);
        assert!(budget.used() >= limit / 100 * 94);
        let charged: usize = classes.iter().map(|class| 2 * class.bytes() + 100).sum();
        assert_eq!(charged, budget.used());
        budget.release(charged);
        assert_eq!(budget.used(), 0);
        assert_eq!(
            budget.affordable(BufferClass::FIRST, 2, 100, 0),
            Some(BufferClass::FIRST)
        );
    }

    #[test]
    fn what_is_given_back_counts() {
        let mut budget = Budget::new(1000 * 1024);
        assert!(budget.charge(900 * 1024));
        assert_eq!(
            budget.affordable(BufferClass::LARGEST, 1, 0, 0),
            Some(BufferClass::SMALLEST)
        );
        let held = 300 * 1024;
        assert_eq!(
            budget.affordable(BufferClass::LARGEST, 1, 0, held),
            Some(BufferClass(128 * 1024).min(BufferClass::FIRST.max(BufferClass::SMALLEST)))
        );
    }

    #[test]
    fn memory_is_ample_then_enough_then_short() {
        let mut budget = Budget::new(1000);
        let mut said = Vec::new();
        for more in [100, 1, 499, 1] {
            assert!(budget.charge(more));
            said.push((budget.is_ample(), budget.is_short()));
        }
        assert_eq!(said, [(true, false), (false, false), (false, false), (false, true)]);
    }

    #[test]
    fn classes_hold_what_is_asked() {
        for (bytes, class) in [(0, 4), (4096, 4), (4097, 16), (100_000, 128), (9 << 20, 6 * 1024)] {
            assert_eq!(BufferClass::holding(bytes), BufferClass(class * 1024));
        }
    }

    #[test]
    fn a_charge_beyond_the_limit_changes_nothing() {
        let mut budget = Budget::new(10);
        assert!(budget.charge(10));
        assert!(!budget.charge(1));
        assert!(!budget.recharge(4, 5));
        assert!(budget.recharge(4, 2) && budget.recharge(2, 4));
        assert_eq!(budget.used(), 10);
    }
}
