//! What may stand in a file: the flags of a command, as clap knows them.

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Args, Command};

use super::document::{Entry, Table, Value};
use super::error::ConfigError;

/// Flags that a file cannot set: they name it, or say what to do with it.
const NOT_IN_A_FILE: [&str; 4] = ["config", "check", "help", "version"];

/// How alike two keys are, from 0 to 1, for one to be a likely slip of the other.
const ALIKE: f64 = 0.7;

/// The keys that a file, or a table in it, may have.
pub(super) struct Schema {
    /// The command whose flags they are. It asks no variable, and nothing is required.
    command: Command,
    required: Vec<String>,
    tables: &'static [&'static str],
}

impl Schema {
    /// For the file of a subcommand.
    pub(super) fn of_subcommand(root: &Command, name: &str, tables: &'static [&'static str]) -> Self {
        let globals = root.get_arguments().filter(|arg| arg.is_global_set()).cloned();
        let own = root.find_subcommand(name).cloned().unwrap_or_default();
        Self::new(own.args(globals), tables)
    }

    fn new(command: Command, tables: &'static [&'static str]) -> Self {
        let required = command.get_arguments().filter(|arg| arg.is_required_set());
        let required = required.filter_map(key_of).collect();
        Self {
            command: command
                .no_binary_name(true)
                .mut_args(|arg| arg.env(Resettable::Reset).required(false)),
            required,
            tables,
        }
    }

    /// Whether a file may have these tables.
    pub(super) fn check_tables(&self, tables: &[Table]) -> Result<(), ConfigError> {
        match tables.iter().find(|table| !self.tables.contains(&&*table.name)) {
            Some(table) => Err(ConfigError::UnknownTable {
                place: table.place.clone(),
                name: table.name.clone(),
                nearest: self.nearest(&table.name),
                known: self.tables,
            }),
            None => Ok(()),
        }
    }

    /// The entries with their flags: each key is a known one, and there once.
    pub(super) fn known(&self, entries: Vec<Entry>) -> Result<Vec<(Entry, &Arg)>, ConfigError> {
        let mut known: Vec<(Entry, &Arg)> = Vec::new();
        for entry in entries {
            let Some(arg) = self.find(&entry.key) else {
                return Err(self.unknown(&entry));
            };
            if known.iter().any(|(_, other)| other.get_id() == arg.get_id()) {
                return Err(ConfigError::Twice {
                    place: entry.place,
                    key: key_of(arg).unwrap_or(entry.key),
                });
            }
            known.push((entry, arg));
        }
        Ok(known)
    }

    /// An entry's value as the flag's, checked by the flag's own parser.
    pub(super) fn check(&self, entry: &Entry, arg: &Arg) -> Result<Vec<String>, ConfigError> {
        let bad = |cause: String| ConfigError::Value {
            place: entry.place.clone(),
            key: entry.key.clone(),
            shown: entry.shown.clone(),
            cause,
            expected: arg.get_help().map(ToString::to_string),
        };
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse);
        let values = match &entry.value {
            Value::Switch(on) if is_switch => return Ok(vec![on.to_string()]),
            _ if is_switch => return Err(bad("it is true or false".into())),
            Value::Switch(_) => return Err(bad("it is not something to switch on or off".into())),
            Value::One(text) => vec![text.clone()],
            Value::Many(texts) if matches!(arg.get_action(), ArgAction::Append) => texts.clone(),
            Value::Many(_) => return Err(bad("it takes one value, not a list".into())),
            Value::Unfit(what) => return Err(bad(format!("a {what} is nothing it can be"))),
        };
        let tried = self.command.clone().try_get_matches_from(as_args(arg, &values));
        match tried.map_err(|error| cause_of(&error)) {
            Err(Some(cause)) => Err(bad(cause)),
            Err(None) | Ok(_) => Ok(values),
        }
    }

    /// The flags by their keys.
    pub(super) fn flags(&self) -> impl Iterator<Item = (String, &Arg)> {
        self.command.get_arguments().filter_map(|arg| Some((key_of(arg)?, arg)))
    }

    fn find(&self, key: &str) -> Option<&Arg> {
        let key = key.replace('_', "-");
        self.flags().find(|(name, _)| *name == key).map(|(_, arg)| arg)
    }

    fn unknown(&self, entry: &Entry) -> ConfigError {
        if self.tables.contains(&&*entry.key) {
            return ConfigError::NotAnArray {
                place: entry.place.clone(),
                name: entry.key.clone(),
            };
        }
        ConfigError::UnknownKey {
            place: entry.place.clone(),
            key: entry.key.clone(),
            nearest: self.nearest(&entry.key),
            known: self.flags().map(|(key, _)| key).collect(),
        }
    }

    /// The key or table that was probably meant, as it is to be written.
    fn nearest(&self, key: &str) -> Option<String> {
        let key = key.replace('_', "-");
        let keys = self.flags().map(|(key, _)| key);
        let tables = self.tables.iter().map(|&name| name.to_owned());
        keys.chain(tables)
            .map(|name| (strsim::jaro(&key, &name), name))
            .filter(|&(likeness, _)| likeness >= ALIKE)
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, name)| {
                if self.tables.contains(&&*name) {
                    format!("[[{name}]]")
                } else {
                    name
                }
            })
    }
}

