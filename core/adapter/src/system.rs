//! What a runtime brings: sockets that it waits for, connections that are being made, names that are being looked up.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use portal_core::{DialError, ListenerId, StreamId, Target, UdpId};

use crate::stream::KernelStream;
use crate::udp::Datagrams;

/// Names a socket of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// That of the tunnel.
    Tunnel,
    /// A public one.
    Listener(ListenerId),
    /// A connection, or one that is being made.
    Stream(StreamId),
    /// A UDP socket towards a target.
    Local(UdpId),
}

/// A socket's place in the queue of those that are to be visited: at most one.
pub trait Queued {
    /// Puts the socket's token into the queue unless it waits somewhere already.
    fn queue(&mut self, work: &mut VecDeque<Token>);

    /// Says that the socket's token was taken out of the queue. Called before the socket is looked at: what the kernel
    /// reports while it is being served must not be lost.
    fn visited(&mut self);
}

/// A listener as a runtime holds it.
pub trait Accept {
    /// A connection that it has accepted.
    type Accepted: std::os::fd::AsFd;

    /// Takes the next connection and who made it. `WouldBlock` says that nobody is waiting, and that a visit follows when
    /// somebody is.
    ///
    /// # Errors
    /// Those of the system.
    fn accept(&mut self) -> io::Result<(Self::Accepted, SocketAddr)>;
}

/// How a connection begins.
#[derive(Debug)]
pub enum Begun<T, P> {
    /// It ended at once, well or badly.
    Ended(Result<T, DialError>),
    /// It takes a while: [`Engine::dialed`](crate::engine::Engine::dialed) or
    /// [`Engine::dialed_udp`](crate::engine::Engine::dialed_udp) is told. Dropping what stands for it calls it off.
    Pending(P),
}

/// A runtime as an [`Engine`](crate::engine::Engine) sees it. Nothing here waits.
pub trait System {
    /// What the application is told.
    type Event;
    /// A connection.
    type Stream: KernelStream + Queued;
    /// A UDP socket.
    type Datagrams: Datagrams + Queued;
    /// A TCP listener.
    type Listener: Accept + Queued;
    /// A connection that is being made. Dropping it calls it off.
    type Dial;
    /// A UDP socket whose target's name is being looked up. Dropping it calls it off.
    type DialUdp;

    /// Takes a bound socket into its care.
    ///
    /// # Errors
    /// If the system refuses to watch it.
    fn hold_listener(&mut self, socket: TcpListener, id: ListenerId) -> io::Result<Self::Listener>;

    /// Takes a bound socket into its care.
    ///
    /// # Errors
    /// If the system refuses to watch it.
    fn hold_datagrams(&mut self, socket: UdpSocket, token: Token) -> io::Result<Self::Datagrams>;

    /// Takes an accepted connection into its care.
    ///
    /// # Errors
    /// If the system refuses to watch it.
    fn hold_accepted(&mut self, socket: <Self::Listener as Accept>::Accepted, id: StreamId)
    -> io::Result<Self::Stream>;

    /// Connects to a target.
    fn dial(&mut self, id: StreamId, target: Target) -> Begun<Self::Stream, Self::Dial>;

    /// Opens a UDP socket connected to a host.
    fn dial_udp(&mut self, id: UdpId, host: String, port: u16) -> Begun<UdpSocket, Self::DialUdp>;

    /// Looks a name up, no matter what is remembered of it: [`Engine::resolved`](crate::engine::Engine::resolved) is told.
    /// Asked twice for the same before the answer, it may answer once.
    fn resolve(&mut self, host: String, port: u16);

    /// Hands an event to the application; `false` if it has no room for it.
    fn tell(&mut self, event: Self::Event) -> bool;
}
