//! What small requests wait for when a bulk transfer goes through the same tunnel, and through another one on the same
//! machine, to the same server: the second has the same load on its cores, and shares no queue of the tunnel.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::figures::{Kind, Run, in_turn};
use crate::load::kept_alive;
use crate::target::visit;
use crate::tunnel::Peer;
use crate::worker::{Server, Service};

/// Requests of one run, one after the other.
const REQUESTS: usize = 4_000;
/// How long a transfer goes on before it counts.
const WARM_UP: Duration = Duration::from_millis(500);

const KINDS: [Kind; 7] = [
    Kind::new("p50, nothing else, µs", 0),
    Kind::new("p99", 0),
    Kind::new("p50, bulk in another tunnel", 0),
    Kind::new("p99", 0),
    Kind::new("p50, bulk in the same tunnel", 0),
    Kind::new("p99", 0),
    Kind::new("p99, same tunnel to another", 2),
];

/// The table.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> String {
    in_turn(peers, runs, &KINDS, once).await
}

async fn once(peer: &dyn Peer) -> io::Result<Run> {
    let server = Server::start(Service::Echo, peer.place().far)?;
    let tunnel = peer.start(server.port, peer.place())?;
    let other = peer.start(server.port, peer.place())?;
    let mut run = Run::new();
    for bulk in [None, Some(other.addr), Some(tunnel.addr)] {
        let transfer = match bulk {
            Some(addr) => Some(endless(addr).await?),
            None => None,
        };
        sleep(WARM_UP).await;
        let rate = kept_alive(tunnel.addr, 1, REQUESTS).await?;
        run.extend([Some(rate.p50), Some(rate.p99)]);
        if let Some(transfer) = transfer {
            if transfer.is_finished() {
                return Err(io::Error::other("the transfer beside the requests has ended"));
            }
            transfer.abort();
        }
    }
    let times = run[5].zip(run[3]).map(|(same, other)| same / other);
    run.push(times);
    Ok(run)
}

/// Bytes to an echo and back, as fast as it can, until it is stopped.
async fn endless(addr: SocketAddr) -> io::Result<JoinHandle<io::Result<()>>> {
    let (mut reader, mut writer) = visit(addr, 0).await?.into_split();
    Ok(tokio::spawn(async move {
        let sending = async {
            let piece = vec![0x5a; 256 * 1024];
            loop {
                writer.write_all(&piece).await?;
            }
        };
        let taking = async {
            let mut piece = vec![0; 256 * 1024];
            while reader.read(&mut piece).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            ended = sending => ended,
            ended = taking => ended,
        }
    }))
}
