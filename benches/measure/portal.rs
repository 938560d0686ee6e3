//! The program under test: its processes, and what the system says of them.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A build of portal.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) path: PathBuf,
    /// What `portal --version` says.
    pub(crate) name: String,
}

impl Build {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let output = Command::new(path).arg("--version").output()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self {
            path: path.canonicalize()?,
            name,
        })
    }

    /// How large it is without its symbols. `None` without `strip`.
    pub(crate) fn stripped_size(&self) -> Option<u64> {
        let directory = tempfile::tempdir().ok()?;
        let stripped = directory.path().join("portal");
        let done = Command::new("strip")
            .arg("-o")
            .args([&stripped, &self.path])
            .status()
            .ok()?;
        done.success()
            .then(|| fs::metadata(&stripped).map(|file| file.len()).ok())?
    }
}

/// A running relay or agent. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    /// Its first line on stdout: a relay's URI, an agent's public address.
    pub(crate) line: String,
    _home: Option<tempfile::TempDir>,
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// The part of it that is its own.
    pub(crate) anonymous: u64,
    /// Seconds of processor time since its start.
    pub(crate) cpu: f64,
}

impl Process {
    /// Starts portal with these arguments and waits for its first line. `within` is a cgroup's file of processes.
    pub(crate) fn start(build: &Build, args: &[&str], within: Option<&Path>) -> io::Result<Self> {
        let home = tempfile::tempdir()?;
        let mut command = match within {
            None => Command::new(&build.path),
            Some(procs) => {
                let mut command = Command::new("sh");
                command
                    .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
                    .arg(procs)
                    .arg(&build.path);
                command
            }
        };
        let log = fs::File::create(home.path().join("log"))?;
        let mut child = command
            .args(args)
            .env_clear()
            .env("HOME", home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        if line.is_empty() {
            let said = fs::read_to_string(home.path().join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("portal {args:?} ended: {said}")));
        }
        Ok(Self {
            child,
            line: line.trim().to_owned(),
            _home: Some(home),
        })
    }

    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(process.join("status"))?;
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        let stat = fs::read_to_string(process.join("stat"))?;
        // Behind the name, which may hold anything: fields 14 and 15 of all are the 12th and 13th from there.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields[11..13]
            .iter()
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        Ok(Usage {
            resident: field("VmRSS:"),
            anonymous: field("RssAnon:"),
            cpu: ticks / rustix::param::clock_ticks_per_second() as f64,
        })
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A relay that serves everybody, and an agent with one TCP service.
pub(crate) struct Pair {
    pub(crate) relay: Process,
    pub(crate) agent: Process,
    /// Where visitors come in.
    pub(crate) port: u16,
    /// Where operators ask the relay.
    pub(crate) admin: u16,
    /// Its tunnel.
    pub(crate) udp: u16,
    _state: tempfile::TempDir,
}

impl Pair {
    /// Starts both for a target on loopback; `more` goes to both, and the relay into a cgroup if there is one.
    pub(crate) fn start(build: &Build, target: u16, more: &[&str], within: Option<&Path>) -> io::Result<Self> {
        let state = tempfile::tempdir()?;
        let (udp, admin, first) = (port(1), port(1), port(4));
        let relay = Process::start(
            build,
            &[
                &[
                    "--quiet",
                    "relay",
                    "--domain",
                    "localhost",
                    "--udp",
                    &format!("127.0.0.1:{udp}"),
                    "--http",
                    "off",
                    "--https",
                    "off",
                    "--ports",
                    &format!("{first}-{}", first + 3),
                    "--access",
                    "open",
                    "--admin",
                    &format!("127.0.0.1:{admin}"),
                    "--state-dir",
                    &state.path().join("relay").display().to_string(),
                ],
                more,
            ]
            .concat(),
            within,
        )?;
        let agent = Process::start(
            build,
            &[
                &[
                    "--quiet",
                    "expose",
                    &format!("tcp://127.0.0.1:{target}"),
                    "--relay",
                    &relay.line,
                    "--key",
                    &state.path().join("agent.key").display().to_string(),
                ],
                more,
            ]
            .concat(),
            None,
        )?;
        let port = agent.line.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::other(format!("no port in {}", agent.line)))?;
        Ok(Self {
            relay,
            agent,
            port,
            admin,
            udp,
            _state: state,
        })
    }

    /// The relay's counters of refusals that are not zero, by name.
    pub(crate) fn refusals(&self) -> io::Result<Vec<(String, f64)>> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains("refused"))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .filter(|(_, value)| *value > 0.0)
            .collect())
    }
}

/// The first of so many ports in a row that nobody else here is given, below those of the system.
pub(crate) fn port(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(97) as u16 % 5_000;
    12_000 + start + NEXT.fetch_add(count, Ordering::Relaxed)
}

/// Waits until memory has come to rest, or for so long.
pub(crate) fn settle(process: &Process, patience: Duration) -> io::Result<Usage> {
    let start = Instant::now();
    let mut last = process.usage()?;
    loop {
        thread::sleep(Duration::from_secs(1));
        let usage = process.usage()?;
        if usage.resident.abs_diff(last.resident) < 64 * 1024 || start.elapsed() > patience {
            return Ok(usage);
        }
        last = usage;
    }
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1024.0 * 1024.0))
}
