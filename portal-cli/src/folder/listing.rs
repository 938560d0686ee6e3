//! The page for a directory that has no index.html.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, DirEntry, Metadata},
    io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    open::{Opened, Root},
    page,
    path::{encode, is_hidden},
};
use crate::values::size_text;

/// Entries on one page, which bounds the time for it.
pub(super) const MAX_ENTRIES: usize = 10_000;

/// Bytes of one page's table, which bounds the memory for it even if every name is as long as can be.
const MAX_BYTES: usize = 4 << 20;

/// The page for `folder`, which lies `below` the root. Blocks on the file system.
///
/// Lists exactly what a visitor can have: hidden names, links that lead outside and special files are left out.
pub(super) fn render(root: &Root, folder: &Opened, below: &Path) -> io::Result<String> {
    let (entries, mut complete) = entries(root, folder)?;
    let mut rows = String::new();
    if !below.as_os_str().is_empty() {
        rows.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    let mut shown = 0;
    for entry in &entries {
        if rows.len() >= MAX_BYTES {
            complete = false;
            break;
        }
        entry.write_row(&mut rows);
        shown += 1;
    }
    let note = if complete {
        String::new()
    } else {
        format!("<p>Only {shown} entries are shown: there are more.</p>\n")
    };
    let title = format!("Index of {}", shown_path(below));
    let table = format!("{note}<table>\n<tr><th>Name</th><th>Size</th><th>Modified (UTC)</th></tr>\n{rows}</table>\n");
    Ok(page::document(&title, &table))
}

struct Entry {
    name: OsString,
    folder: bool,
    size: u64,
    modified: Option<SystemTime>,
}

impl Entry {
    /// `None` for what is not served.
    fn new(root: &Root, folder: &Opened, found: &DirEntry) -> Option<Self> {
        let name = found.file_name();
        if !root.hidden && is_hidden(&name) {
            return None;
        }
        // What vanishes or fails in the meantime is left out, as if it had gone a moment earlier.
        let mut metadata = found.metadata().ok()?;
        if metadata.is_symlink() {
            metadata = root.open(&folder.path().join(&name)).ok()?.metadata;
        }
        (metadata.is_dir() || metadata.is_file()).then(|| Self::described(name, &metadata))
    }

    fn described(name: OsString, metadata: &Metadata) -> Self {
        Self {
            name,
            folder: metadata.is_dir(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }

    fn write_row(&self, rows: &mut String) {
        let slash = if self.folder { "/" } else { "" };
        let name = self.name.to_string_lossy();
        let size = if self.folder {
            String::new()
        } else {
            size_text(self.size)
        };
        let modified = self.modified.and_then(time_text).unwrap_or_default();
        // `./` keeps a name from being taken for a scheme. Writing to a string cannot fail.
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"./{link}{slash}\">{shown}{slash}</a></td><td>{size}</td><td>{modified}</td></tr>",
            link = encode(&self.name),
            shown = page::escape(&name),
        );
    }
}

/// What to list, folders first, and whether that is everything.
fn entries(root: &Root, folder: &Opened) -> io::Result<(Vec<Entry>, bool)> {
    let mut entries = Vec::new();
    let mut complete = true;
    for found in fs::read_dir(folder.path())? {
        let Some(entry) = Entry::new(root, folder, &found?) else {
            continue;
        };
        if entries.len() == MAX_ENTRIES {
            complete = false;
            break;
        }
        entries.push(entry);
    }
    entries.sort_unstable_by(|a, b| (!a.folder, &a.name).cmp(&(!b.folder, &b.name)));
    Ok((entries, complete))
}

fn shown_path(below: &Path) -> String {
    let mut shown = String::from("/");
    for name in below {
        shown.push_str(&name.to_string_lossy());
        shown.push('/');
    }
    shown
}

/// A time as `2026-01-31 23:59`, in UTC; `None` before 1970.
fn time_text(time: SystemTime) -> Option<String> {
    let minutes = time.duration_since(UNIX_EPOCH).ok()?.as_secs() / 60;
    let (year, month, day) = civil(minutes / (24 * 60));
    Some(format!(
        "{year}-{month:02}-{day:02} {:02}:{:02}",
        minutes / 60 % 24,
        minutes % 60
    ))
}

/// The Gregorian date of a day counted from 1970-01-01.
///
/// Years are counted from March, so that the leap day is the last of its year, and in cycles of 400 years, which are
/// all equally long.
fn civil(day: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    const FROM_YEAR_ZERO: u64 = 719_468;

    let day = day + FROM_YEAR_ZERO;
    let (cycle, day) = (day / CYCLE, day % CYCLE);
    // Takes away the leap days that have passed: one in 4 years, none in 100, one in 400.
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, every five months have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 {
        (year, month + 3)
    } else {
        (year + 1, month - 9)
    };
    (400 * cycle + year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_800, "2000-03-01 00:00"),
            (1_767_225_599, "2025-12-31 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(
                time_text(UNIX_EPOCH + Duration::from_secs(seconds)).as_deref(),
                Some(text)
            );
        }
        assert_eq!(time_text(UNIX_EPOCH - Duration::from_secs(1)), None);
    }

    #[test]
    fn days_follow_each_other() {
        let mut before = civil(0);
        for day in 1..200_000 {
            let date = civil(day);
            assert!(date > before && (1..=31).contains(&date.2), "{before:?} {date:?}");
            assert!(date.2 == before.2 + 1 || date.2 == 1, "{before:?} {date:?}");
            before = date;
        }
    }
}
