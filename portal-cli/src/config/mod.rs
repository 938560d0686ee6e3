//! The command line together with the file that `--config` names.
//!
//! A flag that is given goes before its variable, the variable before the file, the file before the usual value. None of
//! them is written down twice: the keys of a file are the long names of the command's flags, its values become the usual
//! values of those flags, and then the command line is read as it would have been. Only the array tables of a file
//! (`[[service]]`) have no flag; they are handed to the command, which reads each as if its entries were flags.

mod document;
mod error;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use self::document::Document;
pub(crate) use self::document::{Place, Table};
pub(crate) use self::error::{ConfigError, LoadError};
use self::schema::Schema;
use crate::cli::Cli;

/// The array tables that the file of a command may have.
const TABLES: [(&str, &[&str]); 2] = [("agent", &["service"]), ("relay", &["peer"])];

/// What the program was told to do.
#[derive(Debug)]
pub(crate) struct Invocation {
    /// Flags, variables and file in one.
    pub(crate) cli: Cli,
    /// What of it a command cannot see there.
    pub(crate) given: Given,
}

/// What a command was given beside its flags.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The file's array tables, in its order.
    tables: Vec<Table>,
    /// The value of each flag, wherever it came from.
    values: BTreeMap<String, Vec<OsString>>,
    /// The flags that are on the command line itself.
    flags: BTreeSet<String>,
}

impl Invocation {
    /// Takes command line, environment and file together. Called again, it reads the file again.
    pub(crate) fn load() -> Result<Self, LoadError> {
        let args: Vec<OsString> = std::env::args_os().collect();
        let (mut command, matches, tables) = layered(Cli::command(), &args)?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok(Self {
            cli,
            given: Given {
                tables,
                values: values(&command, &matches),
                flags: flags(&command, &matches),
            },
        })
    }
}

impl Given {
    /// The array tables of this name.
    pub(crate) fn tables(&self, name: &str) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(move |table| table.name == name)
    }

    /// Whether this flag is on the command line, and not just a variable or the file's.
    pub(crate) fn is_flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }

    /// What to say about flags and tables that were read again and are others, but for those that `applied` names: flags
    /// by their keys, tables as they are written.
    pub(crate) fn needs_restart(&self, again: &Self, applied: &[&str]) -> Option<String> {
        let names: BTreeSet<_> = self.values.keys().chain(again.values.keys()).collect();
        let mut changed: Vec<_> = names
            .into_iter()
            .filter(|&name| self.values.get(name) != again.values.get(name))
            .cloned()
            .collect();
        let tables: BTreeSet<_> = self
            .tables
            .iter()
            .chain(&again.tables)
            .map(|table| &table.name)
            .collect();
        for name in tables {
            let (before, after) = (self.tables(name), again.tables(name));
            if !before.map(Table::contents).eq(after.map(Table::contents)) {
                changed.push(format!("[[{name}]]"));
            }
        }
        changed.retain(|name| !applied.contains(&name.as_str()));
        (!changed.is_empty()).then(|| format!("this needs a restart to have an effect: {}", changed.join(", ")))
    }
}

/// What a file's text alone comes to, for a subcommand that is given no other flag. Returns its tables.
#[cfg(feature = "fuzzing")]
pub(crate) fn of_text(path: &Path, name: &str, text: &str) -> Result<Vec<Table>, LoadError> {
    let document = Document::parse(path, text)?;
    let (mut command, tables) = with_file(Cli::command(), name, document)?;
    let matches =
        command.try_get_matches_from_mut(["portal".as_ref(), name.as_ref(), "--config".as_ref(), path.as_os_str()])?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok(tables)
}

/// Reads the command line, and once more over the file if it names one.
fn layered(command: clap::Command, args: &[OsString]) -> Result<(clap::Command, ArgMatches, Vec<Table>), LoadError> {
    let mut bare = command.clone();
    let matches = bare.try_get_matches_from_mut(args)?;
    let Some((name, path)) = file_of(&matches) else {
        return Ok((bare, matches, Vec::new()));
    };
    let document = Document::read(path)?;
    let (mut command, tables) = with_file(command, name, document)?;
    let matches = command.try_get_matches_from_mut(args)?;
    Ok((command, matches, tables))
}

/// The subcommand, and the file it was given.
fn file_of(matches: &ArgMatches) -> Option<(&str, &Path)> {
    let (name, given) = matches.subcommand()?;
    let path = given.try_get_one::<PathBuf>("config").ok()??;
    Some((name, path))
}

/// The command with the file's values as the usual values of a subcommand's flags.
fn with_file(
    mut command: clap::Command,
    name: &str,
    document: Document,
) -> Result<(clap::Command, Vec<Table>), ConfigError> {
    let schema = Schema::of_subcommand(&command, name, tables_of(name));
    let Document { entries, tables } = document;
    schema.check_tables(&tables)?;
    for (entry, flag) in &schema.known(entries)? {
        let values = schema.check(entry, flag)?;
        let id = flag.get_id().as_str();
        if flag.is_global_set() {
            command = command.mut_arg(id, |flag| flag.default_values(values));
        } else {
            command = command.mut_subcommand(name, |sub| sub.mut_arg(id, |flag| flag.default_values(values)));
        }
    }
    Ok((command, tables))
}

fn tables_of(command: &str) -> &'static [&'static str] {
    TABLES
        .iter()
        .find(|(name, _)| *name == command)
        .map_or(&[], |(_, tables)| tables)
}

/// The value of each of the subcommand's flags.
fn values(command: &clap::Command, matches: &ArgMatches) -> BTreeMap<String, Vec<OsString>> {
    let Some((name, given)) = matches.subcommand() else {
        return BTreeMap::new();
    };
    Schema::of_subcommand(command, name, &[])
        .flags()
        .filter_map(|(key, flag)| {
            let values = given.try_get_raw(flag.get_id().as_str()).ok()??;
            Some((key, values.map(Into::into).collect()))
        })
        .collect()
}

/// Those of the subcommand's flags that are on the command line.
fn flags(command: &clap::Command, matches: &ArgMatches) -> BTreeSet<String> {
    let Some((name, given)) = matches.subcommand() else {
        return BTreeSet::new();
    };
    Schema::of_subcommand(command, name, &[])
        .flags()
        .filter(|(_, flag)| given.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine))
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests;
