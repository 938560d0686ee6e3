//! System calls of both ends while a transfer goes through them, counted by the kernel (`perf stat`).

use std::fs;
use std::io;

use crate::figures::{Kind, Run, in_turn};
use crate::perf::{self, Work};
use crate::tunnel::Peer;

/// What a transfer moves while it is counted.
const BYTES: usize = 256 << 20;
const MIB: f64 = (1 << 20) as f64;

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
    if !perf::is_here() {
        return perf::MISSING.to_owned();
    }
    in_turn(peers, runs, &KINDS, once).await
}

async fn once(peer: &dyn Peer) -> io::Result<Run> {
    let args = ["stat", "-x", ",", "-e", &EVENTS.concat().join(",")];
    let found = perf::watch(peer, &args, Work::Download(BYTES)).await?;
    let mut run = Run::new();
    for file in [&found.relay.file, &found.client.file] {
        let report = fs::read_to_string(file)?;
        for events in EVENTS {
            let count: f64 = events.iter().map(|event| count(&report, event)).sum();
            run.push(Some(count / (BYTES as f64 / MIB)));
        }
    }
    Ok(run)
}

/// How often an event came: a line of the report is its count, a unit that it has not, and its name.
fn count(report: &str, event: &str) -> f64 {
    report
        .lines()
        .filter(|line| line.split(',').nth(2) == Some(event))
        .filter_map(|line| line.split(',').next()?.parse::<f64>().ok())
        .sum()
}
