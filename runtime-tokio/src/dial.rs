//! Name resolution and connecting: the work that waits, done in tasks of its own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use portal_adapter::names::{
    MAX_NAMES, NAME_TTL, NEXT_ADDRESS, UNIX_RETRY, UNIX_RETRY_MAX, dial_error, tells_more, well_known, with_port,
};
use portal_adapter::udp;
use portal_core::{DialError, StreamId, UdpId};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::socket::Kernel;

type Handler = Arc<dyn Fn(UnixStream) -> Result<(), DialError> + Send + Sync>;

/// Targets inside the program, dialled by [`Target::Handler`](portal_core::Target::Handler): no port is opened for them.
///
/// Clones share one set, so a clone that is kept changes what a running driver can dial.
#[derive(Clone, Default)]
pub struct Handlers {
    by_name: Arc<RwLock<HashMap<String, Handler>>>,
}

impl Handlers {
    /// No handlers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler: see [`Handlers::set`].
    #[must_use]
    pub fn with(self, name: impl Into<String>, handler: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        self.set(name, handler);
        self
    }

    /// Adds a handler, in place of the one that has this name. It is given the other end of each connection dialled under
    /// the name from now on, on the driver's task, so it must not wait: it spawns a task and returns. When the driver
    /// ends, these connections end.
    pub fn set(&self, name: impl Into<String>, handler: impl Fn(UnixStream) + Send + Sync + 'static) {
        self.set_refusing(name, move |stream| {
            handler(stream);
            Ok(())
        });
    }

    /// Adds a handler that may refuse a connection, by saying why.
    pub(crate) fn set_refusing(
        &self,
        name: impl Into<String>,
        handler: impl Fn(UnixStream) -> Result<(), DialError> + Send + Sync + 'static,
    ) {
        self.write().insert(name.into(), Arc::new(handler));
    }

    /// Takes away the handlers whose names do not pass. Connections that they were given go on.
    pub fn retain(&self, mut keep: impl FnMut(&str) -> bool) {
        self.write().retain(|name, _| keep(name));
    }

    /// Connects to a handler. Never waits.
    pub(crate) fn dial(&self, name: &str) -> Result<Kernel, DialError> {
        let handler = self.read().get(name).cloned().ok_or(DialError::Unsupported)?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| dial_error(&error))?;
        // Not under the lock: a handler may change the set.
        handler(theirs)?;
        Ok(Kernel::Unix(ours))
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Handler>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Handler>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.read().keys()).finish()
    }
}

/// How a task of the driver ended.
#[derive(Debug)]
pub(crate) enum Report {
    Dialed {
        stream: StreamId,
        result: Result<Kernel, DialError>,
    },
    DialedUdp {
        socket: UdpId,
        result: Result<std::net::UdpSocket, DialError>,
    },
    Resolved {
        host: String,
        port: u16,
        addrs: Vec<SocketAddr>,
    },
    /// It was not wanted any more.
    CalledOff,
}

/// Connects to a host.
pub(crate) async fn dial_host(names: Names, host: String, port: u16, patience: Duration) -> Result<Kernel, DialError> {
    let dial = async {
        let addrs = names.resolve(&host, port).await;
        connect(&addrs).await
    };
    let stream = timeout(patience, dial).await.map_err(|_| DialError::TimedOut)??;
    Ok(Kernel::Tcp(stream))
}

/// Connects to a Unix socket.
pub(crate) async fn dial_unix(path: &Path, patience: Duration) -> Result<Kernel, DialError> {
    let dial = async {
        let mut pause = UNIX_RETRY;
        loop {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sleep(pause).await;
                    pause = (pause * 2).min(UNIX_RETRY_MAX);
                }
                result => return result,
            }
        }
    };
    match timeout(patience, dial).await {
        Ok(Ok(stream)) => Ok(Kernel::Unix(stream)),
        Ok(Err(error)) => Err(dial_error(&error)),
        Err(_) => Err(DialError::TimedOut),
    }
}

/// Opens a UDP socket connected to a host whose name has to be looked up.
pub(crate) async fn dial_udp(
    names: Names,
    host: String,
    port: u16,
    patience: Duration,
) -> Result<std::net::UdpSocket, DialError> {
    let addrs = timeout(patience, names.resolve(&host, port))
        .await
        .map_err(|_| DialError::TimedOut)?;
    connect_udp(&addrs)
}

/// Opens a UDP socket connected to one of `addrs`. Never waits.
pub(crate) fn connect_udp(addrs: &[SocketAddr]) -> Result<std::net::UdpSocket, DialError> {
    if addrs.is_empty() {
        return Err(DialError::Unresolved);
    }
    udp::connect(addrs).map_err(|error| dial_error(&error))
}

