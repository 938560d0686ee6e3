//! What every part of a machine draws on: the memory budget and the counters.

use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::counters::Counters;

/// One of these exists in a machine; parts borrow it for a call.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) budget: Budget,
    pub(crate) counters: Counters,
    /// When it was last said that memory is short, and how many refusals there had been.
    told: Option<(Instant, u64)>,
}

/// How often it is said that memory is short.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Resources {
    pub(crate) fn new(memory: usize) -> Self {
        Self {
            budget: Budget::new(memory),
            counters: Counters::default(),
            told: None,
        }
    }

    /// How many refusals for want of memory there were since this last answered, if there are any to speak of: once at
    /// their beginning, then once a minute while there are more.
    pub(crate) fn refusals_to_tell(&mut self, now: Instant) -> Option<u64> {
        let refused = self.counters.refused_memory;
        let since = match self.told {
            Some((at, told)) if refused == told || now.saturating_duration_since(at) < TELL_EVERY => return None,
            Some((_, told)) => told,
            None if refused == 0 => return None,
            None => 0,
        };
        self.told = Some((now, refused));
        Some(refused - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::tests::some_instant;

    #[test]
    fn refusals_are_told_at_once_then_once_a_minute() {
        let start = some_instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut resources = Resources::new(1);
        assert_eq!(resources.refusals_to_tell(at(0)), None);
        resources.counters.refused_memory = 1;
        assert_eq!(resources.refusals_to_tell(at(1)), Some(1));
        resources.counters.refused_memory = 10;
        assert_eq!(resources.refusals_to_tell(at(60)), None);
        assert_eq!(resources.refusals_to_tell(at(61)), Some(9));
        assert_eq!(resources.refusals_to_tell(at(500)), None, "there were none since");
    }
}
