//! The tunnel's UDP socket: trains of datagrams in and out (GRO, `recvmmsg`, GSO).

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::task::Poll;

use portal_core::{Path, TransmitBatch};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::SockRef;

use crate::addr;
use crate::settings::Settings;
use crate::stats::Stats;
use crate::udp::Datagrams;

/// The longest train the kernel joins; a buffer must hold it, for what is cut off is lost unseen.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The most a train may hold over IPv6; over IPv4 it is 20 bytes more.
const TRAIN_BYTES: usize = 65_487;

/// After so many errors in a row, receiving gives other sockets their turn.
const MAX_ERRORS: usize = 8;

/// The socket and its offloads.
#[derive(Debug)]
pub(crate) struct Tunnel<S> {
    /// The socket as the runtime holds it.
    pub(crate) socket: S,
    state: UdpSocketState,
    is_v6: bool,
    max_segments: usize,
    buffers: Box<[u8]>,
    local: SocketAddr,
}

/// A train on its way out, and how far it has come.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// The train.
    pub(crate) batch: TransmitBatch,
    /// The first segment that was not sent yet.
    next: usize,
    /// There is a train to be sent.
    pub(crate) full: bool,
    /// The socket was full; counted once for each train.
    blocked: bool,
}

impl Outbox {
    /// With room for the longest train, of at most so many datagrams.
    pub(crate) fn new(max_segments: usize) -> Self {
        Self {
            batch: TransmitBatch::new(max_segments, TRAIN_BYTES),
            next: 0,
            full: false,
            blocked: false,
        }
    }

    /// Marks the train as filled by the machine and not sent.
    pub(crate) fn filled(&mut self) {
        self.next = 0;
        self.full = true;
        self.blocked = false;
    }

    /// The part of the train that starts at segment `from` and holds at most `max` segments, and how many it holds.
    ///
    /// Empty datagrams go one by one: to the kernel they do not exist in a train.
    fn part(&self, from: usize, max: usize) -> (&[u8], usize) {
        let contents = self.batch.contents();
        let size = self.batch.segment_size().unwrap_or(contents.len());
        let start = (from * size).min(contents.len());
        let filled = if size == 0 { 0 } else { contents.len().div_ceil(size) };
        let count = if from < filled { max.clamp(1, filled - from) } else { 1 };
        let end = ((from + count) * size).min(contents.len());
        (&contents[start..end], count)
    }

    /// The datagrams one by one, for sockets without GSO.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.batch.segments()).map(|segment| self.part(segment, 1).0)
    }
}

/// Why a visit of the tunnel's socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing is waiting.
    Done,
    /// There may be more.
    Again,
}

impl<S: Datagrams> Tunnel<S> {
    /// Prepares a bound socket, which `hold` then registers with the runtime.
    ///
    /// # Errors
    /// If the socket's options or its registration are refused.
    pub(crate) fn new(
        socket: std::net::UdpSocket,
        settings: &Settings,
        hold: impl FnOnce(std::net::UdpSocket) -> io::Result<S>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        if let Some(bytes) = settings.tunnel_socket_buffer {
            request_buffers(&socket, bytes);
        }
        let buffers = settings.receive_buffers.clamp(1, BATCH_SIZE);
        Ok(Self {
            socket: hold(socket)?,
            state,
            is_v6: local.is_ipv6(),
            max_segments: settings.gso_segments.clamp(1, 64),
            buffers: vec![0; buffers * RECEIVE_BUFFER].into_boxed_slice(),
            local: addr::canonical(local),
        })
    }

    /// Where the socket is bound.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many datagrams a train may have now.
    pub(crate) fn max_segments(&self) -> usize {
        self.max_segments.min(self.state.max_gso_segments())
    }

