//! Files that must be whole or not there: written beside their place first, synced, then moved to it. And lines in them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of temporary files end.
const SUFFIX: &str = ".tmp";

/// Replaces a file, or makes it, for its owner only. After a crash it has the old contents or the new ones.
///
/// It is given to the owner of its directory, so that a root shell does not take a service's state away from it.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (temporary, file) = write_beside(path, contents)?;
    let placed = give_away(&file, path).and_then(|()| fs::rename(&temporary, path));
    clean_up(&temporary, placed)?;
    sync_directory(path)
}

/// Gives an open file to the owner of the directory that its path is in.
pub(crate) fn give_away(file: &File, path: &Path) -> io::Result<()> {
    let directory = directory_of(path).metadata()?;
    if file.metadata()?.uid() != directory.uid() {
        // Only root can; for others it stays theirs.
        let _ = fchown(file, Some(directory.uid()), Some(directory.gid()));
    }
    Ok(())
}

/// Makes a file for its owner only.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is one of this name.
pub(crate) fn create(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (temporary, _) = write_beside(path, contents)?;
    // A link, unlike a rename, replaces nothing.
    let placed = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match placed {
        Ok(()) => {}
        // A file system without links.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(contents).and_then(|()| file.sync_all())?;
        }
        Err(error) => return Err(error),
    }
    sync_directory(path)
}

/// Removes what processes that were killed have left beside a file. The caller sees to it that nobody writes it now.
pub(crate) fn remove_leftovers(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = temporary_prefix(name);
    let Ok(entries) = fs::read_dir(directory_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let (name, prefix) = (name.as_encoded_bytes(), prefix.as_encoded_bytes());
        if name.starts_with(prefix) && name.ends_with(SUFFIX.as_bytes()) {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a directory for its owner only, with those above it.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The line, from 1 on, of a place in a file's text.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&b| b == b'\n').count() + 1
}

fn write_beside(path: &Path, contents: &[u8]) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = temporary_prefix(path.file_name().ok_or(io::ErrorKind::IsADirectory)?);
    name.push(format!("{}-{number}{SUFFIX}", std::process::id()));
    let temporary = path.with_file_name(name);
    // Left behind by a process of the same id that was killed.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    clean_up(&temporary, written)?;
    Ok((temporary, file))
}

/// How the names of a file's temporary ones begin.
fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

fn clean_up(temporary: &Path, result: io::Result<()>) -> io::Result<()> {
    if result.is_err() {
        let _ = fs::remove_file(temporary);
    }
    result
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replaced_whole_and_created_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        create(&path, b"one").unwrap();
        assert_eq!(create(&path, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "nothing is left behind"
        );
    }

    #[test]
    fn leftovers_of_one_file_are_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        replace(&path, b"one").unwrap();
        for name in [".a.77-0.tmp", ".a.b.77-0.tmp.bak", ".ab.77-0.tmp", "a.77-0.tmp"] {
            fs::write(directory.path().join(name), b"half").unwrap();
        }
        remove_leftovers(&path);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(left, [".a.b.77-0.tmp.bak", ".ab.77-0.tmp", "a", "a.77-0.tmp"]);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("no").join("a");
        assert_eq!(create(&path, b"").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(replace(&path, b"").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
