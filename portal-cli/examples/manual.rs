//! Writes the manual pages: `manual FOLDER` makes `portal.1` there, and one for each command below it.
//!
//! They are made of the command line's own definition, as completions are; the program itself does not carry what makes
//! them.

/// What the definition is made of, which is a part of the program. What the program does with it is not here.
#[allow(dead_code, unused_imports)]
#[path = "../src"]
mod program {
    pub(crate) mod cli;
    pub(crate) mod failure;
    pub(crate) mod machine;
    pub(crate) mod target;
    pub(crate) mod values;
}

/// In place of the runtimes, which a page has nothing to do with.
mod runtime {
    pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
}

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::CommandFactory as _;
use program::{cli, failure, machine, target, values};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(folder), None) = (args.next(), args.next()) else {
        eprintln!("usage: manual FOLDER");
        return ExitCode::from(2);
    };
    match write(folder.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: PathBuf) -> io::Result<()> {
    fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(cli::Cli::command(), folder)
}
