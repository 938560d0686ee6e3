//! The border between core and runtime: what a runtime feeds in, what it carries out, and the trait both machines offer.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use crate::batch::TransmitBatch;

/// A relay or an agent as a runtime sees it. The crate docs state the order of calls and the rules.
pub trait Machine {
    /// What the application is told, carried by [`Action::Event`].
    type Event;
    /// The byte path of one stream, borrowed from the machine.
    type Stream<'a>: ByteStream
    where
        Self: 'a;

    /// Takes datagrams that arrived on the tunnel's UDP socket from one remote address.
    ///
    /// `batch` holds datagrams of `stride` bytes one behind the other, the last one perhaps shorter (a GRO batch; a lone
    /// datagram has `stride == batch.len()`). Never fails: what is not ours is a counted drop. The buffer's contents are
    /// unspecified afterwards.
    fn handle_datagram(&mut self, now: Instant, path: Path, batch: &mut [u8], stride: usize);

    /// Takes a visitor's TCP connection that `listener` accepted: `remote` connected to `local`.
    ///
    /// Returns the identity under which the runtime keeps the socket, or `None` if the machine refuses it; then the
    /// runtime resets the connection.
    fn accept(&mut self, now: Instant, listener: ListenerId, remote: SocketAddr, local: SocketAddr)
    -> Option<StreamId>;

    /// Takes what happened to a socket. Events that name a socket the machine no longer knows are ignored.
    fn handle_socket(&mut self, now: Instant, event: SocketEvent<'_>);

    /// The byte path of a stream, or `None` once the machine has ended it (an [`Action::Close`] or [`Action::Abort`] for
    /// it was or will be handed out).
    fn stream(&mut self, now: Instant, id: StreamId) -> Option<Self::Stream<'_>>;

    /// Does what is due at `now`. Calling it early is harmless.
    fn handle_timeout(&mut self, now: Instant);

    /// Writes the next train of datagrams into `batch` and returns whether there was one.
    ///
    /// The batch is cleared first. A runtime that cannot send it yet keeps it and sends it before it polls again.
    fn poll_transmit(&mut self, now: Instant, batch: &mut TransmitBatch) -> bool;

    /// The next thing for the runtime to do.
    fn poll_action(&mut self) -> Option<Action<Self::Event>>;

    /// When [`Machine::handle_timeout`] must be called at the latest, and why (for logs).
    fn poll_timeout(&mut self) -> Option<(Instant, &'static str)>;

    /// Starts a clean end: nothing new is accepted, the other side is told. Runtimes drain once more afterwards and then
    /// go on until [`Machine::is_finished`] or their own patience ends.
    fn begin_shutdown(&mut self, now: Instant);

    /// Whether everything that was open has ended after [`Machine::begin_shutdown`].
    fn is_finished(&self) -> bool;
}

/// Moves bytes between a kernel socket and a flow without a copy in between.
pub trait ByteStream {
    /// Offers room for bytes read from the kernel socket.
    ///
    /// Calls `read` once with a non-empty buffer and takes the number of bytes it wrote to its front. Returns that number,
    /// or `None`, without calling, while there is no room: an [`Action::WantRead`] follows when there is.
    fn fill(&mut self, read: &mut dyn FnMut(&mut [u8]) -> usize) -> Option<usize>;

    /// Offers bytes to be written to the kernel socket.
    ///
    /// Calls `write` once with a non-empty slice and takes off the number of bytes it consumed from its front. Returns
    /// that number, or `None`, without calling, while there is nothing: an [`Action::WantWrite`] follows when there is.
    fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) -> Option<usize>;

    /// Says that the kernel socket reached its end of file: the other side of the flow gets a FIN behind the bytes
    /// filled before. Reading has ended; writing goes on.
    fn shutdown(&mut self);

    /// Says that the kernel socket failed (reset, broken pipe): the other side of the flow gets a RST. The runtime may
    /// drop the socket right away; an [`Action::Close`] follows.
    fn abort(&mut self);
}

/// Where a datagram of the tunnel comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    /// The other end's address.
    pub remote: SocketAddr,
    /// Our own address the datagram was sent to, so that a host with several answers from the right one.
    pub local_ip: Option<IpAddr>,
}

