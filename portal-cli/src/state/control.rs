//! How `portal grant`, `portal status` and `portal health` reach running relays and agents: a Unix socket each, in the
//! relay's state directory or beside the agent's key, one JSON line each way.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use portal_core::Status;
use serde::{Deserialize, Serialize};

use crate::failure::{Explain, full_disk};
use crate::process;

/// The name of the relay's socket in its state directory.
pub(crate) const RELAY_SOCKET: &str = "portal.sock";

/// What a relay or an agent is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Read the grants again and act on them. For relays only.
    Reload,
    /// Say how it is.
    Status,
}

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Whether it was done.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The relay serves everybody, so that grants mean nothing now.
    #[serde(default)]
    pub(crate) open: bool,
    /// How it is, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Status>,
}

impl Answer {
    /// It could not be done.
    pub(crate) fn failed(cause: &impl ToString) -> Self {
        Self {
            error: Some(cause.to_string()),
            ..Self::default()
        }
    }
}

/// The longest request.
const MAX_REQUEST: u64 = 4096;
/// The longest answer. The core bounds what a status lists.
const MAX_ANSWER: u64 = 8 * 1024 * 1024;
/// How long the other end may take. It is on the same machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks whoever listens on a socket; `None` if nobody does.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<Option<Answer>, ControlError> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(source) => return Err(ControlError::reaching(path.to_owned(), source)),
    };
    let exchange = || -> io::Result<Answer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    exchange()
        .map(Some)
        .map_err(|source| ControlError::reaching(path.to_owned(), source))
}

/// The running end. The socket's file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens, in place of a process that was killed. The caller sees to it that no living one has this path.
    pub(crate) fn bind(path: PathBuf) -> Result<Self, ControlError> {
        let bind = || {
            let temporary = temporary(&path)?;
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
                step: OPENING,
                path,
                source,
            }),
        }
    }

    /// Answers on a thread of its own, one caller at a time, what `act` makes of each request; until it makes nothing of
    /// one, because the program ends.
    pub(crate) fn serve(
        &self,
        mut act: impl FnMut(Request) -> Option<Answer> + Send + 'static,
    ) -> Result<(), ControlError> {
        let serve = |listener: UnixListener| {
            process::spawn("control", move || {
                loop {
                    match serve_one(&listener, &mut act) {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(error) => {
                            tracing::debug!(%error, "control socket");
                            // Should accepting fail on and on, it must not take the processor.
                            thread::sleep(Duration::from_millis(10));
                        }
                    }
                }
            })
        };
        match self.listener.try_clone().and_then(serve) {
            Ok(_) => Ok(()),
            Err(source) => Err(ControlError {
                step: OPENING,
                path: self.path.clone(),
                source,
            }),
        }
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

/// What fails where nothing is asked yet.
const OPENING: &str = "opening the socket for `portal grant` and `portal status`,";

impl ControlError {
    /// Whether it is there, but not for this user.
    pub(crate) fn is_denied(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }

    fn reaching(path: PathBuf, source: io::Error) -> Self {
        Self {
            step: "reaching the running portal by its socket",
            path,
            source,
        }
    }
}

impl Explain for ControlError {
    fn help(&self) -> Option<String> {
        Some(match self.source.kind() {
            io::ErrorKind::PermissionDenied => "run it as the user that portal runs as, or with sudo".into(),
            // A socket's address has 108 bytes.
            io::ErrorKind::InvalidInput => {
                "its path is too long: name a shorter directory with --state-dir or --key".into()
            }
            _ if self.step == OPENING => full_disk(&self.path, &self.source)
                .unwrap_or_else(|| "name another directory with --state-dir or --key".into()),
            _ => "restart that portal if it does not answer; a relay reads its grants at its start".into(),
        })
    }
}

/// Waits for the next request and for what `act` makes of it, and answers. Tells whether it made something of it.
fn serve_one(listener: &UnixListener, act: &mut impl FnMut(Request) -> Option<Answer>) -> io::Result<bool> {
    let (stream, _) = listener.accept()?;
    let mut line = String::new();
    BufReader::new(Hasty::new(&stream).take(MAX_REQUEST)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => match act(request) {
            Some(answer) => answer,
            None => return Ok(false),
        },
        Err(error) => Answer::failed(&format!("this portal does not understand that: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    Hasty::new(&stream).write_all(&line)?;
    Ok(true)
}

/// A stream whose other end has a bounded time for all that it is read from it, or written to it.
struct Hasty<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Hasty<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        let until = Instant::now() + PATIENCE;
        Self { stream, until }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Hasty<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Hasty<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".new");
    Ok(path.with_file_name(name))
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
    use std::sync::mpsc;

    #[test]
    fn asked_and_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RELAY_SOCKET);
        assert_eq!(ask(&path, &Request::Reload).unwrap(), None, "no relay");
        // A relay that was killed leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(ask(&path, &Request::Reload).unwrap(), None, "a dead relay");

        let socket = ControlSocket::bind(path.clone()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let done = Answer {
            ok: true,
            ..Answer::default()
        };
        let (tell, asked) = mpsc::channel();
        let answer = done.clone();
        socket
            .serve(move |request| {
                tell.send(request).unwrap();
                Some(answer.clone())
            })
            .unwrap();
        assert_eq!(ask(&path, &Request::Status).unwrap(), Some(done));
        assert_eq!(asked.recv(), Ok(Request::Status));

        let mut stranger = UnixStream::connect(&path).unwrap();
        stranger.write_all(b"{\"do\":\"dance\"}\n").unwrap();
        let mut said = String::new();
        stranger.read_to_string(&mut said).unwrap();
        assert!(said.contains("does not understand"), "{said}");
        assert!(asked.try_recv().is_err(), "nobody was asked to dance");

        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn an_answer_may_be_long_but_not_endless() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let socket = ControlSocket::bind(path.clone()).unwrap();
        for (len, understood) in [(1_000_000, true), (9_000_000, false)] {
            let (served, asked) = thread::scope(|scope| {
                let asked = scope.spawn(|| ask(&path, &Request::Status));
                let act = &mut |_| Some(Answer::failed(&"x".repeat(len)));
                (serve_one(&socket.listener, act), asked.join().unwrap())
            });
            assert_eq!((served.is_ok(), asked.is_ok()), (understood, understood), "{len}");
        }
    }

    #[test]
    fn who_sends_bit_by_bit_has_no_more_time_than_others() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut hasty = Hasty {
            stream: &ours,
            until: Instant::now() + Duration::from_millis(200),
        };
        let (mut read, mut dripping) = ([0; 1], 0);
        let begin = Instant::now();
        let error = loop {
            (&theirs).write_all(b"{").unwrap();
            thread::sleep(Duration::from_millis(20));
            match hasty.read(&mut read) {
                Ok(count) => dripping += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(dripping >= 2 && begin.elapsed() < PATIENCE, "{dripping}");
    }
}
