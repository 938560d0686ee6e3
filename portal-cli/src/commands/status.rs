//! `portal status`: how the relay and the agents are that run here.

mod table;
mod text;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use portal_core::{Status, Traffic};

use crate::cli::{Output, StatusArgs};
use crate::failure::Failure;
use crate::report;
use crate::state::running;

/// Moves the cursor to the top and clears what was there.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows it once, or on and on.
pub(crate) fn run(args: &StatusArgs, output: Output) -> Result<(), Failure> {
    let directory = args.place.state_dir.as_deref();
    let redraws = args.watch && !output.json && io::stdout().is_terminal();
    let mut statuses = running::statuses(directory)?;
    let mut before: Option<Look> = None;
    loop {
        let look = Look::new(&statuses);
        if output.json {
            for status in &statuses {
                // Every part of a status can be written as JSON.
                report::print_line(&serde_json::to_string(status).unwrap_or_default());
            }
        } else {
            let rates = before.as_ref().map(|before| before.until(&look));
            let shown: Vec<_> = statuses
                .iter()
                .map(|status| text::of(status, rates.as_ref(), args.watch))
                .collect();
            let clear = if redraws { CLEAR } else { "" };
            report::print_line(&format!("{clear}{}", shown.join("\n")));
        }
        if !args.watch {
            return Ok(());
        }
        before = Some(look);
        loop {
            std::thread::sleep(Duration::from_secs(args.every));
            match running::statuses(directory) {
                Ok(again) => {
                    statuses = again;
                    break;
                }
                // Whoever watches wants to see it come back.
                Err(error) => report::print_error(&format!("{error}; looking again")),
            }
        }
    }
}

/// What everything had carried at a moment.
struct Look {
    at: Instant,
    carried: BTreeMap<String, Traffic>,
}

/// What was carried between two looks.
struct Rates {
    seconds: f64,
    before: BTreeMap<String, Traffic>,
}

/// By the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    received: f64,
    sent: f64,
    connections: f64,
}

impl Look {
    fn new(statuses: &[Status]) -> Self {
        let mut carried = BTreeMap::new();
        for status in statuses {
            match status {
                Status::Relay(relay) => {
                    carried.insert(name(status, ""), relay.visitors);
                    for lease in &relay.leases {
                        carried.insert(name(status, &lease.public), lease.visitors);
                    }
                }
                Status::Agent(agent) => {
                    carried.insert(name(status, ""), agent.connections);
                    for service in &agent.services {
                        carried.insert(name(status, &service.id), service.connections);
                    }
                }
            }
        }
        Self {
            at: Instant::now(),
            carried,
        }
    }

    fn until(&self, later: &Self) -> Rates {
        Rates {
            seconds: later.at.duration_since(self.at).as_secs_f64().max(0.001),
            before: self.carried.clone(),
        }
    }
}

impl Rates {
    /// The rate of what is new since the first look. What was restarted in between begins at nothing.
    fn of(&self, name: &str, now: Traffic) -> Rate {
        let before = self.before.get(name).copied().unwrap_or_default();
        let before = if before.total > now.total || before.received > now.received {
            Traffic::default()
        } else {
            before
        };
        #[expect(clippy::cast_precision_loss, reason = "shown to two places")]
        let by_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / self.seconds;
        Rate {
            received: by_second(now.received, before.received),
            sent: by_second(now.sent, before.sent),
            connections: by_second(now.total, before.total),
        }
    }
}

/// Names the whole of a machine, or a part of it, from one look to the next.
fn name(status: &Status, part: &str) -> String {
    match status {
        Status::Relay(relay) => format!("relay {} {part}", relay.key),
        Status::Agent(agent) => format!("agent {} {part}", agent.key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_survive_a_restart() {
        let traffic = |total, received, sent| Traffic {
            now: 1,
            total,
            received,
            sent,
        };
        let rates = Rates {
            seconds: 2.0,
            before: [("a".to_owned(), traffic(10, 1000, 500))].into(),
        };
        let rate = rates.of("a", traffic(14, 3000, 500));
        assert_eq!((rate.received, rate.sent, rate.connections), (1000.0, 0.0, 2.0));
        let restarted = rates.of("a", traffic(1, 100, 40));
        assert_eq!((restarted.received, restarted.sent), (50.0, 20.0));
        assert_eq!(rates.of("new", traffic(2, 0, 0)).connections, 1.0);
    }
}
