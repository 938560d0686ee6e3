//! Runs the real program: starts it, reads its lines as they come, stops it by the process it started.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running portal.
pub struct Portal {
    child: Child,
    out: Receiver<String>,
    /// Everything on stderr so far.
    err: Arc<Mutex<String>>,
    err_reader: JoinHandle<()>,
}

/// How a portal that has ended did so.
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

/// A command with an environment of its own: `home` stands for the user's.
pub fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portal"));
    command
        .args(args)
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn run(home: &Path, args: &[&str]) -> Ended {
    Portal::spawn(command(home, args)).wait()
}

impl Portal {
    pub fn start(home: &Path, args: &[&str]) -> Self {
        Self::spawn(command(home, args))
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("portal starts");
        let (lines, out) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let err = Arc::new(Mutex::new(String::new()));
        let (mut stderr, shared) = (child.stderr.take().expect("piped"), Arc::clone(&err));
        let err_reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                shared
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self {
            child,
            out,
            err,
            err_reader,
        }
    }

    /// The next line on stdout.
    #[track_caller]
    pub fn line(&self) -> String {
        match self.out.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("no line in time; stderr: {}", self.err()),
            Err(RecvTimeoutError::Disconnected) => panic!("no more lines; stderr: {}", self.err()),
        }
    }

    /// The next line on stdout, or `None` if it ends without another.
    #[track_caller]
    pub fn try_line(&self) -> Option<String> {
        match self.out.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => panic!("no line in time; stderr: {}", self.err()),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Whether the process is no more than a name.
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The state stands behind the program's name, which may have spaces.
        stat.rsplit(')')
            .next()
            .is_none_or(|rest| rest.trim_start().starts_with('Z'))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What was said on stderr.
    pub fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Waits until stderr has this text.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(&format!("{text:?} on stderr"), || {
            let err = self.err();
            if err.contains(text) { Ok(()) } else { Err(err) }
        });
    }

    /// Sends a signal: TERM, KILL.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("its state can be asked") {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => panic!("it does not end; stderr: {}", self.err()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        // The readers see the end of the pipes shortly after, unless a process that it started still has them.
        let out = self.out.iter().collect::<Vec<_>>().join("\n");
        let ended = Instant::now();
        while !self.err_reader.is_finished() && ended.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ended {
            status,
            out,
            err: self.err(),
        }
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    /// Kills it as a crash would.
    pub fn kill(self) {
        self.signal("KILL");
        self.wait();
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries until it works.
#[track_caller]
pub fn eventually<T, E: std::fmt::Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > PATIENCE => panic!("{what} did not come: {error:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A port that nobody else is given: see [`free_ports`].
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` ports in a row that are free, as TCP and as UDP, and that no other test of this process is given.
///
/// They are below those that the system hands out by itself, so that no connection of another test can take one between
/// here and its use.
pub fn free_ports(count: u16) -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let span = u32::from(PORTS.end - PORTS.start - count);
    // Another process begins elsewhere.
    let start = std::process::id().wrapping_mul(509);
    for _ in 0..span {
        let offset = start.wrapping_add(TAKEN.fetch_add(u32::from(count), Ordering::Relaxed)) % span;
        let first = PORTS.start + offset as u16;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("{count} free ports in a row");
}

fn is_free(port: u16) -> bool {
    let addr = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok()
}

/// One HTTP request on a connection of its own; the answer's status and body.
pub fn get(addr: SocketAddr, host: &str, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let head_end = head_end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((
        status.ok_or(std::io::ErrorKind::InvalidData)?,
        answer.split_off(head_end + 4),
    ))
}

/// The host and port of an http:// address.
pub fn host_of(url: &str) -> (String, u16) {
    let rest = url
        .strip_prefix("http://")
        .expect("an http address")
        .trim_end_matches('/');
    let (host, port) = rest.split_once(':').unwrap_or((rest, "80"));
    (host.to_owned(), port.parse().expect("a port"))
}
