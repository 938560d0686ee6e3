//! A TOML file as keys with lines: what stands where, before anybody asks what it means.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use crate::files::line_of;

/// The longest value that a message repeats.
const MAX_SHOWN: usize = 60;

/// A file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(super) entries: Vec<Entry>,
    pub(super) tables: Vec<Table>,
}

/// One of a file's array tables.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// What stands between the brackets.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) place: Place,
    /// What is in it, in the file's order.
    pub(crate) entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As it is written.
    pub(crate) key: String,
    /// Where it is.
    pub(crate) place: Place,
    /// Its value.
    pub(crate) value: Value,
    /// The value as it is written, for messages.
    pub(crate) shown: String,
}

/// A value as far as flags can have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `true` or `false`.
    Switch(bool),
    /// A text or a whole number.
    One(String),
    /// A list of them.
    Many(Vec<String>),
    /// Anything else, by TOML's name for it.
    Unfit(&'static str),
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<Path>,
    pub(crate) line: usize,
}

impl Table {
    /// What it says, wherever it stands.
    pub(super) fn contents(&self) -> Vec<(&str, &Value)> {
        self.entries.iter().map(|entry| (&*entry.key, &entry.value)).collect()
    }
}

impl Document {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Takes a file's text apart.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError::Broken {
            path: path.to_owned(),
            line: error.span().map(|span| line_of(text, span.start)),
            cause: error.message().trim().replace('\n', ", "),
        })?;
        let reader = Reader {
            file: path.into(),
            text,
        };
        let mut document = Self {
            entries: Vec::new(),
            tables: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            match tables_in(value.get_ref()) {
                Some(tables) => document.tables.extend(tables.map(|(at, table)| Table {
                    name: key.get_ref().to_string(),
                    place: reader.place(at),
                    entries: reader.entries(table),
                })),
                None => document.entries.push(reader.entry(key, value)),
            }
        }
        document.entries.sort_by_key(|entry| entry.place.line);
        document.tables.sort_by_key(|table| table.place.line);
        Ok(document)
    }
}

struct Reader<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, at: usize) -> Place {
        Place {
            file: Arc::clone(&self.file),
            line: line_of(self.text, at),
        }
    }

    fn entries(&self, table: &DeTable<'_>) -> Vec<Entry> {
        let mut entries: Vec<_> = table.iter().map(|(key, value)| self.entry(key, value)).collect();
        entries.sort_by_key(|entry| entry.place.line);
        entries
    }

    fn entry(&self, key: &Spanned<impl ToString>, value: &Spanned<DeValue<'_>>) -> Entry {
        let written = self.text.get(value.span()).unwrap_or_default();
        let mut shown: String = written
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(MAX_SHOWN)
            .collect();
        if shown.len() < written.len() {
            shown.push('…');
        }
        Entry {
            key: key.get_ref().to_string(),
            place: self.place(key.span().start),
            value: Value::of(value.get_ref()),
            shown,
        }
    }
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        if let DeValue::Boolean(on) = value {
            return Self::Switch(*on);
        }
        if let Some(text) = scalar(value) {
            return Self::One(text);
        }
        match value {
            DeValue::Array(values) => values
                .iter()
                .map(|value| scalar(value.get_ref()))
                .collect::<Option<_>>()
                .map_or(Self::Unfit("list of such values"), Self::Many),
            DeValue::Float(_) => Self::Unfit("fraction"),
            DeValue::Datetime(_) => Self::Unfit("date"),
            DeValue::Table(_) => Self::Unfit("table"),
            DeValue::Integer(_) => Self::Unfit("number of this size"),
            DeValue::String(_) | DeValue::Boolean(_) => Self::Unfit("value"),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}", self.file.display(), self.line)
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number.to_string()),
        _ => None,
    }
}

/// The tables of an array that has nothing else in it.
fn tables_in<'a, 'i>(value: &'a DeValue<'i>) -> Option<impl Iterator<Item = (usize, &'a DeTable<'i>)>> {
    let DeValue::Array(values) = value else {
        return None;
    };
    let is_table = |value: &Spanned<DeValue<'_>>| value.get_ref().is_table();
    (!values.is_empty() && values.iter().all(is_table)).then(|| {
        values
            .iter()
            .filter_map(|value| Some((value.span().start, value.get_ref().as_table()?)))
    })
}