    /// Receives once and hands each train to `take`.
    ///
    /// A call that fills fewer buffers than it was given has emptied the socket (Linux), and the next arrival is
    /// reported: the readiness is cleared without a call that would say "would block".
    pub(crate) fn visit(&mut self, stats: &mut Stats, mut take: impl FnMut(Path, &mut [u8], usize)) -> Received {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        for _ in 0..MAX_ERRORS {
            let mut chunks = self.buffers.chunks_exact_mut(RECEIVE_BUFFER);
            let room = chunks.len();
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let state = &self.state;
            let mut short = None;
            let result = self.socket.try_read(|socket| {
                let n = state.recv(UdpSockRef::from(socket), &mut slices[..room], &mut metas)?;
                if n < room && cfg!(any(target_os = "linux", target_os = "android")) {
                    short = Some(n);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(n)
            });
            let (n, drained) = match (result, short) {
                (Ok(n), _) => (n, false),
                (Err(_), Some(n)) => (n, true),
                (Err(error), None) if error.kind() == io::ErrorKind::WouldBlock => (0, true),
                (Err(error), None) => {
                    // What an earlier datagram drew (ICMP) or a passing want of memory: the socket goes on.
                    tracing::debug!(%error, "receiving on the tunnel's socket failed");
                    stats.tunnel_rx_errors += 1;
                    continue;
                }
            };
            if n > 0 {
                stats.tunnel_rx_calls += 1;
            }
            let chunks = self.buffers.chunks_exact_mut(RECEIVE_BUFFER);
            for (meta, buffer) in metas[..n].iter().zip(chunks) {
                let len = meta.len.min(buffer.len());
                stats.tunnel_rx_datagrams += segments(len, meta.stride);
                let path = Path {
                    remote: addr::canonical(meta.addr),
                    local_ip: meta.dst_ip.map(|ip| ip.to_canonical()),
                };
                take(path, &mut buffer[..len], meta.stride.min(len));
            }
            if !drained {
                return Received::Again;
            }
            return match self.socket.is_readable() {
                false => Received::Done,
                true => Received::Again,
            };
        }
        Received::Again
    }

    /// Sends what is left of a train. Pending if the socket is full: what is left stays and goes first later.
    ///
    /// Whatever else fails loses datagrams, as networks do; it is counted and never fatal.
    pub(crate) fn send(&mut self, outbox: &mut Outbox, stats: &mut Stats) -> Poll<()> {
        let segments = outbox.batch.segments();
        let Some(path) = outbox.batch.destination().and_then(|to| to.path) else {
            outbox.full = false;
            return Poll::Ready(());
        };
        let Some(remote) = addr::for_socket(path.remote, self.is_v6) else {
            tracing::debug!(remote = %path.remote, "the tunnel's socket has no IPv6");
            stats.tunnel_tx_errors += (segments - outbox.next) as u64;
            outbox.full = false;
            return Poll::Ready(());
        };
        let source = addr::source(path.local_ip, path.remote, self.is_v6);

        while outbox.next < segments {
            let max = self.max_segments();
            let (contents, count) = outbox.part(outbox.next, max);
            let mut transmit = Transmit {
                destination: remote,
                ecn: None,
                contents,
                segment_size: outbox.batch.segment_size().filter(|_| count > 1),
                src_ip: source,
            };
            let mut result = self.try_send(&transmit);
            if source.is_some() && result.as_ref().is_err_and(may_be_source) {
                // Perhaps our own address is not ours any more (a roaming host): let the kernel choose.
                let refused = result.as_ref().is_err_and(is_refused_argument);
                transmit.src_ip = None;
                result = self.try_send(&transmit);
                if result.is_ok() {
                    stats.source_fallbacks += 1;
                    if refused {
                        self.restore_offloads();
                    }
                }
            }
            match result {
                Ok(()) => {
                    stats.tunnel_tx_calls += 1;
                    stats.tunnel_tx_datagrams += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.is_writable() {
                        continue;
                    }
                    let first = !std::mem::replace(&mut outbox.blocked, true);
                    stats.tunnel_tx_blocked += u64::from(first);
                    return Poll::Pending;
                }
                Err(error) if is_refused_argument(&error) && count > 1 && self.max_segments() < count => {
                    // No GSO on the way out; quinn-udp has noticed and lowered its limit. Once more in smaller parts.
                    tracing::debug!(%error, remote = %path.remote, count, "a train was refused");
                    stats.gso_fallbacks += 1;
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, remote = %path.remote, count, len = contents.len(), "sending failed");
                    stats.tunnel_tx_errors += count as u64;
                }
            }
            outbox.next += count;
        }
        outbox.full = false;
        Poll::Ready(())
    }

