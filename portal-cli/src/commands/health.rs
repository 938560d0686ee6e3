//! `portal health`: whether visitors can be served, as an exit code.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use portal_core::Status;
use serde_json::json;

use crate::cli::{HealthArgs, Output};
use crate::failure::{Explain, Failure};
use crate::report::{self, foreign};
use crate::state::running;

/// How long connecting, sending and each part of the answer may take: less than containers' health checks wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks, and succeeds if all that was asked is ready.
pub(crate) fn run(args: &HealthArgs, output: Output) -> Result<(), Failure> {
    match args.admin {
        Some(addr) => ask_admin(addr.0)?,
        None => {
            for status in running::statuses(args.place.state_dir.as_deref())? {
                let (who, not_ready) = match status {
                    Status::Relay(relay) => (format!("the relay {}", foreign(&relay.domain)), relay.not_ready),
                    Status::Agent(agent) => (format!("the agent {}", agent.key.short()), agent.not_ready),
                };
                if let Some(reason) = not_ready {
                    let reason = foreign(&reason);
                    return Err(HealthError::NotReady { who, reason }.into());
                }
            }
        }
    }
    report::print_result(output, "ready", &json!({"ready": true}));
    Ok(())
}

/// By a plain request: a health check needs no more of HTTP than this.
fn ask_admin(addr: SocketAddr) -> Result<(), HealthError> {
    let addr = reachable(addr);
    let unreachable = |source| HealthError::Unreachable { addr, source };
    let answer = exchange(addr).map_err(unreachable)?;
    let malformed = || unreachable(io::Error::new(io::ErrorKind::InvalidData, "the answer is not portal's"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some("503") => Err(HealthError::NotReady {
            who: format!("the portal at {addr}"),
            reason: foreign(body.lines().next().unwrap_or_default()),
        }),
        _ => Err(malformed()),
    }
}

fn exchange(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /readyz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Where an address that stands for all of a machine's can be connected to.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Why it is not healthy.
#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("{who} is not ready: {reason}")]
    NotReady { who: String, reason: String },
    #[error("asking at {addr} whether portal is ready: {source}")]
    Unreachable { addr: SocketAddr, source: io::Error },
}

impl Explain for HealthError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NotReady { .. } => None,
            Self::Unreachable { .. } => Some("check that a relay or an agent runs with --admin at this address".into()),
        }
    }
}
