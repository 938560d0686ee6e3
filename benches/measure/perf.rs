//! What `perf` and the scheduler find of both ends while something goes through a tunnel. The ends run as fast as without, so
//! their batches are as full.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fairness::requests_beside;
use crate::load::{Direction, bulk};
use crate::tunnel::{Peer, Tunnel};
use crate::worker::Service;

/// What is printed where there is none.
pub(crate) const MISSING: &str = "Skipped: perf is not installed (Debian's linux-perf).\n";

/// What goes through before it looks: buffers and windows open.
const FIRST: usize = 32 << 20;
/// How long it takes to be set up.
const SET_UP: Duration = Duration::from_millis(500);

/// Whether it can be used here.
pub(crate) fn is_here() -> bool {
    Command::new("perf").arg("--version").output().is_ok()
}

/// What goes through a tunnel while it is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// A download of so many bytes, over one connection.
    Download(usize),
    /// Small requests beside a transfer both ways, as `fairness` makes them.
    SmallBesideBulk,
}

/// What was found.
pub(crate) struct Found {
    pub(crate) relay: Seen,
    pub(crate) client: Seen,
    _folder: tempfile::TempDir,
}

/// What was found of one end.
pub(crate) struct Seen {
    /// What perf has written, until all of it is dropped.
    pub(crate) file: PathBuf,
    /// For how much of the time its threads ran, and for how much of it they waited for a processor.
    pub(crate) ran: f64,
    pub(crate) waited: f64,
}

/// Runs it with these arguments on each end of a new tunnel, while this goes through.
pub(crate) async fn watch(peer: &dyn Peer, args: &[&str], work: Work) -> io::Result<Found> {
    let service = match work {
        Work::Download(_) => Service::Bulk,
        Work::SmallBesideBulk => Service::EchoByThreads,
    };
    let tunnel = Tunnel::start(peer, service)?;
    if let Work::Download(_) = work {
        bulk(tunnel.addr, FIRST, 1, Direction::Down).await?;
    }
    let folder = tempfile::tempdir()?;
    let [relay, client] = [tunnel.ends.relay.id(), tunnel.ends.client.id()];
    let files = [folder.path().join("relay"), folder.path().join("client")];
    let perfs = [start(args, relay, &files[0])?, start(args, client, &files[1])?];
    thread::sleep(SET_UP);
    let (begin, before) = (Instant::now(), [scheduled(relay)?, scheduled(client)?]);
    match work {
        Work::Download(bytes) => drop(bulk(tunnel.addr, bytes, 1, Direction::Down).await?),
        Work::SmallBesideBulk => drop(requests_beside(tunnel.addr, Some(tunnel.addr))?),
    }
    let (took, after) = (begin.elapsed(), [scheduled(relay)?, scheduled(client)?]);
    perfs.into_iter().try_for_each(end)?;
    let seen = |end: usize| {
        let share = |kind: usize| (after[end][kind] - before[end][kind]) as f64 / took.as_nanos() as f64;
        Seen {
            file: files[end].clone(),
            ran: share(0),
            waited: share(1),
        }
    };
    Ok(Found {
        relay: seen(0),
        client: seen(1),
        _folder: folder,
    })
}

/// For how many nanoseconds the threads of a process have run so far, and for how many they have waited for a processor.
fn scheduled(process: u32) -> io::Result<[u64; 2]> {
    let mut sums = [0; 2];
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        for (sum, word) in sums.iter_mut().zip(text.split_whitespace()) {
            *sum += word.parse::<u64>().map_err(io::Error::other)?;
        }
    }
    Ok(sums)
}

fn start(args: &[&str], process: u32, file: &Path) -> io::Result<Child> {
    let mut command = Command::new("perf");
    command
        .args(args)
        .arg("-p")
        .arg(process.to_string())
        .arg("-o")
        .arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// It writes its file when it is interrupted.
fn end(mut perf: Child) -> io::Result<()> {
    if let Some(pid) = i32::try_from(perf.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::INT)?;
    }
    perf.wait().map(drop)
}
