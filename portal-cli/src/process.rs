//! What belongs to the process as a whole: its runtime, its log, its limits, its signals.

use std::io::{self, IsTerminal as _};
use std::panic;
use std::time::Duration;

use portal_runtime_tokio::Settings;
use rustix::process::{Resource, Rlimit, getpid, getrlimit, kill_process, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::failure::{Exit, Explain};
use crate::report;

/// Threads for what blocks: look-ups, files.
const BLOCKING_THREADS: usize = 16;

/// How long an end waits for open connections. Less than the 10 s after which `docker stop` kills; an idle browser holds
/// its connection for minutes.
const GRACE: Duration = Duration::from_secs(5);

/// Events that may wait. More than one turn of a machine makes, or a flood of visitors would hide the binding of a name.
const EVENTS: usize = 8192;

/// Without PORTAL_LOG. What concerns the user is printed by the commands themselves.
const DEFAULT_LOG: &str = "warn,boringtun=off,smoltcp=off";

/// Turns a fault of the program's own into a sentence. A backtrace comes with RUST_BACKTRACE.
pub(crate) fn hide_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
        let message = info.payload_as_str().unwrap_or("no message");
        report::print_error(&format!(
            "error: portal has met a fault of its own{}: {message}\n  help: this is a bug: please report it with \
             these lines and portal's version, {}",
            place.unwrap_or_default(),
            env!("CARGO_PKG_VERSION"),
        ));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            report::print_error(&std::backtrace::Backtrace::force_capture().to_string());
        }
        // Nothing can be relied on from here, and another thread may wait for this one.
        std::process::exit(1);
    }));
}

/// Sends the log to stderr, filtered by PORTAL_LOG.
pub(crate) fn start_logging() -> Result<(), ProcessError> {
    let filter = match std::env::var("PORTAL_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| ProcessError::Log {
            text,
            error: error.to_string(),
        })?,
        _ => EnvFilter::new(DEFAULT_LOG),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// The runtime of one machine: a single thread, as the machine is one.
pub(crate) fn runtime() -> Result<Runtime, ProcessError> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(ProcessError::Runtime)
}

/// How machines are driven here.
pub(crate) fn settings() -> Settings {
    Settings {
        shutdown_grace: GRACE,
        event_queue: EVENTS,
        ..Settings::default()
    }
}

/// Ends a runtime without waiting for a thread that is stuck in a file system or a resolver.
pub(crate) fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

/// Takes as many file descriptors as the system grants: the soft limit is there for programs that use `select`.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "raising the limit of descriptors");
        }
    }
}

/// The signals that ask the program to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes them over from the system's default, which is to die.
    pub(crate) fn new() -> Result<Self, ProcessError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(ProcessError::Runtime)?,
            terminate: signal(SignalKind::terminate()).map_err(ProcessError::Runtime)?,
        })
    }

    /// Waits for the next.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The signal that asks a service to read its files again.
pub(crate) struct Hangups {
    hangup: Signal,
    on_terminal: bool,
}

impl Hangups {
    /// Takes it over from the system's default, which is to die.
    pub(crate) fn new() -> Result<Self, ProcessError> {
        Ok(Self {
            hangup: signal(SignalKind::hangup()).map_err(ProcessError::Runtime)?,
            on_terminal: io::stdin().is_terminal(),
        })
    }

    /// Waits for the next. If it is the terminal's own, sent as that was closed, the program is asked to end instead.
    pub(crate) async fn recv(&mut self) {
        loop {
            self.hangup.recv().await;
            if !self.on_terminal || io::stdin().is_terminal() {
                return;
            }
            if let Err(error) = kill_process(getpid(), rustix::process::Signal::TERM) {
                tracing::warn!(%error, "the terminal is closed");
            }
        }
    }
}

/// Why the program cannot work here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// PORTAL_LOG is no filter.
    #[error("PORTAL_LOG={text:?} is not a filter: {error}")]
    Log {
        /// Its value.
        text: String,
        /// Why.
        error: String,
    },
    /// The system grants no event queue.
    #[error("starting the event loop: {0}")]
    Runtime(io::Error),
}

impl Explain for ProcessError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Log { .. } => {
                Some("use a level (warn, info, debug, trace), or levels by part: warn,portal_core=debug".into())
            }
            Self::Runtime(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Log { .. } => Exit::Misuse,
            Self::Runtime(_) => Exit::Failed,
        }
    }
}
