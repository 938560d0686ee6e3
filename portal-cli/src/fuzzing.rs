//! What takes in text that a person has written, for the fuzz targets.

use std::path::Path;

use crate::cli::{PeerArgs, ServiceArgs};
use crate::config::{self, LoadError, Table};

/// The commands that take a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOf {
    /// `portal agent --config`
    Agent,
    /// `portal relay --config`
    Relay,
}

/// Reads `text` as a configuration file of this name, as `--check` does but for the files it names. Returns how many array
/// tables it has.
///
/// # Errors
/// What a person would be told.
pub fn config_file(command: FileOf, name: &str, text: &str) -> Result<usize, String> {
    let read = || -> Result<usize, LoadError> {
        let path = Path::new(name);
        let tables = match command {
            FileOf::Agent => config::of_text(path, "agent", text)?,
            FileOf::Relay => config::of_text(path, "relay", text)?,
        };
        for table in &tables {
            check(command, table)?;
        }
        Ok(tables.len())
    };
    read().map_err(|error| error.to_string())
}

fn check(command: FileOf, table: &Table) -> Result<(), LoadError> {
    match command {
        FileOf::Agent => table.parse::<ServiceArgs>().map(drop)?,
        FileOf::Relay => table.parse::<PeerArgs>().map(drop)?,
    }
    Ok(())
}