/// What happened to a socket that the runtime holds for the machine.
#[derive(Debug)]
#[non_exhaustive]
pub enum SocketEvent<'a> {
    /// The listener asked for by [`Action::Listen`] is bound to `local`.
    Listening {
        /// Which listener.
        listener: ListenerId,
        /// The bound address, its port chosen by the kernel if 0 was asked for.
        local: SocketAddr,
    },
    /// The listener asked for by [`Action::Listen`] could not be bound.
    ListenFailed {
        /// Which listener.
        listener: ListenerId,
        /// Why.
        error: io::ErrorKind,
    },
    /// The dial asked for by [`Action::Dial`] is connected.
    Connected {
        /// Which stream.
        stream: StreamId,
    },
    /// The dial asked for by [`Action::Dial`] failed.
    DialFailed {
        /// Which stream.
        stream: StreamId,
        /// Why.
        error: DialError,
    },
    /// A datagram arrived on a public or local UDP socket.
    Datagram {
        /// The socket; never [`UdpSocketRef::Tunnel`].
        socket: UdpSocketRef,
        /// Who sent it.
        remote: SocketAddr,
        /// The datagram; may be empty.
        payload: &'a [u8],
    },
    /// The local UDP socket asked for by [`Action::DialUdp`] is open.
    UdpConnected {
        /// Which socket.
        socket: UdpId,
    },
    /// A local UDP socket asked for by [`Action::DialUdp`] failed for good (for example, its target refused).
    UdpFailed {
        /// Which socket.
        socket: UdpId,
        /// Why.
        error: DialError,
    },
    /// The answer to [`Action::Resolve`]; empty if the name has no address.
    Resolved {
        /// The name as asked for.
        host: &'a str,
        /// Its addresses in the order of preference, each with the asked port.
        addrs: &'a [SocketAddr],
    },
}

/// Why a dial failed, as far as it matters to the other side and to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The target's name has no address.
    #[error("its name does not resolve")]
    Unresolved,
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The path or socket does not exist.
    #[error("it does not exist")]
    NotFound,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The host or network cannot be reached.
    #[error("unreachable")]
    Unreachable,
    /// The operating system forbids it.
    #[error("permission denied")]
    PermissionDenied,
    /// The process has no descriptors or memory left for it.
    #[error("out of descriptors or memory")]
    Exhausted,
    /// The runtime has no handler of this name, or cannot dial this kind of target.
    #[error("not supported here")]
    Unsupported,
    /// It does not speak TLS as it should.
    #[error("it does not speak TLS, or none that is understood here")]
    Tls,
    /// It shows a certificate that is not trusted.
    #[error("its TLS certificate is not trusted")]
    Untrusted,
    /// Anything else.
    #[error("failed")]
    Other,
}

/// What the runtime has to do. Small and owned.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action<E> {
    /// Bind a public socket; answered by [`SocketEvent::Listening`] or [`SocketEvent::ListenFailed`].
    Listen {
        /// Its identity from now on.
        listener: ListenerId,
        /// Where to bind.
        addr: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
    },
    /// Close a public socket. Connections it accepted go on.
    Unlisten {
        /// Which listener.
        listener: ListenerId,
    },
    /// Connect to a local target; answered by [`SocketEvent::Connected`] or [`SocketEvent::DialFailed`].
    Dial {
        /// Its identity from now on.
        stream: StreamId,
        /// Whereto.
        target: Target,
    },
    /// Open a UDP socket connected to a local target; answered by [`SocketEvent::UdpConnected`] or
    /// [`SocketEvent::UdpFailed`]. Nothing is transmitted to it before.
    DialUdp {
        /// Its identity from now on.
        socket: UdpId,
        /// Whereto.
        target: Target,
    },
    /// Close a UDP socket opened by [`Action::DialUdp`].
    CloseUdp {
        /// Which socket.
        socket: UdpId,
    },
    /// The stream has room: read from the kernel socket, once it is readable, until [`ByteStream::fill`] says `None`.
    WantRead(StreamId),
    /// The stream has bytes: write to the kernel socket, once it is writable, until [`ByteStream::drain`] says `None`.
    WantWrite(StreamId),
    /// Shut the kernel socket's write side (FIN). All bytes were drained before.
    Shutdown(StreamId),
    /// Reset the connection (RST) and drop the socket.
    Abort(StreamId),
    /// Drop the socket. All bytes were drained before.
    Close(StreamId),
    /// Look a name up; answered by [`SocketEvent::Resolved`]. Asked again for as long as it is needed.
    Resolve {
        /// A host name or a literal address.
        host: String,
        /// The port to put into the answers.
        port: u16,
    },
    /// Something the application may want to know.
    Event(E),
}

/// What a TCP stream or a UDP association is connected to on the agent's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Target {
    /// A host name or literal address, and a port.
    Host {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
    /// Something inside the program, known to the runtime by this name.
    Handler(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Handler(name) => f.write_str(name),
        }
    }
}

/// A public socket's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A UDP socket of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UdpSocketRef {
    /// The one that carries the tunnel.
    Tunnel,
    /// A public one, opened by [`Action::Listen`].
    Public(ListenerId),
    /// A local one, opened by [`Action::DialUdp`].
    Local(UdpId),
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            pub(crate) index: u32,
            pub(crate) generation: u32,
        }

        impl $name {
            /// A dense index: small, and used again once what it named has ended.
            #[must_use]
            pub fn index(self) -> usize {
                self.index as usize
            }

            /// An identity made by hand, for tests of runtimes and for machines outside this crate.
            #[must_use]
            pub fn from_parts(index: u32, generation: u32) -> Self {
                Self { index, generation }
            }
        }
    };
}

id! {
    /// Names a kernel TCP (or Unix) socket that the runtime holds for the machine. Never used twice.
    StreamId
}
id! {
    /// Names a public socket. Never used twice.
    ListenerId
}
id! {
    /// Names a local UDP socket. Never used twice.
    UdpId
}
