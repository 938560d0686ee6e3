//! Time: it moves to the next thing that is due, and not before everything due now is done.

use std::time::{Duration, Instant};

use super::{HostId, World};
use crate::host::Surroundings;

/// Rounds of everybody at one instant. More would be two machines keeping each other busy.
const MOST_ROUNDS: usize = 10_000;
/// Up to as many, invariants are checked at every step; the check looks at each flow.
const FEW_FLOWS: usize = 50;

impl World {
    /// Runs until nothing is left to do at this instant.
    ///
    /// # Panics
    /// If that never comes, or a machine breaks a rule.
    pub fn settle(&mut self) {
        let mut out = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let mut any = self.deliver();
            for number in 0..self.relays.len() + self.agents.len() {
                let Self {
                    now,
                    ledger,
                    udp,
                    random,
                    trace,
                    relays,
                    agents,
                    ..
                } = self;
                let mut around = Surroundings {
                    now: *now,
                    ledger,
                    udp,
                    random,
                    trace,
                    out: &mut out,
                };
                let relay_count = relays.len();
                let (host, had_turn) = match number.checked_sub(relay_count) {
                    None => (HostId::Relay(number), relays[number].turn(&mut around)),
                    Some(agent) => (HostId::Agent(agent), agents[agent].turn(&mut around)),
                };
                any |= had_turn;
                for (to, bytes) in out.drain(..) {
                    self.route(host, to, bytes);
                }
            }
            for number in 0..self.plain.len() {
                let datagrams = self.plain[number].turn(self.now);
                any |= !datagrams.is_empty();
                self.route_plain(number, datagrams);
            }
            if !any {
                return;
            }
        }
        panic!("the hosts keep each other busy at one instant");
    }

    /// When the next thing is due.
    #[must_use]
    pub fn next_due(&mut self) -> Option<Instant> {
        let links = self
            .sites
            .iter()
            .flat_map(|site| [site.up.poll_timeout(), site.down.poll_timeout()]);
        let links = links.flatten().min();
        let relays = self.relays.iter_mut().filter_map(|host| host.next_due()).min();
        let agents = self.agents.iter_mut().filter_map(|host| host.next_due()).min();
        let plain = self.plain.iter().flat_map(|host| {
            let links = [host.up.poll_timeout(), host.down.poll_timeout()];
            links.into_iter().chain([host.next_due()])
        });
        let plain = plain.flatten().min();
        [links, relays, agents, plain].into_iter().flatten().min()
    }

    /// Moves the clock to the next thing due, at most to `end`. False if that was reached.
    pub fn step(&mut self, end: Instant) -> bool {
        self.settle();
        if self.relays.iter().all(|relay| relay.machine.census().flows < FEW_FLOWS) {
            self.check_invariants();
        }
        match self.next_due() {
            Some(at) if at < end => {
                assert!(at > self.now, "something is due again at the same instant");
                self.now = at;
                true
            }
            _ => {
                self.now = self.now.max(end);
                self.settle();
                false
            }
        }
    }

    /// What must hold within every machine.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_invariants(&self) {
        for host in &self.relays {
            host.machine.check_invariants();
        }
        for host in &self.agents {
            host.machine.check_invariants();
        }
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Everybody's clock jumps: nobody was polled meanwhile.
    pub fn jump(&mut self, duration: Duration) {
        self.settle();
        self.now += duration;
    }

    /// Runs until `done`.
    ///
    /// # Panics
    /// If that does not come within ten virtual minutes.
    #[track_caller]
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        self.run_until_within(what, Duration::from_secs(600), done);
    }

    /// Runs until `done`.
    ///
    /// # Panics
    /// If that does not come within `limit`.
    #[track_caller]
    pub fn run_until_within(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return;
            }
            if !self.step(end) && !done(self) {
                self.report();
                panic!("{what} did not come within {limit:?}");
            }
        }
    }

    /// Prints what everybody was told and has counted, for a failure.
    pub fn report(&self) {
        for host in &self.relays {
            eprintln!("relay {}: {:?}\n{:?}", host.addr, host.events, host.machine.counters());
        }
        for host in &self.agents {
            eprintln!("agent {}: {:?}\n{:?}", host.addr, host.events, host.machine.counters());
        }
        eprintln!(
            "links: {:?}",
            self.sites
                .iter()
                .map(|site| (site.up.counts(), site.down.counts()))
                .collect::<Vec<_>>()
        );
    }
}
