//! UDP visitors: an inner port stands for each visitor's address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::ingress::{Role, Visitor};
use super::leases::{LeaseId, Leases};
use super::{Relay, RelayEvent, listener_key};
use crate::associations::{Associations, ENTRIES, NoMemory};
use crate::machine::{ListenerId, UdpSocketRef};
use crate::node::Node;
use crate::resources::Resources;
use crate::seed::Random;
use crate::stack::TunnelDatagram;
use crate::wg::PeerId;

/// The visitor's socket and ours.
type VisitorKey = (ListenerId, SocketAddr);

/// Which inner port stands for which visitor.
#[derive(Debug)]
pub(super) struct VisitorAssociations {
    table: Associations<VisitorKey, Association>,
    by_port: BTreeMap<u16, VisitorKey>,
    next_port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Association {
    port: u16,
    lease: LeaseId,
}

/// Inner ports that stand for visitors; below the system's, above what services have.
const FIRST_PORT: u16 = 32_768;

impl VisitorAssociations {
    pub(super) fn new(capacity: usize, random: &mut Random) -> Self {
        let capacity = capacity.min(usize::from(u16::MAX - FIRST_PORT));
        Self {
            table: Associations::new(capacity, ENTRIES, random),
            by_port: BTreeMap::new(),
            next_port: FIRST_PORT,
        }
    }

    /// Takes a datagram that an agent sent to the inner port of a visitor.
    pub(super) fn take_from_tunnel(
        &mut self,
        now: Instant,
        node: &mut Node<Visitor, RelayEvent>,
        leases: &mut Leases,
        peer: PeerId,
        packet: &TunnelDatagram,
        payload: &[u8],
    ) {
        let known = self.by_port.get(&packet.destination_port).copied();
        let association = known.and_then(|key| Some((key, *self.table.touch(now, key)?)));
        let lease = association.and_then(|(_, association)| leases.get(association.lease));
        match (association, lease) {
            // Only the agent that the visitor's datagrams go to may answer, and only from its service's port.
            (Some(((listener, visitor), association)), Some(lease))
                if lease.peer == peer && lease.service_port == packet.source_port =>
            {
                if !node.meter_datagram(now, &lease.key, payload.len()) {
                    return;
                }
                leases.carried(association.lease, 0, payload.len() as u64);
                node.send_datagram(UdpSocketRef::Public(listener), Some(visitor), payload);
            }
            _ => node.resources.counters.drop_inner_packet += 1,
        }
    }

    /// How many visitors there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// How many visitors each lease has.
    pub(super) fn by_lease(&self) -> BTreeMap<LeaseId, u64> {
        let mut counts = BTreeMap::new();
        for association in self.table.values() {
            *counts.entry(association.lease).or_default() += 1;
        }
        counts
    }

    /// Whether an inner port stands for this visitor.
    fn knows(&self, key: VisitorKey) -> bool {
        self.table.has(key)
    }

    /// The inner port that stands for a visitor, made if there is none.
    fn port_for(&mut self, now: Instant, key: VisitorKey, lease: LeaseId, resources: &mut Resources) -> Option<u16> {
        if let Some(association) = self.table.touch(now, key) {
            return Some(association.port);
        }
        match self.table.make_room(&mut resources.budget) {
            Ok(None) => {}
            Ok(Some((_, evicted))) => {
                resources.counters.associations_evicted += 1;
                self.by_port.remove(&evicted.port);
            }
            Err(NoMemory) => {
                resources.counters.refused_memory += 1;
                return None;
            }
        }
        let port = loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_port.contains_key(&port) {
                break port;
            }
        };
        resources.counters.associations_opened += 1;
        self.by_port.insert(port, key);
        self.table.insert(now, key, Association { port, lease });
        Some(port)
    }

    /// Forgets the visitors of a listener that is closed.
    pub(super) fn forget(&mut self, listener: ListenerId, resources: &mut Resources) {
        for key in self.table.keys_where(|key| key.0 == listener) {
            if let Some(association) = self.table.remove(key, &mut resources.budget) {
                self.by_port.remove(&association.port);
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, resources: &mut Resources) {
        while let Some((_, association)) = self.table.pop_idle(now, &mut resources.budget) {
            self.by_port.remove(&association.port);
        }
    }

    /// Asserts what must always hold, and returns what the associations are charged in all.
    pub(super) fn check_invariants(&self) -> usize {
        assert_eq!(self.table.len(), self.by_port.len(), "each association has one port");
        self.table.held()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.table.next_timeout()
    }
}

impl Relay {
    pub(super) fn datagram_from_visitor(
        &mut self,
        now: Instant,
        listener: ListenerId,
        remote: SocketAddr,
        payload: &[u8],
    ) {
        let Some(Role::Port(id)) = self.listeners.get(listener_key(listener)).map(|listener| listener.role) else {
            return;
        };
        let Some(lease) = self.leases.get(id).filter(|lease| lease.active) else {
            return;
        };
        let (peer, service_port) = (lease.peer, lease.service_port);
        let Some(overlay) = self.node.wg.overlay(peer) else {
            return;
        };
        let key = lease.key;
        if !self.node.meter_datagram(now, &key, payload.len()) {
            return;
        }
        let is_new = !self.associations.knows((listener, remote));
        if is_new {
            self.leases.came(id);
        }
        self.leases.carried(id, payload.len() as u64, 0);
        let resources = &mut self.node.resources;
        let Some(port) = self.associations.port_for(now, (listener, remote), id, resources) else {
            return;
        };
        self.node.send_into_tunnel(peer, port, (overlay, service_port), payload);
        if is_new && let Some(public) = self.leases.get(id).map(|lease| lease.public.clone()) {
            self.node.event(RelayEvent::DatagramVisitor { public, remote });
        }
    }
}
