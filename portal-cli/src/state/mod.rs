//! A relay's state directory: who has a grant, which names and ports belong to whom, where the agents were.
//!
//! | file | holds | written by |
//! |---|---|---|
//! | `grants.toml` | grants | `portal grant`, `portal revoke`, people |
//! | `bindings.json` | names and ports that belong to keys | the relay |
//! | `agents.json` | agents and where they were last | the relay |
//! | `relay.key` | the relay's key | the relay, on first use |
//! | `lock`, `grants.lock` | nothing: they are locked | |
//! | `portal.sock` | the running relay listens here | |
//!
//! Agents have a socket too, beside their key: `agent.sock` for `agent.key`.
//!
//! Files are replaced whole, so a crash leaves the old ones. One that cannot be read stops the relay: to go on without it
//! would give people's names away.

mod book;
pub(crate) mod control;
pub(crate) mod running;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use portal_core::identity::PublicKey;
use portal_core::{Binding, Grant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{Explain, full_disk};
use crate::files::{self, line_of};

pub(crate) use self::book::{Book, Draft, RecentAgent};

/// Where a relay keeps its state as root, or as a service's user.
const SYSTEM_DIR: &str = "/var/lib/portal";

/// A state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The directory given, or the usual one for this user.
    pub(crate) fn locate(given: Option<&Path>) -> Result<Self, StateError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None if is_writable(Path::new(SYSTEM_DIR)) => SYSTEM_DIR.into(),
            None => user_state_dir().ok_or(StateError::NoHome)?.join("relay"),
        };
        Ok(Self { path })
    }

    /// Makes the directory if it is not there.
    pub(crate) fn make(&self) -> Result<(), StateError> {
        files::create_directory(&self.path).map_err(self.failed("making"))
    }

    /// Reserves the directory for this process for as long as the file is kept open.
    pub(crate) fn lock(&self) -> Result<File, StateError> {
        let file = self.lock_file("lock")?;
        match file.try_lock() {
            Ok(()) => {
                // Only the relay writes these, and this is the only one.
                for name in ["bindings.json", "agents.json", "relay.key"] {
                    files::remove_leftovers(&self.file(name));
                }
                Ok(file)
            }
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(self.path.clone())),
            Err(TryLockError::Error(error)) => Err(self.failed("locking")(error)),
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Who has a grant.
    pub(crate) fn grants(&self) -> Result<Vec<Grant>, StateError> {
        let path = self.file("grants.toml");
        let Some(text) = read(&path)? else {
            return Ok(Vec::new());
        };
        match toml::from_str::<GrantsFile>(&text) {
            Ok(file) => Ok(file.grants),
            Err(error) => Err(StateError::Broken {
                line: error.span().map(|span| line_of(&text, span.start)),
                cause: error.message().trim().replace('\n', ", "),
                path,
            }),
        }
    }

    /// Changes the grants; two changes at a time take turns.
    pub(crate) fn edit_grants<T>(&self, edit: impl FnOnce(&mut Vec<Grant>) -> T) -> Result<T, StateError> {
        let lock = self.lock_file("grants.lock")?;
        lock.lock().map_err(self.failed("locking"))?;
        let path = self.file("grants.toml");
        files::remove_leftovers(&path);
        let mut grants = self.grants()?;
        let result = edit(&mut grants);
        let text = toml::to_string(&GrantsFile { grants }).map_err(|error| StateError::Write {
            path: path.clone(),
            source: io::Error::other(error),
        })?;
        let text = format!("{GRANTS_HEAD}{text}");
        files::replace(&path, text.as_bytes()).map_err(|source| StateError::Write { path, source })?;
        Ok(result)
    }

    /// What the relay kept from its earlier runs.
    pub(crate) fn book(&self) -> Result<Book, StateError> {
        let bindings = self.json::<Binding>("bindings.json")?;
        let agents = self.json::<RecentAgent>("agents.json")?;
        Ok(Book::new(self.clone(), bindings, agents))
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, StateError> {
        let path = self.file(name);
        let Some(text) = read(&path)? else {
            return Ok(Vec::new());
        };
        serde_json::from_str(&text).map_err(|error| StateError::Broken {
            line: Some(error.line()),
            cause: error.to_string(),
            path,
        })
    }

    fn lock_file(&self, name: &str) -> Result<File, StateError> {
        let path = self.file(name);
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).mode(0o600);
            match options.clone().create_new(true).open(&path) {
                // What root makes here must not keep the relay's own user out. What it finds may be a link to elsewhere.
                Ok(file) => files::give_away(&file, &path).map(|()| file),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(&path),
                Err(error) => Err(error),
            }
        };
        open().map_err(self.failed("locking"))
    }

    fn failed(&self, step: &'static str) -> impl Fn(io::Error) -> StateError + '_ {
        move |source| StateError::Directory {
            path: self.path.clone(),
            step,
            source,
        }
    }
}

/// `$XDG_STATE_HOME/portal` or `~/.local/state/portal`.
pub(crate) fn user_state_dir() -> Option<PathBuf> {
    // By the XDG specification, a relative path is to be ignored.
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("portal"))
}

/// Gives a key a grant in place of the one it had. Tells whether it had one.
pub(crate) fn put(grants: &mut Vec<Grant>, grant: Grant) -> bool {
    let had = take(grants, &grant.key);
    grants.push(grant);
    had
}

