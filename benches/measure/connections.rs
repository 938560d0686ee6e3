//! Idle processes, and thousands of idle connections.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::portal::{Build, Pair, Usage, mib, settle};
use crate::target::{echo, request, visit};

/// What both ends hold while nothing happens, and how large the program is.
pub(crate) fn idle(builds: &[Build]) -> io::Result<()> {
    println!("| build | stripped binary MiB | relay idle RSS MiB (own) | agent idle RSS MiB (own) |");
    println!("|---|---|---|---|");
    for build in builds {
        let pair = Pair::start(build, 9, &[], None)?;
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

/// Connections that have carried one small request and are idle now.
pub(crate) async fn many(builds: &[Build]) -> io::Result<bool> {
    println!(
        "| build | connections | relay RSS MiB | agent RSS MiB | after closing: relay, agent (idle before) | held |"
    );
    println!("|---|---|---|---|---|---|");
    let mut all_held = true;
    for build in builds {
        for (count, bound) in STEPS {
            let target = echo().await?;
            let pair = Pair::start(build, target, &["--memory", MEMORY], None)?;
            let before = both(&pair)?;
            let mut visitors: Vec<TcpStream> = Vec::with_capacity(count);
            for number in 0..count {
                let mut visitor = visit(pair.port, number).await?;
                request(&mut visitor)
                    .await
                    .map_err(|error| io::Error::other(format!("visitor {number} of {count}: {error}")))?;
                visitors.push(visitor);
            }
            // What is idle for a while gives its buffers back.
            tokio::time::sleep(Duration::from_secs(15)).await;
            let full = both(&pair)?;
            // They are all still served.
            for visitor in visitors.iter_mut().step_by(97) {
                request(visitor).await?;
            }
            drop(visitors);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let after = both(&pair)?;
            let bound = bound * 1024 * 1024;
            let held = full.iter().all(|usage| usage.resident <= bound)
                && before
                    .iter()
                    .zip(&after)
                    .all(|(before, after)| after.resident <= before.resident + LEFT);
            all_held &= held;
            println!(
                "| {} | {count} | {} | {} | {}, {} ({}, {}) | {} |",
                build.name,
                mib(full[0].resident),
                mib(full[1].resident),
                mib(after[0].resident),
                mib(after[1].resident),
                mib(before[0].resident),
                mib(before[1].resident),
                if held { "yes" } else { "NO" }
            );
        }
    }
    println!();
    Ok(all_held)
}

fn both(pair: &Pair) -> io::Result<[Usage; 2]> {
    let patience = Duration::from_secs(20);
    Ok([settle(&pair.relay, patience)?, settle(&pair.agent, patience)?])
}
