//! An agent's key.

use std::fs::File;
use std::path::{Path, PathBuf};

use portal_core::identity::{PublicKey, SecretKey};

use crate::keyfile::{self, KeyFileError};
use crate::state;

/// Agents that one user can run on one machine without naming a key for each.
const MAX_AGENTS: u32 = 64;

/// A key that is in use.
pub(crate) struct AgentKey {
    pub(super) secret: SecretKey,
    /// Where it is kept.
    pub(super) file: PathBuf,
    /// The file, if it was made just now.
    pub(super) made: Option<PathBuf>,
    /// Keeps other agents from using it.
    reserved: Option<File>,
}

impl AgentKey {
    /// The key named, or the first of the user's own that no other agent uses now. With `reserve`, no other agent can
    /// use it from now on.
    pub(crate) fn take(named: Option<PathBuf>, reserve: bool) -> Result<Self, KeyFileError> {
        let take = |path: PathBuf| -> Result<Self, KeyFileError> {
            let (secret, made) = keyfile::load_or_create(&path)?;
            let reserved = if reserve { Some(keyfile::reserve(&path)?) } else { None };
            Ok(Self {
                secret,
                made: made.then(|| path.clone()),
                file: path,
                reserved,
            })
        };
        if let Some(path) = named {
            return take(path);
        }
        let mut last = None;
        for number in 1..=MAX_AGENTS {
            match take(usual(number)?) {
                Err(error @ KeyFileError::InUse(_)) => last = Some(error),
                taken => return taken,
            }
        }
        Err(last.unwrap_or(KeyFileError::NoHome))
    }

    /// Whether no other agent of this machine has it.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// The file of the key that would be taken, and its public half if it is there. Makes nothing.
    pub(crate) fn look(named: Option<&Path>) -> Result<(PathBuf, Option<PublicKey>), KeyFileError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => usual(1)?,
        };
        let key = keyfile::look(&path)?;
        Ok((path, key))
    }
}

fn usual(number: u32) -> Result<PathBuf, KeyFileError> {
    let directory = state::user_state_dir().ok_or(KeyFileError::NoHome)?;
    Ok(directory.join(if number == 1 {
        "agent.key".to_owned()
    } else {
        format!("agent-{number}.key")
    }))
}