/// Takes a key's grants away. Tells whether it had any.
pub(crate) fn take(grants: &mut Vec<Grant>, key: &PublicKey) -> bool {
    let before = grants.len();
    grants.retain(|grant| grant.key != *key);
    grants.len() < before
}

/// Why state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The directory cannot be used.
    #[error("{step} the state directory {}: {source}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What was done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another relay has it.
    #[error("the state directory {} is in use by another relay", .0.display())]
    InUse(PathBuf),
    /// Where state is kept is not known.
    #[error("there is no place for the relay's state: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// A file cannot be read.
    #[error("reading {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("writing {}: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file's contents make no sense.
    #[error("reading {}{}: {cause}", .path.display(), .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Broken {
        /// Which.
        path: PathBuf,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong.
        cause: String,
    },
}

impl Explain for StateError {
    fn help(&self) -> Option<String> {
        let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        Some(match self {
            Self::Directory { source, .. } | Self::Read { source, .. } | Self::Write { source, .. }
                if denied(source) =>
            {
                "run it as the user the relay runs as (or with sudo), or name another directory with --state-dir".into()
            }
            Self::Directory { path, source, .. } if source.kind() == io::ErrorKind::AlreadyExists => format!(
                "{} is a file; move it away, or name a directory with --state-dir",
                path.display()
            ),
            Self::Directory { path, source, .. } if full_disk(path, source).is_some() => {
                return full_disk(path, source);
            }
            Self::Directory { .. } => "name another directory with --state-dir".into(),
            Self::InUse(_) => "stop that relay first, or give this one a directory of its own with --state-dir".into(),
            Self::NoHome => "name a directory with --state-dir".into(),
            Self::Broken { path, .. } => format!(
                "mend that line, or move {} away to start without it (what it held is forgotten then)",
                path.display()
            ),
            Self::Write { path, source } => return full_disk(path, source),
            Self::Read { .. } => return None,
        })
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantsFile {
    #[serde(default, rename = "grant")]
    grants: Vec<Grant>,
}

const GRANTS_HEAD: &str = "\
# Who may lease what on this relay. `portal grant` and `portal revoke` write this file and tell the running relay.
# An absent list allows everything of its sort; without flows (connections at a time) and rate (bytes a second, both
# directions together) there is no such bound.

";

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, StateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Whether this user can keep files there, or in a directory made there. Makes nothing.
fn is_writable(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| path.is_dir() && access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portal_core::Kind;

    fn state() -> (tempfile::TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(&directory.path().join("state"))).unwrap();
        state.make().unwrap();
        (directory, state)
    }

    #[test]
    fn grants_survive_the_file() {
        let (_directory, state) = state();
        assert_eq!(state.grants().unwrap(), []);
        let (one, two) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        let narrow = Grant {
            key: one,
            names: vec!["blog-*".parse().unwrap()],
            ports: vec![20000..=20009, 5432..=5432],
            kinds: vec![Kind::Tcp, Kind::Http],
            flows: std::num::NonZeroU32::new(100),
            rate: std::num::NonZeroU64::new(10 << 20),
        };
        assert!(!state.edit_grants(|grants| put(grants, narrow.clone())).unwrap());
        assert!(!state.edit_grants(|grants| put(grants, Grant::all(two))).unwrap());
        assert_eq!(state.grants().unwrap(), [narrow, Grant::all(two)]);
        assert!(state.edit_grants(|grants| put(grants, Grant::all(one))).unwrap());
        assert_eq!(state.grants().unwrap(), [Grant::all(two), Grant::all(one)]);
        assert!(state.edit_grants(|grants| take(grants, &two)).unwrap());
        assert!(!state.edit_grants(|grants| take(grants, &two)).unwrap());
        assert_eq!(state.grants().unwrap(), [Grant::all(one)]);
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let (_directory, state) = state();
        let path = state.file("grants.toml");
        for (text, line) in [
            ("[[grant]]\nkey = \"abc\"\n", 2),
            ("\n\n[[grant]\n", 3),
            ("[[grant]]\nkay = 1\n", 2),
            ("[[grants]]\n", 1),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = state.grants().unwrap_err();
            assert!(
                matches!(&error, StateError::Broken { line: Some(found), .. } if *found == line),
                "{text:?}: {error:?}"
            );
            let said = error.to_string();
            assert!(
                said.contains("grants.toml") && said.contains(&format!("line {line}")),
                "{said}"
            );
            assert!(state.edit_grants(|_| ()).is_err(), "a broken file is not overwritten");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(state.file("agents.json"), "[\n{\"key\": 1}]").unwrap();
        let error = state.book().unwrap_err();
        assert!(error.to_string().contains("agents.json, line 2"), "{error}");
    }

    #[test]
    fn what_root_makes_belongs_to_the_directorys_owner() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let (_directory, state) = state();
        // Fails for others than root, whose files are their own anyway.
        let _ = chown(state.path(), Some(4242), Some(4242));
        let owner = state.path().metadata().unwrap().uid();
        state.edit_grants(|_| ()).unwrap();
        drop(state.lock().unwrap());
        for name in ["grants.toml", "grants.lock", "lock"] {
            assert_eq!(state.file(name).metadata().unwrap().uid(), owner, "{name}");
        }
    }

    #[test]
    fn one_relay_at_a_time() {
        let (_directory, state) = state();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::InUse(_))));
        drop(held);
        state.lock().unwrap();
    }
}
