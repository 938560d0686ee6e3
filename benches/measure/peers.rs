//! A thousand idle agents at one relay.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use portal_core::identity::SecretKey;
use portal_core::{Agent, AgentConfig, AgentEvent, Kind, Service, Target};
use portal_runtime_mio::{Driver, Settings};

use crate::portal::{Build, Pair, Setting};
use crate::process::{busy, mib, settle};

const AGENTS: usize = 1_000;
/// What they may cost the relay.
const BOUND: u64 = 16 * 1024 * 1024;
/// The share of a core that it may use for them.
const BUSY: f64 = 0.005;
/// For how long that is watched: more than two of an agent's pings.
const WATCH: Duration = Duration::from_secs(60);

/// The agents run here, on a thread each; only the relay is measured.
pub(crate) fn many(builds: &[Build]) -> io::Result<bool> {
    println!("| build | agents | they cost the relay MiB | idle, a share of a core | held | load |");
    println!("|---|---|---|---|---|---|");
    let mut all_held = true;
    for build in builds {
        let pair = Pair::start(
            build,
            9,
            Setting {
                more: &["--memory", "64M"],
                ..Setting::default()
            },
        )?;
        let before = settle(&pair.relay, Duration::from_secs(10))?;
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for number in 0..AGENTS {
            let (driver, handle, mut events) = agent(&pair.uri, number)?;
            threads.push(
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || driver.run())?,
            );
            handles.push(handle);
            loop {
                match events.recv_blocking() {
                    Some(AgentEvent::RelayUp { .. }) => break,
                    Some(_) => {}
                    None => return Err(io::Error::other("an agent ended")),
                }
            }
            // The others' events are dropped.
            drop(events);
        }
        thread::sleep(Duration::from_secs(5));
        let full = pair.relay.usage()?;
        let start = Instant::now();
        thread::sleep(WATCH);
        let later = pair.relay.usage()?;
        let share = (later.cpu - full.cpu) / start.elapsed().as_secs_f64();
        for handle in &handles {
            handle.shutdown();
            handle.shutdown();
        }
        for thread in threads {
            let _ = thread.join();
        }
        let cost = later.resident.saturating_sub(before.resident);
        let held = cost <= BOUND && share < BUSY;
        all_held &= held;
        println!(
            "| {} | {AGENTS} | {} | {:.2} % | {} | {} |",
            build.name,
            mib(cost),
            share * 100.0,
            if held { "yes" } else { "NO" },
            busy()
        );
    }
    println!();
    Ok(all_held)
}

type Running = (
    Driver<Agent>,
    portal_runtime_mio::Handle<Agent>,
    portal_runtime_mio::Events<AgentEvent>,
);

fn agent(relay: &str, number: usize) -> io::Result<Running> {
    let mut secret = [7; 32];
    // Not in the first byte, three bits of which are no part of an X25519 key.
    secret[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    let relay = relay.parse().map_err(io::Error::other)?;
    let mut config = AgentConfig::new(SecretKey::from_bytes(secret), secret, relay);
    let target = Target::Host {
        host: "127.0.0.1".into(),
        port: 9,
    };
    // A service by name would need the relay's HTTP ingress, one by port a port: an agent without one is as idle.
    if number == 0 {
        config.services.push(Service::new("it", Kind::Tcp, target));
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    Driver::new(Agent::new(Instant::now(), config), socket, Settings::small())
}
