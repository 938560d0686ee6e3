//! Public TCP listeners: how they are bound, and what to do when nothing can be accepted.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

use crate::addr::canonical;
use crate::settings::Settings;
use crate::stats::Stats;

/// How many connections one listener may hand over in a visit.
pub(crate) const VISIT_ACCEPTS: usize = 64;

/// Connections the kernel keeps for us until they are accepted; it takes the smaller of this and its own limit.
const BACKLOG: i32 = 4096;

/// How long to wait when descriptors or memory have run out, unless a descriptor is closed before.
const PAUSE: Duration = Duration::from_millis(100);

/// How often to speak of it.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Between two probes of a visitor that does not answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Binds a non-blocking TCP listener; `[::]` takes IPv4 too.
///
/// # Errors
/// If the system refuses.
pub(crate) fn bind(addr: SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Otherwise a restart has to wait for the old connections' TIME-WAIT to pass.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // Accepted sockets inherit both options, on Linux at least, which spares two calls for each.
    socket.set_tcp_nodelay(true)?;
    if let Some(idle) = settings.tcp_keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(KEEPALIVE_INTERVAL.min(idle));
        socket.set_tcp_keepalive(&keepalive)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Why a visit of a listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepting {
    /// Nobody is waiting.
    Done,
    /// The bound was reached.
    Again,
    /// No descriptor or memory is left. The kernel does not report those that wait a second time, so somebody has to
    /// come back.
    Exhausted,
}

/// The address that a visitor connected to.
///
/// # Errors
/// If the connection is gone already.
pub(crate) fn local_addr(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        socket.set_tcp_nodelay(true)?;
    }
    let addr = socket.local_addr()?.as_socket();
    addr.map(canonical).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Whether the system has run out of something that will come back.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Accepting rests because the system has run out of descriptors or memory.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    until: Option<Instant>,
    logged: Option<Instant>,
}

impl Pause {
    /// Begins one, or prolongs it.
    pub(crate) fn begin(&mut self, now: Instant, stats: &mut Stats) {
        if self.until.is_none() {
            stats.emfile_pauses += 1;
        }
        self.until = Some(now + PAUSE);
        if self.logged.is_none_or(|at| now >= at + LOG_INTERVAL) {
            self.logged = Some(now);
            tracing::warn!(
                pauses = stats.emfile_pauses,
                "no descriptors or memory left to accept connections: visitors wait; raise the limit of open files"
            );
        }
    }

    /// When it is over; `None` if there is none.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause if it is time, or if `freed` says that a descriptor was closed. True once.
    pub(crate) fn end(&mut self, now: Instant, freed: bool) -> bool {
        self.until.take_if(|until| freed || now >= *until).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn accepted_sockets_inherit_their_options() {
        let listener = bind("[::]:0".parse().unwrap(), &Settings::default())
            .or_else(|_| bind("0.0.0.0:0".parse().unwrap(), &Settings::default()))
            .unwrap();
        listener.set_nonblocking(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, remote) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        assert!(socket2::SockRef::from(&accepted).keepalive().unwrap());
        assert_eq!(canonical(accepted.local_addr().unwrap()), client.peer_addr().unwrap());
        assert_eq!(canonical(remote), client.local_addr().unwrap());
    }

    #[test]
    fn a_pause_ends_in_time_or_with_a_closed_descriptor() {
        let (now, mut stats, mut pause) = (Instant::now(), Stats::default(), Pause::default());
        assert!(!pause.end(now, true), "there is none");
        pause.begin(now, &mut stats);
        assert!(!pause.end(now, false));
        assert!(pause.end(now + PAUSE, false));
        assert!(!pause.end(now + PAUSE, false));
        pause.begin(now, &mut stats);
        assert!(pause.end(now, true));
        assert_eq!(stats.emfile_pauses, 2);
    }
}
