//! Which relays and agents run here, and how they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use portal_core::Status;

use super::control::{self, ControlError, RELAY_SOCKET, Request};
use super::{SYSTEM_DIR, user_state_dir};
use crate::failure::Explain;

/// How the names of sockets end.
const SOCKET: &str = "sock";

/// Asks all that run and have a socket in this directory; without one, in the places where they usually are. The relay
/// first, then agents by name. There is always one.
pub(crate) fn statuses(directory: Option<&Path>) -> Result<Vec<Status>, RunningError> {
    let places = match directory {
        Some(directory) => vec![directory.to_owned()],
        None => {
            let user = user_state_dir();
            let relay = user.as_ref().map(|user| user.join("relay"));
            // In a container the user's is the system's.
            let user = user.filter(|user| user != SYSTEM_DIR);
            [Some(PathBuf::from(SYSTEM_DIR)), relay, user]
                .into_iter()
                .flatten()
                .collect()
        }
    };
    let (mut statuses, mut closed) = (Vec::new(), Vec::new());
    for place in &places {
        let sockets = match sockets(place) {
            Ok(sockets) => sockets,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                closed.push(place.clone());
                continue;
            }
            Err(_) => continue,
        };
        for path in sockets {
            match status(path.clone()) {
                Ok(status) => statuses.extend(status),
                // Another user's must not hide one's own.
                Err(RunningError::Control(error)) if error.is_denied() => closed.push(path),
                Err(error) => return Err(error),
            }
        }
    }
    if statuses.is_empty() {
        return Err(RunningError::Nothing { places, closed });
    }
    Ok(statuses)
}

/// The sockets in a directory.
fn sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == SOCKET) && !is_hidden {
            sockets.push(path);
        }
    }
    sockets.sort_unstable_by_key(|path| (!path.ends_with(RELAY_SOCKET), path.clone()));
    Ok(sockets)
}

/// `None` if nobody listens there any more.
fn status(path: PathBuf) -> Result<Option<Status>, RunningError> {
    let Some(answer) = control::ask(&path, &Request::Status)? else {
        return Ok(None);
    };
    match (answer.status, answer.error) {
        (Some(status), _) => Ok(Some(status)),
        (None, cause) => Err(RunningError::Refused {
            path,
            cause: cause.unwrap_or_else(|| "it gave no status".into()),
        }),
    }
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunningError {
    /// Nothing runs, as far as can be seen.
    #[error("no relay and no agent is running: looked in {}{}", list(places), unreadable(closed))]
    Nothing {
        /// Where was looked.
        places: Vec<PathBuf>,
        /// Those of them, and sockets in them, that this user may not use.
        closed: Vec<PathBuf>,
    },
    /// It runs, but cannot be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It runs, and has no answer.
    #[error("the portal behind {} does not say how it is: {cause}", .path.display())]
    Refused {
        /// Its socket.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

impl Explain for RunningError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Nothing { closed, .. } if !closed.is_empty() => {
                Some("run it as the user that portal runs as, or with sudo".into())
            }
            Self::Nothing { .. } => Some(
                "a relay with a state directory of its own, or an agent with a key elsewhere, is found with --state-dir \
                 DIR"
                    .into(),
            ),
            Self::Control(error) => error.help(),
            Self::Refused { .. } => Some("it may be another version of portal: restart it with this one".into()),
        }
    }
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    places.join(", ")
}

fn unreadable(closed: &[PathBuf]) -> String {
    if closed.is_empty() {
        return String::new();
    }
    format!(" ({} may not be used by this user)", list(closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = statuses(Some(directory.path())).unwrap_err();
        assert!(error.to_string().contains(&directory.path().display().to_string()));
        // Leftovers of what was killed, and other files, are nothing that runs.
        for name in ["portal.sock", "agent.sock", ".agent.sock.new", ".x.sock"] {
            drop(std::os::unix::net::UnixListener::bind(directory.path().join(name)).unwrap());
        }
        fs::write(directory.path().join("agent.key"), "").unwrap();
        let found = sockets(directory.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["portal.sock", "agent.sock"]);
        let error = statuses(Some(directory.path())).unwrap_err();
        assert!(matches!(error, RunningError::Nothing { closed, .. } if closed.is_empty()));
    }
}