impl Table {
    /// Reads the table as if its entries were the flags of `A`. Variables have no say in it.
    pub(crate) fn parse<A: Args>(&self) -> Result<A, ConfigError> {
        let schema = Schema::new(A::augment_args(Command::new("table")), &[]);
        let (mut flags, mut positionals) = (Vec::new(), Vec::new());
        let known = schema.known(self.entries.clone())?;
        for (entry, arg) in &known {
            let values = schema.check(entry, arg)?;
            if arg.is_positional() {
                positionals.extend(values);
            } else {
                flags.extend(as_args(arg, &values));
            }
        }
        let is_there = |key: &String| known.iter().any(|(_, arg)| key_of(arg).as_ref() == Some(key));
        if let Some(missing) = schema.required.iter().find(|key| !is_there(key)) {
            return Err(ConfigError::Missing {
                place: self.place.clone(),
                table: self.name.clone(),
                key: missing.clone(),
            });
        }
        flags.push("--".into());
        flags.extend(positionals);
        let together = |error: &clap::Error| ConfigError::Together {
            place: self.place.clone(),
            table: self.name.clone(),
            cause: super::error::first_line(error),
        };
        let matches = schema.command.clone().try_get_matches_from(flags);
        let matches = matches.map_err(|error| together(&error))?;
        A::from_arg_matches(&matches).map_err(|error| together(&error))
    }
}

/// A flag's key in a file.
fn key_of(arg: &Arg) -> Option<String> {
    let key = match arg.get_long() {
        Some(long) => long.to_owned(),
        None if arg.is_positional() => arg.get_id().as_str().replace('_', "-"),
        None => return None,
    };
    (!NOT_IN_A_FILE.contains(&key.as_str())).then_some(key)
}

/// Values as they would stand on the command line.
fn as_args(arg: &Arg, values: &[String]) -> Vec<String> {
    match arg.get_long() {
        None => [vec!["--".to_owned()], values.to_vec()].concat(),
        Some(long) if !arg.get_action().takes_values() => {
            let on = values.iter().any(|value| value == "true");
            on.then(|| format!("--{long}")).into_iter().collect()
        }
        Some(long) => values.iter().map(|value| format!("--{long}={value}")).collect(),
    }
}

/// What is wrong with a value, if that is what clap says.
fn cause_of(error: &clap::Error) -> Option<String> {
    use clap::error::ErrorKind;
    let cause = std::error::Error::source(error).map(ToString::to_string);
    match error.kind() {
        ErrorKind::ValueValidation => Some(cause.unwrap_or_else(|| "it is not valid".into())),
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                Some(format!("it is one of: {}", valid.join(", ")))
            }
            _ => Some("it must not be empty".into()),
        },
        ErrorKind::InvalidUtf8
        | ErrorKind::TooManyValues
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues => Some(super::error::first_line(error)),
        _ => None,
    }
}
