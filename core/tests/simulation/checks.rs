//! What must hold: after each step, and at the end of a life.

use std::time::Duration;

use portal_core::{Access, Agent, Binding, Census, Machine, Relay};
use portal_sim::{HostId, Impairments, Memory, Opening, Pace, SideId, agent_key};

use crate::setup::{KINDS, Simulation, name, services};

/// No datagram is longer: the inner MTU and WireGuard's header and tag.
const LONGEST_DATAGRAM: usize = 1280 + 32;
/// No machine has less, whatever its limits say.
const LEAST_MEMORY: usize = 4 << 20;
impl Simulation {
    /// What must hold after each step.
    pub(crate) fn check(&mut self) {
        let now = self.world.now;
        self.world.check_invariants();
        for host in &mut self.world.relays {
            if host.is_away(now) {
                continue;
            }
            let (census, counters) = (host.machine.census(), host.machine.counters());
            assert_eq!(counters.flows_opened - counters.flows_closed, census.flows as u64);
            assert!(host.machine.memory_used() <= self.limits.memory.max(LEAST_MEMORY));
            assert!(census.flows <= self.limits.flows, "{census:?}");
            assert!(census.visitors <= self.limits.streams, "{census:?}");
            assert!(census.peers <= self.limits.peers, "{census:?}");
            assert!(census.leases <= self.granted.len() * KINDS.len(), "{census:?}");
            let live = host.sockets.values().filter(|socket| !socket.is_over()).count();
            assert_eq!(
                live, census.visitors,
                "visitors' sockets and what the relay knows of them"
            );
            assert_eq!(counters.stuck_deadlines, 0);
            assert!(host.longest_datagram <= LONGEST_DATAGRAM);
            assert!(host.machine.poll_timeout().is_none_or(|(at, _)| at > now));
        }
        for host in &mut self.world.agents {
            if host.is_away(now) {
                continue;
            }
            let counters = host.machine.counters();
            assert!(host.machine.memory_used() <= self.limits.memory.max(LEAST_MEMORY));
            let live = host.sockets.values().filter(|socket| !socket.is_over()).count();
            assert_eq!(
                live,
                host.machine.connection_count(),
                "targets' sockets and what the agent knows of them"
            );
            assert!(host.machine.connection_count() <= self.limits.streams);
            assert!(
                host.udp.len() <= self.limits.associations,
                "{} local UDP sockets",
                host.udp.len()
            );
            assert_eq!(counters.stuck_deadlines, 0);
            assert!(host.longest_datagram <= LONGEST_DATAGRAM);
            assert!(host.machine.poll_timeout().is_none_or(|(at, _)| at > now));
        }
    }

    /// Everything heals, is quiet, works, ends and is gone.
    pub(crate) fn finish(&mut self) {
        self.heal_everything();
        self.wait_for_leases();
        self.bring_all_over();
        self.check();
        self.world.ledger.check_quiet();
        self.end_connections();
        self.check();
        self.serve_everywhere();
        self.end_connections();
        self.check();
        self.end_agents();
        self.check_nothing_is_left();
    }

    fn heal_everything(&mut self) {
        self.granted.fill(true);
        self.bounds.fill((0, 0));
        for agent in 0..self.world.agents.len() {
            self.world.impair(agent, |link| {
                *link = Impairments {
                    latency: Duration::from_millis(10),
                    ..Impairments::default()
                };
            });
            let host = &mut self.world.agents[agent];
            host.behaviour.dial_fails = 0;
            host.behaviour.resolve_fails = 0;
            let ids: Vec<_> = host.sockets.keys().copied().collect();
            for id in ids {
                host.socket(id).reads = true;
                host.socket(id).pace = Pace::default();
            }
            if self.ended[agent] {
                self.ended[agent] = false;
                self.serving[agent].clear();
                self.world.restart_agent(agent);
            }
            self.world.suspend(HostId::Agent(agent), Duration::ZERO);
            self.world.set_services(agent, services(agent));
        }
        for relay in 0..self.world.relays.len() {
            self.world.suspend(HostId::Relay(relay), Duration::ZERO);
            let host = &mut self.world.relays[relay];
            host.behaviour.listen_fails = 0;
            let ids: Vec<_> = host.sockets.keys().copied().collect();
            for id in ids {
                host.socket(id).reads = true;
                host.socket(id).pace = Pace::default();
            }
        }
        self.apply_access();
        self.world.settle();
        self.progress.forget();
        self.listen_to_events();
    }

    /// Every service of every agent is leased again in reasonable time.
    fn wait_for_leases(&mut self) {
        let end = self.world.now + Duration::from_secs(90);
        while self.serving.iter().any(|serving| serving.len() < KINDS.len()) {
            if !self.world.step(end) {
                self.world.report();
                panic!("leases are not back: {:?}", self.serving);
            }
            self.listen_to_events();
        }
    }

