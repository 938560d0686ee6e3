//! A relay's events as lines.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portal_core::identity::PublicKey;
use portal_core::{RelayEvent, VisitorEnd};
use serde_json::json;

use super::{Say, Throttle, foreign};

/// Turns events into lines.
#[derive(Debug)]
pub(crate) struct RelayReport {
    state_dir: PathBuf,
    /// Keys without a grant, each with what was said about it.
    strangers: HashMap<PublicKey, Throttle>,
    more_strangers: Throttle,
}

/// How often a key that knocks is named.
const STRANGER_EVERY: Duration = Duration::from_secs(60);
/// How many of them are named in that time. Keys cost nothing, lines do.
const MAX_STRANGERS: usize = 64;

impl RelayReport {
    pub(crate) fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            strangers: HashMap::new(),
            more_strangers: Throttle::new(STRANGER_EVERY),
        }
    }

    /// What to say about an event. Bindings and addresses are for the state directory.
    pub(crate) fn take(&mut self, now: Instant, event: &RelayEvent) -> Option<Say> {
        Some(match event {
            RelayEvent::AgentUp { key, agent, remote } => Say::Note(format!(
                "agent {} is up, from {remote} ({})",
                key.short(),
                foreign(agent)
            )),
            RelayEvent::AgentDown { key, reason } => Say::Note(format!("agent {} is down: {reason}", key.short())),
            RelayEvent::AdminListening { local } => Say::Note(super::admin_at(*local)),
            RelayEvent::NotGranted { key, .. } => return self.stranger(now, key),
            RelayEvent::Leased {
                key, service, public, ..
            } => Say::Note(format!(
                "agent {} serves {} at {}",
                key.short(),
                foreign(service),
                foreign(public)
            )),
            RelayEvent::Refused {
                key, service, message, ..
            } => Say::Problem(format!(
                "agent {} was refused {}: {}",
                key.short(),
                foreign(service),
                foreign(message)
            )),
            RelayEvent::PeerUp { key, remote } => Say::Note(format!("peer {} is up, from {remote}", key.short())),
            RelayEvent::PeerMoved { key, remote } => Say::Note(format!("peer {} is at {remote} now", key.short())),
            RelayEvent::PeerDown { key } => Say::Note(format!(
                "peer {} is down: nothing was heard of it for three minutes",
                key.short()
            )),
            RelayEvent::VisitorLeft {
                public,
                remote,
                received,
                sent,
                end,
            } => {
                let at = if public.is_empty() {
                    String::new()
                } else {
                    format!(" at {}", foreign(public))
                };
                let how = match end {
                    VisitorEnd::Finished => "",
                    VisitorEnd::VisitorGone => ", broken off by the visitor",
                    VisitorEnd::ServiceGone => ", broken off by the service",
                    VisitorEnd::Refused => ", refused",
                };
                Say::Record(
                    format!("visitor {remote}{at}: {received} bytes received, {sent} sent{how}"),
                    json!({
                        "event": "connection",
                        "public": public,
                        "visitor": remote,
                        "received": received,
                        "sent": sent,
                        "finished": *end == VisitorEnd::Finished,
                        "refused": *end == VisitorEnd::Refused,
                    }),
                )
            }
            RelayEvent::MemoryShort { refused } => super::memory_short(*refused),
            RelayEvent::DatagramVisitor { public, remote } => Say::Record(
                format!("visitor {remote} at {} sends datagrams", foreign(public)),
                json!({ "event": "datagrams", "public": public, "visitor": remote }),
            ),
            _ => return None,
        })
    }

    fn stranger(&mut self, now: Instant, key: &PublicKey) -> Option<Say> {
        if !self.strangers.contains_key(key) && self.strangers.len() >= MAX_STRANGERS {
            self.strangers.retain(|_, said| !said.is_over(now));
            if self.strangers.len() >= MAX_STRANGERS {
                self.more_strangers.admit(now)?;
                return Some(Say::Problem(
                    "more keys without a grant knock than are named here".into(),
                ));
            }
        }
        let throttle = self
            .strangers
            .entry(*key)
            .or_insert_with(|| Throttle::new(STRANGER_EVERY));
        throttle.admit(now)?;
        Some(Say::Problem(format!(
            "key {key} knocked without a grant; to serve it: portal grant {key} --state-dir {}",
            self.state_dir.display()
        )))
    }
}

impl Throttle {
    /// Whether the next one would be said, so that nothing is lost by forgetting this throttle.
    fn is_over(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|last| now.saturating_duration_since(last) >= self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_knocks_is_named_once_a_minute_with_the_command() {
        let (mut report, now) = (RelayReport::new("/var/lib/portal".into()), Instant::now());
        let knock = |byte: u8| RelayEvent::NotGranted {
            key: PublicKey::from_bytes([byte; 32]),
            remote: None,
        };
        let Some(Say::Problem(text)) = report.take(now, &knock(1)) else {
            panic!()
        };
        let key = PublicKey::from_bytes([1; 32]);
        assert!(
            text.contains(&format!("portal grant {key} --state-dir /var/lib/portal")),
            "{text}"
        );
        assert_eq!(report.take(now + Duration::from_secs(30), &knock(1)), None);
        assert!(report.take(now + Duration::from_secs(60), &knock(1)).is_some());

        let said = (0..=255).filter_map(|byte| report.take(now, &knock(byte))).count();
        assert!(said <= MAX_STRANGERS + 1, "{said}");
        assert!(report.strangers.len() <= MAX_STRANGERS);
    }

    #[test]
    fn a_want_of_memory_is_said_with_the_mend() {
        let mut report = RelayReport::new("/".into());
        let Some(Say::Problem(text)) = report.take(Instant::now(), &RelayEvent::MemoryShort { refused: 12 }) else {
            panic!()
        };
        assert!(text.contains("12 were refused") && text.contains("--memory"), "{text}");
    }

    #[test]
    fn a_name_from_afar_cannot_forge_a_line() {
        let mut report = RelayReport::new("/".into());
        let event = RelayEvent::AgentUp {
            key: PublicKey::from_bytes([1; 32]),
            agent: "x\nerror: all is lost\x1b[2J".into(),
            remote: ([192, 0, 2, 1], 1).into(),
        };
        let Some(Say::Note(text)) = report.take(Instant::now(), &event) else {
            panic!()
        };
        assert!(!text.contains(char::is_control), "{text}");
    }
}
