//! In place of the server of files, where the program was built without it.

use std::path::{Path, PathBuf};

use crate::failure::{Exit, Explain};

/// What cannot be there.
#[derive(Debug, Clone)]
pub(crate) enum Folder {}

impl Folder {
    /// Says that files cannot be served.
    pub(crate) fn open(path: &Path, _hidden: bool) -> Result<Self, FolderError> {
        Err(FolderError(path.to_owned()))
    }
}

/// Files cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{} is a file or a folder, and this is the small build of portal, which serves none", .0.display())]
pub(crate) struct FolderError(PathBuf);

impl Explain for FolderError {
    fn help(&self) -> Option<String> {
        Some(
            "take the full build, made with: cargo build --release -p portal-cli\nor serve it with another program, and \
             expose the port of that"
                .into(),
        )
    }

    fn exit(&self) -> Exit {
        Exit::Misuse
    }
}
