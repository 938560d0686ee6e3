//! Tunnels side by side: bulk, new connections, small requests, processor time. One after the other, several times over,
//! so that a busy moment of the machine does not fall on one alone.

use std::io;

use crate::figures::{Kind, Run, Subject, table};
use crate::load::{Direction, bulk, kept_alive, new_connections};
use crate::process::busy;
use crate::tunnel::{Peer, Tunnel};
use crate::worker::Service;

/// The least of bytes that a transfer moves, and about how long it is to take.
const BULK: usize = 16 << 20;
const BULK_SECONDS: f64 = 1.0;
const MOST_BULK: usize = 1 << 30;
/// Connections and requests of one run.
const CONNECTIONS: usize = 4_000;
const ONE_BY_ONE: usize = 400;
const AT_ONCE: usize = 32;
const REQUESTS: usize = 40_000;

const KINDS: [Kind; 12] = [
    kind("1 stream down, Mbit/s", 0),
    kind("1 stream up", 0),
    kind("8 streams down", 0),
    kind("8 streams up", 0),
    kind("CPU s a GB, both ends, 1 stream", 2),
    kind("new connections a second, 32 at once", 0),
    kind("their p50, µs", 0),
    kind("p99, µs", 0),
    kind("connect to first byte, one at a time, p50, µs", 0),
    kind("kept-alive requests a second, 32 connections", 0),
    kind("their p50, µs", 0),
    kind("p99, µs", 0),
];

const fn kind(title: &'static str, digits: usize) -> Kind {
    Kind { title, digits }
}

/// Runs all peers so often, one after the other; the table.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> io::Result<String> {
    let mut subjects: Vec<Subject> = peers
        .iter()
        .map(|peer| Subject {
            name: peer.name(),
            runs: Vec::new(),
        })
        .collect();
    let before = busy();
    for run in 0..runs {
        for (peer, subject) in peers.iter().zip(&mut subjects) {
            subject.runs.push(once(*peer).await);
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
    bulk(tunnel.addr, BULK / 16, 1, Direction::Down).await?;
    let rate = bulk(tunnel.addr, BULK, 1, Direction::Down).await?;
    let bytes = ((rate * 1e6 / 8.0 * BULK_SECONDS) as usize).clamp(BULK / 4, MOST_BULK);
    let before = tunnel.cpu()?;
    run[0] = Some(bulk(tunnel.addr, bytes, 1, Direction::Down).await?);
    run[1] = Some(bulk(tunnel.addr, bytes, 1, Direction::Up).await?);
    run[4] = Some((tunnel.cpu()? - before) / (2 * bytes) as f64 * 1e9);
    run[2] = Some(bulk(tunnel.addr, bytes / 8, 8, Direction::Down).await?);
    run[3] = Some(bulk(tunnel.addr, bytes / 8, 8, Direction::Up).await?);
    Ok(())
}

async fn in_small(peer: &dyn Peer, run: &mut Run) -> io::Result<()> {
    let tunnel = Tunnel::start(peer, Service::Echo)?;
    new_connections(tunnel.addr, AT_ONCE, 1).await?;
    let rate = new_connections(tunnel.addr, CONNECTIONS, AT_ONCE).await?;
    run[5..8].copy_from_slice(&[Some(rate.per_second), Some(rate.p50), Some(rate.p99)]);
    run[8] = Some(new_connections(tunnel.addr, ONE_BY_ONE, 1).await?.p50);
    let rate = kept_alive(tunnel.addr, AT_ONCE, REQUESTS).await?;
    run[9..12].copy_from_slice(&[Some(rate.per_second), Some(rate.p50), Some(rate.p99)]);
    Ok(())
}
