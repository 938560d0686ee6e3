//! What belongs to the process as a whole: its log, its limits, its threads, its signals.

use std::io::{self, IsTerminal as _};
use std::panic;
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failure::{Exit, Explain};
use crate::report;

/// The stack of a thread that only waits and hands on.
const SMALL_STACK: usize = 256 * 1024;

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
    let text = std::env::var("PORTAL_LOG").unwrap_or_default();
    // The parser takes nothing for everything.
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let directives = if parts.is_empty() {
        DEFAULT_LOG
    } else {
        &parts.join(",")
    };
    let filter: Targets = match directives.parse() {
        Ok(filter) => filter,
        Err(error) => return Err(ProcessError::Log { text, error }),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

/// Starts a small thread that lasts: one that waits and hands on. Every page of its stack counts.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(SMALL_STACK)
        .spawn(work)
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

/// What the system asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// To end.
    End,
    /// To read its files again.
    Hangup,
}

/// Takes the signals over from the system's default, which is to die, and tells each; of hangups only if they are wanted.
/// A hangup that is the terminal's own, sent as that was closed, asks the program to end.
pub(crate) fn watch_signals(hangups: bool, tell: impl Fn(Signal) + Send + 'static) -> Result<(), ProcessError> {
    let mut watched = vec![SIGINT, SIGTERM];
    watched.extend(hangups.then_some(SIGHUP));
    let mut signals = Signals::new(watched).map_err(ProcessError::Signals)?;
    let on_terminal = io::stdin().is_terminal();
    let watch = move || {
        for signal in signals.forever() {
            let reads_again = signal == SIGHUP && (!on_terminal || io::stdin().is_terminal());
            tell(if reads_again { Signal::Hangup } else { Signal::End });
        }
    };
    spawn("signals", watch).map_err(ProcessError::Signals)?;
    Ok(())
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
        error: ParseError,
    },
    /// The system lets no signals be taken.
    #[error("waiting for signals: {0}")]
    Signals(io::Error),
    /// The system has no thread left.
    #[error("starting a thread: {0}")]
    Thread(io::Error),
}

impl Explain for ProcessError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Log { .. } => {
                Some("use a level (warn, info, debug, trace), or levels by part: warn,portal_core=debug".into())
            }
            Self::Signals(_) | Self::Thread(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Log { .. } => Exit::Misuse,
            Self::Signals(_) | Self::Thread(_) => Exit::Failed,
        }
    }
}
