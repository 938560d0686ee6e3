//! Datagrams between hosts: out through the sender's side, over a link, and in through the receiver's.

use std::net::SocketAddr;

use portal_core::{Machine, Path};

use super::{Captured, HostId, Packet, World};
use crate::trace::Record;

/// IPv6 and UDP headers around a datagram, the larger of the two families.
const HEADERS: usize = 48;
/// Datagrams that a receive with GRO returns at once.
const MOST_SEGMENTS: usize = 64;

/// Datagrams of one sender that one receive returns: of one length, the last perhaps shorter.
struct Run {
    host: HostId,
    from: SocketAddr,
    stride: usize,
    segments: usize,
    closed: bool,
    bytes: Vec<u8>,
}

impl World {
    /// A stranger at `from` sends `bytes` to a host, past its router; or somebody forges the source address.
    pub fn inject(&mut self, host: HostId, from: SocketAddr, bytes: &[u8]) {
        if !self.externals.contains(&from) && self.relays.iter().all(|relay| relay.addr != from) {
            self.strangers.insert(from);
        }
        let mut bytes = bytes.to_vec();
        let stride = bytes.len();
        self.hand_over(host, from, &mut bytes, stride);
    }

    /// A host sends a datagram.
    ///
    /// # Panics
    /// If it must not have gone there: see the crate docs.
    pub(super) fn route(&mut self, host: HostId, to: SocketAddr, bytes: Vec<u8>) {
        let now = self.now;
        let kind = bytes.first().copied().unwrap_or(0);
        let (from, heard) = match host {
            HostId::Relay(relay) => (self.relays[relay].addr, &self.relays[relay].heard),
            HostId::Agent(agent) => (self.sites[agent].nat.outbound(now, to), &self.agents[agent].heard),
        };
        assert!(
            (1..=4).contains(&kind),
            "{host:?} sent what is no WireGuard message to {to}"
        );
        assert!(
            kind != 4 || heard.contains(&to),
            "{host:?} sent data to {to}, which was never authenticated"
        );
        self.trace.datagram(Record {
            at: now - self.start,
            from,
            to,
            len: bytes.len(),
            kind,
        });
        if self.strangers.contains(&to) {
            assert!(
                matches!(kind, 2 | 3),
                "{host:?} sent a message of type {kind} to the stranger {to}"
            );
            self.to_strangers[usize::from(kind)] += 1;
            return;
        }
        let len = bytes.len() + HEADERS;
        let packet = Packet { from, to, bytes };
        match host {
            HostId::Agent(agent) => self.sites[agent].up.handle_datagram(now, len, packet),
            HostId::Relay(relay) => {
                if let Some(plain) = self.plain.iter_mut().find(|plain| plain.addr == to) {
                    return plain.down.handle_datagram(now, len, packet);
                }
                let mut sites = self.sites.iter_mut();
                match sites.find(|site| site.relay == relay && site.nat.external() == to) {
                    Some(site) => site.down.handle_datagram(now, len, packet),
                    None => self.unroutable += 1,
                }
            }
        }
    }

    /// Hands over what has arrived by now.
    pub(super) fn deliver(&mut self) -> bool {
        let mut any = false;
        for agent in 0..self.sites.len() {
            let mut run: Option<Run> = None;
            while let Some(packet) = self.sites[agent].up.poll_datagram(self.now) {
                any = true;
                match self.relays.iter().position(|relay| relay.addr == packet.to) {
                    Some(relay) => self.join(&mut run, HostId::Relay(relay), &packet),
                    None => self.unroutable += 1,
                }
            }
            while let Some(packet) = self.sites[agent].down.poll_datagram(self.now) {
                any = true;
                if self.sites[agent].nat.inbound(self.now, packet.from, packet.to) {
                    self.join(&mut run, HostId::Agent(agent), &packet);
                }
            }
            self.finish(&mut run);
        }
        any | self.deliver_plain()
    }

    /// A plain peer sends datagrams to its relay.
    pub(super) fn route_plain(&mut self, number: usize, datagrams: Vec<Vec<u8>>) {
        let now = self.now;
        let plain = &mut self.plain[number];
        let (from, to) = (plain.addr, plain.relay);
        for bytes in datagrams {
            let len = bytes.len() + HEADERS;
            plain.up.handle_datagram(now, len, Packet { from, to, bytes });
        }
    }

    fn deliver_plain(&mut self) -> bool {
        let mut any = false;
        for number in 0..self.plain.len() {
            while let Some(packet) = self.plain[number].up.poll_datagram(self.now) {
                any = true;
                let Some(relay) = self.relays.iter().position(|relay| relay.addr == packet.to) else {
                    self.unroutable += 1;
                    continue;
                };
                let mut run = None;
                self.join(&mut run, HostId::Relay(relay), &packet);
                self.finish(&mut run);
            }
            let plain = &mut self.plain[number];
            while let Some(packet) = plain.down.poll_datagram(self.now) {
                any = true;
                plain.take(self.now, &packet.bytes);
            }
        }
        any
    }

    /// Adds a datagram to the run, or begins the next one with it.
    fn join(&mut self, run: &mut Option<Run>, host: HostId, packet: &Packet) {
        if let Some(run) = run
            && !run.closed
            && (run.host, run.from) == (host, packet.from)
            && packet.bytes.len() <= run.stride
            && run.segments < MOST_SEGMENTS
        {
            run.closed = packet.bytes.len() < run.stride;
            run.segments += 1;
            run.bytes.extend_from_slice(&packet.bytes);
            return;
        }
        self.finish(run);
        *run = Some(Run {
            host,
            from: packet.from,
            stride: packet.bytes.len(),
            segments: 1,
            closed: false,
            bytes: packet.bytes.clone(),
        });
    }

    fn finish(&mut self, run: &mut Option<Run>) {
        let Some(mut run) = run.take() else { return };
        let away = match run.host {
            HostId::Relay(relay) => self.relays[relay].is_away(self.now),
            HostId::Agent(agent) => self.agents[agent].is_away(self.now),
        };
        if away {
            return;
        }
        if self.capture > 0 {
            for bytes in run.bytes.chunks(run.stride.max(1)) {
                self.captured.truncate(self.capture - 1);
                self.captured.push_front(Captured {
                    host: run.host,
                    from: run.from,
                    bytes: bytes.to_vec(),
                });
            }
        }
        match run.host {
            HostId::Relay(relay) => self.relays[relay].heard.insert(run.from),
            HostId::Agent(agent) => self.agents[agent].heard.insert(run.from),
        };
        self.hand_over(run.host, run.from, &mut run.bytes, run.stride);
    }

    fn hand_over(&mut self, host: HostId, remote: SocketAddr, bytes: &mut [u8], stride: usize) {
        let path = Path { remote, local_ip: None };
        match host {
            HostId::Relay(relay) if !self.relays[relay].is_away(self.now) => {
                self.relays[relay]
                    .machine
                    .handle_datagram(self.now, path, bytes, stride);
            }
            HostId::Agent(agent) if !self.agents[agent].is_away(self.now) => {
                self.agents[agent]
                    .machine
                    .handle_datagram(self.now, path, bytes, stride);
            }
            _ => {}
        }
    }
}
