//! Idle processes, and thousands of idle connections.

use std::io;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::portal::{Build, Pair, Setting};
use crate::process::{Usage, busy, mib, settle};
use crate::worker::{Crowd, Server, Service, local};

/// What both ends hold while nothing happens, and how large the program is.
pub(crate) fn idle(builds: &[Build]) -> io::Result<()> {
    println!("| build | stripped binary MiB | relay idle RSS MiB (own) | agent idle RSS MiB (own) |");
    println!("|---|---|---|---|");
    for build in builds {
        let pair = Pair::start(build, 9, Setting::default())?;
        let relay = settle(&pair.relay, Duration::from_secs(10))?;
        let agent = settle(&pair.agent, Duration::from_secs(10))?;
        let size = build.stripped_size().map_or("?".to_owned(), mib);
        println!(
            "| {} | {size} | {} ({}) | {} ({}) |",
            build.name,
            mib(relay.resident),
            mib(relay.anonymous),
            mib(agent.resident),
            mib(agent.anonymous)
        );
    }
    println!();
    Ok(())
}

/// How many visitors, and the most that relay and agent may hold with them, in MiB.
const STEPS: [(usize, u64); 2] = [(5_000, 64), (20_000, 240)];
/// What may be left of them when they have gone.
const LEFT: u64 = 8 * 1024 * 1024;
/// Memory the machines may commit: more than the bounds above.
const MEMORY: &str = "256M";
/// What is idle for so long has given its buffers back.
const IDLE: Duration = Duration::from_secs(15);
/// Descriptors that a relay or an agent has besides one a connection.
const OWN_FILES: usize = 64;

/// Connections that have carried one small request and are idle now, as many as `STEPS` says or `only` one of these counts.
pub(crate) fn many(builds: &[Build], only: Option<usize>) -> io::Result<bool> {
    println!("| build | connections | idle before: relay, agent RSS MiB | with them | after closing | held | load |");
    println!("|---|---|---|---|---|---|---|");
    let mut all_held = true;
    for build in builds {
        for (wanted, bound) in STEPS {
            if only.is_some_and(|only| only != wanted) {
                continue;
            }
            let count = wanted.min(files().saturating_sub(OWN_FILES));
            let server = Server::start(Service::Echo, None)?;
            let setting = Setting {
                more: &["--memory", MEMORY],
                ..Setting::default()
            };
            let pair = Pair::start(build, server.port, setting)?;
            let before = both(&pair)?;
            let mut crowd = Crowd::new(local(pair.port));
            if let Err(error) = crowd.grow_to(count) {
                all_held = false;
                println!(
                    "| {} | {count} | {} | {}: {error}, refusals {:?} | | NO | {} |",
                    build.name,
                    cells(before),
                    cells(both(&pair)?),
                    pair.refusals()?,
                    busy()
                );
                continue;
            }
            thread::sleep(IDLE);
            let full = both(&pair)?;
            // They are all still served.
            crowd.check()?;
            drop(crowd);
            thread::sleep(Duration::from_secs(5));
            let after = both(&pair)?;
            let bound = bound * 1024 * 1024;
            let held = full.iter().all(|usage| usage.resident <= bound)
                && before
                    .iter()
                    .zip(&after)
                    .all(|(before, after)| after.resident <= before.resident + LEFT);
            all_held &= held;
            let fewer = if count < wanted {
                format!(" (of {wanted}: no process here may hold more files)")
            } else {
                String::new()
            };
            println!(
                "| {} | {count}{fewer} | {} | {} | {} | {} | {} |",
                build.name,
                cells(before),
                cells(full),
                cells(after),
                if held { "yes" } else { "NO" },
                busy()
            );
        }
    }
    println!();
    Ok(all_held)
}

/// How many files a process may have open here.
fn files() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| limit as usize)
}

fn both(pair: &Pair) -> io::Result<[Usage; 2]> {
    let patience = Duration::from_secs(20);
    Ok([settle(&pair.relay, patience)?, settle(&pair.agent, patience)?])
}

fn cells(both: [Usage; 2]) -> String {
    both.map(|usage| mib(usage.resident)).join(", ")
}
