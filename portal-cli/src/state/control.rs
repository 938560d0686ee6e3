//! How `portal grant` reaches the running relay: a Unix socket in the state directory, one JSON line each way.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::StateDir;
use crate::failure::Explain;

/// What the relay is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Read the grants again and act on them.
    Reload,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Whether it was done.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The relay serves everybody, so that grants mean nothing now.
    #[serde(default)]
    pub(crate) open: bool,
}

/// The longest line.
const MAX_LINE: u64 = 4096;
/// How long the other end may take. It is on the same machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the running relay; `None` if there is none.
pub(crate) fn ask(state: &StateDir, request: &Request) -> Result<Option<Answer>, ControlError> {
    let path = state.file("portal.sock");
    let mut stream = match StdStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(source) => return Err(ControlError::reaching(path, source)),
    };
    let exchange = || -> io::Result<Answer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    exchange()
        .map(Some)
        .map_err(|source| ControlError::reaching(path, source))
}

/// The relay's end. The socket's file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens, in place of a relay that was killed. The caller has the directory's lock, so no other one is alive.
    pub(crate) fn bind(state: &StateDir) -> Result<Self, ControlError> {
        let path = state.file("portal.sock");
        let bind = || {
            let temporary = state.file(".portal.sock.new");
            remove(&temporary)?;
            let listener = UnixListener::bind(&temporary)?;
            // Before it has its name: nobody else may ever connect.
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            fs::rename(&temporary, &path)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ControlError {
                step: "opening the relay's socket for `portal grant`,",
                path,
                source,
            }),
        }
    }

    /// Waits for the next request and for what `act` makes of it, and answers. One caller at a time.
    pub(crate) async fn serve_one(&self, act: impl AsyncFnOnce(Request) -> Answer) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept().await?;
        let request = tokio::time::timeout(PATIENCE, receive(&mut stream)).await??;
        let answer = match request {
            Ok(request) => act(request).await,
            Err(error) => Answer {
                ok: false,
                error: Some(format!("this relay does not understand that: {error}")),
                open: false,
            },
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        tokio::time::timeout(PATIENCE, stream.write_all(&line)).await?
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {source}", .path.display())]
pub(crate) struct ControlError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl ControlError {
    fn reaching(path: PathBuf, source: io::Error) -> Self {
        Self {
            step: "reaching the relay by its socket",
            path,
            source,
        }
    }
}

impl Explain for ControlError {
    fn help(&self) -> Option<String> {
        Some(match self.source.kind() {
            io::ErrorKind::PermissionDenied => "run it as the user the relay runs as, or with sudo".into(),
            // A socket's address has 108 bytes.
            io::ErrorKind::InvalidInput => "its path is too long: name a shorter directory with --state-dir".into(),
            _ => "grants are read at the relay's start: restart it if it does not answer".into(),
        })
    }
}

async fn receive(stream: &mut UnixStream) -> io::Result<serde_json::Result<Request>> {
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(MAX_LINE))
        .read_line(&mut line)
        .await?;
    Ok(serde_json::from_str(&line))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asked_and_answered() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(directory.path())).unwrap();
        assert_eq!(ask(&state, &Request::Reload).unwrap(), None, "no relay");
        // A relay that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(state.file("portal.sock")).unwrap());
        assert_eq!(ask(&state, &Request::Reload).unwrap(), None, "a dead relay");

        let socket = ControlSocket::bind(&state).unwrap();
        assert_eq!(socket.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let done = Answer {
            ok: true,
            error: None,
            open: false,
        };
        let asked = tokio::task::spawn_blocking({
            let state = state.clone();
            move || ask(&state, &Request::Reload)
        });
        socket
            .serve_one(async |request| {
                assert_eq!(request, Request::Reload);
                done.clone()
            })
            .await
            .unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), Some(done));

        let mut stranger = StdStream::connect(&socket.path).unwrap();
        stranger.write_all(b"{\"do\":\"dance\"}\n").unwrap();
        socket.serve_one(async |_| unreachable!()).await.unwrap();
        let mut said = String::new();
        stranger.read_to_string(&mut said).unwrap();
        assert!(said.contains("does not understand"), "{said}");

        let path = socket.path.clone();
        drop(socket);
        assert!(!path.exists());
    }
}
