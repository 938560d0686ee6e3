//! What can be wrong with a file.

use std::io;
use std::path::PathBuf;

use super::document::Place;
use crate::failure::{Exit, Explain};

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The command line, or a variable. Also how clap asks to print its help.
    #[error("{}", first_line(.0))]
    CommandLine(#[from] clap::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] ConfigError),
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("reading the configuration {}: {}", .path.display(), reading(.source))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML.
    #[error("{}{}: {cause}", .path.display(), .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Broken {
        /// Which.
        path: PathBuf,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong.
        cause: String,
    },
    /// There is no flag of this name.
    #[error("{place}: there is no key {key:?}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What there is.
        known: Vec<String>,
    },
    /// There is no array table of this name.
    #[error("{place}: there is no table [[{name}]]")]
    UnknownTable {
        /// Where.
        place: Place,
        /// Its name.
        name: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What there is.
        known: &'static [&'static str],
    },
    /// Something that there may be several of is written as one.
    #[error("{place}: {name} is not written as an array of tables")]
    NotAnArray {
        /// Where.
        place: Place,
        /// Its name.
        name: String,
    },
    /// A key is there again, in its other spelling.
    #[error("{place}: the key {key:?} is there twice")]
    Twice {
        /// The second time.
        place: Place,
        /// The key.
        key: String,
    },
    /// A value is none for this key.
    #[error("{place}: {key} = {shown}: {cause}")]
    Value {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The value.
        shown: String,
        /// Why not.
        cause: String,
        /// What the key is for.
        expected: Option<String>,
    },
    /// A table lacks a key.
    #[error("{place}: the key {key:?} of this [[{table}]] is missing")]
    Missing {
        /// Where the table begins.
        place: Place,
        /// Its name.
        table: String,
        /// The key.
        key: String,
    },
    /// The keys of a table do not go together.
    #[error("{place}: this [[{table}]] cannot be: {cause}")]
    Together {
        /// Where the table begins.
        place: Place,
        /// Its name.
        table: String,
        /// Why.
        cause: String,
    },
}

impl Explain for LoadError {
    fn help(&self) -> Option<String> {
        match self {
            Self::CommandLine(_) => None,
            Self::File(error) => error.help(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::CommandLine(_) => Exit::Misuse,
            Self::File(error) => error.exit(),
        }
    }
}

impl Explain for ConfigError {
    fn help(&self) -> Option<String> {
        let meant = |nearest: &Option<String>| nearest.as_ref().map(|nearest| format!("did you mean {nearest}?"));
        match self {
            Self::Read { source, .. } => Some(match source.kind() {
                io::ErrorKind::NotFound => "check the path that --config or PORTAL_CONFIG names".into(),
                io::ErrorKind::PermissionDenied => "run portal as a user who may read it".into(),
                _ => "name a TOML file with --config".into(),
            }),
            Self::Broken { .. } => {
                Some("a line is a key and a value, as in: name = \"blog\"; texts need quotes".into())
            }
            Self::UnknownKey { nearest, known, .. } => {
                meant(nearest).or_else(|| Some(format!("the keys are the flags' names: {}", known.join(", "))))
            }
            Self::UnknownTable { nearest, known, .. } => meant(nearest).or_else(|| match known {
                [] => Some("this file has keys only".into()),
                known => Some(format!("there is [[{}]]", known.join("]], [["))),
            }),
            Self::NotAnArray { name, .. } => Some(format!("write [[{name}]], once for each")),
            Self::Twice { .. } => Some("leave one of them out; a dash and an underscore are the same in a key".into()),
            Self::Value { key, expected, .. } => expected.as_ref().map(|expected| format!("{key}: {expected}")),
            Self::Missing { key, .. } => Some(format!("add a line: {key} = \"...\"")),
            Self::Together { .. } => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } => Exit::Failed,
            _ => Exit::Misuse,
        }
    }
}

/// What clap has to say, in one line.
pub(super) fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn reading(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        _ => error.to_string(),
    }
}
