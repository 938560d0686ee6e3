//! Where a running agent can be asked how it is: a socket beside its key.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use portal_core::{Agent, Status};

use super::AgentKey;
use crate::report::Console;
use crate::runtime::Running;
use crate::state::control::{Answer, ControlSocket, Request};

/// How the sockets of agents are named whose key is not theirs alone, with the process id behind it.
const SHARED: &str = "expose-";

/// Opens the socket. An agent that cannot have one runs all the same: its key may be where it may not write.
pub(super) fn open(key: &AgentKey, console: &Console) -> Option<ControlSocket> {
    let path = if key.is_reserved() {
        beside(&key.file)
    } else {
        let directory = key.file.parent()?;
        sweep(directory);
        directory.join(format!("{SHARED}{}.sock", std::process::id()))
    };
    match ControlSocket::bind(path) {
        Ok(socket) => Some(socket),
        Err(error) => {
            console.note(format!("`portal status` cannot show this agent: {error}"));
            None
        }
    }
}

/// What a running agent says.
pub(super) fn answer(request: &Request, agent: &Running<Agent>) -> Answer {
    match request {
        Request::Status => match agent.call(|agent, now| agent.status(now)) {
            Ok(status) => Answer {
                ok: true,
                status: Some(Status::Agent(status)),
                ..Answer::default()
            },
            Err(error) => Answer::failed(&error),
        },
        Request::Reload => Answer::failed(&"this is an agent: it has no grants"),
    }
}

/// `agent.sock` for `agent.key`. Other names keep theirs in front, so that two keys never share a socket.
fn beside(key: &Path) -> PathBuf {
    match key.extension() {
        Some(extension) if extension == "key" => key.with_extension("sock"),
        _ => {
            let mut name = key.as_os_str().to_owned();
            name.push(".sock");
            name.into()
        }
    }
}

/// Removes what agents that were killed have left. Theirs have a process id for a name, which nobody would replace.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with(SHARED) && name.ends_with(".sock");
        let is_dead = || {
            let refused = UnixStream::connect(entry.path()).err();
            refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        if is_ours && is_dead() {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_socket_of_its_own() {
        let socket = |key: &str| beside(Path::new(key)).to_string_lossy().into_owned();
        assert_eq!(socket("/a/agent.key"), "/a/agent.sock");
        assert_eq!(socket("/a/agent-2.key"), "/a/agent-2.sock");
        assert_eq!(socket("/a/secret"), "/a/secret.sock");
        assert_eq!(socket("/a/agent.txt"), "/a/agent.txt.sock");
    }

    #[test]
    fn only_dead_sockets_are_swept() {
        use std::os::unix::net::UnixListener;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let alive = UnixListener::bind(at("expose-1.sock")).unwrap();
        for dead in ["expose-2.sock", "agent.sock"] {
            drop(UnixListener::bind(at(dead)).unwrap());
        }
        fs::write(at("expose-3.txt"), "").unwrap();
        sweep(directory.path());
        let there = ["expose-1.sock", "expose-2.sock", "expose-3.txt", "agent.sock"].map(|name| at(name).exists());
        assert_eq!(there, [true, false, true, true]);
        drop(alive);
    }
}
