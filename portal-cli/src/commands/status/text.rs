//! A status for people.

use portal_core::{AgentStatus, Memory, RelayStatus, Status, Traffic};

use super::table::{Side, Table};
use super::{Rate, Rates, name};
use crate::report::foreign;
use crate::values::size_text;

/// Several lines. With `rates`, tables have columns for them, which are empty at the first look.
pub(super) fn of(status: &Status, rates: Option<&Rates>, with_rates: bool) -> String {
    let rates = Shown { rates, with_rates };
    match status {
        Status::Relay(relay) => of_relay(status, relay, &rates),
        Status::Agent(agent) => of_agent(status, agent, &rates),
    }
}

/// Whether and which rates are shown.
struct Shown<'a> {
    rates: Option<&'a Rates>,
    with_rates: bool,
}

impl Shown<'_> {
    fn of(&self, name: &str, now: Traffic) -> Option<Rate> {
        self.rates.map(|rates| rates.of(name, now))
    }

    /// The headings of what was carried.
    fn columns<'c>(&self, connections: &'c str) -> Vec<(&'c str, Side)> {
        let mut columns = vec![
            (connections, Side::Right),
            ("IN ALL", Side::Right),
            ("RECEIVED", Side::Right),
            ("SENT", Side::Right),
        ];
        if self.with_rates {
            columns.extend([
                ("RECEIVED/S", Side::Right),
                ("SENT/S", Side::Right),
                ("NEW/S", Side::Right),
            ]);
        }
        columns
    }

    /// The cells below them.
    fn cells(&self, name: &str, traffic: Traffic) -> Vec<String> {
        let mut cells = vec![
            traffic.now.to_string(),
            traffic.total.to_string(),
            size_text(traffic.received),
            size_text(traffic.sent),
        ];
        if self.with_rates {
            cells.extend(match self.of(name, traffic) {
                Some(rate) => [
                    bytes(rate.received),
                    bytes(rate.sent),
                    format!("{:.1}", rate.connections),
                ],
                None => [const { String::new() }; 3],
            });
        }
        cells
    }
}

fn of_relay(status: &Status, relay: &RelayStatus, rates: &Shown<'_>) -> String {
    let mut out = format!(
        "relay {}, key {}, up {}, portal {}\n",
        foreign(&relay.domain),
        relay.key.short(),
        duration(relay.uptime_s),
        foreign(&relay.version)
    );
    out.push_str(&readiness(relay.not_ready.as_deref()));
    out.push_str(&memory(relay.memory));
    out.push_str(&format!(
        "  {}; {} flows, {} visitors by UDP, {} WireGuard peers\n",
        carried("visitors", relay.visitors, rates.of(&name(status, ""), relay.visitors)),
        relay.flows,
        relay.associations,
        relay.peers
    ));

    let mut agents = Table::new(&[
        ("AGENT", Side::Left),
        ("NAME", Side::Left),
        ("ADDRESS", Side::Left),
        ("UP", Side::Right),
        ("HEARD", Side::Right),
        ("LEASES", Side::Right),
    ]);
    for agent in &relay.agents {
        agents.row(vec![
            agent.key.short(),
            foreign(&agent.name),
            agent
                .remote
                .map_or_else(|| "unknown".into(), |remote| remote.to_string()),
            agent.up_s.map_or_else(|| "-".into(), duration),
            format!("{} ago", duration(agent.heard_s)),
            agent.leases.to_string(),
        ]);
    }
    agents.write(&mut out);
    left_out(&mut out, relay.agents_left_out, "agents");

    let mut columns = vec![("LEASE", Side::Left), ("KIND", Side::Left), ("AGENT", Side::Left)];
    columns.extend(rates.columns("VISITORS"));
    let mut leases = Table::new(&columns);
    for lease in &relay.leases {
        let mut cells = vec![foreign(&lease.public), lease.kind.to_string(), lease.key.short()];
        cells.extend(rates.cells(&name(status, &lease.public), lease.visitors));
        leases.row(cells);
    }
    leases.write(&mut out);
    left_out(&mut out, relay.leases_left_out, "leases");
    refusals(&mut out, &relay.refusals);
    out
}

