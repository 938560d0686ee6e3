//! A host's turn: sockets are read and written, the machine is drained, and its deadline is honoured.

use std::fmt::Debug;
use std::time::Instant;

use portal_core::{ByteStream, Machine, SocketEvent, StreamId, UdpSocketRef};

use super::{Host, Pending, Surroundings};

/// Trains of datagrams that a host sends at one instant, and rounds of its sockets, fewer than these: as many bytes as
/// no machine has room for. More would be a machine that never comes to rest.
const MOST_TRAINS: u32 = 50_000;

impl<M: Machine<Event: Debug>> Host<M> {
    /// Does all there is to do at this instant. Returns whether there was anything.
    ///
    /// # Panics
    /// If the machine breaks a rule of the core's docs.
    pub(crate) fn turn(&mut self, around: &mut Surroundings<'_>) -> bool {
        let now = around.now;
        if self.is_away(now) {
            return false;
        }
        self.suspended_until = None;
        let mut any = self.tell(around);
        any |= self.drain(around);
        if let Some((at, reason)) = self.machine.poll_timeout()
            && at <= now
        {
            assert_ne!(
                self.honoured,
                Some(now),
                "{}: the deadline of a {reason} spins",
                self.addr
            );
            self.honoured = Some(now);
            self.machine.handle_timeout(now);
            self.drain(around);
            if let Some((next, reason)) = self.machine.poll_timeout() {
                assert!(next > now, "{}: the deadline of a {reason} did not move", self.addr);
            }
            any = true;
        }
        any
    }

    /// Sockets, transmits, actions, in this order, until nothing is left.
    fn drain(&mut self, around: &mut Surroundings<'_>) -> bool {
        let mut any = false;
        loop {
            self.strive(around.now);
            let moved = self.pump(around);
            let sent = self.transmit(around);
            let acted = self.act(around);
            if !(moved || sent || acted) {
                break;
            }
            any = true;
        }
        assert!(
            !self.machine.poll_transmit(around.now, &mut self.batch) && self.machine.poll_action().is_none(),
            "{}: something is left after a drain",
            self.addr
        );
        any
    }

    /// Counts something that must end while the clock stands.
    fn strive(&mut self, now: Instant) {
        let (at, count) = &mut self.striven;
        *count = if *at == Some(now) { *count + 1 } else { 0 };
        *at = Some(now);
        assert!(
            *count < MOST_TRAINS,
            "{}: it is busy without end at one instant",
            self.addr
        );
    }

    /// Tells the machine what the kernel has for it by now.
    fn tell(&mut self, around: &mut Surroundings<'_>) -> bool {
        let now = around.now;
        let mut any = false;
        while let Some(entry) = self.pending.first_entry().filter(|entry| entry.key().0 <= now) {
            any = true;
            match entry.remove() {
                Pending::Dialled(stream) => self.dialled(now, stream),
                Pending::DialFailed(stream, error) => {
                    self.machine
                        .handle_socket(now, SocketEvent::DialFailed { stream, error });
                }
                Pending::Resolved(host, addrs) => {
                    let (host, addrs) = (host.as_str(), addrs.as_slice());
                    self.machine.handle_socket(now, SocketEvent::Resolved { host, addrs });
                }
                Pending::UdpDialled(socket, target) => {
                    // One that was closed meanwhile is not opened.
                    if self.dialling_udp.remove(&socket) {
                        self.udp_dialled(now, socket, target);
                    }
                }
                Pending::Resume(id) => {
                    if let Some(socket) = self.sockets.get_mut(&id) {
                        socket.paused = false;
                        self.work.insert(id);
                    }
                }
            }
        }
        any
    }

    /// A dial is through. The machine may have given the socket up meanwhile; it is told all the same, as a runtime may.
    pub(super) fn dialled(&mut self, now: Instant, stream: StreamId) {
        if let Some(socket) = self.sockets.get_mut(&stream) {
            socket.connected = true;
            self.work.insert(stream);
        }
        self.machine.handle_socket(now, SocketEvent::Connected { stream });
    }

