//! Draining the machine: its transmits are sent and its actions carried out.

use std::net::SocketAddr;
use std::task::Poll;

use portal_core::{
    Action, DialError, ListenerId, Machine, SocketEvent, StreamId, Target, Transport, UdpId, UdpSocketRef,
};

use super::{Engine, Local, Public, Slot, UdpSocket, udp};
use crate::addr::canonical;
use crate::listener;
use crate::names::literal;
use crate::stream::{Pump, reset_on_drop, shutdown};
use crate::system::{Begun, Queued, System, Token};
use crate::udp::{self as sockets, Udp};

impl<M: Machine, S: System<Event = M::Event>> Engine<M, S> {
    /// Takes everything out of the machine: transmits, then actions, and again if the actions fed it.
    pub(super) fn drain(&mut self) {
        loop {
            self.fed = false;
            self.transmit();
            loop {
                if self.budget.actions == 0 {
                    self.budget.exhausted = true;
                    return;
                }
                let Some(action) = self.machine.poll_action() else {
                    break;
                };
                self.budget.actions -= 1;
                self.carry_out(action);
            }
            if !self.fed {
                return;
            }
        }
    }

    pub(super) fn feed(&mut self, event: SocketEvent<'_>) {
        self.machine.handle_socket(self.now, event);
        self.fed = true;
    }

    pub(super) fn connected(&mut self, id: StreamId, result: Result<S::Stream, DialError>, ended: bool) {
        match result {
            Ok(mut held) => {
                if ended {
                    shutdown(&held);
                }
                held.queue(&mut self.queue);
                let pump = Pump::default();
                self.streams.insert(id, Slot::Open { held, pump });
                self.feed(SocketEvent::Connected { stream: id });
            }
            Err(error) => {
                self.stats.dial_failures += 1;
                self.feed(SocketEvent::DialFailed { stream: id, error });
            }
        }
    }

    pub(super) fn opened_udp(&mut self, id: UdpId, result: Result<std::net::UdpSocket, DialError>) {
        let opened = result.and_then(|socket| self.hold_udp(socket, Token::Local(id)).map_err(|_| DialError::Other));
        match opened {
            Ok(udp) => {
                self.locals.insert(id, Local::Open(udp));
                self.feed(SocketEvent::UdpConnected { socket: id });
            }
            Err(error) => {
                self.locals.remove(id);
                self.stats.dial_failures += 1;
                self.feed(SocketEvent::UdpFailed { socket: id, error });
            }
        }
    }

    /// Sends trains until the machine has no more, the tunnel's socket is full or the turn's bound is reached.
    fn transmit(&mut self) {
        loop {
            if self.outbox.full {
                match self.outbox.batch.destination().map(|to| to.socket) {
                    Some(UdpSocketRef::Tunnel) => {
                        if self.tunnel.send(&mut self.outbox, &mut self.stats) == Poll::Pending {
                            return;
                        }
                    }
                    Some(socket) => self.transmit_plain(socket),
                    None => self.outbox.full = false,
                }
            }
            if self.budget.trains == 0 || self.budget.sent == 0 {
                self.budget.exhausted = true;
                return;
            }
            let batch = &mut self.outbox.batch;
            batch.set_max_segments(self.tunnel.max_segments());
            if !self.machine.poll_transmit(self.now, batch) {
                return;
            }
            self.budget.trains -= 1;
            self.budget.sent = self.budget.sent.saturating_sub(batch.segments());
            self.outbox.filled();
        }
    }

    /// Sends a train out of a public or local socket, datagram by datagram.
    fn transmit_plain(&mut self, socket: UdpSocketRef) {
        self.outbox.full = false;
        let Some(udp) = udp(&mut self.listeners, &mut self.locals, socket) else {
            // Closed, or its target's name is still being looked up.
            self.stats.udp_tx_drops += self.outbox.batch.segments() as u64;
            return;
        };
        let remote = self
            .outbox
            .batch
            .destination()
            .and_then(|to| to.path)
            .map(|path| path.remote);
        for datagram in self.outbox.datagrams() {
            udp.facts.send(&udp.held, remote, datagram, &mut self.stats);
        }
    }

