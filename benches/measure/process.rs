//! Programs that run beside this one, and what the system says of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What it takes to start a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// Its whole environment but for `HOME` and `PATH`.
    pub(crate) variables: Vec<(String, String)>,
    /// A cgroup's file of processes.
    pub(crate) cgroup: Option<PathBuf>,
    /// A network namespace other than this process's.
    pub(crate) namespace: Option<String>,
}

impl Launch {
    pub(crate) fn new(program: impl Into<PathBuf>, args: &[&str]) -> Self {
        Self {
            program: program.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The program itself, or what leads to it. Each step replaces the one before: the process keeps its id.
    fn command(&self) -> Command {
        let mut words: Vec<PathBuf> = Vec::new();
        if let Some(procs) = &self.cgroup {
            words.extend(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""].map(PathBuf::from));
            words.push(procs.clone());
        }
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(PathBuf::from));
        }
        words.push(self.program.clone());
        words.extend(self.args.iter().map(PathBuf::from));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

/// A running program. It is killed when this is dropped, and those that it has started with it.
pub(crate) struct Process {
    launch: Launch,
    child: Child,
    home: tempfile::TempDir,
}

/// What a process uses, with those that it has started and that run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// The part of it that is its own.
    pub(crate) anonymous: u64,
    /// Seconds of processor time since its start.
    pub(crate) cpu: f64,
}

/// How long a program may take until it is of use.
const PATIENCE: Duration = Duration::from_secs(60);

impl Process {
    /// Starts a program, with an own directory as its home.
    pub(crate) fn start(launch: &Launch) -> io::Result<Self> {
        let home = tempfile::tempdir()?;
        let child = spawn(launch, home.path())?;
        Ok(Self {
            launch: launch.clone(),
            child,
            home,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and starts it again as it was.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = spawn(&self.launch, self.home.path())?;
        Ok(())
    }

    fn kill(&mut self) {
        // Its children first: they would belong to nobody.
        for process in descendants(self.child.id()) {
            if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the first line of its output.
    pub(crate) fn first_line(&mut self) -> io::Result<String> {
        self.wait_for("a line", |home| {
            let said = fs::read_to_string(home.join("out")).ok()?;
            said.split_once('\n').map(|(line, _)| line.trim().to_owned())
        })
    }

    /// Waits until its log says so.
    pub(crate) fn says(&mut self, words: &str) -> io::Result<()> {
        self.wait_for(words, |home| {
            let said = |file| fs::read_to_string(home.join(file)).unwrap_or_default();
            (said("log").contains(words) || said("out").contains(words)).then_some(())
        })
    }

    fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&Path) -> Option<T>) -> io::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self.home.path()) {
                return Ok(found);
            }
            let ended = !self.is_running();
            if ended || start.elapsed() > PATIENCE {
                let program = self.launch.program.display();
                let how = if ended { "ended" } else { "does not come" };
                return Err(io::Error::other(format!(
                    "{program}: no {what}, it {how}: {}",
                    self.log()
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has written to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut sum = usage_of(self.child.id())?;
        for process in descendants(self.child.id()) {
            // It may have ended.
            if let Ok(usage) = usage_of(process) {
                sum.resident += usage.resident;
                sum.anonymous += usage.anonymous;
                sum.cpu += usage.cpu;
            }
        }
        Ok(sum)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn usage_of(process: u32) -> io::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    let ticks: f64 = stat(process)?[11..13]
        .iter()
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Ok(Usage {
        resident: field("VmRSS:"),
        anonymous: field("RssAnon:"),
        cpu: ticks / rustix::param::clock_ticks_per_second() as f64,
    })
}

/// The fields of /proc/PID/stat behind the name, which may hold anything: the third of all is the first here.
fn stat(process: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = text.rsplit(')').next().unwrap_or("").split_whitespace();
    let fields: Vec<String> = fields.map(str::to_owned).collect();
    if fields.len() < 13 {
        return Err(io::Error::other("a line of another kind in /proc"));
    }
    Ok(fields)
}

/// Those that a process has started, and those that they have.
fn descendants(process: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|process| Some((process, stat(process).ok()?[1].parse().ok()?)))
        .collect();
    let mut found = vec![process];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(process, _)| process),
        );
        next += 1;
    }
    found.split_off(1)
}

/// Its output and log are files, so that it never waits for a reader.
fn spawn(launch: &Launch, home: &Path) -> io::Result<Child> {
    launch
        .command()
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(launch.variables.iter().map(|(name, value)| (name, value)))
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(File::create(home.join("out"))?)
        .stderr(File::create(home.join("log"))?)
        .spawn()
        .map_err(|error| io::Error::other(format!("{}: {error}", launch.program.display())))
}

/// The first of so many ports in a row that nobody else here is given, below those of the system.
pub(crate) fn port(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(97) as u16 % 5_000;
    12_000 + start + NEXT.fetch_add(count, Ordering::Relaxed)
}

/// What is the same for so long has come to rest: a program that has nothing to do gives back more after three seconds.
const REST: Duration = Duration::from_secs(5);

/// Waits until memory has come to rest, or for so long.
pub(crate) fn settle(process: &Process, patience: Duration) -> io::Result<Usage> {
    let start = Instant::now();
    let mut last = process.usage()?;
    loop {
        thread::sleep(REST);
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

/// How busy the machine was in the last minute, for the notes of a table.
pub(crate) fn busy() -> String {
    let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split_whitespace().next().unwrap_or("?").to_owned()
}

/// What a program that must succeed prints.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command
        .output()
        .map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last = said.lines().last().unwrap_or("it says nothing");
        return Err(io::Error::other(format!("{program}: {last}")));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
