//! The one memory budget from which buffers are charged, and the size classes of a flow's buffers.

/// How many bytes a machine may commit, and how many it has.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: usize,
}

/// What a flow's two ring buffers cost. The receive buffer is the window: rate is at most its size a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BufferClass(usize);

impl BufferClass {
    /// The smallest class, for which flows are refused rather than shrunk any further.
    pub(crate) const SMALLEST: Self = Self(8 * 1024);

    /// No bound but the budget's fill.
    pub(crate) const LARGEST: Self = Self(512 * 1024);

    /// The size of each of the two buffers in bytes.
    pub(crate) fn bytes(self) -> usize {
        self.0
    }

    /// What a flow of this class is charged: its buffers and its state.
    pub(crate) fn charge(self) -> usize {
        2 * self.0 + FLOW_STATE
    }
}

/// A flow's socket, map entry and timer, rounded up (a smoltcp socket with 32 assembler holes is about 1 KiB).
const FLOW_STATE: usize = 2 * 1024;

/// Classes and the share of the budget up to which each is handed out: plenty of memory, large windows.
const CLASSES: [(BufferClass, usize); 4] = [
    (BufferClass::LARGEST, 30),
    (BufferClass(128 * 1024), 60),
    (BufferClass(32 * 1024), 80),
    (BufferClass::SMALLEST, 100),
];

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: 0 }
    }

    /// Bytes there are in all.
    pub(crate) fn limit(&self) -> usize {
        self.limit
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

    /// Charges a flow's buffers: the largest class up to `largest` that the fill of the budget allows, `None` if even
    /// the smallest does not fit.
    pub(crate) fn charge_flow(&mut self, largest: BufferClass) -> Option<BufferClass> {
        CLASSES
            .into_iter()
            .filter(|&(class, _)| class <= largest)
            .find(|&(class, share)| {
                (self.used + class.charge()).saturating_mul(100) <= self.limit.saturating_mul(share)
            })
            .map(|(class, _)| {
                self.used += class.charge();
                class
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_shrink_with_the_budget_and_are_refused_at_its_end() {
        let mut budget = Budget::new(16 * 1024 * 1024);
        let mut classes = Vec::new();
        while let Some(class) = budget.charge_flow(BufferClass::LARGEST) {
            classes.push(class);
        }
        assert!(classes.is_sorted_by(|a, b| a >= b));
        assert_eq!(classes.first(), Some(&BufferClass(512 * 1024)));
        assert_eq!(classes.last(), Some(&BufferClass::SMALLEST));
        assert!(budget.used() <= 16 * 1024 * 1024);
        let charged: usize = classes.iter().map(|class| class.charge()).sum();
        assert_eq!(charged, budget.used());
        budget.release(charged);
        assert_eq!(budget.used(), 0);
        assert_eq!(budget.charge_flow(BufferClass::SMALLEST), Some(BufferClass::SMALLEST));
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
