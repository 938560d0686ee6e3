//! A look at the targets at the start.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use portal_core::{Kind, Service, Target};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::process;
use crate::report::Console;

/// How long the look at one target may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many are looked at at a time.
const AT_ONCE: usize = 8;

/// Says of each service at whose target nothing answers: it may come later, but often the port is wrong.
pub(super) fn all(services: Vec<Service>, console: &Console) {
    let count = services.len().min(AT_ONCE);
    let services = Arc::new(Mutex::new(services.into_iter()));
    for _ in 0..count {
        let (services, console) = (Arc::clone(&services), console.clone());
        let next = move || services.lock().unwrap_or_else(PoisonError::into_inner).next();
        let look = move || {
            while let Some(service) = next() {
                one(&service, &console);
            }
        };
        if let Err(error) = process::spawn("probe", look) {
            tracing::debug!(%error, "a target is not looked at");
        }
    }
}

fn one(service: &Service, console: &Console) {
    let target = &service.target;
    let reached = match target {
        // Nobody answers there until there is something to answer.
        _ if service.kind == Kind::Udp => return,
        Target::Host { host, port } => reach_host(host, *port),
        Target::Unix(path) => reach_unix(Path::new(path)),
        _ => return,
    };
    let cause = match reached {
        Ok(()) => return,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => "no answer".into(),
        Err(error) => error.to_string(),
    };
    console.problem(format!(
        "nothing takes connections at {target} now ({cause})\n  help: start the service, or check the address; visitors \
         are let in as soon as it is there"
    ));
}

/// Connects to the first of a host's addresses that takes it.
fn reach_host(host: &str, port: u16) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for addr in (host, port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&addr, left) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Does not wait: a socket whose queue is full says so.
fn reach_unix(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(())
}
