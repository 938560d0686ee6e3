//! Other tunnels, set up as their users do.

mod bore;
mod rathole;
mod ssh;
mod wireguard;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::tunnel::{Ends, Peer};

/// Those that can run here. Their programs are in the directory or where the system has its own; of the others it is printed
/// what they lack.
pub(crate) fn all(directory: &Path) -> Vec<Box<dyn Peer>> {
    let find = |name: &str| find(directory, name);
    let tried = [
        ("bore", bore::peers(find)),
        ("rathole", rathole::peers(find)),
        ("ssh", ssh::peers(find)),
        ("wireguard-go and onetun", wireguard::peers(find)),
    ];
    let mut all = Vec::new();
    for (what, peers) in tried {
        match peers {
            Ok(peers) => all.extend(peers),
            Err(error) => eprintln!("without {what}: {error}"),
        }
    }
    all
}

fn find(directory: &Path, name: &str) -> io::Result<PathBuf> {
    let places = [directory, Path::new("/usr/bin"), Path::new("/usr/sbin")];
    let mut paths = places.iter().map(|place| place.join(name));
    let found = paths.find(|path| path.is_file());
    let found = found.ok_or_else(|| {
        let places = places.map(|place| place.display().to_string()).join(", ");
        io::Error::other(format!("no {name} in {places}"))
    })?;
    // They run in directories of their own.
    found.canonicalize()
}

/// The first words of what a program says of its version.
fn version(program: &Path, args: &[&str]) -> io::Result<String> {
    let done = Command::new(program).args(args).output()?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let mut words = said.lines().next().unwrap_or_default().split([',', ' ']);
    let words: Vec<&str> = words.by_ref().filter(|word| !word.is_empty()).take(2).collect();
    Ok(words.join(" "))
}

/// A tunnel, once visitors can connect.
fn open(addr: SocketAddr, relay: Process, client: Process, state: Option<tempfile::TempDir>) -> io::Result<Ends> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
            Ok(_) => {
                return Ok(Ends {
                    addr,
                    relay,
                    client,
                    _state: state,
                });
            }
            Err(error) if start.elapsed() > Duration::from_secs(20) => {
                return Err(io::Error::other(format!("{error}: {}", client.log())));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
