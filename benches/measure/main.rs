//! Measures builds of portal: what they hold in memory, what they bear, and how fast they are.
//!
//! `measure idle|connections|peers|ceiling|guest|speed|fairness|syscalls|profile|flows|all BINARY...` runs relay and agent of each build
//! as processes of their own, on loopback, and prints Markdown; but `flows` is in memory and takes no build. Memory is that of
//! the processes, the kernel's own for their sockets not counted. `connections=5000` is one of its two counts alone.
//! `compare=DIRECTORY` is `speed` with other tunnels beside the builds, whose programs are in the directory, and
//! `distance=DIRECTORY` has delay and loss between the ends; both need root for a network of their own. A binary can come with
//! variables for its environment: `portal@MALLOC_ARENA_MAX=1`. `verdicts=FILE` holds what such runs have printed against what is asked.

mod ceiling;
mod connections;
mod distance;
mod fairness;
mod figures;
mod flows;
mod guest;
mod load;
mod network;
mod others;
mod path;
mod peers;
mod perf;
mod portal;
mod process;
mod profile;
mod speed;
mod syscalls;
mod target;
mod tunnel;
mod verdicts;
mod worker;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use portal::Build;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tunnel::Peer;

const USAGE: &str = "usage: measure idle|connections[=COUNT]|peers|ceiling|guest|speed|fairness|syscalls|profile|flows|all \
                     BINARY[@NAME=VALUE...]..., or measure compare=DIRECTORY|distance=DIRECTORY \
                     BINARY[@NAME=VALUE...]..., or measure verdicts=FILE";

/// How often each build is run where speed is compared, unless `PORTAL_RUNS` says otherwise.
const RUNS: usize = 5;

fn main() -> ExitCode {
    raise_descriptors();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ended = if worker::is_worker(&args) {
        worker::run(&args).map(|()| true)
    } else {
        run(&args)
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything held that must hold.
fn run(args: &[String]) -> io::Result<bool> {
    let (args, inside) = network::inside(args);
    let Some((what, binaries)) = args
        .split_first()
        .filter(|(what, binaries)| !binaries.is_empty() || what == &flows::NAME || what.starts_with(verdicts::NAME))
    else {
        return Err(io::Error::other(USAGE));
    };
    if let Some((verdicts::NAME, file)) = what.split_once('=') {
        return verdicts::print(file);
    }
    let builds: Vec<Build> = binaries
        .iter()
        .map(|binary| Build::new(binary))
        .collect::<io::Result<_>>()?;
    let mut peers: Vec<&dyn Peer> = builds.iter().map(|build| build as &dyn Peer).collect();
    let runs = match std::env::var("PORTAL_RUNS") {
        Ok(runs) => runs.parse().map_err(io::Error::other)?,
        Err(_) => RUNS,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if let Some((what @ ("compare" | "distance"), directory)) = what.split_once('=') {
        if !inside {
            return network::run_inside(args);
        }
        network::ip(&["link", "set", "lo", "up"])?;
        let others = others::all(Path::new(directory));
        peers.extend(others.iter().map(AsRef::as_ref));
        if what == "compare" {
            println!("{}", runtime.block_on(speed::compare(&peers, runs))?);
        } else {
            peers.retain(|peer| peer.goes_far());
            runtime.block_on(distance::over_distance(&peers))?;
        }
        return Ok(true);
    }
    let (what, count) = match what.split_once('=') {
        Some((what, count)) => (what, Some(count.parse().map_err(io::Error::other)?)),
        None => (what.as_str(), None),
    };
    if inside && what == guest::NAME {
        guest::network()?;
        let mut held = true;
        for build in &builds {
            held &= runtime.block_on(guest::figure(build))?;
        }
        return Ok(held);
    }
    let all = what == "all";
    let mut known = false;
    let mut held = true;
    let mut chosen = |name| {
        let chosen = all || what == name;
        known |= chosen;
        chosen
    };
    if chosen("idle") {
        connections::idle(&builds)?;
    }
    if chosen("connections") {
        held &= connections::many(&builds, count)?;
    }
    if chosen("peers") {
        held &= peers::many(&builds)?;
    }
    if chosen("speed") {
        println!("{}", runtime.block_on(speed::compare(&peers, runs))?);
    }
    if chosen("fairness") {
        println!("{}", runtime.block_on(fairness::compare(&peers, runs)));
    }
    if chosen("syscalls") {
        println!("{}", runtime.block_on(syscalls::compare(&peers, runs)));
    }
    if chosen("profile") {
        println!("{}", runtime.block_on(profile::compare(&peers, runs)));
    }
    if chosen(flows::NAME) {
        held &= flows::many();
    }
    if chosen("ceiling") {
        for build in &builds {
            held &= runtime.block_on(ceiling::hold(build))?;
        }
    }
    if chosen(guest::NAME) {
        held &= guest::serve(binaries)?;
    }
    if known { Ok(held) } else { Err(io::Error::other(USAGE)) }
}

/// As many as are allowed.
fn raise_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    // Where that fails, what was allowed before is.
    let _ = setrlimit(Resource::Nofile, limit);
}
