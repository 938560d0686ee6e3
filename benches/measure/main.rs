//! Measures builds of portal: what they hold in memory, what they bear, and how fast they are.
//!
//! `measure idle|connections|peers|ceiling|speed|all BINARY...` runs relay and agent of each build as processes of their
//! own, on loopback, and prints Markdown. Memory is that of the processes, the kernel's own for their sockets not counted.

mod ceiling;
mod connections;
mod peers;
mod portal;
mod speed;
mod target;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use portal::Build;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Twenty thousand connections at each of three processes' ends.
const DESCRIPTORS: u64 = 100_000;

const USAGE: &str = "usage: measure idle|connections|peers|ceiling|speed|all BINARY...";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let what = args.next().and_then(|what| what.into_string().ok()).unwrap_or_default();
    let paths: Vec<PathBuf> = args.map(PathBuf::from).collect();
    if paths.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match run(&what, &paths) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything held that must hold.
fn run(what: &str, paths: &[PathBuf]) -> io::Result<bool> {
    raise_descriptors();
    let builds: Vec<Build> = paths.iter().map(|path| Build::new(path)).collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let _inside = runtime.enter();
    let all = what == "all";
    let mut known = false;
    let mut held = true;
    if all || what == "idle" {
        connections::idle(&builds)?;
        known = true;
    }
    if all || what == "connections" {
        held &= runtime.block_on(connections::many(&builds))?;
        known = true;
    }
    if all || what == "peers" {
        held &= peers::many(&builds)?;
        known = true;
    }
    if all || what == "speed" {
        runtime.block_on(speed::compare(&builds))?;
        known = true;
    }
    if all || what == "ceiling" {
        for build in &builds {
            held &= runtime.block_on(ceiling::hold(build))?;
        }
        known = true;
    }
    if !known {
        eprintln!("{USAGE}");
        return Ok(false);
    }
    Ok(held)
}

fn raise_descriptors() {
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    if setrlimit(Resource::Nofile, limit).is_err() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
        eprintln!("measure: no more than {maximum:?} files can be open here: large counts will be refused");
    }
}
