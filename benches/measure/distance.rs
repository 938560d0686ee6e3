//! Tunnels over a path with distance: what a download gets and how long a page takes, by round trip and loss.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::figures::{number, with_spread};
use crate::load::{Direction, transfer};
use crate::path::{Distance, NEAR};
use crate::process::busy;
use crate::target::visit;
use crate::tunnel::{Peer, Place, Tunnel};
use crate::worker::Service;

/// Round trips, in milliseconds, and how many in a million packets are lost each way.
const ROUND_TRIPS: [u64; 3] = [2, 20, 100];
const LOSSES: [u32; 3] = [0, 1_000, 10_000];
/// The title of what one download gets.
pub(crate) const ONE: &str = "1 download, Mbit/s";
/// How many downloads at once there are besides, and how often the one is tried: it hangs on single losses.
const MANY: usize = 16;
const TIMES: usize = 3;
/// How long a download is watched, after it has come to speed.
const WARM_UP: Duration = Duration::from_secs(2);
const WATCH: Duration = Duration::from_secs(4);
/// A page: what the browser gets first, and what that names, so many at once.
const PAGE: usize = 16 * 1024;
const OBJECT: usize = 50 * 1024;
const OBJECTS: usize = 24;
const AT_ONCE: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints a table a subject. Those that can only run on loopback are left out by whoever calls.
pub(crate) async fn over_distance(peers: &[&dyn Peer]) -> io::Result<()> {
    let distance = Distance::new()?;
    let place = Place {
        far: Some(distance.far.name()),
        near_addr: Some(NEAR),
    };
    println!(
        "| | round trip, ms | loss, % | {ONE} | by the formula (share of it) | {MANY} downloads | page of 1.2 MB, s | load |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for round_trip in ROUND_TRIPS {
        for loss in LOSSES {
            for peer in peers {
                distance.set(Duration::from_millis(round_trip), loss);
                let cells = match Tunnel::start_at(*peer, Service::Bulk, place) {
                    Ok(tunnel) => cells(tunnel.addr).await,
                    Err(error) => {
                        eprintln!("{}: {error}", peer.name());
                        [none(), none(), none()]
                    }
                };
                let [one, many, page] = cells;
                let rate = number(&one);
                println!(
                    "| {} | {round_trip} | {} | {one} | {} | {many} | {page} | {} |",
                    peer.name(),
                    f64::from(loss) / 10_000.0,
                    by_formula(round_trip, loss, rate),
                    busy()
                );
            }
        }
    }
    println!();
    Ok(())
}

/// What one sender that halves its window for each loss gets, in Mbit/s (Mathis et al., "The macroscopic behavior of the TCP
/// congestion avoidance algorithm", 1997), with the segments of our tunnel; and the share of it that was had.
fn by_formula(round_trip: u64, loss: u32, had: Option<f64>) -> String {
    const SEGMENT_BITS: f64 = 1220.0 * 8.0;
    if loss == 0 {
        return "–".into();
    }
    let share = f64::from(loss) / 1e6;
    let rate = 1.5_f64.sqrt() * SEGMENT_BITS / (round_trip as f64 / 1e3 * share.sqrt()) / 1e6;
    let had = had.map_or_else(String::new, |had| format!(" ({:.0} %)", had / rate * 100.0));
    format!("{rate:.1}{had}")
}

async fn cells(addr: SocketAddr) -> [String; 3] {
    let mut one = Vec::new();
    for _ in 0..TIMES {
        one.extend(said(downloads(addr, 1).await));
    }
    [
        with_spread(one.into_iter(), 1),
        said(downloads(addr, MANY).await).map_or(none(), |rate| format!("{rate:.1}")),
        said(page(addr).await).map_or(none(), |seconds| format!("{seconds:.2}")),
    ]
}

/// What a cell is where nothing could be had.
fn none() -> String {
    "–".to_owned()
}

fn said(result: io::Result<f64>) -> Option<f64> {
    result.inspect_err(|error| eprintln!("{error}")).ok()
}

/// Mbit/s over so many connections that all want more.
async fn downloads(addr: SocketAddr, connections: usize) -> io::Result<f64> {
    let mut readers = JoinSet::new();
    let start = Instant::now();
    for number in 0..connections {
        readers.spawn(async move {
            let mut stream = visit(addr, number).await?;
            stream.write_i64(i64::MAX).await?;
            let mut buffer = vec![0; 256 * 1024];
            let mut counted = 0;
            while let Some(left) = (WARM_UP + WATCH).checked_sub(start.elapsed()) {
                match timeout(left, stream.read(&mut buffer)).await {
                    Err(_) => break,
                    Ok(Ok(count @ 1..)) if start.elapsed() >= WARM_UP => counted += count,
                    Ok(Ok(1..)) => {}
                    Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(Err(error)) => return Err(error),
                }
            }
            Ok::<_, io::Error>(counted)
        });
    }
    let mut bytes = 0;
    while let Some(counted) = readers.join_next().await {
        bytes += counted??;
    }
    // What was on its way for those that have gone has arrived.
    sleep(Duration::from_millis(500)).await;
    Ok(bytes as f64 * 8.0 / WATCH.as_secs_f64() / 1e6)
}

/// Seconds until a page is there, each part of it over a connection of its own.
async fn page(addr: SocketAddr) -> io::Result<f64> {
    let start = Instant::now();
    let all = async {
        transfer(addr, 0, PAGE, Direction::Down).await?;
        let mut lanes = JoinSet::new();
        for lane in 0..AT_ONCE {
            lanes.spawn(async move {
                for number in (lane..OBJECTS).step_by(AT_ONCE) {
                    transfer(addr, number, OBJECT, Direction::Down).await?;
                }
                Ok::<_, io::Error>(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok::<_, io::Error>(())
    };
    timeout(PATIENCE, all)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(start.elapsed().as_secs_f64())
}