    /// A fresh visitor of each service gets all there is.
    fn serve_everywhere(&mut self) {
        let mut sides = Vec::new();
        for agent in 0..self.world.agents.len() {
            let relay = self.world.sites[agent].relay;
            let host = format!("{}.{}", name(agent), portal_sim::DOMAIN);
            for (number, opening) in [Opening::Raw, Opening::Http(host.clone()), Opening::Tls(host)]
                .into_iter()
                .enumerate()
            {
                let place = 3000 + 10 * agent as u16 + number as u16;
                let port = match number {
                    0 => self.leased[&place].1,
                    1 => 80,
                    _ => 443,
                };
                let remote = std::net::SocketAddr::from(([198, 51, 100, 200 + agent as u8], 2000 + place));
                let id = self
                    .world
                    .visit_modelled(relay, port, remote, &opening, place, 5000)
                    .expect("accepted");
                let socket = self.world.relays[relay].socket(id);
                socket.fin_to_send = true;
                sides.push(socket.side.expect("modelled"));
            }
            let place = 3003 + 10 * agent as u16;
            let (_, port) = self.leased[&place];
            let remote = std::net::SocketAddr::from(([198, 51, 100, 200 + agent as u8], 2000 + place));
            let payload = self.world.udp.payload(remote, 1000);
            let (_, before) = self.world.udp.delivered();
            assert!(self.world.send_datagram(relay, port, remote, &payload));
            self.world.run(Duration::from_secs(1));
            assert_eq!(self.world.udp.delivered().1, before + 1, "a datagram did not come back");
        }
        self.world.run(Duration::from_secs(10));
        for side in sides {
            self.assert_whole(side);
        }
    }

    fn assert_whole(&self, id: SideId) {
        let side = self.world.ledger.get(id).expect("not forgotten");
        let peer = side.peer.and_then(|peer| self.world.ledger.get(peer));
        let peer = peer.unwrap_or_else(|| panic!("{id:?} reached nobody: {side:?}"));
        assert!(
            !side.broken && side.over && side.received == peer.sent && peer.received == side.sent,
            "{side:?} {peer:?}"
        );
    }

    /// Every socket comes to its end by itself.
    fn end_connections(&mut self) {
        for host in &mut self.world.relays {
            let ids: Vec<_> = host.sockets.keys().copied().collect();
            for id in ids {
                host.socket(id).fin_to_send = true;
            }
        }
        for host in &mut self.world.agents {
            let ids: Vec<_> = host.sockets.keys().copied().collect();
            for id in ids {
                host.socket(id).fin_to_send = true;
            }
        }
        self.world.run(Duration::from_secs(130));
        self.listen_to_events();
        for (number, host) in self.world.relays.iter().enumerate() {
            let agents = self.world.sites.iter().filter(|site| site.relay == number).count();
            let census = host.machine.census();
            assert_eq!(
                (census.visitors, census.flows, census.agents),
                (0, agents, agents),
                "{census:?}"
            );
            assert_eq!(census.leases, agents * KINDS.len());
        }
        for host in &self.world.agents {
            let counters = host.machine.counters();
            assert_eq!(
                counters.flows_opened - counters.flows_closed,
                1,
                "flows of an agent without connections"
            );
            assert_eq!(host.machine.connection_count(), 0);
            assert!(host.udp.is_empty(), "associations end by silence");
        }
    }

    fn end_agents(&mut self) {
        for agent in 0..self.world.agents.len() {
            let now = self.world.now;
            self.world.agents[agent].machine.begin_shutdown(now);
        }
        self.world.run(Duration::from_secs(10));
        self.listen_to_events();
        for host in &mut self.world.agents {
            assert!(host.machine.is_finished());
        }
        self.world.jump(Duration::from_secs(100_000));
        self.world.run(Duration::from_secs(1200));
        self.listen_to_events();
    }

    /// The machines are as they were when they began.
    fn check_nothing_is_left(&mut self) {
        let now = self.world.now;
        self.world.check_invariants();
        for number in 0..self.world.relays.len() {
            let mut config = self.world.relay_config_mut(number).clone();
            config.recent.clear();
            config.access = Access::Open;
            let host = &mut self.world.relays[number];
            // Only what belongs to keys stays. Which names those are makes no difference to the charge.
            let bindings = host.machine.census().bindings;
            let key = agent_key(0).public_key();
            config.bindings = (0..bindings)
                .map(|number| Binding::Name {
                    name: format!("n{number}"),
                    key,
                })
                .collect();
            let fresh = Relay::new(now, config).memory_used();
            let census = Census {
                bindings,
                ..Census::default()
            };
            assert_eq!(host.machine.census(), census);
            assert_eq!(host.machine.memory_used(), fresh);
            assert_eq!(host.machine.poll_timeout(), None);
            assert_eq!(host.listeners.len(), 2, "only the shared ones are open");
        }
        for number in 0..self.world.agents.len() {
            let fresh = Agent::new(now, self.world.agent_config(number).clone()).memory_used();
            let host = &mut self.world.agents[number];
            assert_eq!(host.machine.memory_used(), fresh);
            assert_eq!(host.machine.poll_timeout(), None);
            let counters = host.machine.counters();
            assert_eq!(counters.flows_opened, counters.flows_closed);
        }
        for relay in 0..self.world.relays.len() {
            self.restart_this_relay(relay, Memory::Lost);
        }
    }
}
