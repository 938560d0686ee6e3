//! What waits: names that are looked up and connections that are made, each in a task.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::{Context, Waker};
use std::time::Duration;

use async_io::Async;
use async_std::future::timeout;
use async_std::net::ToSocketAddrs;
use async_std::task::{JoinHandle, spawn};
use portal_adapter::names::{dial_error, tells_more, well_known};
use portal_adapter::udp;
use portal_adapter::wake::ReadyList;
use portal_core::{DialError, StreamId, Target, UdpId};

/// How a task ended.
pub(super) enum Report {
    Dialed {
        stream: StreamId,
        result: Result<OwnedFd, DialError>,
    },
    DialedUdp {
        socket: UdpId,
        result: Result<UdpSocket, DialError>,
    },
    Resolved {
        host: String,
        addrs: Vec<SocketAddr>,
    },
}

/// A task, called off when this is dropped.
pub(super) struct Task(Option<JoinHandle<()>>);

/// Starts tasks whose reports the driver hears of.
#[derive(Clone)]
pub(super) struct Tasks {
    pub(super) ready: Arc<ReadyList>,
    pub(super) reports: Sender<Report>,
}

impl Tasks {
    pub(super) fn start(&self, work: impl Future<Output = Report> + Send + 'static) -> Task {
        let tasks = self.clone();
        Task(Some(spawn(async move {
            // A driver that has ended wants no reports.
            let _ = tasks.reports.send(work.await);
            tasks.ready.wake();
        })))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            // Polled once, this calls the task off; nobody waits until it has ended.
            let _ = pin!(task.cancel()).poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Connects to a target.
pub(super) async fn dial(target: Target, patience: Duration) -> Result<OwnedFd, DialError> {
    let dial = async {
        match target {
            Target::Host { host, port } => connect(&look_up(&host, port).await).await,
            Target::Unix(path) => Async::<UnixStream>::connect(path)
                .await
                .and_then(Async::into_inner)
                .map(OwnedFd::from)
                .map_err(|error| dial_error(&error)),
            _ => Err(DialError::Unsupported),
        }
    };
    timeout(patience, dial).await.unwrap_or(Err(DialError::TimedOut))
}

/// Opens a UDP socket connected to a host.
pub(super) async fn dial_udp(host: String, port: u16, patience: Duration) -> Result<UdpSocket, DialError> {
    let addrs = look_up_within(&host, port, patience).await;
    if addrs.is_empty() {
        return Err(DialError::Unresolved);
    }
    udp::connect(&addrs).map_err(|error| dial_error(&error))
}

/// The addresses of a host; none if none came in time.
pub(super) async fn look_up_within(host: &str, port: u16, patience: Duration) -> Vec<SocketAddr> {
    timeout(patience, look_up(host, port)).await.unwrap_or_default()
}

async fn look_up(host: &str, port: u16) -> Vec<SocketAddr> {
    match well_known(host, port) {
        Some(addrs) => addrs,
        None => (host, port)
            .to_socket_addrs()
            .await
            .map_or_else(|_| Vec::new(), Iterator::collect),
    }
}

async fn connect(addrs: &[SocketAddr]) -> Result<OwnedFd, DialError> {
    let attempt = async |addr: SocketAddr| -> io::Result<OwnedFd> {
        let stream = Async::<TcpStream>::connect(addr).await?.into_inner()?;
        stream.set_nodelay(true)?;
        Ok(stream.into())
    };
    let mut failure = DialError::Unresolved;
    for addr in addrs {
        match attempt(*addr).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = tells_more(failure, dial_error(&error)),
        }
    }
    Err(failure)
}
