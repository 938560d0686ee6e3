//! What happens in a life, one thing a step.

use std::time::Duration;

use portal_core::{Machine, StreamId};
use portal_sim::{HostId, Memory, Opening, Pace, Socket};

use crate::setup::{KINDS, Simulation, name, services, visitor};

/// Something that may happen: its name, its weight, and what it does.
type Happening = (&'static str, u64, fn(&mut Simulation));

const HAPPENINGS: [Happening; 31] = [
    ("visit", 160, Simulation::visit),
    ("say more", 120, Simulation::say_more),
    ("half-close", 80, Simulation::half_close),
    ("visitor aborts", 30, Simulation::abort_visitor),
    ("target aborts", 30, Simulation::abort_target),
    ("change pace", 60, Simulation::change_pace),
    ("echo", 60, Simulation::echo_in_bulk),
    ("stop reading", 60, Simulation::stop_reading),
    ("brim", 40, Simulation::fill_to_the_brim),
    ("brim both ways", 40, Simulation::fill_both_to_the_brim),
    ("datagram", 80, Simulation::datagram),
    ("nonsense", 20, Simulation::talk_nonsense),
    ("moments pass", 160, Simulation::let_moments_pass),
    ("seconds pass", 60, Simulation::let_seconds_pass),
    ("minutes pass", 10, Simulation::let_minutes_pass),
    ("jump", 10, Simulation::jump),
    ("jump far", 2, Simulation::jump_far),
    ("partition", 10, Simulation::partition),
    ("heal", 20, Simulation::heal),
    ("rebind", 15, Simulation::rebind),
    ("change link", 20, Simulation::replace_link),
    ("restart agent", 6, Simulation::restart_agent),
    ("restart relay", 4, Simulation::restart_relay),
    ("suspend", 8, Simulation::suspend),
    ("goodbye", 3, Simulation::say_goodbye),
    ("change services", 12, Simulation::change_services),
    ("revoke", 5, Simulation::revoke),
    ("grant", 15, Simulation::grant),
    ("junk", 40, Simulation::send_junk),
    ("mutant", 40, Simulation::send_mutant),
    ("replay", 40, Simulation::send_replay),
];

impl Simulation {
    /// Lets one thing happen.
    pub(crate) fn step(&mut self) {
        let all = HAPPENINGS.iter().map(|(_, weight, _)| weight).sum();
        let mut drawn = self.random.below(all);
        let happens = HAPPENINGS.iter().find(|(_, weight, _)| {
            let hit = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            hit
        });
        let (what, _, happen) = happens.expect("drawn below the sum of the weights");
        *self.done.entry(what).or_default() += 1;
        happen(self);
        let pause = self.random.duration(Duration::from_millis(5));
        self.pass(pause);
        self.listen_to_events();
    }

    pub(crate) fn visit(&mut self) {
        let agent = self.some_agent();
        let kind = self.random.index(3);
        let relay = self.world.sites[agent].relay;
        let host = format!("{}.{}", name(agent), portal_sim::DOMAIN);
        let place = 3000 + 10 * agent as u16 + kind as u16;
        let (port, opening, place) = match kind {
            0 => {
                let Some(&(_, port)) = self.leased.get(&place) else {
                    return;
                };
                (port, Opening::Raw, place)
            }
            1 => (80, Opening::Http(host), place),
            _ => (443, Opening::Tls(host), place),
        };
        let more = self.some_len();
        let remote = visitor(&mut self.random);
        if let Some(id) = self.world.visit_modelled(relay, port, remote, &opening, place, more) {
            let socket = self.world.relays[relay].socket(id);
            socket.fin_to_send = self.random.chance(400_000);
            socket.fin_answers_fin = self.random.chance(700_000);
        }
    }

    fn say_more(&mut self) {
        let more = self.some_len();
        self.change_socket(|socket| {
            if socket.side.is_some() && !socket.fin_to_send {
                socket.left_to_send += more;
            }
        });
    }

    fn half_close(&mut self) {
        self.change_socket(|socket| socket.fin_to_send = true);
    }

    fn abort_visitor(&mut self) {
        let relay = self.random.index(self.world.relays.len());
        self.abort(HostId::Relay(relay));
    }

    fn abort_target(&mut self) {
        let agent = self.some_agent();
        self.abort(HostId::Agent(agent));
    }

    fn abort(&mut self, host: HostId) {
        let Some(id) = self.some_socket(host) else { return };
        self.world.abort(host, id);
    }

    fn change_pace(&mut self) {
        let pace = match self.random.below(4) {
            0 => Pace {
                chunk: 1 + self.random.index(2000),
                pause: Duration::from_millis(1 + self.random.below(500)),
            },
            1 => Pace {
                chunk: 1 + self.random.index(50),
                pause: Duration::ZERO,
            },
            _ => Pace::default(),
        };
        let reads = self.random.chance(700_000);
        self.change_socket(|socket| {
            socket.pace = pace;
            socket.reads = reads;
        });
    }

    fn datagram(&mut self) {
        let place = 3003 + 10 * self.some_agent() as u16;
        let Some(&(relay, port)) = self.leased.get(&place) else {
            return;
        };
        let remote = visitor(&mut self.random);
        for _ in 0..1 + self.random.below(4) {
            let payload = self.world.udp.payload(remote, self.random.index(1400));
            self.world.send_datagram(relay, port, remote, &payload);
        }
    }

    /// A visitor whose first bytes make no sense, or never come.
    fn talk_nonsense(&mut self) {
        let relay = self.random.index(self.world.relays.len());
        let port = [80, 443][self.random.index(2)];
        let remote = visitor(&mut self.random);
        let len = self.random.index(3000);
        let bytes = (0..len).map(|_| self.random.u64() as u8).collect();
        let closes = self.random.chance(500_000);
        if let Some(socket) = self.world.visit_saying(relay, port, remote, bytes) {
            socket.fin_to_send = closes;
        }
    }

    fn let_moments_pass(&mut self) {
        let duration = self.random.duration(Duration::from_millis(300));
        self.pass(duration);
    }

    fn let_seconds_pass(&mut self) {
        let duration = self.random.duration(Duration::from_secs(15));
        self.pass(duration);
    }

    fn let_minutes_pass(&mut self) {
        let duration = self.random.duration(Duration::from_secs(400));
        self.pass(duration);
    }

    fn jump(&mut self) {
        let duration = self.random.duration(Duration::from_secs(60));
        self.world.jump(duration);
        self.progress.forget();
    }

    fn jump_far(&mut self) {
        let duration = self.random.duration(Duration::from_secs(100_000));
        self.world.jump(duration);
        self.progress.forget();
    }

    fn partition(&mut self) {
        let agent = self.some_agent();
        let one_way = self.random.chance(300_000);
        self.world.sites[agent].up.impairments_mut().partitioned = true;
        self.world.sites[agent].down.impairments_mut().partitioned = !one_way;
    }

    fn heal(&mut self) {
        let agent = self.some_agent();
        self.world.impair(agent, |link| link.partitioned = false);
    }

    fn rebind(&mut self) {
        let agent = self.some_agent();
        let port = 1024 + self.random.below(60_000) as u16;
        let external = std::net::SocketAddr::from(([192, 0, 2, 100 + agent as u8], port));
        self.world.rebind(agent, external);
        self.progress.forget();
    }

    fn replace_link(&mut self) {
        let agent = self.some_agent();
        self.change_link(agent);
    }

    fn restart_agent(&mut self) {
        let agent = self.some_agent();
        self.world.restart_agent(agent);
        self.ended[agent] = false;
        self.serving[agent].clear();
    }

    pub(crate) fn restart_relay(&mut self) {
        let relay = self.random.index(self.world.relays.len());
        let memory = [Memory::Kept, Memory::Lost][self.random.index(2)];
        self.restart_this_relay(relay, memory);
    }

    pub(crate) fn restart_this_relay(&mut self, relay: usize, memory: Memory) {
        self.world.relay_config_mut(relay).access = self.access();
        self.world.restart_relay(relay, memory);
        self.leased.retain(|_, (of, _)| *of != relay);
    }

    fn suspend(&mut self) {
        let host = if self.random.chance(300_000) {
            HostId::Relay(self.random.index(self.world.relays.len()))
        } else {
            HostId::Agent(self.some_agent())
        };
        let duration = match self.random.below(4) {
            0 => self.random.duration(Duration::from_secs(600)),
            _ => self.random.duration(Duration::from_secs(30)),
        };
        self.world.suspend(host, duration);
    }

    /// A machine ends in good order. An agent stays away; a relay comes back after a while.
    fn say_goodbye(&mut self) {
        let now = self.world.now;
        if self.random.chance(300_000) {
            let relay = self.random.index(self.world.relays.len());
            self.world.relays[relay].machine.begin_shutdown(now);
            let patience = self.random.duration(Duration::from_secs(10));
            self.pass(patience);
            self.listen_to_events();
            self.restart_this_relay(relay, Memory::Kept);
        } else {
            let agent = self.some_agent();
            self.ended[agent] = true;
            self.world.agents[agent].machine.begin_shutdown(now);
        }
    }

    /// An agent's file is read again: some of its services are gone, or back.
    fn change_services(&mut self) {
        let agent = self.some_agent();
        if self.ended[agent] {
            return;
        }
        let mut services = services(agent);
        services.retain(|_| self.random.chance(750_000));
        self.serving[agent].retain(|id| services.iter().any(|service| service.id == *id));
        self.world.set_services(agent, services);
    }

    fn revoke(&mut self) {
        let agent = self.some_agent();
        self.granted[agent] = false;
        self.apply_access();
    }

    fn grant(&mut self) {
        let agent = self.some_agent();
        self.granted[agent] = true;
        self.change_bounds(agent);
        self.apply_access();
    }

    pub(crate) fn apply_access(&mut self) {
        let access = self.access();
        let now = self.world.now;
        for relay in 0..self.world.relays.len() {
            self.world.relays[relay].machine.set_access(now, access.clone());
            self.world.relay_config_mut(relay).access = access.clone();
        }
    }

    pub(crate) fn some_agent(&mut self) -> usize {
        self.random.index(self.world.agents.len())
    }

    /// Mostly little, seldom much.
    fn some_len(&mut self) -> u64 {
        let most = [100, 2_000, 20_000, 20_000, 20_000, 300_000, 300_000, 2_000_000][self.random.index(8)];
        self.random.below(most)
    }

    fn some_socket(&mut self, host: HostId) -> Option<StreamId> {
        let live: Vec<_> = match host {
            HostId::Relay(relay) => live(self.world.relays[relay].sockets.iter()),
            HostId::Agent(agent) => live(self.world.agents[agent].sockets.iter()),
        };
        (!live.is_empty()).then(|| live[self.random.index(live.len())])
    }

    fn change_socket(&mut self, change: impl FnOnce(&mut Socket)) {
        if self.random.chance(500_000) {
            let relay = self.random.index(self.world.relays.len());
            if let Some(id) = self.some_socket(HostId::Relay(relay)) {
                change(self.world.relays[relay].socket(id));
            }
        } else {
            let agent = self.some_agent();
            if let Some(id) = self.some_socket(HostId::Agent(agent)) {
                change(self.world.agents[agent].socket(id));
            }
        }
    }
}

fn live<'a>(sockets: impl Iterator<Item = (&'a StreamId, &'a Socket)>) -> Vec<StreamId> {
    sockets
        .filter(|(_, socket)| !socket.is_over())
        .map(|(&id, _)| id)
        .collect()
}

const _: () = assert!(KINDS.len() == 4, "places end in 0 to 3, see `visit` and `datagram`");
