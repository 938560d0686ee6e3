//! Draining the machine: its transmits are sent and its actions carried out.

use std::task::Poll;

use portal_adapter::addr::canonical;
use portal_adapter::names::literal;
use portal_adapter::{listener, udp};
use portal_core::{
    Action, DialError, ListenerId, Machine, SocketEvent, StreamId, Target, Transport, UdpId, UdpSocketRef,
};
use tokio::sync::mpsc::error::TrySendError;

use crate::dial::{self, Report};
use crate::driver::{Driver, Local, Public, Slot};
use crate::listener::Listener;
use crate::stream::{Socket, Stream};
use crate::udp::Udp;
use crate::wake::{Source, Token};

impl<M: Machine> Driver<M> {
    /// Takes everything out of the machine: transmits, then actions, and again if the actions fed it.
    pub(crate) fn drain(&mut self) {
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

    /// Takes in how a task ended.
    pub(crate) fn heed(&mut self, report: Report) {
        match report {
            Report::Dialed { stream, result } => self.dialed(stream, result),
            Report::DialedUdp { socket, result } => {
                if let Some(Local::Opening(_)) = self.locals.get_mut(socket) {
                    self.dialed_udp(socket, result);
                }
            }
            Report::Resolved { host, port, addrs } => {
                self.feed(SocketEvent::Resolved {
                    host: &host,
                    addrs: &addrs,
                });
                self.resolving.remove(&(host, port));
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
        let udp = match socket {
            UdpSocketRef::Public(id) => match self.listeners.get_mut(id) {
                Some(Public::Udp(udp)) => Some(udp),
                _ => None,
            },
            UdpSocketRef::Local(id) => match self.locals.get_mut(id) {
                Some(Local::Open(udp)) => Some(udp),
                _ => None,
            },
            UdpSocketRef::Tunnel => None,
        };
        let Some(udp) = udp else {
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
            udp.send(remote, datagram, &mut self.stats);
        }
    }

    fn carry_out(&mut self, action: Action<M::Event>) {
        match action {
            Action::WantRead(id) => self.want(id, Stream::want_read),
            Action::WantWrite(id) => self.want(id, Stream::want_write),
            Action::Shutdown(id) => match self.streams.get_mut(id) {
                Some(Slot::Open(stream)) => stream.shutdown(),
                Some(Slot::Dialing { shutdown, .. }) => *shutdown = true,
                None => {}
            },
            Action::Abort(id) => match self.remove(id) {
                Some(Slot::Open(stream)) => stream.abort(),
                Some(Slot::Dialing { task, .. }) => task.abort(),
                None => {}
            },
            Action::Close(id) => {
                if let Some(Slot::Dialing { task, .. }) = self.remove(id) {
                    task.abort();
                }
            }
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
            Action::CloseUdp { socket } => match self.locals.remove(socket) {
                Some(Local::Opening(task)) => task.abort(),
                Some(Local::Open(_)) => self.freed = true,
                None => {}
            },
            Action::Resolve { host, port } => self.resolve(host, port),
            Action::Event(event) => self.emit(event),
            _ => tracing::debug!("an action this runtime does not know"),
        }
    }

    fn feed(&mut self, event: SocketEvent<'_>) {
        self.machine.handle_socket(self.now, event);
        self.fed = true;
    }

    fn want(&mut self, id: StreamId, mark: impl FnOnce(&mut Stream)) {
        // A dial that becomes a stream tries both directions anyway.
        if let Some(Slot::Open(stream)) = self.streams.get_mut(id) {
            mark(stream);
            stream.source().queue(&mut self.work);
        }
    }

    fn remove(&mut self, id: StreamId) -> Option<Slot> {
        let slot = self.streams.remove(id);
        self.freed |= slot.is_some();
        slot
    }

    fn listen(&mut self, id: ListenerId, addr: std::net::SocketAddr, transport: Transport) {
        let source = Source::new(&self.shared.ready, Token::Listener(id));
        let bound = if self.stopping.is_some() {
            Err(std::io::ErrorKind::ConnectionAborted.into())
        } else {
            match transport {
                Transport::Tcp => listener::bind(addr, &self.settings).and_then(|socket| {
                    let local = socket.local_addr()?;
                    Ok((Public::Tcp(Listener::new(socket, source)?), local))
                }),
                Transport::Udp => udp::bind(addr).and_then(|socket| {
                    let local = socket.local_addr()?;
                    Ok((Public::Udp(Udp::new(socket, source)?), local))
                }),
            }
        };
        match bound {
            Ok((public, local)) => {
                match &public {
                    Public::Tcp(listener) => listener.source.queue(&mut self.work),
                    Public::Udp(udp) => udp.source().queue(&mut self.work),
                }
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

    fn dial(&mut self, stream: StreamId, target: Target) {
        self.stats.dials += 1;
        let patience = self.settings.dial_timeout;
        let task = match target {
            Target::Host { host, port } => {
                let names = self.names.clone();
                self.tasks.spawn(async move {
                    let result = dial::dial_host(names, host, port, patience).await;
                    Report::Dialed { stream, result }
                })
            }
            Target::Unix(path) => self.tasks.spawn(async move {
                let result = dial::dial_unix(&path, patience).await;
                Report::Dialed { stream, result }
            }),
            Target::Handler(name) => {
                let result = self.handlers.dial(&name);
                return self.connected(stream, result, false);
            }
            _ => return self.connected(stream, Err(DialError::Unsupported), false),
        };
        let slot = Slot::Dialing { task, shutdown: false };
        self.streams.insert(stream, slot);
    }

    fn dialed(&mut self, id: StreamId, result: Result<Socket, DialError>) {
        match self.streams.remove(id) {
            Some(Slot::Dialing { shutdown, .. }) => self.connected(id, result, shutdown),
            // Ended by the machine in the meantime.
            Some(Slot::Open(_)) | None => {}
        }
    }

    fn connected(&mut self, id: StreamId, result: Result<Socket, DialError>, shutdown: bool) {
        match result {
            Ok(socket) => {
                let source = Source::new(&self.shared.ready, Token::Stream(id));
                let stream = Stream::new(socket, source);
                if shutdown {
                    stream.shutdown();
                }
                stream.source().queue(&mut self.work);
                self.streams.insert(id, Slot::Open(stream));
                self.feed(SocketEvent::Connected { stream: id });
            }
            Err(error) => {
                self.stats.dial_failures += 1;
                self.feed(SocketEvent::DialFailed { stream: id, error });
            }
        }
    }

    fn dial_udp(&mut self, id: UdpId, target: Target) {
        self.stats.dials += 1;
        let Target::Host { host, port } = target else {
            return self.dialed_udp(id, Err(DialError::Unsupported));
        };
        // Without a look-up the socket is there at once.
        if let Some(addrs) = self.names.get(&host, port) {
            return self.dialed_udp(id, dial::connect_udp(&addrs));
        }
        let (names, patience) = (self.names.clone(), self.settings.dial_timeout);
        let task = self.tasks.spawn(async move {
            let result = dial::dial_udp(names, host, port, patience).await;
            Report::DialedUdp { socket: id, result }
        });
        self.locals.insert(id, Local::Opening(task));
    }

    fn dialed_udp(&mut self, id: UdpId, result: Result<std::net::UdpSocket, DialError>) {
        let source = Source::new(&self.shared.ready, Token::Local(id));
        let opened = result.and_then(|socket| Udp::new(socket, source).map_err(|_| DialError::Other));
        match opened {
            Ok(udp) => {
                udp.source().queue(&mut self.work);
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

    fn resolve(&mut self, host: String, port: u16) {
        if let Some(addr) = literal(&host, port) {
            return self.feed(SocketEvent::Resolved {
                host: &host,
                addrs: &[canonical(addr)],
            });
        }
        if !self.resolving.insert((host.clone(), port)) {
            return;
        }
        let patience = self.settings.resolve_timeout;
        self.tasks.spawn(async move {
            let addrs = dial::look_up(&host, port, patience).await;
            Report::Resolved { host, port, addrs }
        });
    }

    fn emit(&mut self, event: M::Event) {
        match self.events.try_send(event) {
            // An application that has dropped its end does not want them.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                if self.stats.event_drops == 0 {
                    tracing::warn!("the application is too slow: events are being dropped");
                }
                self.stats.event_drops += 1;
            }
        }
    }
}
