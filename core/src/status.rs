//! What a machine tells an operator who asks: plain values, put together when asked for and not before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::agent::AgentStatus;
use crate::counters::Counters;
use crate::relay::RelayStatus;
use crate::resources::Resources;

/// How many agents, leases or services are listed at most. What is left out is counted.
pub(crate) const MAX_LISTED: usize = 500;
/// Bytes of a text from the other end that are kept to be shown.
const MAX_TEXT: usize = 128;

/// The status of a relay or an agent, told apart by `role` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Status {
    /// A relay's.
    Relay(RelayStatus),
    /// An agent's.
    Agent(AgentStatus),
}

/// Bytes carried, as kernel sockets saw them, and what carried them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections (of UDP: visitors) there are now.
    pub now: u64,
    /// Connections there have been, those of now among them.
    pub total: u64,
    /// Bytes that visitors sent.
    pub received: u64,
    /// Bytes that visitors got.
    pub sent: u64,
}

impl Traffic {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            now: self.now + other.now,
            total: self.total + other.total,
            received: self.received + other.received,
            sent: self.sent + other.sent,
        }
    }
}

/// The memory budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes charged to it.
    pub used: u64,
    /// How many there are.
    pub limit: u64,
}

impl Memory {
    pub(crate) fn of(resources: &Resources) -> Self {
        Self {
            used: resources.budget.used() as u64,
            limit: resources.budget.limit() as u64,
        }
    }
}

/// What was dropped or refused, by the names of the counters, and how often. Those at zero are left out.
pub(crate) fn refusals(counters: &Counters) -> BTreeMap<String, u64> {
    counters
        .iter()
        .filter(|(name, _, count)| *count > 0 && (name.starts_with("drop_") || name.starts_with("refused_")))
        .map(|(name, _, count)| (name.to_owned(), count))
        .collect()
}

/// Whole seconds from `then` to `now`.
pub(crate) fn seconds_since(now: Instant, then: Instant) -> u64 {
    let passed: Duration = now.saturating_duration_since(then);
    passed.as_secs()
}

/// The front of a text, short enough to be kept.
pub(crate) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text.shrink_to_fit();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_that_happened_are_named() {
        let counters = Counters {
            drop_mac1: 2,
            refused_memory: 1,
            datagrams_received: 9,
            ..Counters::default()
        };
        let expected = [("drop_mac1", 2), ("refused_memory", 1)];
        assert_eq!(
            refusals(&counters),
            expected.map(|(name, count)| (name.to_owned(), count)).into()
        );
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened(format!("x{}", "ä".repeat(100)));
        assert_eq!(long.len(), MAX_TEXT - 1);
    }
}