/// Asks the system for a name's addresses. Empty if there are none or none came in time.
pub(crate) async fn look_up(host: &str, port: u16, patience: Duration) -> Vec<SocketAddr> {
    match timeout(patience, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addrs)) => addrs.collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, host, "looking a name up failed");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(host, "looking a name up took too long");
            Vec::new()
        }
    }
}

/// Races the addresses: each gets a head start over the next, the first connection wins, the others are dropped.
async fn connect(addrs: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let connect = |addr: SocketAddr| async move {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    // The usual case needs no task of its own.
    if let [addr] = addrs {
        return connect(*addr).await.map_err(|error| dial_error(&error));
    }
    let mut addrs = addrs.iter();
    let mut attempts = JoinSet::new();
    let mut failure = DialError::Unresolved;
    loop {
        if let Some(addr) = addrs.next() {
            attempts.spawn(connect(*addr));
        }
        let ended = if addrs.len() == 0 {
            attempts.join_next().await
        } else {
            match timeout(NEXT_ADDRESS, attempts.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => {
                failure = tells_more(failure, dial_error(&error));
            }
            Some(Err(_)) => {}
            None if addrs.len() == 0 => return Err(failure),
            None => {}
        }
    }
}

/// What is known about the names of targets, for a few seconds. Dials of one name share one look-up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    known: Arc<Mutex<HashMap<String, Name>>>,
}

#[derive(Clone, Debug)]
struct Name {
    asked: Instant,
    addrs: Arc<OnceCell<Vec<SocketAddr>>>,
}

impl Names {
    /// The addresses if no look-up is needed.
    pub(crate) fn get(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        if let Some(addrs) = well_known(host, port) {
            return Some(addrs);
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let name = known.get(host).filter(|name| name.is_fresh())?;
        name.addrs.get().map(|addrs| with_port(addrs, port))
    }

    async fn resolve(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        if let Some(addrs) = self.get(host, port) {
            return addrs;
        }
        let cell = self.cell(host);
        // The caller's patience ends the wait; if that caller was the one who asks, the next one asks again.
        let addrs = cell.get_or_init(|| look_up(host, 0, Duration::MAX)).await;
        with_port(addrs, port)
    }

    fn cell(&self, host: &str) -> Arc<OnceCell<Vec<SocketAddr>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known.get(host).filter(|name| name.is_fresh()) {
            return Arc::clone(&name.addrs);
        }
        if known.len() >= MAX_NAMES {
            known.retain(|_, name| name.is_fresh());
            if known.len() >= MAX_NAMES {
                known.clear();
            }
        }
        let name = Name {
            asked: Instant::now(),
            addrs: Arc::default(),
        };
        known.insert(host.to_owned(), name.clone());
        name.addrs
    }
}

impl Name {
    fn is_fresh(&self) -> bool {
        !self.addrs.initialized() || self.asked.elapsed() < NAME_TTL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_fails() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // Bound and not listening: refuses, and nobody else gets the port.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = silent.local_addr().unwrap();
        let stream = connect(&[closed, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert!(stream.nodelay().unwrap());
        assert_eq!(connect(&[closed, closed]).await.unwrap_err(), DialError::Refused);
        assert_eq!(connect(&[closed]).await.unwrap_err(), DialError::Refused);
        assert_eq!(connect(&[]).await.unwrap_err(), DialError::Unresolved);
    }

    #[tokio::test]
    async fn handlers_change_for_those_who_hold_a_clone() {
        let handlers = Handlers::new().with("old", drop);
        let driver = handlers.clone();
        assert!(driver.dial("old").is_ok());
        assert_eq!(driver.dial("new").unwrap_err(), DialError::Unsupported);
        let again = handlers.clone();
        handlers.set("new", move |_| again.set("newer", drop));
        handlers.retain(|name| name != "old");
        assert!(driver.dial("new").is_ok() && driver.dial("newer").is_ok());
        assert_eq!(driver.dial("old").unwrap_err(), DialError::Unsupported);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_remembered_for_a_while() {
        let names = Names::default();
        let cell = names.cell("portal.test");
        assert!(Arc::ptr_eq(&cell, &names.cell("portal.test")), "shared");
        cell.set(vec!["192.0.2.1:0".parse().unwrap()]).unwrap();
        assert_eq!(names.get("portal.test", 9), Some(vec!["192.0.2.1:9".parse().unwrap()]));
        tokio::time::advance(NAME_TTL).await;
        assert_eq!(names.get("portal.test", 9), None);
        for n in 0..2 * MAX_NAMES {
            names.cell(&format!("{n}.test"));
        }
        assert!(names.known.lock().unwrap().len() <= MAX_NAMES);
    }
}
