//! UDP services: a local socket for each visitor that the relay's inner port stands for.

use std::collections::BTreeMap;
use std::time::Instant;

use super::inbound::Joined;
use super::{Agent, AgentEvent, Service};
use crate::associations::{Associations, ENTRIES, NoMemory};
use crate::budget::KERNEL_SOCKET;
use crate::control::Kind;
use crate::machine::{Action, DialError, UdpId, UdpSocketRef};
use crate::node::Node;
use crate::seed::Random;
use crate::stack::TunnelDatagram;
use crate::status::Traffic;
use crate::table::{Key, Table};

/// The relay's inner port and the service's.
type FlowPorts = (u16, u16);

/// Which local socket stands for which visitor.
#[derive(Debug)]
pub(super) struct TargetAssociations {
    table: Associations<FlowPorts, UdpId>,
    sockets: Table<LocalSocket>,
    /// Bytes that wait for sockets to open.
    waiting: usize,
}

/// A local socket, and what came for it before it was open.
#[derive(Debug)]
struct LocalSocket {
    ports: FlowPorts,
    /// `None` once it is open.
    waiting: Option<Vec<Box<[u8]>>>,
}

/// Bytes that may wait for sockets to open, for one and for all. Part of a machine's fixed charge.
const MAX_WAITING_EACH: usize = 8 * 1024;
const MAX_WAITING: usize = 128 * 1024;

impl TargetAssociations {
    pub(super) fn new(capacity: usize, random: &mut Random) -> Self {
        Self {
            table: Associations::new(capacity, ENTRIES + KERNEL_SOCKET, random),
            sockets: Table::new(capacity.max(1)),
            waiting: 0,
        }
    }

    /// Takes a datagram that the relay sent to a service's inner port.
    pub(super) fn take_from_tunnel(
        &mut self,
        now: Instant,
        node: &mut Node<Joined, AgentEvent>,
        service: Option<&Service>,
        packet: &TunnelDatagram,
        payload: &[u8],
    ) {
        let Some(service) = service.filter(|service| service.kind == Kind::Udp) else {
            node.resources.counters.drop_inner_packet += 1;
            return;
        };
        let ports = (packet.source_port, packet.destination_port);
        let socket = match self.table.touch(now, ports) {
            Some(socket) => *socket,
            None => match self.open(now, node, ports, service) {
                Some(socket) => socket,
                None => return,
            },
        };
        let Some(local) = self.sockets.get_mut(socket_key(socket)) else {
            return;
        };
        let Some(waiting) = &mut local.waiting else {
            node.send_datagram(UdpSocketRef::Local(socket), None, payload);
            return;
        };
        let mine: usize = waiting.iter().map(|payload| payload.len()).sum();
        if mine + payload.len() > MAX_WAITING_EACH || self.waiting + payload.len() > MAX_WAITING {
            node.resources.counters.drop_udp_queue += 1;
            return;
        }
        self.waiting += payload.len();
        waiting.push(payload.into());
    }

    /// Opens a local socket for a visitor who has none.
    fn open(
        &mut self,
        now: Instant,
        node: &mut Node<Joined, AgentEvent>,
        ports: FlowPorts,
        service: &Service,
    ) -> Option<UdpId> {
        match self.table.make_room(&mut node.resources.budget) {
            Ok(None) => {}
            Ok(Some((_, evicted))) => {
                node.resources.counters.associations_evicted += 1;
                self.forget(evicted);
                node.actions.push_back(Action::CloseUdp { socket: evicted });
            }
            Err(NoMemory) => {
                node.resources.counters.refused_memory += 1;
                return None;
            }
        }
        let key = self.sockets.insert_with(|_| LocalSocket {
            ports,
            waiting: Some(Vec::new()),
        })?;
        let socket = UdpId {
            index: key.index,
            generation: key.generation,
        };
        node.resources.counters.associations_opened += 1;
        node.actions.push_back(Action::DialUdp {
            socket,
            target: service.target.clone(),
        });
        self.table.insert(now, ports, socket);
        Some(socket)
    }

    /// Forgets a socket and what waits for it.
    fn forget(&mut self, socket: UdpId) -> Option<FlowPorts> {
        let local = self.sockets.remove(socket_key(socket))?;
        self.waiting -= local
            .waiting
            .iter()
            .flatten()
            .map(|payload| payload.len())
            .sum::<usize>();
        Some(local.ports)
    }

    /// Forgets the visitors of an inner port: the relay has forgotten them, and will name others by the same ports.
    pub(super) fn forget_port(&mut self, node: &mut Node<Joined, AgentEvent>, port: u16) {
        for ports in self.table.keys_where(|ports| ports.1 == port) {
            if let Some(socket) = self.table.remove(ports, &mut node.resources.budget) {
                self.forget(socket);
                node.actions.push_back(Action::CloseUdp { socket });
            }
        }
    }

    /// How many visitors there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// How many visitors there are at each inner port of services.
    pub(super) fn by_service_port(&self) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for (_, local) in self.sockets.iter() {
            *counts.entry(local.ports.1).or_default() += 1;
        }
        counts
    }

    /// Asserts what must always hold, and returns what the associations are charged in all.
    pub(super) fn check_invariants(&self) -> usize {
        assert_eq!(self.table.len(), self.sockets.len(), "each association has one socket");
        let waiting = self
            .sockets
            .iter()
            .flat_map(|(_, local)| local.waiting.iter().flatten());
        assert_eq!(waiting.map(|payload| payload.len()).sum::<usize>(), self.waiting);
        self.table.held()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.table.next_timeout()
    }
}

impl Agent {
    pub(super) fn datagram_from_target(&mut self, now: Instant, socket: UdpId, payload: &[u8]) {
        let Some(ports) = self
            .associations
            .sockets
            .get(socket_key(socket))
            .map(|local| local.ports)
        else {
            return;
        };
        self.associations.table.touch(now, ports);
        let carried = Traffic {
            sent: payload.len() as u64,
            ..Traffic::default()
        };
        self.services.carried_at(ports.1, carried);
        let Some(overlay) = self.node.wg.overlay(self.relay) else {
            return;
        };
        self.node
            .send_into_tunnel(self.relay, ports.1, (overlay, ports.0), payload);
    }

    /// A local socket is open: what waits for it goes.
    pub(super) fn udp_connected(&mut self, socket: UdpId) {
        let Some(local) = self.associations.sockets.get_mut(socket_key(socket)) else {
            return;
        };
        for payload in local.waiting.take().into_iter().flatten() {
            self.associations.waiting -= payload.len();
            self.node.send_datagram(UdpSocketRef::Local(socket), None, &payload);
        }
    }

    pub(super) fn udp_failed(&mut self, socket: UdpId, error: DialError) {
        let Some(ports) = self.associations.forget(socket) else {
            return;
        };
        self.associations.table.remove(ports, &mut self.node.resources.budget);
        self.node.resources.counters.dials_failed += 1;
        if let Some(service) = self.services.at(ports.1) {
            let event = AgentEvent::TargetFailed {
                service: service.id.clone(),
                target: service.target.clone(),
                error,
            };
            self.node.event(event);
        }
    }

    pub(super) fn associations_due(&mut self, now: Instant) {
        while let Some((_, socket)) = self.associations.table.pop_idle(now, &mut self.node.resources.budget) {
            self.associations.forget(socket);
            self.node.actions.push_back(Action::CloseUdp { socket });
        }
    }
}

fn socket_key(socket: UdpId) -> Key {
    Key {
        index: socket.index,
        generation: socket.generation,
    }
}
