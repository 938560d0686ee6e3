//! In place of the server of files, where the program was built without it.

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Explain};

/// What cannot be there.
#[derive(Debug, Clone)]
pub(crate) enum Folder {}

impl Folder {
    /// Says that files cannot be served, if there are any.
    pub(crate) fn open(path: &Path, _hidden: bool) -> Result<Self, FolderError> {
        let path = path.to_owned();
        Err(match path.metadata() {
            Ok(_) => FolderError::NotHere { path },
            Err(source) => FolderError::NotFound { path, source },
        })
    }
}

/// Why a path cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The program does not serve files.
    #[error("{} is a file or a folder, and this is the small build of portal, which serves none", .path.display())]
    NotHere {
        /// What was to be served, as it was given.
        path: PathBuf,
    },
    /// There is nothing to serve either.
    #[error("cannot serve {}: {source}", .path.display())]
    NotFound {
        /// What was to be served, as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Explain for FolderError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotHere { .. } => "take the full build, made with: cargo build --release -p portal-cli\nor serve it \
                                     with another program, and expose the port of that"
                .into(),
            Self::NotFound { .. } => "check the spelling, and the directory that it is relative to".into(),
        })
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NotHere { .. } => Exit::Misuse,
            Self::NotFound { .. } => Exit::Failed,
        }
    }
}
