//! System calls of both ends while a transfer goes through them, counted by the kernel (`perf stat`): the ends run as fast as
//! without, so their batches are as full.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::figures::{Kind, Run, in_turn};
use crate::load::{Direction, bulk};
use crate::tunnel::{Peer, Tunnel};
use crate::worker::Service;

/// What a transfer moves while it is counted, and before.
const BYTES: usize = 256 << 20;
const FIRST: usize = 32 << 20;
const MIB: f64 = (1 << 20) as f64;
/// How long the counters take to be set up.
const SET_UP: Duration = Duration::from_millis(500);

/// All, and those that an end moves bytes by and waits by.
const EVENTS: [&[&str]; 6] = [
    &["raw_syscalls:sys_enter"],
    &["syscalls:sys_enter_sendmsg", "syscalls:sys_enter_sendmmsg"],
    &["syscalls:sys_enter_recvmsg", "syscalls:sys_enter_recvmmsg"],
    &["syscalls:sys_enter_read", "syscalls:sys_enter_recvfrom"],
    &["syscalls:sys_enter_write", "syscalls:sys_enter_sendto"],
    &["syscalls:sys_enter_epoll_wait", "syscalls:sys_enter_epoll_pwait"],
];

const KINDS: [Kind; 12] = [
    Kind::new("relay: all, a MiB", 1),
    Kind::new("sendmsg", 1),
    Kind::new("recvmmsg", 1),
    Kind::new("read", 1),
    Kind::new("write", 1),
    Kind::new("epoll_wait", 1),
    Kind::new("agent: all, a MiB", 1),
    Kind::new("sendmsg", 1),
    Kind::new("recvmmsg", 1),
    Kind::new("read", 1),
    Kind::new("write", 1),
    Kind::new("epoll_wait", 1),
];

/// The table: one download through each.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> String {
    if Command::new("perf").arg("--version").output().is_err() {
        return "Skipped: perf is not installed (Debian's linux-perf).\n".to_owned();
    }
    in_turn(peers, runs, &KINDS, once).await
}

async fn once(peer: &dyn Peer) -> io::Result<Run> {
    let tunnel = Tunnel::start(peer, Service::Bulk)?;
    bulk(tunnel.addr, FIRST, 1, Direction::Down).await?;
    let folder = tempfile::tempdir()?;
    let ends = [("relay", &tunnel.ends.relay), ("client", &tunnel.ends.client)];
    let mut counters = Vec::new();
    for (name, end) in ends {
        counters.push(Counter::start(end.id(), &folder.path().join(name))?);
    }
    thread::sleep(SET_UP);
    bulk(tunnel.addr, BYTES, 1, Direction::Down).await?;
    let mut run = Run::new();
    for (counter, (name, _)) in counters.into_iter().zip(ends) {
        counter.end()?;
        let report = fs::read_to_string(folder.path().join(name))?;
        for events in EVENTS {
            let count: f64 = events.iter().map(|event| count(&report, event)).sum();
            run.push(Some(count / (BYTES as f64 / MIB)));
        }
    }
    Ok(run)
}

/// The kernel's counters of a process, while this runs.
struct Counter(Child);

impl Counter {
    fn start(process: u32, report: &Path) -> io::Result<Self> {
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", &EVENTS.concat().join(","), "-p"])
            .arg(process.to_string())
            .arg("-o")
            .arg(report)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// It writes its report when it is interrupted.
    fn end(mut self) -> io::Result<()> {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT)?;
        }
        self.0.wait().map(drop)
    }
}

/// How often an event came: a line of the report is its count, a unit that it has not, and its name.
fn count(report: &str, event: &str) -> f64 {
    report
        .lines()
        .filter(|line| line.split(',').nth(2) == Some(event))
        .filter_map(|line| line.split(',').next()?.parse::<f64>().ok())
        .sum()
}
