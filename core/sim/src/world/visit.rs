//! Visitors, and what happens to sockets from outside.

use std::net::SocketAddr;
use std::time::Duration;

use portal_core::{Machine, SocketEvent, StreamId, Transport, UdpSocketRef};

use super::{HostId, World};
use crate::ledger::{Opening, Role};
use crate::setup::VISITOR_ADDR;
use crate::socket::Socket;

impl World {
    /// A visitor of relay 0 with a literal script connects to a public port. `None` if the relay refuses it.
    ///
    /// # Panics
    /// If nothing listens there.
    pub fn visit(&mut self, port: u16) -> Option<StreamId> {
        let remote = VISITOR_ADDR.parse().expect("an address");
        let listening = self.relays[0].listener(port, Transport::Tcp).is_some();
        assert!(listening, "nothing listens on port {port}");
        let id = self.accept(0, port, remote)?;
        self.relays[0].insert(id, Socket::literal());
        Some(id)
    }

    /// A visitor whose bytes are modelled connects to a public port: it sends `opening` and `more` bytes. `place` is the
    /// port of the target that it must end up at, 0 if that is not known. `None` if nothing listens or the relay refuses.
    pub fn visit_modelled(
        &mut self,
        relay: usize,
        port: u16,
        remote: SocketAddr,
        opening: &Opening,
        place: u16,
        more: u64,
    ) -> Option<StreamId> {
        let id = self.accept(relay, port, remote)?;
        let side = self.ledger.open(Role::Visitor, place, opening);
        let socket = Socket::modelled(side, self.ledger.opening_len(side), more);
        self.relays[relay].insert(id, socket);
        Some(id)
    }

    /// A visitor connects and says `bytes`, whatever they are. Returns its socket, unless nothing listens or the relay
    /// refuses it.
    pub fn visit_saying(&mut self, relay: usize, port: u16, remote: SocketAddr, bytes: Vec<u8>) -> Option<&mut Socket> {
        let id = self.accept(relay, port, remote)?;
        let socket = Socket {
            to_send: bytes.into(),
            ..Socket::literal()
        };
        self.relays[relay].insert(id, socket);
        Some(self.relays[relay].socket(id))
    }

    /// Somebody with a literal script connects to a TCP port of a machine, such as that for operators. `None` if nothing
    /// listens or the machine refuses.
    pub fn connect(&mut self, host: HostId, port: u16) -> Option<StreamId> {
        let remote = VISITOR_ADDR.parse().expect("an address");
        match host {
            HostId::Relay(relay) => {
                let id = self.accept(relay, port, remote)?;
                self.relays[relay].insert(id, Socket::literal());
                Some(id)
            }
            HostId::Agent(agent) => {
                let host = &mut self.agents[agent];
                let listener = host.listener(port, Transport::Tcp).filter(|_| host.on)?;
                let local = SocketAddr::new(host.addr.ip(), port);
                let id = host.machine.accept(self.now, listener, remote, local)?;
                host.insert(id, Socket::literal());
                Some(id)
            }
        }
    }

    /// A socket of a machine, to change its script.
    pub fn socket(&mut self, host: HostId, id: StreamId) -> &mut Socket {
        match host {
            HostId::Relay(relay) => self.relays[relay].socket(id),
            HostId::Agent(agent) => self.agents[agent].socket(id),
        }
    }

    /// The socket of a visitor of relay 0.
    pub fn visitor(&mut self, id: StreamId) -> &mut Socket {
        self.relays[0].socket(id)
    }

    /// A modelled visitor of relay 0 that says nothing yet comes to its first service, whose target's port is 3000, and has
    /// a second to reach it.
    ///
    /// # Panics
    /// If the relay refuses it.
    pub fn settled_visitor(&mut self) -> StreamId {
        let remote = SocketAddr::from(([198, 51, 100, 1], 1000));
        let port = self.public_port(0);
        let visitor = self.visit_modelled(0, port, remote, &Opening::Raw, 3000, 0);
        self.run(Duration::from_secs(1));
        visitor.expect("accepted")
    }

    /// Has a modelled visitor of relay 0 send so many bytes to a target that keeps them, and returns how long it takes
    /// until they are all there.
    ///
    /// # Panics
    /// If the visitor has not reached its target, or the bytes do not arrive.
    pub fn upload(&mut self, visitor: StreamId, bytes: u64) -> Duration {
        let side = self.visitor(visitor).side.expect("modelled");
        let target = self.ledger.get(side).and_then(|side| side.peer);
        let target = target.expect("it has reached its target");
        let arrived = |world: &Self| world.ledger.get(target).expect("it is not forgotten").received;
        let (start, goal) = (self.now, arrived(self) + bytes);
        self.visitor(visitor).left_to_send += bytes;
        self.run_until("the upload", |world| arrived(world) >= goal);
        self.now - start
    }

    /// A visitor of relay 0 with a literal script says something.
    pub fn say(&mut self, id: StreamId, bytes: &[u8]) {
        self.visitor(id).to_send.extend(bytes);
    }

    /// A UDP visitor sends a payload to a public port. False if nothing listens there.
    pub fn send_datagram(&mut self, relay: usize, port: u16, remote: SocketAddr, payload: &[u8]) -> bool {
        let host = &mut self.relays[relay];
        let Some(listener) = host.listener(port, Transport::Udp).filter(|_| !host.is_away(self.now)) else {
            return false;
        };
        let event = SocketEvent::Datagram {
            socket: UdpSocketRef::Public(listener),
            remote,
            payload,
        };
        host.machine.handle_socket(self.now, event);
        true
    }

    /// The far side of a socket breaks its connection off.
    pub fn abort(&mut self, host: HostId, id: StreamId) {
        match host {
            HostId::Relay(relay) => self.relays[relay].abort(self.now, id, &mut self.ledger),
            HostId::Agent(agent) => self.agents[agent].abort(self.now, id, &mut self.ledger),
        }
    }

    fn accept(&mut self, relay: usize, port: u16, remote: SocketAddr) -> Option<StreamId> {
        let host = &mut self.relays[relay];
        let listener = host
            .listener(port, Transport::Tcp)
            .filter(|_| !host.is_away(self.now))?;
        let local = SocketAddr::new(host.addr.ip(), port);
        host.machine.accept(self.now, listener, remote, local)
    }
}
