//! Sockets that the poll watches, and what the kernel has said of each.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::{Event, Source};
use mio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use mio::{Interest, Registry};
use portal_adapter::stream::KernelStream;
use portal_adapter::system::{Accept, Queued, Token};
use portal_adapter::udp::Datagrams;
use socket2::SockRef;

/// A socket under the poll's eyes.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    socket: S,
    token: Token,
    ready: Ready,
    queued: bool,
}

/// What was reported and not taken back by a "would block". A new socket may be ready for all that is known.
#[derive(Clone, Copy, Debug)]
struct Ready {
    readable: bool,
    writable: bool,
    /// The end of what can be read was reported, which is reported once: a short read behind it is not the end.
    read_closed: bool,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Kernel {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl<S: Source> Watched<S> {
    /// Has the poll watch a socket in both directions for as long as it lives.
    pub(crate) fn new(registry: &Registry, mut socket: S, token: Token) -> io::Result<Self> {
        registry.register(&mut socket, to_mio(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            socket,
            token,
            ready: Ready {
                readable: true,
                writable: true,
                read_closed: false,
            },
            queued: false,
        })
    }

    pub(crate) fn get(&self) -> &S {
        &self.socket
    }

    /// Takes in what the kernel reports.
    pub(crate) fn note(&mut self, event: &Event) {
        // An error is found by trying, either way.
        self.ready.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.ready.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.ready.read_closed |= event.is_read_closed() || event.is_error();
    }
}

impl<S> Watched<S> {
    fn reading<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        if !self.ready.readable && !self.ready.read_closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = call(self);
        if result.as_ref().is_err_and(would_block) {
            self.ready.readable = false;
        }
        result
    }

    fn writing<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        if !self.ready.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = call(self);
        if result.as_ref().is_err_and(would_block) {
            self.ready.writable = false;
        }
        result
    }
}

impl<S> Queued for Watched<S> {
    fn queue(&mut self, work: &mut VecDeque<Token>) {
        if !std::mem::replace(&mut self.queued, true) {
            work.push_back(self.token);
        }
    }

    fn visited(&mut self) {
        self.queued = false;
    }
}

impl<S: AsFd> AsFd for Watched<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl KernelStream for Watched<Kernel> {
    fn try_read(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.reading(|socket| call(&SockRef::from(socket)))
    }

    fn try_write(&mut self, call: &mut dyn FnMut(&SockRef<'_>) -> io::Result<usize>) -> io::Result<usize> {
        self.writing(|socket| call(&SockRef::from(socket)))
    }

    fn is_readable(&mut self) -> bool {
        self.ready.readable || self.ready.read_closed
    }

    fn is_writable(&mut self) -> bool {
        self.ready.writable
    }
}

impl Datagrams for Watched<UdpSocket> {
    fn try_read<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        self.reading(call)
    }

    fn try_write<R>(&mut self, call: impl FnOnce(&Self) -> io::Result<R>) -> io::Result<R> {
        self.writing(call)
    }

    fn is_readable(&mut self) -> bool {
        self.ready.readable
    }

    fn is_writable(&mut self) -> bool {
        self.ready.writable
    }

    fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.reading(|socket| socket.socket.recv_from(buffer))
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reading(|socket| socket.socket.recv(buffer))
    }
}

impl Accept for Watched<TcpListener> {
    type Accepted = TcpStream;

    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.reading(|socket| socket.socket.accept())
    }
}

impl Source for Kernel {
    fn register(&mut self, registry: &Registry, token: mio::Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interests),
            Self::Unix(stream) => stream.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: mio::Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(registry, token, interests),
            Self::Unix(stream) => stream.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(registry),
            Self::Unix(stream) => stream.deregister(registry),
        }
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// What an event of the poll is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// Somebody called.
    Waker,
    Tunnel,
    /// The sockets that have these indices now.
    Listener(usize),
    Stream(usize),
    Local(usize),
}

/// The poll's name of the waker.
pub(crate) const WAKER: mio::Token = mio::Token(KINDS);

/// Kinds of sockets, told apart by the low bits.
const KINDS: usize = 4;

fn to_mio(token: Token) -> mio::Token {
    let (index, kind) = match token {
        Token::Tunnel => (0, 0),
        Token::Listener(id) => (id.index(), 1),
        Token::Stream(id) => (id.index(), 2),
        Token::Local(id) => (id.index(), 3),
    };
    mio::Token(index * KINDS + kind)
}

/// What an event's token says.
pub(crate) fn about(token: mio::Token) -> About {
    let index = token.0 / KINDS;
    match token.0 % KINDS {
        0 if token == WAKER => About::Waker,
        0 => About::Tunnel,
        1 => About::Listener(index),
        2 => About::Stream(index),
        _ => About::Local(index),
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use portal_core::{ListenerId, StreamId, UdpId};

    use super::*;

    #[test]
    fn tokens_come_back() {
        for index in [0, 1, 77_777] {
            let tokens = [
                (
                    Token::Listener(ListenerId::from_parts(index, 3)),
                    About::Listener(index as usize),
                ),
                (
                    Token::Stream(StreamId::from_parts(index, 3)),
                    About::Stream(index as usize),
                ),
                (Token::Local(UdpId::from_parts(index, 3)), About::Local(index as usize)),
            ];
            for (token, meant) in tokens {
                assert_eq!(about(to_mio(token)), meant);
            }
        }
        assert_eq!(about(to_mio(Token::Tunnel)), About::Tunnel);
        assert_eq!(about(WAKER), About::Waker);
    }
}
