//! The memory ceiling: a relay in a cgroup without swap, under everything at once.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use portal_core::uri::RelayUri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::portal::{Build, Pair, Setting};
use crate::process::mib;
use crate::target::{request, visit};
use crate::worker::{Server, Service, local};

/// What the relay is told, and what the cgroup grants.
const MEMORY: &str = "64MiB";
const LIMIT: u64 = 96 * 1024 * 1024;
const ATTEMPTS: usize = 20_000;
const TRANSFERS: usize = 8;
const TRANSFER: usize = 64 << 20;
const FLOOD: usize = 1_000_000;
/// For the transfers, after the last attempt.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs it. Without a cgroup of its own it is skipped, with the reason.
pub(crate) async fn hold(build: &Build) -> io::Result<bool> {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => {
            println!(
                "{}: the ceiling is not tried: no memory cgroup can be made here ({error})\n",
                build.name
            );
            return Ok(true);
        }
    };
    let server = Server::start(Service::Echo, None)?;
    let setting = Setting {
        more: &["--memory", MEMORY],
        cgroup: Some(&group.procs()),
        ..Setting::default()
    };
    let mut pair = Pair::start(build, server.port, setting)?;
    let uri: RelayUri = pair.uri.parse().map_err(io::Error::other)?;
    let (port, udp) = (pair.port, pair.udp);

    let flood = tokio::task::spawn_blocking(move || flood(udp, uri.key.as_bytes()));
    let transfers: Vec<_> = (0..TRANSFERS)
        .map(|number| tokio::spawn(transfer(port, number)))
        .collect();
    let at_once = Arc::new(Semaphore::new(256));
    let mut attempts = Vec::with_capacity(ATTEMPTS);
    for number in 0..ATTEMPTS {
        let permit = Arc::clone(&at_once).acquire_owned().await.map_err(io::Error::other)?;
        attempts.push(tokio::spawn(async move {
            let attempt = async {
                let mut visitor = visit(local(port), number).await.ok()?;
                request(&mut visitor).await.ok()?;
                Some(visitor)
            };
            let visitor = tokio::time::timeout(Duration::from_secs(20), attempt)
                .await
                .ok()
                .flatten();
            drop(permit);
            visitor
        }));
    }
    let mut visitors = Vec::new();
    for attempt in attempts {
        visitors.extend(attempt.await.map_err(io::Error::other)?);
    }
    let mut whole = 0;
    let end = tokio::time::Instant::now() + PATIENCE;
    for (number, mut transfer) in transfers.into_iter().enumerate() {
        match tokio::time::timeout_at(end, &mut transfer).await {
            Ok(done) => match done.map_err(io::Error::other)? {
                Ok(()) => whole += 1,
                Err(error) => println!("transfer {number} failed: {error}"),
            },
            Err(_) => {
                transfer.abort();
                println!("transfer {number} is stuck");
            }
        }
    }
    let sent = flood.await.map_err(io::Error::other)??;
    let served = visitors.len();
    let refusals = pair.refusals()?;
    let usage = pair.relay.usage()?;
    let alive = pair.relay.is_running();
    drop(visitors);
    let killed = group.kills()?;
    let held = alive && killed == 0 && whole == TRANSFERS && !refusals.is_empty();
    println!(
        "{}, --memory {MEMORY} in a cgroup of {} MiB without swap: {served} of {ATTEMPTS} connections served at once, \
         {whole} of {TRANSFERS} transfers of {} MiB whole, {sent} handshakes of the flood sent, relay RSS {} MiB, the \
         cgroup's peak {} MiB, out-of-memory kills {killed}: {}",
        build.name,
        LIMIT >> 20,
        TRANSFER >> 20,
        mib(usage.resident),
        mib(group.peak()?),
        if held { "held" } else { "NOT HELD" }
    );
    for (name, count) in refusals {
        println!("  {name} {count}");
    }
    println!();
    Ok(held)
}

/// Sends bytes through the echo and compares what comes back.
async fn transfer(port: u16, number: usize) -> io::Result<()> {
    let stream = visit(local(port), 1000 * (200 + number)).await?;
    let (mut reader, mut writer) = stream.into_split();
    let byte = move |at: usize| (at.wrapping_mul(2_654_435_761) >> 11) as u8 ^ number as u8;
    let sending = tokio::spawn(async move {
        let mut piece = vec![0; 64 * 1024];
        for start in (0..TRANSFER).step_by(piece.len()) {
            for (offset, slot) in piece.iter_mut().enumerate() {
                *slot = byte(start + offset);
            }
            writer.write_all(&piece).await?;
        }
        io::Result::Ok(writer)
    });
    let mut piece = vec![0; 64 * 1024];
    let mut at = 0;
    while at < TRANSFER {
        let count = reader.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if piece[..count]
            .iter()
            .enumerate()
            .any(|(offset, got)| *got != byte(at + offset))
        {
            return Err(io::Error::other("other bytes came back"));
        }
        at += count;
    }
    sending.await.map_err(io::Error::other)??;
    Ok(())
}

/// Sends initiations with a right first MAC and nothing else right (paper, section 5.4.2 and 5.4.4): the most that who
/// knows the relay's public key can ask of it.
fn flood(port: u16, key: &[u8; 32]) -> io::Result<usize> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    let mac_key = Blake2s256::new().chain_update(b"mac1----").chain_update(key).finalize();
    let mut sent = 0;
    for number in 0..FLOOD {
        let mut packet = [0; 148];
        packet[0] = 1;
        packet[4..12].copy_from_slice(&number.to_le_bytes());
        packet[12..20].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let mut mac: Blake2sMac<blake2::digest::consts::U16> =
            KeyInit::new_from_slice(&mac_key).map_err(io::Error::other)?;
        mac.update(&packet[..116]);
        packet[116..132].copy_from_slice(&mac.finalize().into_bytes());
        sent += usize::from(socket.send(&packet).is_ok());
    }
    Ok(sent)
}

/// A memory cgroup of version 1 or 2. It goes with this.
struct Group {
    path: PathBuf,
    is_v2: bool,
}

impl Group {
    fn new() -> io::Result<Self> {
        if fs::read_to_string("/proc/swaps")?.lines().count() > 1 {
            return Err(io::Error::other("this machine swaps"));
        }
        let name = format!("portal-measure-{}", std::process::id());
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers");
        let is_v2 = fs::read_to_string(v2).is_ok_and(|controllers| controllers.contains("memory"));
        let root = if is_v2 {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/memory"
        };
        let path = Path::new(root).join(name);
        fs::create_dir(&path)?;
        let group = Self { path, is_v2 };
        if is_v2 {
            fs::write(group.path.join("memory.max"), LIMIT.to_string())?;
        } else {
            fs::write(group.path.join("memory.limit_in_bytes"), LIMIT.to_string())?;
        }
        Ok(group)
    }

    fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    fn peak(&self) -> io::Result<u64> {
        let file = if self.is_v2 {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        fs::read_to_string(self.path.join(file))?
            .trim()
            .parse()
            .map_err(io::Error::other)
    }

    fn kills(&self) -> io::Result<u64> {
        let file = if self.is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.path.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.ok_or_else(|| io::Error::other("no count of kills"))?
            .trim()
            .parse()
            .map_err(io::Error::other)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its process may take a moment to be gone.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
