//! Sockets as async-std's reactor watches them, and what the engine asks for.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, TrySendError};
use std::time::Duration;

use async_io::Async;
use portal_adapter::Settings;
use portal_adapter::names::dial_error;
use portal_adapter::stream::KernelStream;
use portal_adapter::system::{Accept, Begun, Queued, System, Token};
use portal_adapter::udp::Datagrams;
use portal_adapter::wake::{ReadyList, Source};
use portal_core::{DialError, ListenerId, StreamId, Target, UdpId};
use socket2::SockRef;

use super::dial::{Report, Task, Tasks, dial, dial_udp, look_up_within};

/// See the module docs.
pub(super) struct AsyncStd<E> {
    tasks: Tasks,
    events: SyncSender<E>,
    dial_timeout: Duration,
    resolve_timeout: Duration,
    /// Those that look names up end by themselves.
    resolving: VecDeque<Task>,
}

/// How many look-ups go on at a time; the oldest is called off for another.
const LOOK_UPS: usize = 8;

/// A socket, and what is known of it: after a `WouldBlock` it is ready again when the reactor says so.
pub(super) struct Watched<T> {
    socket: Async<T>,
    source: Source,
    readable: bool,
    writable: bool,
}

impl<E> AsyncStd<E> {
    pub(super) fn new(
        ready: &Arc<ReadyList>,
        reports: Sender<Report>,
        events: SyncSender<E>,
        settings: &Settings,
    ) -> Self {
        let ready = Arc::clone(ready);
        Self {
            tasks: Tasks { ready, reports },
            events,
            dial_timeout: settings.dial_timeout,
            resolve_timeout: settings.resolve_timeout,
            resolving: VecDeque::new(),
        }
    }

    pub(super) fn hold_dialed(&self, socket: OwnedFd, id: StreamId) -> Result<Watched<OwnedFd>, DialError> {
        self.watch(socket, Token::Stream(id))
            .map_err(|error| dial_error(&error))
    }

    fn watch<T: AsFd>(&self, socket: T, token: Token) -> io::Result<Watched<T>> {
        Ok(Watched {
            socket: Async::new(socket)?,
            source: Source::new(&self.tasks.ready, token),
            readable: true,
            writable: true,
        })
    }
}

impl<E> System for AsyncStd<E> {
    type Event = E;
    type Stream = Watched<OwnedFd>;
    type Datagrams = Watched<UdpSocket>;
    type Listener = Watched<TcpListener>;
    type Dial = Task;
    type DialUdp = Task;

    fn hold_listener(&mut self, socket: TcpListener, id: ListenerId) -> io::Result<Self::Listener> {
        self.watch(socket, Token::Listener(id))
    }

    fn hold_datagrams(&mut self, socket: UdpSocket, token: Token) -> io::Result<Self::Datagrams> {
        self.watch(socket, token)
    }

    fn hold_accepted(&mut self, socket: TcpStream, id: StreamId) -> io::Result<Self::Stream> {
        self.watch(socket.into(), Token::Stream(id))
    }

    fn dial(&mut self, id: StreamId, target: Target) -> Begun<Self::Stream, Task> {
        let patience = self.dial_timeout;
        Begun::Pending(self.tasks.start(async move {
            let result = dial(target, patience).await;
            Report::Dialed { stream: id, result }
        }))
    }

    fn dial_udp(&mut self, id: UdpId, host: String, port: u16) -> Begun<UdpSocket, Task> {
        let patience = self.dial_timeout;
        Begun::Pending(self.tasks.start(async move {
            let result = dial_udp(host, port, patience).await;
            Report::DialedUdp { socket: id, result }
        }))
    }

    fn resolve(&mut self, host: String, port: u16) {
        let patience = self.resolve_timeout;
        self.resolving.truncate(LOOK_UPS - 1);
        self.resolving.push_front(self.tasks.start(async move {
            let addrs = look_up_within(&host, port, patience).await;
            Report::Resolved { host, addrs }
        }));
    }

    fn tell(&mut self, event: E) -> bool {
        // An application that has dropped its end does not want them.
        !matches!(self.events.try_send(event), Err(TrySendError::Full(_)))
    }
}

/// Calls if the socket may be ready, and notes if it is not.
fn attempt<R>(ready: &mut bool, call: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    if !*ready {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    call().inspect_err(|error| *ready = error.kind() != io::ErrorKind::WouldBlock)
}

impl<T> Watched<T> {
    fn poll_readable(&mut self) -> bool {
        self.readable = self.readable || self.socket.poll_readable(&mut self.source.context()).is_ready();
        self.readable
    }

    fn poll_writable(&mut self) -> bool {
        self.writable = self.writable || self.socket.poll_writable(&mut self.source.context()).is_ready();
        self.writable
    }
}

impl<T> Queued for Watched<T> {
    fn queue(&mut self, work: &mut VecDeque<Token>) {
        self.source.queue(work);
    }

    fn visited(&mut self) {
        self.source.visited();
    }
}

impl<T: AsFd> AsFd for Watched<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl Accept for Watched<TcpListener> {
    type Accepted = TcpStream;

    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match attempt(&mut self.readable, || self.socket.get_ref().accept()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.poll_readable() => {}
                result => return result,
            }
        }
    }
}

impl KernelStream for Watched<OwnedFd> {
    fn try_read(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        attempt(&mut self.readable, || call(&SockRef::from(self.socket.get_ref())))
    }

    fn try_write(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        attempt(&mut self.writable, || call(&SockRef::from(self.socket.get_ref())))
    }

    fn is_readable(&mut self) -> bool {
        self.poll_readable()
    }

    fn is_writable(&mut self) -> bool {
        self.poll_writable()
    }
}

impl Datagrams for Watched<UdpSocket> {
    fn try_read<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        let mut ready = self.readable;
        let result = attempt(&mut ready, || call(self));
        self.readable = ready;
        result
    }

    fn try_write<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        let mut ready = self.writable;
        let result = attempt(&mut ready, || call(self));
        self.writable = ready;
        result
    }

    fn is_readable(&mut self) -> bool {
        self.poll_readable()
    }

    fn is_writable(&mut self) -> bool {
        self.poll_writable()
    }

    fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        attempt(&mut self.readable, || self.socket.get_ref().recv_from(buffer))
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        attempt(&mut self.readable, || self.socket.get_ref().recv(buffer))
    }
}
