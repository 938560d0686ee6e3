//! What mio brings to the engine: a registry, and timers for what is under way.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::net::TcpStream;
use portal_adapter::Settings;
use portal_adapter::names::dial_error;
use portal_adapter::system::{Begun, System, Token};
use portal_adapter::udp;
use portal_core::{DialError, ListenerId, StreamId, Target, UdpId};

use crate::dial::Dial;
use crate::handle::{Shared, Telling};
use crate::resolver::{Names, Waiter};
use crate::watched::{Kernel, Watched};

/// See the module docs.
#[derive(Debug)]
pub(crate) struct Mio<E> {
    registry: Registry,
    pub(crate) now: Instant,
    pub(crate) names: Names,
    /// What has to be looked at again, and when. What has ended in the meantime is not found then.
    timers: BTreeSet<(Instant, Timer)>,
    /// Names that the machine waits for.
    asked: Vec<Asked>,
    telling: Telling<E>,
    dial_timeout: Duration,
    resolve_timeout: Duration,
}

/// Who set a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Dial(StreamId),
    DialUdp(UdpId),
    /// The oldest of the names that the machine waits for.
    Asked,
}

/// A UDP socket that waits for its target's name.
#[derive(Debug)]
pub(crate) struct DialUdp {
    pub(crate) port: u16,
}

#[derive(Debug)]
struct Asked {
    host: String,
    port: u16,
    ends: Instant,
}

impl<E> Mio<E> {
    pub(crate) fn new(
        now: Instant,
        registry: Registry,
        shared: Arc<Shared>,
        telling: Telling<E>,
        settings: &Settings,
    ) -> Self {
        Self {
            registry,
            now,
            names: Names::new(shared),
            timers: BTreeSet::new(),
            asked: Vec::new(),
            telling,
            dial_timeout: settings.dial_timeout,
            resolve_timeout: settings.resolve_timeout,
        }
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a timer that is due.
    pub(crate) fn pop_timer(&mut self) -> Option<Timer> {
        let due = self.timers.first().is_some_and(|(at, _)| *at <= self.now);
        due.then(|| self.timers.pop_first()).flatten().map(|(_, timer)| timer)
    }

    /// Goes on with a dial; its timer is set anew if it has not ended.
    pub(crate) fn advance(&mut self, id: StreamId, dial: &mut Dial) -> Poll<Result<Watched<Kernel>, DialError>> {
        if let Some(at) = dial.timer.take() {
            self.timers.remove(&(at, Timer::Dial(id)));
        }
        let progress = dial.advance(&self.registry, self.now);
        match &progress {
            Poll::Pending => {
                dial.timer = Some(dial.due());
                self.timers.insert((dial.due(), Timer::Dial(id)));
            }
            Poll::Ready(_) => {
                if let Some((host, _)) = dial.awaits() {
                    self.names.give_up(host, Waiter::Stream(id));
                }
            }
        }
        progress
    }

    /// Takes the names out that the machine has waited for long enough.
    pub(crate) fn overdue(&mut self) -> Vec<String> {
        let now = self.now;
        let (over, asked) = std::mem::take(&mut self.asked)
            .into_iter()
            .partition(|asked| asked.ends <= now);
        self.asked = asked;
        let over: Vec<Asked> = over;
        for asked in &over {
            tracing::debug!(host = asked.host, "looking a name up took too long");
            self.names.give_up(&asked.host, Waiter::Machine(asked.port));
        }
        over.into_iter().map(|asked| asked.host).collect()
    }

    /// The machine got its answer.
    pub(crate) fn not_asked(&mut self, host: &str, port: u16) {
        self.asked
            .retain(|asked| (asked.host.as_str(), asked.port) != (host, port));
    }
}

impl<E> System for Mio<E> {
    type Event = E;
    type Stream = Watched<Kernel>;
    type Datagrams = Watched<mio::net::UdpSocket>;
    type Listener = Watched<mio::net::TcpListener>;
    type Dial = Dial;
    type DialUdp = DialUdp;

    fn hold_listener(&mut self, socket: TcpListener, id: ListenerId) -> io::Result<Self::Listener> {
        let socket = mio::net::TcpListener::from_std(socket);
        Watched::new(&self.registry, socket, Token::Listener(id))
    }

    fn hold_datagrams(&mut self, socket: UdpSocket, token: Token) -> io::Result<Self::Datagrams> {
        let socket = mio::net::UdpSocket::from_std(socket);
        Watched::new(&self.registry, socket, token)
    }

    fn hold_accepted(&mut self, socket: TcpStream, id: StreamId) -> io::Result<Self::Stream> {
        Watched::new(&self.registry, Kernel::Tcp(socket), Token::Stream(id))
    }

    fn dial(&mut self, id: StreamId, target: Target) -> Begun<Self::Stream, Dial> {
        let (now, patience) = (self.now, self.dial_timeout);
        let mut dial = match target {
            Target::Host { host, port } => match self.names.get(now, &host, port) {
                Some(addrs) => Dial::host(now, id, addrs, patience),
                None => {
                    self.names.ask(now, &host, Waiter::Stream(id));
                    Dial::unknown(now, id, host, port, patience)
                }
            },
            Target::Unix(path) => Dial::unix(now, id, path, patience),
            _ => return Begun::Ended(Err(DialError::Unsupported)),
        };
        match self.advance(id, &mut dial) {
            Poll::Ready(result) => Begun::Ended(result),
            Poll::Pending => Begun::Pending(dial),
        }
    }

    fn dial_udp(&mut self, id: UdpId, host: String, port: u16) -> Begun<UdpSocket, DialUdp> {
        if let Some(addrs) = self.names.get(self.now, &host, port) {
            return Begun::Ended(connect_udp(&addrs));
        }
        self.names.ask(self.now, &host, Waiter::Local(id));
        self.timers.insert((self.now + self.dial_timeout, Timer::DialUdp(id)));
        Begun::Pending(DialUdp { port })
    }

    fn resolve(&mut self, host: String, port: u16) {
        if self.asked.iter().any(|asked| asked.host == host && asked.port == port) {
            return;
        }
        self.names.ask(self.now, &host, Waiter::Machine(port));
        let ends = self.now + self.resolve_timeout;
        self.timers.insert((ends, Timer::Asked));
        self.asked.push(Asked { host, port, ends });
    }

    fn tell(&mut self, event: E) -> bool {
        self.telling.tell(event)
    }
}

/// Opens a UDP socket connected to one of `addrs`. Never waits.
pub(crate) fn connect_udp(addrs: &[SocketAddr]) -> Result<UdpSocket, DialError> {
    if addrs.is_empty() {
        return Err(DialError::Unresolved);
    }
    udp::connect(addrs).map_err(|error| dial_error(&error))
}
