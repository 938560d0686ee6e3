//! What tokio brings to the engine: wakers on sockets, tasks for what waits.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use portal_adapter::Settings;
use portal_adapter::system::{Accept, Begun, Queued, System, Token};
use portal_core::{DialError, ListenerId, StreamId, Target, UdpId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{AbortHandle, JoinSet};

use crate::dial::{self, Handlers, Names, Report};
use crate::socket::{Datagrams, Kernel, Stream};
use portal_adapter::wake::{ReadyList, Source};

/// See the module docs.
#[derive(Debug)]
pub(crate) struct Tokio<E> {
    ready: Arc<ReadyList>,
    handlers: Handlers,
    /// Dials and look-ups. They end with the driver.
    tasks: JoinSet<Report>,
    names: Names,
    resolving: HashSet<(String, u16)>,
    events: mpsc::Sender<E>,
    dial_timeout: Duration,
    resolve_timeout: Duration,
}

/// A bound TCP listener.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: tokio::net::TcpListener,
    source: Source,
}

/// A task, called off when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(AbortHandle);

impl<E> Tokio<E> {
    pub(crate) fn new(ready: Arc<ReadyList>, handlers: Handlers, events: mpsc::Sender<E>, settings: &Settings) -> Self {
        Self {
            ready,
            handlers,
            tasks: JoinSet::new(),
            names: Names::default(),
            resolving: HashSet::new(),
            events,
            dial_timeout: settings.dial_timeout,
            resolve_timeout: settings.resolve_timeout,
        }
    }

    /// The next task that has ended, if it was not called off.
    pub(crate) fn poll_report(&mut self, cx: &mut Context<'_>) -> Poll<Option<Report>> {
        self.tasks.poll_join_next(cx).map(|ended| {
            let report = ended?.ok();
            if let Some(Report::Resolved { host, port, .. }) = &report {
                self.resolving.remove(&(host.clone(), *port));
            }
            Some(report.unwrap_or(Report::CalledOff))
        })
    }

    /// Takes a connected socket into its care.
    pub(crate) fn hold(&self, socket: Kernel, id: StreamId) -> Stream {
        Stream::new(socket, Source::new(&self.ready, Token::Stream(id)))
    }
}

impl<E> System for Tokio<E> {
    type Event = E;
    type Stream = Stream;
    type Datagrams = Datagrams;
    type Listener = Listener;
    type Dial = Task;
    type DialUdp = Task;

    fn hold_listener(&mut self, socket: TcpListener, id: ListenerId) -> io::Result<Listener> {
        Ok(Listener {
            socket: tokio::net::TcpListener::from_std(socket)?,
            source: Source::new(&self.ready, Token::Listener(id)),
        })
    }

    fn hold_datagrams(&mut self, socket: UdpSocket, token: Token) -> io::Result<Datagrams> {
        Datagrams::new(socket, Source::new(&self.ready, token))
    }

    fn hold_accepted(&mut self, socket: TcpStream, id: StreamId) -> io::Result<Stream> {
        Ok(self.hold(Kernel::Tcp(socket), id))
    }

    fn dial(&mut self, id: StreamId, target: Target) -> Begun<Stream, Task> {
        let patience = self.dial_timeout;
        let task = match target {
            Target::Host { host, port } => {
                let names = self.names.clone();
                self.tasks.spawn(async move {
                    let result = dial::dial_host(names, host, port, patience).await;
                    Report::Dialed { stream: id, result }
                })
            }
            Target::Unix(path) => self.tasks.spawn(async move {
                let result = dial::dial_unix(&path, patience).await;
                Report::Dialed { stream: id, result }
            }),
            Target::Handler(name) => {
                let result = self.handlers.dial(&name);
                return Begun::Ended(result.map(|socket| self.hold(socket, id)));
            }
            _ => return Begun::Ended(Err(DialError::Unsupported)),
        };
        Begun::Pending(Task(task))
    }

    fn dial_udp(&mut self, id: UdpId, host: String, port: u16) -> Begun<UdpSocket, Task> {
        // Without a look-up the socket is there at once.
        if let Some(addrs) = self.names.get(&host, port) {
            return Begun::Ended(dial::connect_udp(&addrs));
        }
        let (names, patience) = (self.names.clone(), self.dial_timeout);
        Begun::Pending(Task(self.tasks.spawn(async move {
            let result = dial::dial_udp(names, host, port, patience).await;
            Report::DialedUdp { socket: id, result }
        })))
    }

    fn resolve(&mut self, host: String, port: u16) {
        if !self.resolving.insert((host.clone(), port)) {
            return;
        }
        let patience = self.resolve_timeout;
        self.tasks.spawn(async move {
            let addrs = dial::look_up(&host, port, patience).await;
            Report::Resolved { host, port, addrs }
        });
    }

    fn tell(&mut self, event: E) -> bool {
        // An application that has dropped its end does not want them.
        !matches!(self.events.try_send(event), Err(TrySendError::Full(_)))
    }
}

impl Queued for Listener {
    fn queue(&mut self, work: &mut std::collections::VecDeque<Token>) {
        self.source.queue(work);
    }

    fn visited(&mut self) {
        self.source.visited();
    }
}

impl Accept for Listener {
    type Accepted = TcpStream;

    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.socket.poll_accept(&mut self.source.context()) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
