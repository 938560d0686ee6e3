//! How a command ends when it does not end well: one sentence for what failed and why, one for the mend, an exit code.

use std::path::Path;
use std::{fmt, io};

/// An error of one operation that knows how to be mended.
pub(crate) trait Explain: std::error::Error {
    /// What the user can do about it.
    fn help(&self) -> Option<String> {
        None
    }

    /// With which code the program ends.
    fn exit(&self) -> Exit {
        Exit::Failed
    }
}

/// The exit codes beside 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for could not be done.
    Failed = 1,
    /// What was asked for makes no sense.
    Misuse = 2,
}

/// An operation's error on its way to the user. Its text is what is printed, without a line end.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    help: Option<String>,
    exit: Exit,
}

impl Failure {
    /// The same failure, with what it is about in front of it.
    pub(crate) fn within(mut self, place: &impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The same failure as a line of a program that goes on.
    pub(crate) fn as_problem(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("error: ").unwrap_or(&text).to_owned()
    }

    /// What to say if it was met while the files of a running program were read again.
    pub(crate) fn as_kept(&self) -> String {
        format!(
            "what was to be read again cannot be used, so all stays as it is: {}",
            self.as_problem()
        )
    }

    /// The code to end with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

/// The mend for an error that comes of a full disk.
pub(crate) fn full_disk(path: &Path, error: &io::Error) -> Option<String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded).then(|| {
        format!(
            "free some space there (`df -h {0}` shows what is left, `df -i {0}` the files), or name another place; what \
             the file held before is untouched",
            directory.display()
        )
    })
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            message: error.to_string(),
            help: error.help(),
            exit: error.exit(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {}", help.replace('\n', "\n        "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading x: no such file")]
    struct Example;

    impl Explain for Example {
        fn help(&self) -> Option<String> {
            Some("make it\nor not".into())
        }
    }

    #[test]
    fn it_names_the_failure_and_the_mend() {
        let failure = Failure::from(Example);
        assert_eq!(
            failure.to_string(),
            "error: reading x: no such file\n  help: make it\n        or not"
        );
        assert_eq!(failure.exit() as u8, 1);
    }
}
