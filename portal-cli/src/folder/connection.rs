//! One visitor's connection: HTTP/1.1 or HTTP/2, told apart by the first bytes, and the bounds of both.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io::{self, Cursor},
    pin::pin,
    task::Poll,
    time::Duration,
};

use hyper::{
    Request,
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Folder,
    stall::{Stalling, WRITE_STALL},
};

/// How long a visitor may take over a request's head, and how long a connection may idle between requests.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that one connection of HTTP/1.1 may buffer in each direction: the longest request head, and one piece of a file.
const BUFFER: usize = 64 * 1024;

/// Requests that one connection of HTTP/2 may have open at once. Browsers count on no fewer than a hundred at best, and
/// wait with those beyond what a server grants.
pub(super) const MAX_STREAMS: u32 = 64;

/// Bytes that one request of HTTP/2 may buffer, beside the piece of its file that was read last.
const STREAM_BUFFER: usize = 16 * 1024;

/// The longest head of one request of HTTP/2, counted as RFC 9113, section 6.5.2, does.
const MAX_HEADERS: u32 = 16 * 1024;

/// Requests that were reset before they were looked at, and resets that the visitor's faults make necessary: beyond
/// these the connection ends (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
const MAX_FAULTS: usize = 64;

/// What every connection of HTTP/2 begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Answers a connection's requests until it ends. How it ends is nobody's error but the visitor's: it is only logged.
pub(super) async fn serve<S>(folder: &Folder, connection: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = Stalling::new(connection);
    let seen = match timeout(HEAD_TIMEOUT, first_bytes(&mut connection)).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => return tracing::debug!(%error, "folder connection failed at its start"),
        Err(_) => return tracing::debug!("folder connection said nothing"),
    };
    let is_http2 = seen == PREFACE;
    let (read, write) = tokio::io::split(connection);
    let connection = tokio::io::join(Cursor::new(seen).chain(read), write);
    let served = if is_http2 {
        serve_http2(folder, connection).await
    } else {
        serve_http1(folder, connection).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "folder connection ended early");
    }
}

/// Reads on for as long as it may be the preface of HTTP/2.
async fn first_bytes(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut seen = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() && seen[..len] == PREFACE[..len] {
        match connection.read(&mut seen[len..]).await? {
            0 => break,
            count => len += count,
        }
    }
    Ok(seen[..len].to_vec())
}

async fn serve_http1<S>(folder: &Folder, connection: S) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, _) = request.into_parts();
        Ok::<_, Infallible>(folder.answer(&head).await)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        // Some clients close their side as soon as they have asked.
        .half_close(true)
        .serve_connection(TokioIo::new(connection), service)
        .await
}

async fn serve_http2<S>(folder: &Folder, connection: S) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let folder = folder.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let folder = folder.clone();
        async move {
            let (head, _) = request.into_parts();
            Ok::<_, Infallible>(folder.answer(&head).await)
        }
    });
    let (streams, open) = Streams::new();
    let serving = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_FAULTS)
        .max_send_buf_size(STREAM_BUFFER)
        // Nobody has anything to send but heads: the smallest windows there are by default.
        .initial_stream_window_size(SPEC_WINDOW)
        .initial_connection_window_size(SPEC_WINDOW)
        .keep_alive_interval(HEAD_TIMEOUT)
        .keep_alive_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(connection), service);
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = idle(open.clone(), HEAD_TIMEOUT) => {}
    }
    // Told first, as a request may be on its way; it is still answered.
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        ended = serving => ended,
        // Does not answer: what is left unread is given up.
        () = idle(open, WRITE_STALL) => Ok(()),
    }
}

/// RFC 9113, section 6.9.2.
const SPEC_WINDOW: u32 = 65_535;

/// Waits until no request has been open for a while.
async fn idle(mut open: watch::Receiver<usize>, patience: Duration) {
    // It fails once the connection has gone, which its own future says as well.
    while open.wait_for(|open| *open == 0).await.is_ok() {
        if timeout(patience, open.changed()).await.is_err() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Runs the requests of one connection, and counts them.
#[derive(Debug, Clone)]
struct Streams {
    open: watch::Sender<usize>,
}

impl Streams {
    fn new() -> (Self, watch::Receiver<usize>) {
        let (open, count) = watch::channel(0);
        (Self { open }, count)
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let open = Open::new(&self.open);
        tokio::spawn(async move {
            unless_stalled(stream).await;
            drop(open);
        });
    }
}

/// Stands for a request that is open.
#[derive(Debug)]
struct Open {
    count: watch::Sender<usize>,
}

impl Open {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|open| *open += 1);
        Self { count: count.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.send_modify(|open| *open -= 1);
    }
}

/// Runs a request until nothing has woken it for as long as a write may stall; then it is reset, by being dropped.
///
/// `Stalling` does not see this: a visitor may read the connection and yet grant one response no window. The others on
/// the connection go on.
async fn unless_stalled(stream: impl Future<Output = ()>) {
    let mut stream = pin!(stream);
    let mut deadline = pin!(sleep(WRITE_STALL));
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if deadline.is_elapsed() {
            tracing::debug!("folder response left unread");
            return Poll::Ready(());
        }
        deadline.as_mut().reset(Instant::now() + WRITE_STALL);
        deadline.as_mut().poll(cx)
    })
    .await;
}
