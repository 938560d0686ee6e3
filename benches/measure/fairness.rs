//! What small requests wait for when a bulk transfer goes through the same tunnel, and through another one on the same
//! machine, to the same server: the second has the same load on its cores, and shares no queue of the tunnel.
//!
//! Who asks, who transfers and who answers are threads of their own, and each waits for nobody but the kernel: as tasks of one
//! runtime, requests would wait behind the transfer's in the bench itself.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::figures::{Kind, Run, in_turn};
use crate::load::Rate;
use crate::target::REQUEST;
use crate::tunnel::Peer;
use crate::worker::{Server, Service};

/// How long requests are made, one after the other.
const SPELL: Duration = Duration::from_secs(3);
/// How long a transfer goes on before it counts.
const WARM_UP: Duration = Duration::from_millis(500);
/// Longer than anything here takes where it works at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// The titles of how many times longer the slow ones take: than while the same load goes through another tunnel, and than
/// while nothing else does.
pub(crate) const TO_ANOTHER: &str = "p99, same tunnel to another";
pub(crate) const TO_IDLE: &str = "to nothing else";

const KINDS: [Kind; 10] = [
    Kind::new("p50, nothing else, µs", 0),
    Kind::new("p99", 0),
    Kind::new("p50, bulk in another tunnel", 0),
    Kind::new("p99", 0),
    Kind::new("that bulk, Mbit/s each way", 0),
    Kind::new("p50, bulk in the same tunnel", 0),
    Kind::new("p99", 0),
    Kind::new("that bulk", 0),
    Kind::new(TO_ANOTHER, 2),
    Kind::new(TO_IDLE, 2),
];

/// The table.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> String {
    in_turn(peers, runs, &KINDS, once).await
}

async fn once(peer: &dyn Peer) -> io::Result<Run> {
    let server = Server::start(Service::EchoByThreads, peer.place().far)?;
    let tunnel = peer.start(server.port, peer.place())?;
    let other = peer.start(server.port, peer.place())?;
    let mut run = Run::new();
    for bulk in [None, Some(other.addr), Some(tunnel.addr)] {
        let (rate, bulk) = requests_beside(tunnel.addr, bulk)?;
        run.extend([Some(rate.p50), Some(rate.p99)]);
        run.extend(bulk.map(Some));
    }
    let [idle, another, same] = [run[1], run[3], run[6]];
    for base in [another, idle] {
        run.push(same.zip(base).map(|(same, base)| same / base));
    }
    Ok(run)
}

/// Makes small requests, while a transfer goes through an echo at the other address, if there is one; how they fared, and its
/// Mbit/s each way.
pub(crate) fn requests_beside(addr: SocketAddr, bulk: Option<SocketAddr>) -> io::Result<(Rate, Option<f64>)> {
    let transfer = bulk.map(Transfer::start).transpose()?;
    thread::sleep(WARM_UP);
    let begin = (Instant::now(), transfer.as_ref().map(Transfer::came_back));
    let rate = requests(addr)?;
    let Some(transfer) = transfer else {
        return Ok((rate, None));
    };
    let bytes = transfer.came_back() - begin.1.unwrap_or(0);
    let speed = bytes as f64 * 8.0 / begin.0.elapsed().as_secs_f64() / 1e6;
    transfer.stop()?;
    Ok((rate, Some(speed)))
}

/// Small requests, one after the other.
fn requests(addr: SocketAddr) -> io::Result<Rate> {
    let mut stream = visit(addr)?;
    let (sent, mut back) = ([0x5a; REQUEST], [0; REQUEST]);
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < SPELL {
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        times.push(start.elapsed());
    }
    Ok(Rate::of(times, begin.elapsed().as_secs_f64()))
}

/// Bytes to an echo and back, as fast as it can, until it is stopped.
struct Transfer {
    stream: TcpStream,
    halves: [JoinHandle<()>; 2],
    came_back: Arc<AtomicU64>,
}

impl Transfer {
    fn start(addr: SocketAddr) -> io::Result<Self> {
        let stream = visit(addr)?;
        let came_back = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&came_back);
        let (mut writer, mut reader) = (stream.try_clone()?, stream.try_clone()?);
        let sending = thread::spawn(move || {
            let piece = vec![0x5a; 256 * 1024];
            while writer.write_all(&piece).is_ok() {}
        });
        let taking = thread::spawn(move || {
            let mut piece = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = reader.read(&mut piece) {
                counted.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        Ok(Self {
            stream,
            halves: [sending, taking],
            came_back,
        })
    }

    /// How many bytes have come back so far.
    fn came_back(&self) -> u64 {
        self.came_back.load(Ordering::Relaxed)
    }

    /// An error if it had ended before.
    fn stop(self) -> io::Result<()> {
        if self.halves.iter().any(JoinHandle::is_finished) {
            return Err(io::Error::other("the transfer beside the requests has ended"));
        }
        self.stream.shutdown(Shutdown::Both)?;
        for half in self.halves {
            half.join()
                .map_err(|_| io::Error::other("a thread of the transfer has failed"))?;
        }
        Ok(())
    }
}

fn visit(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
