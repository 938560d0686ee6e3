//! Where both ends of a tunnel spend their time while something goes through it, by samples of the kernel's (`perf record`).

use std::io;
use std::iter;
use std::path::Path;
use std::process::Command;

use crate::figures::{Kind, Run, in_turn};
use crate::perf::{self, Seen, Work};
use crate::process::output;
use crate::tunnel::Peer;

/// What a transfer moves while it is looked at.
const BYTES: usize = 1 << 30;

/// Samples by the processor's clock: virtual machines often have no counter of cycles.
const RECORD: [&str; 5] = ["record", "-e", "cpu-clock", "-F", "1999"];

/// What time is spent in, with words of the symbols that it is known by; the first that fits counts. What the compiler has
/// put into another function counts as that one's.
const PARTS: [(&str, &[&str]); 6] = [
    ("ChaCha20-Poly1305", &["chacha20", "poly1305"]),
    ("copies of bytes", &["memmove", "memcpy"]),
    ("smoltcp", &["smoltcp"]),
    ("boringtun", &["boringtun"]),
    ("core", &["portal_core"]),
    (
        "runtime",
        &["portal_adapter", "portal_runtime", "quinn_udp", "mio", "tokio"],
    ),
];

/// Two tables: of a download, and of small requests beside a transfer.
pub(crate) async fn compare(peers: &[&dyn Peer], runs: usize) -> String {
    if !perf::is_here() {
        return perf::MISSING.to_owned();
    }
    let mut text = String::new();
    for (title, work) in [
        ("A download over one connection", Work::Download(BYTES)),
        (
            "Small requests, one after the other, beside a transfer both ways in the same tunnel",
            Work::SmallBesideBulk,
        ),
    ] {
        let table = in_turn(peers, runs, &kinds(), async |peer| once(peer, work).await).await;
        text += &format!("{title}:\n\n{table}\n");
    }
    text
}

/// For each end how it was scheduled, and of its samples the kernel's, those of [`PARTS`], and the rest.
fn kinds() -> Vec<Kind> {
    let of_end = |runs| {
        let scheduled = [runs, "waits for a processor, %", "kernel, % of its samples"];
        let parts = PARTS.iter().map(|(part, _)| *part);
        scheduled.into_iter().chain(parts).chain(iter::once("the rest"))
    };
    let ends = ["relay: runs, % of the time", "agent: runs, % of the time"];
    let titles = ends.into_iter().flat_map(of_end);
    titles.map(|title| Kind::new(title, 1)).collect()
}

async fn once(peer: &dyn Peer, work: Work) -> io::Result<Run> {
    let found = perf::watch(peer, &RECORD, work).await?;
    let mut run = Run::new();
    for Seen { file, ran, waited } in [&found.relay, &found.client] {
        run.extend([ran, waited].map(|share| Some(share * 100.0)));
        run.extend(shares(file)?.map(Some));
    }
    Ok(run)
}

/// The kernel's share in percent, those of [`PARTS`], and the rest.
fn shares(file: &Path) -> io::Result<[f64; PARTS.len() + 2]> {
    let mut report = Command::new("perf");
    report.args([
        "report",
        "--stdio",
        "--sort",
        "symbol",
        "-F",
        "overhead,symbol",
        "-t",
        ";",
        "-i",
    ]);
    let report = output(report.arg(file))?;
    let mut shares = [0.0; PARTS.len() + 2];
    for line in report.lines() {
        let Some((share, symbol)) = line.split_once(';') else {
            continue;
        };
        let Ok(share) = share.trim().trim_end_matches('%').parse::<f64>() else {
            continue;
        };
        shares[part(symbol.trim())] += share;
    }
    if shares.iter().sum::<f64>() < 50.0 {
        return Err(io::Error::other("perf has reported next to no samples"));
    }
    Ok(shares)
}

/// The place in a run of what a symbol belongs to; perf marks the kernel's with `[k]`.
fn part(symbol: &str) -> usize {
    if symbol.starts_with("[k]") {
        return 0;
    }
    let symbol = symbol.to_lowercase();
    let known = |(_, words): &(&str, &[&str])| words.iter().any(|word| symbol.contains(word));
    PARTS.iter().position(known).unwrap_or(PARTS.len()) + 1
}
