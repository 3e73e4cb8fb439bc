//! [`Root`]: the folder below which `/proc`, `/sys`, `/etc`, `/lib/modules` and the programs are read. On the running system it
//! is `/`.
//!
//! Only regular files are read, at most [`TEXT_MAX_BYTES`] of each, so that nothing waits and nothing grows.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest text that is read; the longest real one is a kernel's `modules.dep`, under 1 MiB.
const TEXT_MAX_BYTES: u64 = 8 << 20;
/// Entries of one folder that are looked at.
const ENTRIES_MAX: usize = 1 << 16;

/// A file system tree that describes a machine.
#[derive(Clone, Debug)]
pub struct Root {
    folder: PathBuf,
}

impl Root {
    /// The running system's.
    #[must_use]
    pub fn system() -> Root {
        Root { folder: PathBuf::from("/") }
    }

    /// The tree below `folder`.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Root {
        Root { folder: folder.into() }
    }

    /// Where an absolute path lies in this tree.
    #[must_use]
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.folder.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// The text of a regular file without the white space around it; `None` if it cannot be read.
    #[must_use]
    pub fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        let path = self.path(absolute);
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(&path).ok()?.take(TEXT_MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The metadata of what a path leads to.
    #[must_use]
    pub fn metadata(&self, absolute: impl AsRef<Path>) -> Option<Metadata> {
        std::fs::metadata(self.path(absolute)).ok()
    }

    /// Whether a path leads to something.
    #[must_use]
    pub fn exists(&self, absolute: impl AsRef<Path>) -> bool {
        self.metadata(absolute).is_some()
    }

    /// The names in a folder, sorted; none if it cannot be read.
    #[must_use]
    pub fn names(&self, absolute: impl AsRef<Path>) -> Vec<String> {
        let listed = std::fs::read_dir(self.path(absolute)).into_iter().flatten().take(ENTRIES_MAX);
        let mut names: Vec<String> =
            listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}
