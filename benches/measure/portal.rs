//! The program under test: its builds, and a relay and an agent of one.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Launch, Process, port};

/// A build of portal, with the environment that it is to run in.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) path: PathBuf,
    /// What `portal --version` says, and what else tells it from others.
    pub(crate) name: String,
    variables: Vec<(String, String)>,
}

impl Build {
    /// `PATH` or `PATH@NAME=VALUE@NAME=VALUE`.
    pub(crate) fn new(argument: &str) -> io::Result<Self> {
        let mut words = argument.split('@');
        let path = Path::new(words.next().unwrap_or_default());
        let variables: Vec<(String, String)> = words
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let output = Command::new(path)
            .arg("--version")
            .output()
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        let mut name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file != "portal" {
            name = format!("{name}, {file}");
        }
        for (variable, value) in &variables {
            name = format!("{name}, {variable}={value}");
        }
        Ok(Self {
            path: path.canonicalize()?,
            name,
            variables,
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

    fn launch(&self, args: &[&str]) -> Launch {
        Launch {
            variables: self.variables.clone(),
            ..Launch::new(&self.path, args)
        }
    }
}

/// Where the two ends of a pair run, and what they are told beyond the usual.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setting<'a> {
    /// For both.
    pub(crate) more: &'a [&'a str],
    /// The cgroup that the relay goes into.
    pub(crate) cgroup: Option<&'a Path>,
    /// The namespace that the agent goes into.
    pub(crate) namespace: Option<&'a str>,
    /// The relay's address there. On loopback unless given.
    pub(crate) relay: Option<&'a str>,
}

/// A relay that serves everybody, and an agent with one TCP service.
pub(crate) struct Pair {
    pub(crate) relay: Process,
    pub(crate) agent: Process,
    /// What the relay printed.
    pub(crate) uri: String,
    /// Where visitors come in.
    pub(crate) port: u16,
    /// Where operators ask the relay.
    admin: u16,
    /// Its tunnel.
    pub(crate) udp: u16,
    /// Keys and what else both keep.
    pub(crate) state: tempfile::TempDir,
}

impl Pair {
    /// Starts both for a target on the agent's loopback.
    pub(crate) fn start(build: &Build, target: u16, setting: Setting<'_>) -> io::Result<Self> {
        let state = tempfile::tempdir()?;
        let (udp, admin, first) = (port(1), port(1), port(4));
        let address = setting.relay.unwrap_or("127.0.0.1");
        let mut launch = build.launch(
            &[
                &[
                    "--quiet",
                    "relay",
                    "--domain",
                    address,
                    "--udp",
                    &format!("{address}:{udp}"),
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
                setting.more,
            ]
            .concat(),
        );
        launch.cgroup = setting.cgroup.map(Path::to_owned);
        let mut relay = Process::start(launch)?;
        let uri = relay.first_line()?;
        let mut launch = build.launch(
            &[
                &[
                    "--quiet",
                    "expose",
                    &format!("tcp://127.0.0.1:{target}"),
                    "--relay",
                    &uri,
                    "--key",
                    &state.path().join("agent.key").display().to_string(),
                ],
                setting.more,
            ]
            .concat(),
        );
        launch.namespace = setting.namespace.map(str::to_owned);
        let mut agent = Process::start(launch)?;
        let public = agent.first_line()?;
        let port = public.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::other(format!("no port in {public}")))?;
        Ok(Self {
            relay,
            agent,
            uri,
            port,
            admin,
            udp,
            state,
        })
    }

    /// The relay's counters of refusals that are not zero, by name.
    pub(crate) fn refusals(&self) -> io::Result<Vec<(String, f64)>> {
        let counters = self.counters()?;
        Ok(counters
            .into_iter()
            .filter(|(name, value)| name.contains("refused") && *value > 0.0)
            .collect())
    }

    fn counters(&self) -> io::Result<Vec<(String, f64)>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect())
    }
}
