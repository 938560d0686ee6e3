//! A relay on a small machine: a guest with 512 MiB whose processor is emulated serves connections and a transfer from
//! here. The guest is that of the tests with the kernel's WireGuard.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{Direction, transfer};
use crate::network;
use crate::portal::Build;
use crate::process::{Launch, Process, mib, output, port};
use crate::worker::{Crowd, Server, Service};

const CONNECTIONS: usize = 2_000;
const TRANSFER: usize = 128 << 20;
/// What the machine may be short of at most, of the 512 MiB that it has.
const LEAST_AVAILABLE: u64 = 128 << 20;
/// An emulated processor takes its time.
const PATIENCE: Duration = Duration::from_secs(900);
/// The guest's address, and the host's with it, by the guest's own init.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const HOST: &str = "10.0.2.2/24";
/// What [`serve`] is called on the command line.
pub(crate) const NAME: &str = "guest";

/// Runs it, in a network namespace that ends with it: qemu's network without one bears no thousand connections. Where no
/// guest can be made it is skipped, with the reason.
pub(crate) fn serve(builds: &[String]) -> io::Result<bool> {
    if let Err(error) = image().and_then(|_| output(Command::new("qemu-system-x86_64").arg("--version"))) {
        println!("no relay is tried in a guest: {error}\n");
        return Ok(true);
    }
    network::run_inside(&[&[NAME.to_owned()], builds].concat())
}

