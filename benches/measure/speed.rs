//! Tunnels side by side: bulk, new connections, small requests, processor time, memory, and the death of a relay. One after
//! the other, several times over, so that a busy moment of the machine does not fall on one alone.

use std::io;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::figures::{Kind, Run, Subject, table, there_and_back};
use crate::load::{Direction, bulk, kept_alive, new_connections};
use crate::process::{busy, settle};
use crate::target::{request, visit};
use crate::tunnel::{Peer, Tunnel};
use crate::worker::{Crowd, Service};

/// The least of bytes that a transfer moves, and about how long it is to take.
const BULK: usize = 16 << 20;
const BULK_SECONDS: f64 = 1.0;
const MOST_BULK: usize = 1 << 30;
/// Connections and requests of one run.
const CONNECTIONS: usize = 4_000;
const ONE_BY_ONE: usize = 400;
const AT_ONCE: usize = 32;
const REQUESTS: usize = 40_000;
/// Idle connections that a relay's memory is looked at with.
const IDLE: [usize; 2] = [1_000, 5_000];
/// Who takes longer for one connection is spared thousands of them, in microseconds.
const SLOW: f64 = 20_000.0;
/// What moves less, in Mbit/s, moves little in all.
const SLUGGISH: f64 = 100.0;
/// How long a tunnel may take to serve again once its relay has been killed and started again.
const COMES_BACK: Duration = Duration::from_secs(30);

/// Places in a run, and in [`KINDS`].
pub(crate) const DOWN: usize = 0;
pub(crate) const UP: usize = 1;
const MANY_DOWN: usize = 2;
const MANY_UP: usize = 3;
pub(crate) const CPU: usize = 4;
pub(crate) const NEW: usize = 5;
const NEW_P50: usize = 6;
pub(crate) const NEW_P99: usize = 7;
pub(crate) const FIRST_BYTE: usize = 8;
pub(crate) const KEPT_ALIVE: usize = 9;
const KEPT_ALIVE_P50: usize = 10;
const KEPT_ALIVE_P99: usize = 11;
const RESIDENT: usize = 12;
const SERVES_AGAIN: usize = 15;

pub(crate) const KINDS: [Kind; 16] = [
    Kind::new("1 stream down, Mbit/s", 0),
    Kind::new("1 stream up", 0),
    Kind::new("8 streams down", 0),
    Kind::new("8 streams up", 0),
    Kind::new("CPU s a GB, both ends, 1 stream", 2),
    Kind::new("new connections a second, 32 at once", 0),
    Kind::new("their p50, µs", 0),
    Kind::new("p99, µs", 0),
    Kind::new("connect to first byte, one at a time, p50, µs", 0),
    Kind::new("kept-alive requests a second, 32 connections", 0),
    Kind::new("their p50, µs", 0),
    Kind::new("p99, µs", 0),
    Kind::new("relay RSS idle, MiB", 1),
    Kind::new("with 1,000 idle connections", 1),
    Kind::new("with 5,000", 1),
    Kind::new("serves again after its relay was killed, s", 2),
];

/// Runs all peers so often, one after the other; the table.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> io::Result<String> {
    let mut subjects = Subject::all(peers);
    let before = busy();
    for run in 0..runs {
        for index in there_and_back(run, peers.len()) {
            let (peer, subject) = (peers[index], &mut subjects[index]);
            let mut cells = once(peer).await;
            // It hardly differs from run to run.
            if subject.runs.is_empty()
                && let Err(error) = at_rest(peer, &mut cells).await
            {
                eprintln!("{}, at rest: {error}", peer.name());
            }
            subject.runs.push(cells);
            eprintln!("run {} of {runs}: {} done, load {}", run + 1, subject.name, busy());
        }
    }
    Ok(format!(
        "{}\nMedians of {runs} runs and their spread; load before {before}, at the end {}.\n",
        table(&KINDS, &subjects),
        busy()
    ))
}

async fn once(peer: &dyn Peer) -> Run {
    let mut run = vec![None; KINDS.len()];
    if let Err(error) = in_bulk(peer, &mut run).await {
        eprintln!("{}, bulk: {error}", peer.name());
    }
    if let Err(error) = in_small(peer, &mut run).await {
        eprintln!("{}, small requests: {error}", peer.name());
    }
    run
}

async fn in_bulk(peer: &dyn Peer, run: &mut Run) -> io::Result<()> {
    let tunnel = Tunnel::start(peer, Service::Bulk)?;
    // The first ones open buffers and windows, and tell how much can be asked.
    let mut rate = bulk(tunnel.addr, BULK / 16, 1, Direction::Down).await?;
    if rate > SLUGGISH {
        rate = bulk(tunnel.addr, BULK, 1, Direction::Down).await?;
    }
    let bytes = ((rate * 1e6 / 8.0 * BULK_SECONDS) as usize).clamp(BULK / 16, MOST_BULK);
    let before = tunnel.cpu()?;
    run[DOWN] = Some(bulk(tunnel.addr, bytes, 1, Direction::Down).await?);
    run[UP] = Some(bulk(tunnel.addr, bytes, 1, Direction::Up).await?);
    run[CPU] = Some((tunnel.cpu()? - before) / (2 * bytes) as f64 * 1e9);
    run[MANY_DOWN] = Some(bulk(tunnel.addr, bytes / 8, 8, Direction::Down).await?);
    run[MANY_UP] = Some(bulk(tunnel.addr, bytes / 8, 8, Direction::Up).await?);
    Ok(())
}

async fn in_small(peer: &dyn Peer, run: &mut Run) -> io::Result<()> {
    let tunnel = Tunnel::start(peer, Service::Echo)?;
    new_connections(tunnel.addr, AT_ONCE, 1).await?;
    let rate = new_connections(tunnel.addr, CONNECTIONS, AT_ONCE).await?;
    [run[NEW], run[NEW_P50], run[NEW_P99]] = [rate.per_second, rate.p50, rate.p99].map(Some);
    run[FIRST_BYTE] = Some(new_connections(tunnel.addr, ONE_BY_ONE, 1).await?.p50);
    let rate = kept_alive(tunnel.addr, AT_ONCE, REQUESTS).await?;
    [run[KEPT_ALIVE], run[KEPT_ALIVE_P50], run[KEPT_ALIVE_P99]] = [rate.per_second, rate.p50, rate.p99].map(Some);
    Ok(())
}

/// Memory, and what a killed relay costs.
async fn at_rest(peer: &dyn Peer, run: &mut Run) -> io::Result<()> {
    let mut tunnel = Tunnel::start(peer, Service::Echo)?;
    let resident = |tunnel: &Tunnel| -> io::Result<Option<f64>> {
        let usage = settle(&tunnel.ends.relay, Duration::from_secs(10))?;
        Ok(Some(usage.resident as f64 / (1 << 20) as f64))
    };
    run[RESIDENT] = resident(&tunnel)?;
    if run[FIRST_BYTE].is_some_and(|micros| micros < SLOW) {
        let mut crowd = Crowd::new(tunnel.addr);
        for (cell, count) in (RESIDENT + 1..).zip(IDLE) {
            crowd.grow_to(count)?;
            run[cell] = resident(&tunnel)?;
        }
    }
    if peer.restarts() {
        let start = Instant::now();
        tunnel.ends.relay.restart()?;
        while start.elapsed() < COMES_BACK {
            let asked = async { request(&mut visit(tunnel.addr, 0).await?).await };
            if let Ok(Ok(())) = timeout(Duration::from_secs(2), asked).await {
                run[SERVES_AGAIN] = Some(start.elapsed().as_secs_f64());
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}
