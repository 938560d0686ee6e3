//! Opening what lies inside the root, and nothing else.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
};

use super::path::any_hidden;

/// The folder or file that is served: the border that nothing is read across.
#[derive(Debug)]
pub(super) struct Root {
    /// Canonical, so that it can be compared with where an opened file really lies.
    pub(super) path: PathBuf,
    /// Whether names that start with a dot are served.
    pub(super) hidden: bool,
}

impl Root {
    /// Opens a regular file or a directory that really lies inside the root, whatever links led to it.
    ///
    /// Blocks on the file system, but never on a FIFO or a device: neither is opened for reading.
    pub(super) fn open(&self, path: &Path) -> Result<Opened, Refusal> {
        let opened = Opened::new(path).map_err(Refusal::at_name)?;
        let Ok(below) = opened.real.strip_prefix(&self.path) else {
            return Err(Refusal::NotFound);
        };
        // Judged again here: a link with a harmless name may lead to `.git`.
        if !self.hidden && any_hidden(below) {
            return Err(Refusal::NotFound);
        }
        if opened.metadata.is_file() || opened.metadata.is_dir() {
            Ok(opened)
        } else {
            Err(Refusal::NotFound)
        }
    }
}

/// A regular file or a directory inside the root.
///
/// On Linux it holds the very inode that was judged: whatever is renamed or linked afterwards, [`Opened::path`] leads
/// to that inode. Elsewhere there is no such path, and a local user who may write below the root can swap a file for a
/// link between the judgement and the reading; visitors cannot.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) metadata: Metadata,
    real: PathBuf,
    #[cfg(target_os = "linux")]
    handle: File,
}

impl Opened {
    /// `O_PATH` finds the file without opening it: a FIFO does not block, a device notices nothing, an automount stays
    /// down. The kernel then says where the file lies, with every link resolved.
    #[cfg(target_os = "linux")]
    fn new(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;

        let handle = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)?;
        let metadata = handle.metadata()?;
        let real = fs::read_link(descriptor_path(&handle))?;
        Ok(Self { metadata, real, handle })
    }

    #[cfg(not(target_os = "linux"))]
    fn new(path: &Path) -> io::Result<Self> {
        let real = path.canonicalize()?;
        Ok(Self {
            metadata: real.metadata()?,
            real,
        })
    }

    /// Where to read this, or what is inside it, as long as `self` lives.
    pub(super) fn path(&self) -> PathBuf {
        #[cfg(target_os = "linux")]
        return descriptor_path(&self.handle);
        #[cfg(not(target_os = "linux"))]
        return self.real.clone();
    }

    /// Whether this process may read the contents. Blocks on the file system.
    pub(super) fn check_readable(&self) -> io::Result<()> {
        if self.metadata.is_dir() {
            fs::read_dir(self.path()).map(drop)
        } else {
            File::open(self.path()).map(drop)
        }
    }
}

/// Why a request gets no file.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not there, or visitors must not learn that it is.
    NotFound,
    /// It is inside the root, but this process may not read it.
    Forbidden,
    /// The system failed.
    Failed(io::Error),
}

impl Refusal {
    /// For a failure to reach a file by its name.
    ///
    /// Denied permission is an absence here: which directory denied it is not known, and beyond a link that would tell
    /// a visitor about files outside the root.
    fn at_name(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};

        #[cfg(target_os = "linux")]
        let circular = error.raw_os_error() == Some(libc::ELOOP);
        #[cfg(not(target_os = "linux"))]
        let circular = false;
        match error.kind() {
            NotFound | NotADirectory | PermissionDenied | InvalidInput | InvalidFilename => Self::NotFound,
            _ if circular => Self::NotFound,
            _ => Self::Failed(error),
        }
    }

    /// For a failure to read what has been found inside the root.
    pub(super) fn at_contents(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            io::ErrorKind::NotFound => Self::NotFound,
            _ => Self::Failed(error),
        }
    }
}

#[cfg(target_os = "linux")]
fn descriptor_path(handle: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;

    format!("/proc/self/fd/{}", handle.as_raw_fd()).into()
}
