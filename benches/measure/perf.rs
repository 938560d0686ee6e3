//! What `perf` finds of both ends while a download goes through a tunnel. The ends run as fast as without, so their batches are
//! as full.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

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

/// Its files, until this is dropped.
pub(crate) struct Found {
    pub(crate) relay: PathBuf,
    pub(crate) client: PathBuf,
    _folder: tempfile::TempDir,
}

/// Runs it with these arguments on each end of a new tunnel, while so many bytes go through.
pub(crate) async fn watch(peer: &dyn Peer, args: &[&str], bytes: usize) -> io::Result<Found> {
    let tunnel = Tunnel::start(peer, Service::Bulk)?;
    bulk(tunnel.addr, FIRST, 1, Direction::Down).await?;
    let folder = tempfile::tempdir()?;
    let found = Found {
        relay: folder.path().join("relay"),
        client: folder.path().join("client"),
        _folder: folder,
    };
    let of_relay = start(args, tunnel.ends.relay.id(), &found.relay)?;
    let of_client = start(args, tunnel.ends.client.id(), &found.client)?;
    thread::sleep(SET_UP);
    bulk(tunnel.addr, bytes, 1, Direction::Down).await?;
    end(of_relay)?;
    end(of_client)?;
    Ok(found)
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
