//! What is asked of a tunnel, whoever made it: bytes in bulk, new connections, small requests.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::target::{request, visit};

/// Longer than anything here takes where it works at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the visitors.
    Down,
    Up,
}

/// How often something could be done, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Rate {
    /// Of what took these times in so many seconds.
    pub(crate) fn of(mut times: Vec<Duration>, seconds: f64) -> Self {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        Self {
            per_second: times.len() as f64 / seconds,
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// Moves so many bytes over each of so many connections at once; Mbit/s in all.
pub(crate) async fn bulk(addr: SocketAddr, bytes: usize, connections: usize, direction: Direction) -> io::Result<f64> {
    let mut transfers = JoinSet::new();
    let start = Instant::now();
    for number in 0..connections {
        transfers.spawn(within(transfer(addr, number, bytes, direction)));
    }
    while let Some(transfer) = transfers.join_next().await {
        transfer??;
    }
    Ok((bytes * connections) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6)
}

/// Moves so many bytes over one connection.
pub(crate) async fn transfer(addr: SocketAddr, number: usize, bytes: usize, direction: Direction) -> io::Result<()> {
    let mut stream = visit(addr, number).await?;
    let mut buffer = vec![0x5a; 256 * 1024];
    let wish = i64::try_from(bytes).map_err(io::Error::other)?;
    let mut left = bytes;
    match direction {
        Direction::Down => {
            stream.write_i64(wish).await?;
            while left > 0 {
                let piece = left.min(buffer.len());
                match stream.read(&mut buffer[..piece]).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => left -= count,
                }
            }
        }
        Direction::Up => {
            stream.write_i64(-wish).await?;
            while left > 0 {
                let piece = left.min(buffer.len());
                stream.write_all(&buffer[..piece]).await?;
                left -= piece;
            }
        }
    }
    stream.read_u8().await.map(drop)
}

/// New connections, each with one small request, so many of them at once.
pub(crate) async fn new_connections(addr: SocketAddr, count: usize, at_once: usize) -> io::Result<Rate> {
    let next = Arc::new(AtomicUsize::new(0));
    crowd(at_once, move |_| {
        let next = Arc::clone(&next);
        async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(times);
                }
                let start = Instant::now();
                request(&mut visit(addr, number).await?).await?;
                times.push(start.elapsed());
            }
        }
    })
    .await
}

/// Small requests over so many connections that are kept, one at a time on each.
pub(crate) async fn kept_alive(addr: SocketAddr, connections: usize, requests: usize) -> io::Result<Rate> {
    let mut visitors = Vec::new();
    for number in 0..connections {
        let mut visitor = visit(addr, number).await?;
        within(request(&mut visitor)).await?;
        visitors.push(Some(visitor));
    }
    crowd(connections, move |number| {
        let visitor = visitors[number].take();
        async move {
            let mut visitor = visitor.ok_or(io::ErrorKind::NotConnected)?;
            let mut times = Vec::new();
            for _ in 0..requests / connections {
                let start = Instant::now();
                request(&mut visitor).await?;
                times.push(start.elapsed());
            }
            Ok(times)
        }
    })
    .await
}

/// Runs so many of these at once.
async fn crowd<F>(count: usize, mut work: impl FnMut(usize) -> F) -> io::Result<Rate>
where
    F: Future<Output = io::Result<Vec<Duration>>> + Send + 'static,
{
    let mut workers = JoinSet::new();
    let start = Instant::now();
    for number in 0..count {
        workers.spawn(within(work(number)));
    }
    let mut times = Vec::new();
    while let Some(worker) = workers.join_next().await {
        times.extend(worker??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    Ok(Rate::of(times, elapsed))
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