    fn try_send(&mut self, transmit: &Transmit<'_>) -> io::Result<()> {
        let state = &self.state;
        self.socket
            .try_write(|socket| state.try_send(UdpSockRef::from(socket), transmit))
    }

    /// quinn-udp takes "invalid argument" as the end of GSO; if something else was invalid, it starts anew.
    fn restore_offloads(&mut self) {
        if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket)) {
            self.state = state;
        }
    }
}

fn segments(len: usize, stride: usize) -> u64 {
    if stride == 0 { 1 } else { len.div_ceil(stride) as u64 }
}

/// The answers of kernels and drivers that do not take a train.
fn is_refused_argument(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// The answers of kernels to a source address that is not the host's. They have other causes too.
fn may_be_source(error: &io::Error) -> bool {
    is_refused_argument(error)
        || matches!(
            error.raw_os_error(),
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL)
        )
}

/// Asks for larger socket buffers and says what was granted; the system may cap them silently.
fn request_buffers(socket: &std::net::UdpSocket, bytes: usize) {
    let socket = SockRef::from(socket);
    for (name, result) in [
        ("send", socket.set_send_buffer_size(bytes)),
        ("receive", socket.set_recv_buffer_size(bytes)),
    ] {
        if let Err(error) = result {
            tracing::warn!(%error, bytes, "setting the tunnel socket's {name} buffer failed");
        }
    }
    // Linux reports twice what it grants, its own bookkeeping included.
    tracing::info!(
        asked = bytes,
        send = socket.send_buffer_size().ok(),
        receive = socket.recv_buffer_size().ok(),
        "buffers of the tunnel's socket"
    );
}

#[cfg(test)]
mod tests {
    use portal_core::{Destination, UdpSocketRef};

    use super::*;

    /// A train of datagrams of these sizes, which has to be cut into parts of at most `max`; answers the parts' bytes and
    /// datagrams.
    fn parts(sizes: &[usize], max: usize) -> Vec<(usize, usize)> {
        let mut outbox = Outbox::new(64);
        let destination = Destination {
            socket: UdpSocketRef::Tunnel,
            path: None,
        };
        for (n, size) in sizes.iter().enumerate() {
            assert!(outbox.batch.fits(destination, *size));
            outbox.batch.reserve()[..*size].fill(n as u8);
            outbox.batch.commit(destination, *size);
        }
        let (mut next, mut parts) = (0, Vec::new());
        while next < outbox.batch.segments() {
            let (contents, count) = outbox.part(next, max);
            assert!(contents.first().is_none_or(|byte| *byte == next as u8));
            parts.push((contents.len(), count));
            next += count;
        }
        let singly: Vec<_> = outbox.datagrams().map(<[u8]>::len).collect();
        assert_eq!(singly, sizes);
        parts
    }

    #[test]
    fn a_train_is_cut_at_its_datagrams() {
        assert_eq!(parts(&[10, 10, 10, 10, 4], 64), [(44, 5)]);
        assert_eq!(parts(&[10, 10, 10, 10, 4], 2), [(20, 2), (20, 2), (4, 1)]);
        assert_eq!(parts(&[10, 10, 4], 1), [(10, 1), (10, 1), (4, 1)]);
        assert_eq!(parts(&[10], 64), [(10, 1)]);
    }

    #[test]
    fn empty_datagrams_go_alone() {
        assert_eq!(parts(&[0], 64), [(0, 1)]);
        assert_eq!(parts(&[0, 0, 0], 64), [(0, 1); 3]);
        assert_eq!(parts(&[10, 10, 0], 64), [(20, 2), (0, 1)]);
    }
}
