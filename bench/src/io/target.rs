//! The test file: made for the run, removed at its end, never anything that was there before.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use block::{BlockIo as _, Bytes, Direct, FileDisk, OpenMode};
use luksbench::lane::Random;

use super::stop::Stop;
use crate::image::{self, DATA_OFFSET};

const PREFIX: &str = "luksbench-";
const SUFFIX: &str = ".test";
/// What a file system wants beside the data.
const SPARE_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// The file. Dropping it removes it.
pub(super) struct TestFile {
    path: PathBuf,
}

impl TestFile {
    /// Makes the file for `target`, empty, if all that is to be in it has room.
    pub(super) fn make(target: &Path, size_bytes: u64) -> Result<TestFile> {
        let path = free_path(target)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let room = rustix::fs::statvfs(folder).with_context(|| format!("folder {}", folder.display()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let needed = size_bytes + DATA_OFFSET.0 + SPARE_BYTES;
        ensure!(
            free >= needed,
            "{} has {} MiB free, and {} are needed: free some, or measure with a smaller --size",
            folder.display(),
            free >> 20,
            needed.div_ceil(1 << 20)
        );
        FileDisk::create_new(&path, &OpenMode::default()).with_context(|| format!("making {}", path.display()))?;
        // From here on it is ours to remove.
        let mut made = TestFile { path };
        made.path = std::fs::canonicalize(&made.path).with_context(|| made.path.display().to_string())?;
        Ok(made)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Formats it and writes all of its data, random bytes, down to the disk. `told` hears how much is done, of 1.
    pub(super) fn prepare(&self, size: Bytes, sector_bytes: u32, stop: &Stop, told: &mut dyn FnMut(f64)) -> Result<()> {
        image::format(&self.path, size, Some(sector_bytes))?;
        let disk = FileDisk::open(&self.path, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() })?;
        let mut random = Random(std::process::id().into());
        let mut chunk = block::AlignedBuf::zeroed(CHUNK_BYTES);
        let mut at = 0;
        while at < size.0 {
            if stop.is_wanted() {
                bail!("stopped while the test file was written: nothing was measured");
            }
            random.fill(&mut chunk);
            let len = usize::try_from(size.0 - at).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            disk.write_at(Bytes(DATA_OFFSET.0 + at), &chunk[..len], false)
                .with_context(|| format!("writing {}", self.path.display()))?;
            at += len as u64;
            #[allow(clippy::cast_precision_loss)] // a share
            told(at as f64 / size.0 as f64);
        }
        disk.flush().with_context(|| format!("writing {} to the disk", self.path.display()))
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where the file shall be.
fn free_path(target: &Path) -> Result<PathBuf> {
    if target.is_dir() {
        return Ok(target.join(format!("{PREFIX}{}{SUFFIX}", std::process::id())));
    }
    if target.symlink_metadata().is_ok() {
        bail!(
            "{} exists: luksbench writes to nothing that it did not make. Name its folder, a file that is not there yet, or a LUKS2 image to read",
            target.display()
        );
    }
    ensure!(target.file_name().is_some(), "{} is no name for a file", target.display());
    Ok(target.to_path_buf())
}

/// Files of this kind beside `path` whose run is over: it was killed.
pub(super) fn left_behind(path: &Path) -> Vec<PathBuf> {
    let is_left = |name: &str| {
        let pid = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let pid: u32 = pid.parse().ok()?;
        Some(!Path::new("/proc").join(pid.to_string()).exists())
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().and_then(is_left) == Some(true))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_refused_and_what_was_made_goes() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        std::fs::write(&there, b"precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        for target in [&there, &link] {
            let words = TestFile::make(target, 1 << 20).err().unwrap().to_string();
            assert!(words.contains("exists") && words.contains("did not make"), "{words}");
        }
        assert_eq!(std::fs::read(&there).unwrap(), b"precious");
        for target in [folder.path().to_path_buf(), folder.path().join("new")] {
            let file = TestFile::make(&target, 1 << 20).unwrap();
            let path = file.path().to_path_buf();
            assert!(path.is_file() && path.starts_with(folder.path().canonicalize().unwrap()));
            drop(file);
            assert!(!path.exists());
        }
        let words = TestFile::make(folder.path(), 1 << 60).err().unwrap().to_string();
        assert!(words.contains("free") && words.contains("--size"), "{words}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_file_of_a_killed_run_is_named_that_of_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |pid: u32| folder.path().join(format!("{PREFIX}{pid}{SUFFIX}"));
        for path in [file(std::process::id()), file(u32::MAX), folder.path().join("luksbench-x.test")] {
            std::fs::write(path, b"").unwrap();
        }
        assert_eq!(left_behind(&folder.path().join("new")), [file(u32::MAX)]);
    }
}
