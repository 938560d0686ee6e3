//! The program: `portal expose`, `portal relay`, and what goes with them.

#[cfg(not(feature = "tokio"))]
compile_error!("choose a runtime: the feature \"tokio\"");

mod cli;
mod commands;
mod embedded;
mod failure;
mod files;
mod folder;
mod keyfile;
mod process;
mod report;
mod sockets;
mod state;
mod target;
mod values;

use std::process::ExitCode;

use clap::Parser as _;

use self::cli::{Cli, Command};

fn main() -> ExitCode {
    process::hide_panics();
    let cli = Cli::parse();
    let ended = process::start_logging()
        .map_err(Into::into)
        .and_then(|()| match cli.command {
            Command::Expose(args) => commands::expose::run(args, cli.output),
            Command::Relay(args) => commands::relay::run(args, cli.output),
            Command::Key(command) => commands::key::run(&command, cli.output),
            Command::Grant(args) => commands::grant::grant(args, cli.output),
            Command::Revoke(args) => commands::grant::revoke(&args, cli.output),
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::print_error(&failure.to_string());
            ExitCode::from(failure.exit() as u8)
        }
    }
}
