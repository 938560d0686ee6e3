//! One end of TCP inside the tunnel, moved by hand.

use std::net::Ipv6Addr;
use std::time::Instant;

use crate::budget::BufferClass;
use crate::identity::PublicKey;
use crate::machine::StreamId;
use crate::resources::Resources;
use crate::seed::Random;
use crate::stack::{FlowId, Owner, Stack, StackConfig};
use crate::wg::PeerId;

/// A stack with one peer, whose packets pass by hand.
pub struct StackEnd {
    stack: Stack,
    resources: Resources,
    other: Ipv6Addr,
}

/// Names a connection at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(FlowId);

/// What a connection looks like at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionView {
    /// The port of this end.
    pub local_port: u16,
    /// The handshake is through, or was.
    pub established: bool,
    /// The other end has said that it ends.
    pub remote_fin: bool,
    /// It ended without both ends having said so.
    pub broken: bool,
}

/// The longest packet.
pub const MTU: usize = 1280;
/// The bounds are small, so that they are met.
const FLOWS: usize = 12;
const HALF_OPEN: usize = 3;
const MEMORY: usize = 4 << 20;

impl StackEnd {
    /// An end with the address of the key `own`, whose peer has that of `other`. An agent answers at once, a relay waits for
    /// the end of a handshake.
    #[must_use]
    pub fn new(now: Instant, own: PublicKey, other: PublicKey, answers_at_once: bool) -> Self {
        Self {
            other: other.overlay_address(),
            ..Self::at(now, own.overlay_address(), answers_at_once)
        }
    }

    /// An end that calls nobody.
    pub(super) fn at(now: Instant, address: Ipv6Addr, answers_at_once: bool) -> Self {
        let mut random = Random::new(address_seed(address));
        let config = StackConfig {
            mtu: MTU,
            max_flows: FLOWS,
            max_half_open: HALF_OPEN,
            answers_at_once,
        };
        Self {
            stack: Stack::new(now, address, config, &mut random),
            resources: Resources::new(MEMORY),
            other: Ipv6Addr::UNSPECIFIED,
        }
    }

    /// Accepts connections to a port.
    pub fn serve(&mut self, port: u16) {
        self.stack.serve(port, BufferClass::LARGEST);
    }

    /// Has the first of these bytes travel with the SYN of a connection that was opened just now. They are to be sent first.
    pub fn send_early(&mut self, connection: Connection, bytes: &[u8]) {
        self.stack.send_early(connection.0, bytes, &mut self.resources);
    }

    /// Opens a connection to a port of the other end.
    pub fn connect(&mut self, now: Instant, port: u16) -> Option<Connection> {
        let Self {
            stack,
            resources,
            other,
        } = self;
        let flow = stack.connect(now, peer(), *other, port, owner(), BufferClass::LARGEST, resources);
        flow.ok().map(Connection)
    }

    /// A connection that something has happened to. One that was opened by the other end belongs to the caller from here
    /// on if it is established.
    pub fn poll_touched(&mut self) -> Option<(Connection, ConnectionView)> {
        while let Some(id) = self.stack.pop_touched() {
            let Some(view) = self.stack.view(id) else { continue };
            if view.owner == Owner::Nobody && view.established {
                self.stack.set_owner(id, owner());
            }
            return Some((Connection(id), self.view(Connection(id))?));
        }
        None
    }

    /// What a connection looks like, as long as there is one.
    #[must_use]
    pub fn view(&self, connection: Connection) -> Option<ConnectionView> {
        let view = self.stack.view(connection.0)?;
        Some(ConnectionView {
            local_port: view.local_port,
            established: view.established,
            remote_fin: view.remote_fin,
            broken: view.broken,
        })
    }

    /// Queues as much of `bytes` as there is room for.
    pub fn send(&mut self, connection: Connection, bytes: &[u8]) -> usize {
        self.stack.send(connection.0, bytes)
    }

    /// Takes received bytes, at most so many.
    pub fn read(&mut self, connection: Connection, most: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < most {
            let left = most - read.len();
            let drained = self.stack.drain(connection.0, &mut |bytes| {
                let bytes = &bytes[..left.min(bytes.len())];
                read.extend_from_slice(bytes);
                bytes.len()
            });
            if drained.is_none() {
                break;
            }
        }
        read
    }

    /// Says that nothing more will be sent.
    pub fn close(&mut self, connection: Connection) {
        self.stack.close(connection.0);
    }

    /// Lets go of a connection, with a reset or in good order.
    pub fn release(&mut self, connection: Connection, reset: bool) {
        self.stack.release(connection.0, reset, &mut self.resources);
    }

    /// The next packet to the other end.
    pub fn poll_packet(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.stack.peek_packet(now, |_| true, |_| {}, &mut self.resources)?;
        let packet = self.stack.packet().to_vec();
        self.stack.take_packet();
        assert!(packet.len() <= MTU);
        Some(packet)
    }

    /// Takes a packet of the other end.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let mut packet = packet.to_vec();
        self.stack.ingress(now, peer(), &mut packet, &mut self.resources);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now, &mut self.resources);
        assert!(
            self.stack.poll_timeout().is_none_or(|due| due > now),
            "deadlines move on"
        );
    }

    /// When something is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.stack.poll_timeout()
    }

    /// Asserts what must always hold, and returns how many connections there are.
    pub fn check_invariants(&self) -> usize {
        assert_eq!(self.stack.check_invariants(), self.resources.budget.used());
        self.stack.flow_count()
    }
}

/// Different addresses have different seeds.
fn address_seed(address: Ipv6Addr) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&address.octets());
    seed
}

fn peer() -> PeerId {
    PeerId::for_tests(1)
}

/// The caller: the stack does not care who that is.
fn owner() -> Owner {
    Owner::Stream(StreamId::from_parts(0, 0))
}