/// The part inside.
pub(crate) fn network() -> io::Result<()> {
    for step in [
        "link set lo up",
        "tuntap add tap0 mode tap",
        &format!("addr add {HOST} dev tap0"),
        "link set tap0 up",
    ] {
        network::ip(&step.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// One build's figure.
pub(crate) async fn figure(build: &Build) -> io::Result<bool> {
    let state = tempfile::tempdir()?;
    let ports = [port(1), port(1), port(1)];
    let mut guest = Guest::boot(build, state.path())?;
    let [udp, first, second] = ports;
    let before = guest.available()?;
    let (low, high) = (first.min(second), first.max(second));
    guest.run(&format!(
        "ulimit -n 8192; setsid portal --quiet relay --domain {GUEST} --udp {GUEST}:{udp} --http off --https off \
         --ports {low}-{high} --access open --state-dir /tmp/relay >/tmp/uri 2>/tmp/log </dev/null & \
         for n in 1 2 3 4 5 6 7 8 9 10; do [[ ! -s /tmp/uri ]] || break; sleep 1; done; cat /tmp/log"
    ))?;
    let uri = guest.run("cat /tmp/uri")?.trim().to_owned();
    let idle = guest.available()?;

    let (echo, bulk) = (Server::start(Service::Echo, None)?, Server::start(Service::Bulk, None)?);
    let (small, echo_at) = expose(build, &uri, echo.port, &state.path().join("small.key"))?;
    let (large, bulk_at) = expose(build, &uri, bulk.port, &state.path().join("large.key"))?;
    let start = Instant::now();
    let mut crowd = Crowd::new(at(echo_at));
    crowd.grow_to(CONNECTIONS)?;
    let opened = start.elapsed();
    let with_connections = guest.available()?;
    let start = Instant::now();
    let moving = tokio::spawn(transfer(at(bulk_at), 0, TRANSFER, Direction::Down));
    let mut least = u64::MAX;
    while !moving.is_finished() && start.elapsed() < PATIENCE {
        least = least.min(guest.available()?);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if !moving.is_finished() {
        return Err(io::Error::other("the transfer is stuck"));
    }
    moving.await.map_err(io::Error::other)??;
    let moved = start.elapsed();
    crowd.check()?;
    let resident = guest.number("grep VmRSS /proc/$(pidof portal)/status")?;
    drop(crowd);
    thread::sleep(Duration::from_secs(20));
    let after = guest.available()?;
    let left = guest.number("grep VmRSS /proc/$(pidof portal)/status")?;
    drop((small, large));
    let held = least >= LEAST_AVAILABLE;
    println!(
        "| {}, relay in a guest with 512 MiB | MemAvailable MiB |\n|---|---|",
        build.name
    );
    println!("| before the relay | {} |", mib(before));
    println!("| relay without visitors | {} |", mib(idle));
    println!(
        "| {CONNECTIONS} connections, opened in {:.0} s | {} |",
        opened.as_secs_f64(),
        mib(with_connections)
    );
    println!(
        "| with a transfer of {} MiB too, in {:.0} s; the least seen | {} |",
        TRANSFER >> 20,
        moved.as_secs_f64(),
        mib(least)
    );
    println!("| 20 s after they closed | {} |", mib(after));
    println!(
        "\nRelay RSS with all of it {} MiB, after {} MiB; all connections still served: {}\n",
        mib(resident),
        mib(left),
        if held { "held" } else { "NOT HELD" }
    );
    Ok(held)
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((GUEST, port))
}

/// An agent here, and the guest's port where its visitors come in.
fn expose(build: &Build, uri: &str, service: u16, key: &Path) -> io::Result<(Process, u16)> {
    let target = format!("tcp://127.0.0.1:{service}");
    let key = key.display().to_string();
    let mut agent = Process::start(&Launch::new(
        &build.path,
        &["--quiet", "expose", &target, "--relay", uri, "--key", &key],
    ))?;
    let public = agent.first_line()?;
    let port = public.rsplit(':').next().and_then(|port| port.parse().ok());
    Ok((
        agent,
        port.ok_or_else(|| io::Error::other(format!("no port in {public}")))?,
    ))
}

struct Guest {
    _qemu: Process,
    socket: PathBuf,
}

impl Guest {
    fn boot(build: &Build, state: &Path) -> io::Result<Self> {
        let image = image()?;
        pack(&build.path, &image.join("initrd"), state)?;
        let socket = state.join("guest.sock");
        let mut qemu = Process::start(&Launch::new(
            "qemu-system-x86_64",
            &[
                &["-M", "pc", "-m", "512", "-smp", "1", "-nodefaults", "-no-user-config"][..],
                &["-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max"],
                &["-kernel", &image.join("vmlinuz").display().to_string()],
                &["-initrd", &state.join("initrd").display().to_string()],
                &[
                    "-append",
                    "console=ttyS0 quiet panic=-1 tsc=reliable random.trust_cpu=on mitigations=off",
                    "-serial",
                    "stdio",
                    "-serial",
                    &format!("unix:{},server=on,wait=off", socket.display()),
                    "-netdev",
                    "tap,id=net,ifname=tap0,script=no,downscript=no",
                    "-device",
                    "virtio-net-pci,netdev=net,romfile=",
                ][..],
            ]
            .concat(),
        ))?;
        qemu.says("guest ready")?;
        Ok(Self { _qemu: qemu, socket })
    }

    /// What a script in it says.
    fn run(&mut self, script: &str) -> io::Result<String> {
        output(
            Command::new("python3")
                .arg(kernel_scripts().join("guest.py"))
                .arg(&self.socket)
                .args(["60", script]),
        )
    }

    /// The bytes that a line of the guest's proc has in KiB.
    fn number(&mut self, script: &str) -> io::Result<u64> {
        let line = self.run(script)?;
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        Ok(kib.ok_or_else(|| io::Error::other(format!("no number in {line:?}")))? * 1024)
    }

    fn available(&mut self) -> io::Result<u64> {
        self.number("grep MemAvailable /proc/meminfo")
    }
}

/// The guest's own files after those of every guest: the kernel reads one archive after the other.
fn pack(program: &Path, initrd: &Path, state: &Path) -> io::Result<()> {
    let own = state.join("own");
    fs::create_dir_all(own.join("bin"))?;
    fs::create_dir_all(own.join("run"))?;
    fs::copy(program, own.join("bin/portal"))?;
    fs::write(own.join("run/hosts"), "")?;
    let script = "set -e; cd \"$1\"; \
        { ldd bin/portal || true; } | grep -o '/[^ ]*' | while read -r path; do \
            mkdir -p \"./${path%/*}\"; cp -L \"$path\" \"./$path\"; done; \
        { cat \"$2\"; find . | cpio --quiet --create --format=newc --owner=0:0; } >\"$3\"";
    output(
        Command::new("sh")
            .args(["-c", script, "pack"])
            .args([&own, initrd, &state.join("initrd")]),
    )
    .map(drop)
}

/// The folder with the guest's kernel and programs.
fn image() -> io::Result<PathBuf> {
    let scripts = kernel_scripts();
    let kept = scripts.join("../../../../target/interop-kernel");
    Ok(output(Command::new(scripts.join("image")).arg(kept))?.trim().into())
}

fn kernel_scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../portal-cli/tests/interop/kernel")
}
