//! What every part of a machine draws on: the memory budget and the counters.

use crate::budget::Budget;
use crate::counters::Counters;

/// One of these exists in a machine; parts borrow it for a call.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) budget: Budget,
    pub(crate) counters: Counters,
}

impl Resources {
    pub(crate) fn new(memory: usize) -> Self {
        Self {
            budget: Budget::new(memory),
            counters: Counters::default(),
        }
    }
}
