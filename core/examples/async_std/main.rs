//! A relay and an agent on loopback, in one process, on async-std.
//!
//! `cargo run -p portal-core --example async_std -- PORT` serves the local TCP port `PORT` on another one, through the
//! tunnel between the two, until Enter is pressed or the input ends.
//!
//! async-std has reached its end of life upstream. It is here to show that the border of the core holds: `adapter` is
//! all that async-std has to bring to the engine that the runtimes share, and it passes the conformance suite
//! (`core/tests/async_std.rs`). Nothing that is shipped uses it; `runtime-tokio` and `runtime-mio` are what to build on.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a runtime owns sockets, clock and threads"
)]

mod adapter;

use std::error::Error;
use std::io::stdin;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use async_std::fs::File;
use async_std::io::ReadExt;
use async_std::task::{block_on, spawn};
use portal_core::identity::SecretKey;
use portal_core::{Access, Agent, AgentConfig, AgentEvent, Kind, Relay, RelayConfig, Service, Target};

use adapter::Driver;

/// How long the end waits for connections that are open.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|port| port.parse().ok()) else {
        eprintln!("usage: async_std PORT, where PORT is the local TCP port to serve, such as 3000");
        return ExitCode::from(2);
    };
    match block_on(serve(port)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let secret = SecretKey::from_bytes(random().await?);
    let uri = format!("portal://{}@{}", secret.public_key().url_safe(), socket.local_addr()?).parse()?;
    let mut config = RelayConfig::new(secret, random().await?, "localhost".into());
    config.ports = Some(24_000..=24_999);
    config.ports_ip = Ipv4Addr::LOCALHOST.into();
    config.access = Access::Open;
    // Nobody listens to what it tells.
    let (relay, relay_handle, _) = Driver::new(Relay::new(Instant::now(), config), socket, GRACE)?;
    let relay = spawn(relay.run());

    let mut config = AgentConfig::new(SecretKey::from_bytes(random().await?), random().await?, uri);
    let host = Ipv4Addr::LOCALHOST.to_string();
    let target = Target::Host { host, port };
    config.services.push(Service::new("example", Kind::Tcp, target));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (agent, agent_handle, events) = Driver::new(Agent::new(Instant::now(), config), socket, GRACE)?;
    let agent = spawn(agent.run());

    thread::spawn(move || {
        for event in events {
            match event {
                AgentEvent::Granted { public, .. } => println!("{public}"),
                other => eprintln!("{other:?}"),
            }
        }
    });
    thread::spawn(move || {
        // A failure to read is an end as well.
        let _ = stdin().read_line(&mut String::new());
        if let Some(status) = agent_handle.call(|agent, now| agent.status(now)) {
            eprintln!("served {} connections", status.connections.total);
        }
        agent_handle.shutdown();
        relay_handle.shutdown();
    });
    let finished = agent.await & relay.await;
    if finished {
        Ok(())
    } else {
        Err("connections were cut off".into())
    }
}

async fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").await?.read_exact(&mut bytes).await?;
    Ok(bytes)
}
