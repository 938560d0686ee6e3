//! Public TCP listeners.

use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Instant;

use portal_adapter::addr::canonical;
use portal_adapter::listener::{Accepting, VISIT_ACCEPTS, is_exhaustion};
use portal_adapter::{Stats, stream};
use portal_core::{ListenerId, Machine, StreamId};
use tokio::net::{TcpListener, TcpStream};

use crate::stream::Socket;
use crate::wake::Source;

/// A bound TCP listener.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) source: Source,
}

impl Listener {
    pub(crate) fn new(socket: std::net::TcpListener, source: Source) -> io::Result<Self> {
        let socket = TcpListener::from_std(socket)?;
        Ok(Self { socket, source })
    }

    /// Offers waiting connections to the machine; what it takes goes to `keep`.
    pub(crate) fn visit<M: Machine>(
        &mut self,
        machine: &mut M,
        now: Instant,
        id: ListenerId,
        stats: &mut Stats,
        mut keep: impl FnMut(StreamId, Socket),
    ) -> Accepting {
        self.source.visited();
        for _ in 0..VISIT_ACCEPTS {
            let (stream, remote) = match self.socket.poll_accept(&mut self.source.context()) {
                Poll::Pending => return Accepting::Done,
                Poll::Ready(Ok(accepted)) => accepted,
                Poll::Ready(Err(error)) if is_exhaustion(&error) => return Accepting::Exhausted,
                Poll::Ready(Err(error)) => {
                    // The visitor gave up before we came, or the network failed under it: the next one may be fine.
                    tracing::debug!(%error, "accepting a connection failed");
                    stats.accept_errors += 1;
                    continue;
                }
            };
            let Ok(local) = prepare(&stream) else {
                stats.accept_errors += 1;
                continue;
            };
            match machine.accept(now, id, canonical(remote), local) {
                Some(id) => {
                    stats.accepted += 1;
                    keep(id, Socket::Tcp(stream));
                }
                None => {
                    stats.refused += 1;
                    stream::reset_on_drop(&stream);
                }
            }
        }
        Accepting::Again
    }
}

/// The address that the visitor connected to.
fn prepare(stream: &TcpStream) -> io::Result<SocketAddr> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        stream.set_nodelay(true)?;
    }
    stream.local_addr().map(canonical)
}
