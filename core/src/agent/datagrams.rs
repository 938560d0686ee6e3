//! UDP services: a local socket for each visitor that the relay's inner port stands for.

use std::time::Instant;

use super::inbound::Joined;
use super::{Agent, AgentEvent, Service};
use crate::associations::{Associations, NoMemory};
use crate::control::Kind;
use crate::machine::{Action, DialError, UdpId, UdpSocketRef};
use crate::node::Node;
use crate::seed::Random;
use crate::stack::TunnelDatagram;
use crate::table::{Key, Table};

/// The relay's inner port and the service's.
type FlowPorts = (u16, u16);

/// Which local socket stands for which visitor.
#[derive(Debug)]
pub(super) struct TargetAssociations {
    table: Associations<FlowPorts, UdpId>,
    sockets: Table<FlowPorts>,
}

impl TargetAssociations {
    pub(super) fn new(capacity: usize, random: &mut Random) -> Self {
        Self {
            table: Associations::new(capacity, random),
            sockets: Table::new(capacity.max(1)),
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
        node.send_datagram(UdpSocketRef::Local(socket), None, payload);
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
                self.sockets.remove(socket_key(evicted));
                node.actions.push_back(Action::CloseUdp { socket: evicted });
            }
            Err(NoMemory) => {
                node.resources.counters.refused_memory += 1;
                return None;
            }
        }
        let key = self.sockets.insert_with(|_| ports)?;
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

    /// Asserts what must always hold, and returns what the associations are charged in all.
    pub(super) fn check_invariants(&self) -> usize {
        assert_eq!(self.table.len(), self.sockets.len(), "each association has one socket");
        self.table.held()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.table.next_timeout()
    }
}

impl Agent {
    pub(super) fn datagram_from_target(&mut self, now: Instant, socket: UdpId, payload: &[u8]) {
        let Some(&ports) = self.associations.sockets.get(socket_key(socket)) else {
            return;
        };
        self.associations.table.touch(now, ports);
        let Some(overlay) = self.node.wg.overlay(self.relay) else {
            return;
        };
        self.node
            .send_into_tunnel(self.relay, ports.1, (overlay, ports.0), payload);
    }

    pub(super) fn udp_failed(&mut self, socket: UdpId, error: DialError) {
        let Some(ports) = self.associations.sockets.remove(socket_key(socket)) else {
            return;
        };
        self.associations.table.remove(ports, &mut self.node.resources.budget);
        self.node.resources.counters.dials_failed += 1;
        if let Some(service) = self
            .granted
            .get(&ports.1)
            .and_then(|&index| self.config.services.get(index))
        {
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
            self.associations.sockets.remove(socket_key(socket));
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
