//! The program: `portal expose`, `portal agent`, `portal relay`, and what goes with them. A library only so that what
//! takes in foreign text can be fuzzed.

#[cfg(not(any(feature = "tokio", feature = "mio")))]
compile_error!("choose a runtime: the feature \"tokio\", which is the usual one, or \"mio\"");
#[cfg(all(feature = "tokio", feature = "mio"))]
compile_error!("choose one runtime: \"mio\" goes with --no-default-features");

mod agent;
#[cfg(feature = "mimalloc")]
mod allocator;
mod cli;
mod clock;
mod commands;
mod config;
mod embedded;
mod failure;
mod files;
#[cfg(feature = "tokio")]
mod folder;
#[cfg(not(feature = "tokio"))]
#[path = "folder/absent.rs"]
mod folder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keyfile;
mod machine;
mod notices;
mod pages;
mod process;
mod report;
mod runtime;
mod sockets;
mod state;
mod target;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls/absent.rs"]
mod tls;
mod values;

use std::process::ExitCode;

use self::cli::Command;
use self::config::{Invocation, LoadError};
use self::failure::Failure;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(feature = "mimalloc")]
    allocator::give_back_at_once();
    process::hide_panics();
    let ended = match Invocation::load() {
        // Help and version come this way too.
        Err(LoadError::CommandLine(error)) => error.exit(),
        Err(LoadError::File(error)) => Err(error.into()),
        Ok(invocation) => run(invocation),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::print_error(&failure.to_string());
            ExitCode::from(failure.exit() as u8)
        }
    }
}

fn run(Invocation { cli, given }: Invocation) -> Result<(), Failure> {
    process::start_logging()?;
    if matches!(cli.command, Command::Expose(_) | Command::Agent(_) | Command::Relay(_)) {
        clock::check();
    }
    match cli.command {
        Command::Expose(args) => commands::expose::run(args, &given, cli.output),
        Command::Agent(args) => commands::agent::run(args, given, cli.output),
        Command::Relay(args) => commands::relay::run(args, &given, cli.output),
        Command::Key(command) => commands::key::run(&command, cli.output),
        Command::Grant(args) => commands::grant::grant(args, cli.output),
        Command::Revoke(args) => commands::grant::revoke(&args, cli.output),
        Command::Status(args) => commands::status::run(&args, cli.output),
        Command::Health(args) => commands::health::run(&args, cli.output),
        Command::WgConf(args) => commands::wg_conf::run(&args, cli.output),
        Command::Completions(args) => {
            commands::completions::run(&args, cli.output);
            Ok(())
        }
    }
}
