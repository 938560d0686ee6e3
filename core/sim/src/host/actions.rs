//! What the machine asks for is done, or fails as the script says.

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

use portal_core::{Action, DialError, Machine, SocketEvent, StreamId, Target, UdpId};

use super::{Host, Pending, Surroundings, TargetScript};
use crate::ledger::{Opening, Role};
use crate::socket::Socket;

/// Ports below this open unless they are busy: a relay is nothing without its shared listeners.
const FIRST_FICKLE_PORT: u16 = 1024;

impl<M: Machine<Event: Debug>> Host<M> {
    pub(super) fn act(&mut self, around: &mut Surroundings<'_>) -> bool {
        let now = around.now;
        let mut any = false;
        while let Some(action) = self.machine.poll_action() {
            any = true;
            match action {
                Action::Listen {
                    listener,
                    addr,
                    transport,
                } => {
                    let taken = self.listeners.values().any(|&bound| bound == (addr, transport));
                    let busy = taken || self.behaviour.busy_ports.contains(&addr.port());
                    let fails = if addr.port() < FIRST_FICKLE_PORT {
                        0
                    } else {
                        self.behaviour.listen_fails
                    };
                    if busy || around.random.chance(fails) {
                        let error = io::ErrorKind::AddrInUse;
                        self.machine
                            .handle_socket(now, SocketEvent::ListenFailed { listener, error });
                    } else {
                        self.listeners.insert(listener, (addr, transport));
                        self.machine
                            .handle_socket(now, SocketEvent::Listening { listener, local: addr });
                    }
                }
                Action::Unlisten { listener } => drop(self.listeners.remove(&listener)),
                Action::Dial { stream, target } => self.dial(stream, target, around),
                Action::DialUdp { socket, target } => self.dial_udp(socket, target, around),
                Action::CloseUdp { socket } => {
                    let known = self.udp.remove(&socket).is_some() | self.dialling_udp.remove(&socket);
                    assert!(known, "CloseUdp for {socket:?}, which is not open");
                }
                Action::WantRead(id) => self.live(id, "WantRead").read_wanted = true,
                Action::WantWrite(id) => {
                    let socket = self.live(id, "WantWrite");
                    assert!(!socket.fin_received, "{id:?} has bytes behind its FIN");
                    socket.write_wanted = true;
                }
                Action::Shutdown(id) => {
                    let socket = self.live(id, "Shutdown");
                    assert!(!socket.fin_received, "{id:?} was shut twice");
                    socket.fin_received = true;
                    socket.fin_to_send |= socket.echo || socket.fin_answers_fin;
                    if let Some(side) = socket.side {
                        around.ledger.receive_fin(side);
                    }
                }
                Action::Abort(id) => {
                    let socket = self.live(id, "Abort");
                    socket.reset = true;
                    if let Some(side) = socket.side {
                        around.ledger.broke(side);
                    }
                }
                Action::Close(id) => {
                    let socket = self.live(id, "Close");
                    socket.closed = true;
                    if let Some(side) = socket.side {
                        around.ledger.closed(side);
                    }
                }
                Action::Resolve { host, port } => self.resolve(host, port, around),
                Action::Event(event) => {
                    around.trace.note_debug(&event);
                    self.events.push(event);
                }
                other => panic!("the simulator does not know {other:?}"),
            }
        }
        any
    }

    /// The socket of an action, which must not be over.
    fn live(&mut self, id: StreamId, action: &str) -> &mut Socket {
        self.work.insert(id);
        let socket = self.sockets.get_mut(&id);
        let addr = self.addr;
        let socket = socket.unwrap_or_else(|| panic!("{addr}: {action} for {id:?}, which the machine was never given"));
        assert!(!socket.is_over(), "{addr}: {action} for {id:?}, which is over");
        socket
    }

    fn dial(&mut self, stream: StreamId, target: Target, around: &mut Surroundings<'_>) {
        let now = around.now;
        let port = port_of(&target);
        self.dials.push((stream, target));
        let mut socket = match self.behaviour.targets {
            TargetScript::Echo => Socket {
                echo: true,
                ..Socket::literal()
            },
            TargetScript::Keep => Socket::literal(),
            TargetScript::Model { most } => {
                let side = around.ledger.open(Role::Target, port, &Opening::Raw);
                Socket {
                    fin_answers_fin: true,
                    ..Socket::modelled(side, around.ledger.opening_len(side), around.random.below(most + 1))
                }
            }
        };
        socket.connected = false;
        self.insert(stream, socket);
        let error = match self.behaviour.dial_error {
            None if around.random.chance(self.behaviour.dial_fails) => Some(DialError::TimedOut),
            error => error,
        };
        let delay = delay(self.behaviour.dial_delay, around);
        match error {
            Some(error) if delay.is_zero() => {
                self.machine
                    .handle_socket(now, SocketEvent::DialFailed { stream, error });
            }
            None if delay.is_zero() => self.dialled(now, stream),
            Some(error) => self.later(now + delay, Pending::DialFailed(stream, error)),
            None => self.later(now + delay, Pending::Dialled(stream)),
        }
    }

    fn dial_udp(&mut self, socket: UdpId, target: Target, around: &mut Surroundings<'_>) {
        if let Some(error) = self.behaviour.dial_error {
            self.machine
                .handle_socket(around.now, SocketEvent::UdpFailed { socket, error });
            return;
        }
        let delay = delay(self.behaviour.dial_delay, around);
        if delay.is_zero() {
            self.udp_dialled(around.now, socket, target);
        } else {
            self.dialling_udp.insert(socket);
            self.later(around.now + delay, Pending::UdpDialled(socket, target));
        }
    }

    pub(super) fn udp_dialled(&mut self, now: Instant, socket: UdpId, target: Target) {
        let before = self.udp.insert(socket, target);
        assert!(before.is_none(), "the machine gave {socket:?} out twice");
        self.machine.handle_socket(now, SocketEvent::UdpConnected { socket });
    }

    fn resolve(&mut self, host: String, port: u16, around: &mut Surroundings<'_>) {
        self.resolves += 1;
        let mut addrs = self.behaviour.addresses.clone();
        assert!(
            addrs.iter().all(|addr| addr.port() == port),
            "the answer has the port that was asked for"
        );
        if around.random.chance(self.behaviour.resolve_fails) {
            addrs.clear();
        }
        let delay = delay(self.behaviour.resolve_delay, around);
        if delay.is_zero() {
            let (host, addrs) = (host.as_str(), addrs.as_slice());
            self.machine
                .handle_socket(around.now, SocketEvent::Resolved { host, addrs });
        } else {
            self.later(around.now + delay, Pending::Resolved(host, addrs));
        }
    }
}

fn port_of(target: &Target) -> u16 {
    match target {
        Target::Host { port, .. } => *port,
        _ => 0,
    }
}

fn delay(longest: Duration, around: &mut Surroundings<'_>) -> Duration {
    if longest.is_zero() {
        return Duration::ZERO;
    }
    around.random.duration(longest)
}