    fn carry_out(&mut self, action: Action<M::Event>) {
        match action {
            Action::WantRead(id) => self.want(id, |pump| pump.want_read = true),
            Action::WantWrite(id) => self.want(id, |pump| pump.want_write = true),
            Action::Shutdown(id) => match self.streams.get_mut(id) {
                Some(Slot::Open { held, .. }) => shutdown(held),
                Some(Slot::Dialing { shutdown, .. }) => *shutdown = true,
                None => {}
            },
            Action::Abort(id) => {
                if let Some(Slot::Open { held, .. }) = self.remove(id) {
                    reset_on_drop(&held);
                }
            }
            Action::Close(id) => drop(self.remove(id)),
            Action::Listen {
                listener,
                addr,
                transport,
            } => self.listen(listener, addr, transport),
            Action::Unlisten { listener } => {
                self.freed |= self.listeners.remove(listener).is_some();
            }
            Action::Dial { stream, target } => self.dial(stream, target),
            Action::DialUdp { socket, target } => self.dial_udp(socket, target),
            Action::CloseUdp { socket } => self.freed |= self.locals.remove(socket).is_some(),
            Action::Resolve { host, port } => match literal(&host, port) {
                Some(addr) => self.resolved(&host, &[canonical(addr)]),
                None => self.system.resolve(host, port),
            },
            Action::Event(event) => self.tell(event),
            _ => tracing::debug!("an action this runtime does not know"),
        }
    }

    fn want(&mut self, id: StreamId, mark: impl FnOnce(&mut Pump)) {
        // A dial that becomes a stream tries both directions anyway.
        if let Some(Slot::Open { held, pump }) = self.streams.get_mut(id) {
            mark(pump);
            held.queue(&mut self.queue);
        }
    }

    fn remove(&mut self, id: StreamId) -> Option<Slot<S>> {
        let slot = self.streams.remove(id);
        self.freed |= slot.is_some();
        slot
    }

    fn listen(&mut self, id: ListenerId, addr: SocketAddr, transport: Transport) {
        let bound = if self.stopping.is_some() {
            Err(std::io::ErrorKind::ConnectionAborted.into())
        } else {
            match transport {
                Transport::Tcp => listener::bind(addr, &self.settings).and_then(|socket| {
                    let local = socket.local_addr()?;
                    let mut held = self.system.hold_listener(socket, id)?;
                    held.queue(&mut self.queue);
                    Ok((Public::Tcp(held), local))
                }),
                Transport::Udp => sockets::bind(addr).and_then(|socket| {
                    let local = socket.local_addr()?;
                    Ok((Public::Udp(self.hold_udp(socket, Token::Listener(id))?), local))
                }),
            }
        };
        match bound {
            Ok((public, local)) => {
                self.listeners.insert(id, public);
                self.feed(SocketEvent::Listening { listener: id, local });
            }
            Err(error) => {
                tracing::debug!(%error, %addr, %transport, "binding failed");
                self.feed(SocketEvent::ListenFailed {
                    listener: id,
                    error: error.kind(),
                });
            }
        }
    }

    fn hold_udp(&mut self, socket: std::net::UdpSocket, token: Token) -> std::io::Result<UdpSocket<S>> {
        let facts = Udp::new(&socket)?;
        let mut held = self.system.hold_datagrams(socket, token)?;
        held.queue(&mut self.queue);
        Ok(UdpSocket { held, facts })
    }

    fn dial(&mut self, id: StreamId, target: Target) {
        self.stats.dials += 1;
        match self.system.dial(id, target) {
            Begun::Ended(result) => self.connected(id, result, false),
            Begun::Pending(dial) => {
                let shutdown = false;
                self.streams.insert(id, Slot::Dialing { dial, shutdown });
            }
        }
    }

    fn dial_udp(&mut self, id: UdpId, target: Target) {
        self.stats.dials += 1;
        let Target::Host { host, port } = target else {
            return self.opened_udp(id, Err(DialError::Unsupported));
        };
        match self.system.dial_udp(id, host, port) {
            Begun::Ended(result) => self.opened_udp(id, result),
            Begun::Pending(dial) => self.locals.insert(id, Local::Opening(dial)),
        }
    }

    fn tell(&mut self, event: M::Event) {
        if self.system.tell(event) {
            return;
        }
        if self.stats.event_drops == 0 {
            tracing::warn!("the application is too slow: events are being dropped");
        }
        self.stats.event_drops += 1;
    }
}