    fn pump(&mut self, around: &mut Surroundings<'_>) -> bool {
        let mut any = false;
        while let Some(id) = self.work.pop_first() {
            any |= self.pump_socket(id, around);
        }
        any
    }

    fn pump_socket(&mut self, id: StreamId, around: &mut Surroundings<'_>) -> bool {
        let now = around.now;
        let Some(socket) = self.sockets.get_mut(&id) else {
            return false;
        };
        let ledger = &mut *around.ledger;
        let paces = !socket.pace.pause.is_zero();
        let mut any = false;
        let mut moved = false;
        while socket.read_wanted && socket.has_bytes() && !socket.is_over() && !socket.paused && !(paces && moved) {
            let Some(mut stream) = self.machine.stream(now, id) else {
                break;
            };
            match stream.fill(&mut |room| socket.read(ledger, room)) {
                Some(count) => moved |= count > 0,
                None => socket.read_wanted = false,
            }
            any = true;
        }
        // The end of the file is seen by whoever reads.
        if socket.read_wanted && socket.fin_to_send && !socket.has_bytes() && !socket.fin_sent && !socket.is_over() {
            socket.fin_sent = true;
            socket.read_wanted = false;
            any = true;
            if let Some(side) = socket.side {
                ledger.send_fin(side);
            }
            if let Some(mut stream) = self.machine.stream(now, id) {
                stream.shutdown();
            }
        }
        let mut wrote = false;
        while socket.write_wanted && socket.takes() && !socket.is_over() && !socket.paused && !(paces && wrote) {
            let Some(mut stream) = self.machine.stream(now, id) else {
                break;
            };
            match stream.drain(&mut |bytes| socket.write(ledger, bytes)) {
                Some(count) => wrote |= count > 0,
                None => socket.write_wanted = false,
            }
            any = true;
        }
        if (socket.echo || socket.echoes.is_some()) && socket.read_wanted && wrote {
            self.work.insert(id);
        }
        if paces && (moved || wrote) {
            socket.paused = true;
            let at = now + socket.pace.pause;
            self.later(at, Pending::Resume(id));
        }
        any
    }

    fn transmit(&mut self, around: &mut Surroundings<'_>) -> bool {
        let mut any = false;
        while self.machine.poll_transmit(around.now, &mut self.batch) {
            any = true;
            self.strive(around.now);
            let destination = self
                .batch
                .destination()
                .expect("a batch that was filled has a destination");
            let contents = self.batch.contents();
            let size = self.batch.segment_size().unwrap_or(contents.len()).max(1);
            let payloads: Vec<&[u8]> = if contents.is_empty() {
                vec![&[][..]; self.batch.segments()]
            } else {
                contents.chunks(size).collect()
            };
            let remote = destination.path.map(|path| path.remote);
            match destination.socket {
                UdpSocketRef::Tunnel => {
                    let to = remote.expect("a datagram of the tunnel has an address");
                    for payload in payloads {
                        self.longest_datagram = self.longest_datagram.max(payload.len());
                        around.out.push((to, payload.to_vec()));
                    }
                }
                UdpSocketRef::Public(_) => {
                    let to = remote.expect("a datagram to a visitor has an address");
                    for payload in payloads {
                        if !around.udp.comes_back(to, payload) {
                            self.datagrams.push((destination.socket, remote, payload.to_vec()));
                        }
                    }
                }
                UdpSocketRef::Local(id) => {
                    for payload in payloads {
                        assert!(
                            !self.dialling_udp.contains(&id),
                            "{id:?} is sent from before it is open"
                        );
                        // A socket that was closed meanwhile takes nothing.
                        let open = self.udp.contains_key(&id);
                        if !open || !around.udp.reaches_target(payload) {
                            self.datagrams.push((destination.socket, remote, payload.to_vec()));
                        }
                        if open && self.behaviour.udp_echo {
                            let event = SocketEvent::Datagram {
                                socket: destination.socket,
                                remote: self.addr,
                                payload,
                            };
                            self.machine.handle_socket(around.now, event);
                        }
                    }
                }
            }
        }
        any
    }
}
