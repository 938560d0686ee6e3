//! Key files: one secret key in the text form of `wg genkey`, for its owner only.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use portal_core::identity::{KeyError, PresharedKey, PublicKey, SecretKey};

use crate::failure::{Exit, Explain, full_disk};
use crate::files;

/// A key file is 45 bytes; anything near this is something else.
const MAX_FILE: u64 = 4096;

/// Reads a key file.
pub(crate) fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    load_and_keep(path).map(|(secret, _)| secret)
}

/// Reads a file with what two peers share on top of their keys.
pub(crate) fn load_shared(path: &Path) -> Result<PresharedKey, KeyFileError> {
    match load_and_keep(path) {
        Ok((shared, _)) => Ok(shared),
        Err(KeyFileError::Missing(path)) => Err(KeyFileError::MissingShared(path)),
        Err(error) => Err(error),
    }
}

/// The public half of a key file, if there is one.
pub(crate) fn look(path: &Path) -> Result<Option<PublicKey>, KeyFileError> {
    match load(path) {
        Ok(secret) => Ok(Some(secret.public_key())),
        Err(KeyFileError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a key file with a new key. Its directory must exist.
pub(crate) fn create(path: &Path) -> Result<SecretKey, KeyFileError> {
    let secret = SecretKey::from_bytes(random()?);
    let text = format!("{}\n", secret.to_base64());
    match files::create(path, text.as_bytes()) {
        Ok(()) => Ok(secret),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeyFileError::Exists(path.to_owned())),
        Err(source) => Err(KeyFileError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads a key file, or makes it and its directory on first use. Tells whether it was made.
pub(crate) fn load_or_create(path: &Path) -> Result<(SecretKey, bool), KeyFileError> {
    match load(path) {
        Err(KeyFileError::Missing(_)) => {}
        loaded => return loaded.map(|secret| (secret, false)),
    }
    if let Some(directory) = path.parent() {
        files::create_directory(directory).map_err(|source| KeyFileError::Write {
            path: path.to_owned(),
            source,
        })?;
    }
    match create(path) {
        // Another process was faster: its key is as good.
        Err(KeyFileError::Exists(_)) => load(path).map(|secret| (secret, false)),
        created => created.map(|secret| (secret, true)),
    }
}

/// Reserves a key for this process for as long as the file is kept open. Two agents with one key would take the tunnel
/// away from each other for ever.
pub(crate) fn reserve(path: &Path) -> Result<File, KeyFileError> {
    let (_, file) = load_and_keep::<SecretKey>(path)?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(KeyFileError::InUse(path.to_owned())),
        // File systems without locks are no reason to stop.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// 32 bytes from the system's generator.
pub(crate) fn random() -> Result<[u8; 32], KeyFileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyFileError::Random)?;
    Ok(bytes)
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// There is no such file.
    #[error("reading the key file {}: there is no such file", .0.display())]
    Missing(PathBuf),
    /// There is no such file with a preshared key.
    #[error("reading the preshared key {}: there is no such file", .0.display())]
    MissingShared(PathBuf),
    /// There is such a file already.
    #[error("making the key file {}: it exists already, and a key is not overwritten", .0.display())]
    Exists(PathBuf),
    /// The file cannot be read.
    #[error("reading the key file {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("making the key file {}: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("reading the key file {}: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Others can read the secret.
    #[error("the key file {} can be read by others (mode {mode:03o}), so it is not used", .path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The contents are no key.
    #[error("the key file {} holds no key: {source}", .path.display())]
    Garbage {
        /// Which.
        path: PathBuf,
        /// Why; without the contents, which may be a secret.
        source: KeyError,
    },
    /// The contents are not even text.
    #[error("the key file {} holds no key: it is too long or no text", .0.display())]
    NoText(PathBuf),
    /// Another agent runs with this key.
    #[error("the key {} is in use by another portal on this machine", .0.display())]
    InUse(PathBuf),
    /// Where keys are kept is not known.
    #[error("there is no place for a key: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// The system's generator failed.
    #[error("the system's random number generator fails: {0}")]
    Random(getrandom::Error),
}

impl Explain for KeyFileError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Missing(path) => format!("make one with: portal key new {}", path.display()),
            Self::MissingShared(path) => format!(
                "make one with: (umask 077; wg genpsk > {})\nboth ends need the same",
                path.display()
            ),
            Self::Exists(path) => format!("show its public half with: portal key show {}", path.display()),
            Self::Exposed { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Garbage { path, .. } | Self::NoText(path) => format!(
                "a key file holds what `wg genkey` or `portal key new` writes; move {} away to have a new one made",
                path.display()
            ),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run portal as the user who owns the file, or name another one with --key".into()
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "make its directory first, or name another place".into()
            }
            Self::Write { path, source } => {
                full_disk(path, source).unwrap_or_else(|| "name a place where this user may write".into())
            }
            Self::NotAFile(_) => "name a file made by `portal key new` or `wg genkey`".into(),
            Self::InUse(_) => "every running agent needs a key of its own: name another file with --key (it is made \
                               on first use, and needs its own grant)"
                .into(),
            Self::NoHome => "name a file with --key".into(),
            Self::Read { .. } | Self::Random(_) => return None,
        })
    }

    fn exit(&self) -> Exit {
        Exit::Failed
    }
}

/// The open file comes along, so that what is locked is what was read.
fn load_and_keep<K: FromStr<Err = KeyError>>(path: &Path) -> Result<(K, File), KeyFileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path.to_owned()),
        _ => KeyFileError::Read {
            path: path.to_owned(),
            source,
        },
    };
    // Before it is opened: opening a pipe would wait for its writer.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(KeyFileError::NotAFile(path.to_owned()));
    }
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    match (&mut file).take(MAX_FILE).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 == MAX_FILE => return Err(KeyFileError::NoText(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(KeyFileError::NoText(path.to_owned())),
        Err(error) => return Err(failed(error)),
    }
    let secret = text.parse().map_err(|source| KeyFileError::Garbage {
        path: path.to_owned(),
        source,
    })?;
    Ok((secret, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn made_once_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep").join("agent.key");
        let (secret, made) = load_or_create(&path).unwrap();
        assert!(made);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let (again, made) = load_or_create(&path).unwrap();
        assert!(!made);
        assert_eq!(again.as_bytes(), secret.as_bytes());
        assert!(matches!(create(&path), Err(KeyFileError::Exists(_))));
    }

    #[test]
    fn what_others_can_read_and_what_is_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { .. }), "{mode:o}");
            assert!(error.help().unwrap().starts_with("chmod 600 "));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for garbage in ["", "hunter2", "\u{e4}"] {
            fs::write(&path, garbage).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Garbage { .. }), "{garbage}");
            assert!(garbage.is_empty() || !error.to_string().contains(garbage));
        }
        for unreadable in [b"\xff\xfe".to_vec(), vec![b'a'; 10_000]] {
            fs::write(&path, unreadable).unwrap();
            assert!(matches!(load(&path), Err(KeyFileError::NoText(_))));
        }
        assert!(matches!(load(directory.path()), Err(KeyFileError::NotAFile(_))));
        assert!(matches!(
            load(&directory.path().join("no")),
            Err(KeyFileError::Missing(_))
        ));
    }

    #[test]
    fn one_process_at_a_time_has_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        create(&path).unwrap();
        let held = reserve(&path).unwrap();
        assert!(matches!(reserve(&path), Err(KeyFileError::InUse(_))));
        drop(held);
        reserve(&path).unwrap();
    }
}