fn of_agent(status: &Status, agent: &AgentStatus, rates: &Shown<'_>) -> String {
    let at = match agent.remote {
        Some(remote) if remote.to_string() != agent.relay => format!(" ({remote})"),
        _ => String::new(),
    };
    let mut out = format!(
        "agent {}, up {}, portal {}\n  {} for {} at relay {}{at}\n",
        agent.key.short(),
        duration(agent.uptime_s),
        foreign(&agent.version),
        foreign(&agent.state),
        duration(agent.state_s),
        foreign(&agent.relay),
    );
    out.push_str(&readiness(agent.not_ready.as_deref()));
    out.push_str(&memory(agent.memory));
    out.push_str(&format!(
        "  {}; {} flows, {} visitors by UDP\n",
        carried(
            "connections",
            agent.connections,
            rates.of(&name(status, ""), agent.connections)
        ),
        agent.flows,
        agent.associations
    ));

    let mut columns = vec![("TARGET", Side::Left), ("PUBLIC ADDRESS", Side::Left)];
    columns.extend(rates.columns("CONNECTIONS"));
    let mut services = Table::new(&columns);
    for service in &agent.services {
        let public = match (&service.public, &service.refused) {
            (Some(public), _) => foreign(public),
            (None, Some(cause)) => format!("refused: {}", foreign(cause)),
            (None, None) => "none yet".into(),
        };
        let mut cells = vec![foreign(&service.target), public];
        cells.extend(rates.cells(&name(status, &service.id), service.connections));
        services.row(cells);
    }
    services.write(&mut out);
    left_out(&mut out, agent.services_left_out, "services");
    refusals(&mut out, &agent.refusals);
    out
}

fn readiness(not_ready: Option<&str>) -> String {
    match not_ready {
        None => "  ready\n".into(),
        Some(reason) => format!("  not ready: {}\n", foreign(reason)),
    }
}

fn memory(memory: Memory) -> String {
    let percent = (u128::from(memory.used) * 100).div_ceil(u128::from(memory.limit.max(1)));
    format!(
        "  {} of {} memory in use ({percent} %)\n",
        size_text(memory.used),
        size_text(memory.limit)
    )
}

fn carried(what: &str, traffic: Traffic, rate: Option<Rate>) -> String {
    let rate = rate.map_or_else(String::new, |rate| {
        format!(
            " (now {} and {} a second, {:.1} new)",
            bytes(rate.received),
            bytes(rate.sent),
            rate.connections
        )
    });
    format!(
        "{} {what}, {} in all, {} received and {} sent{rate}",
        traffic.now,
        traffic.total,
        size_text(traffic.received),
        size_text(traffic.sent)
    )
}

fn left_out(out: &mut String, count: u64, what: &str) {
    if count > 0 {
        out.push_str(&format!("  and {count} more {what}\n"));
    }
}

/// The most frequent first.
fn refusals(out: &mut String, refusals: &std::collections::BTreeMap<String, u64>) {
    let mut table = Table::new(&[("REFUSED OR DROPPED", Side::Left), ("TIMES", Side::Right)]);
    let mut refusals: Vec<_> = refusals.iter().collect();
    refusals.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for (name, count) in refusals {
        table.row(vec![foreign(name), count.to_string()]);
    }
    table.write(out);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of bytes is not negative, and fits"
)]
fn bytes(rate: f64) -> String {
    size_text(rate.round() as u64)
}

/// The two largest units: `3 s`, `5 min 2 s`, `2 h 3 min`, `4 d 1 h`.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use portal_core::identity::{PublicKey, SecretKey};
    use portal_core::{AgentSeen, Kind, LeaseStatus, Relay, RelayConfig};

    use super::super::Look;
    use super::*;

    fn relay() -> RelayStatus {
        let config = RelayConfig::new(SecretKey::from_bytes([1; 32]), [1; 32], "t.example.com".into());
        let now = Instant::now();
        let mut status = Relay::new(now, config).status(now);
        let key = PublicKey::from_bytes([2; 32]);
        status.agents.push(AgentSeen {
            key,
            name: "evil\x1b[2J\nname".into(),
            remote: None,
            heard_s: 3,
            up_s: Some(7384),
            leases: 1,
        });
        status.leases.push(LeaseStatus {
            public: "https://web.t.example.com/".into(),
            kind: Kind::Https,
            service: "web".into(),
            key,
            visitors: Traffic {
                now: 1,
                total: 20,
                received: 1536,
                sent: 0,
            },
        });
        status.leases_left_out = 7;
        status.refusals = [("drop_mac1".to_owned(), 2), ("refused_memory".to_owned(), 30)].into();
        status
    }

    #[test]
    fn what_people_read_and_nothing_that_plays_tricks() {
        let text = of(&Status::Relay(relay()), None, false);
        for part in [
            "relay t.example.com, key ",
            "  ready\n",
            " of 256.0 MiB memory in use (1 %)",
            "2 h 3 min",
            "3 s ago",
            "https://web.t.example.com/",
            "1.5 KiB",
            "and 7 more leases",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(text.find("refused_memory") < text.find("drop_mac1"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains("NEW/S"), "{text}");
    }

    #[test]
    fn rates_come_with_the_second_look() {
        let mut status = relay();
        let before = Look::new(&[Status::Relay(status.clone())]);
        let first = of(&Status::Relay(status.clone()), None, true);
        assert!(first.contains("NEW/S"), "{first}");
        status.leases[0].visitors.sent = 2 << 20;
        let rates = Rates {
            seconds: 2.0,
            before: before.carried,
        };
        let second = of(&Status::Relay(status), Some(&rates), true);
        assert!(second.contains("1.0 MiB"), "{second}");
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
