//! [`KeyFile`]: a key in a file, a pipe or a device.
//!
//! Invariants: newlines are kept; without a size the whole file is the key, up to 8 MiB inclusive; with a size exactly that
//! many bytes must be there. Source: cryptsetup's behaviour as measured in luks2-format.md §11.2.

use crate::reading::{KEY_LIMIT_BYTES, Source};
use crate::{KeyProvider, KeyRequest, KeySourceError, Prompt, Secret};
use rustix::fs::{self, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A key file, `-` for standard input.
#[derive(Clone, Debug)]
pub struct KeyFile {
    /// Where it is. `-` is standard input to its end, or a prompt if that is a terminal.
    pub path: PathBuf,
    /// How many bytes to leave out at the start.
    pub offset_bytes: u64,
    /// How long the key is; `None` or 0: everything to the end, which a character device does not have.
    pub size_bytes: Option<usize>,
}

impl KeyFile {
    /// The whole file at `path`.
    pub fn whole(path: &Path) -> KeyFile {
        KeyFile { path: path.to_owned(), offset_bytes: 0, size_bytes: None }
    }

    fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Reads the key.
    ///
    /// # Errors
    /// [`KeySourceError`]: the file cannot be read, has more than 8 MiB, fewer bytes than demanded, or no end; nothing came on
    /// standard input.
    pub fn read(&self) -> Result<Secret, KeySourceError> {
        if self.is_standard_input() {
            let key = self.read_from(&std::io::stdin(), "standard input")?;
            // A pipe whose writer died is no empty passphrase.
            return if key.is_empty() { Err(KeySourceError::Nothing) } else { Ok(key) };
        }
        let what = self.path.display().to_string();
        let failed = |errno: Errno| KeySourceError::Io { what: what.clone(), source: errno.into() };
        let file =
            fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(failed)?;
        self.read_from(&file, &what)
    }

    fn read_from<F: AsFd>(&self, file: &F, what: &str) -> Result<Secret, KeySourceError> {
        let source = Source::new(file, what);
        let stat = fs::fstat(file).map_err(|errno| source.failed(errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let size_bytes = self.size_bytes.filter(|&size| size > 0);
        match kind {
            FileType::Directory => return Err(KeySourceError::NotAFile { path: self.path.clone() }),
            FileType::CharacterDevice if size_bytes.is_none() && !self.is_standard_input() => {
                return Err(KeySourceError::SizeNeeded { path: self.path.clone() });
            }
            _ => {}
        }
        self.go_to_offset(file, &source, kind)?;
        match size_bytes {
            Some(size_bytes) => source.exactly(size_bytes, KEY_LIMIT_BYTES),
            None => source.to_end(KEY_LIMIT_BYTES),
        }
    }

    /// Leaves the first bytes out. An offset behind the end is an error, not an empty key.
    fn go_to_offset<F: AsFd>(&self, file: &F, source: &Source<'_>, kind: FileType) -> Result<(), KeySourceError> {
        if self.offset_bytes == 0 {
            return Ok(());
        }
        // Standard input may stand anywhere in its file: it is read from there.
        let seekable = matches!(kind, FileType::RegularFile | FileType::BlockDevice) && !self.is_standard_input();
        if !seekable {
            return source.skip(self.offset_bytes);
        }
        let end = fs::seek(file, SeekFrom::End(0)).map_err(|errno| source.failed(errno))?;
        if self.offset_bytes > end {
            return Err(source.too_short(self.offset_bytes, end));
        }
        fs::seek(file, SeekFrom::Start(self.offset_bytes)).map_err(|errno| source.failed(errno))?;
        Ok(())
    }
}

impl KeyProvider for KeyFile {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        if self.is_standard_input() && std::io::stdin().is_terminal() {
            return Prompt::new().key_for(request);
        }
        self.read().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read(path: &Path, offset_bytes: u64, size_bytes: Option<usize>) -> Result<Secret, KeySourceError> {
        KeyFile { path: path.to_owned(), offset_bytes, size_bytes }.read()
    }

    #[test]
    fn exactly_8_mib_is_a_key_and_one_byte_more_is_not() {
        let file = file_of(&vec![3; KEY_LIMIT_BYTES]);
        assert_eq!(KeyFile::whole(file.path()).read().unwrap().len(), KEY_LIMIT_BYTES);
        file.as_file().set_len(KEY_LIMIT_BYTES as u64 + 1).unwrap();
        let error = KeyFile::whole(file.path()).read().unwrap_err();
        assert!(matches!(error, KeySourceError::TooLarge { limit_bytes: KEY_LIMIT_BYTES, .. }), "{error}");
        assert_eq!(read(file.path(), 0, Some(KEY_LIMIT_BYTES)).unwrap().len(), KEY_LIMIT_BYTES);
        assert!(matches!(read(file.path(), 0, Some(KEY_LIMIT_BYTES + 1)), Err(KeySourceError::TooLarge { .. })));
        assert_eq!(read(file.path(), 1, None).unwrap().len(), KEY_LIMIT_BYTES);
    }

    #[test]
    fn newlines_are_kept_and_an_empty_file_is_an_empty_key() {
        let file = file_of(b"\npass\nphrase\n");
        assert_eq!(KeyFile::whole(file.path()).read().unwrap().expose(), b"\npass\nphrase\n");
        assert!(KeyFile::whole(file_of(b"").path()).read().unwrap().is_empty());
    }

    #[test]
    fn a_demanded_size_must_be_there_and_ends_the_key() {
        let file = file_of(b"0123456789");
        assert_eq!(read(file.path(), 0, Some(4)).unwrap().expose(), b"0123");
        assert_eq!(read(file.path(), 3, Some(7)).unwrap().expose(), b"3456789");
        assert_eq!(read(file.path(), 0, Some(0)).unwrap().len(), 10);
        let error = read(file.path(), 3, Some(8)).unwrap_err();
        assert!(matches!(error, KeySourceError::TooShort { wanted_bytes: 8, got_bytes: 7, .. }), "{error}");
    }

    #[test]
    fn an_offset_behind_the_end_is_no_empty_key() {
        let file = file_of(b"0123456789");
        assert!(read(file.path(), 10, None).unwrap().is_empty());
        let error = read(file.path(), 11, None).unwrap_err();
        assert!(matches!(error, KeySourceError::TooShort { wanted_bytes: 11, got_bytes: 10, .. }), "{error}");
    }

    #[test]
    fn pipes_are_skipped_into_and_devices_need_a_size() {
        let pipe = crate::reading::pipe_with(&[b"skip".repeat(3000), b"key".to_vec()].concat());
        let file = KeyFile { path: "pipe".into(), offset_bytes: 12_000, size_bytes: None };
        assert_eq!(file.read_from(&pipe, "a pipe").unwrap().expose(), b"key");
        let zero = Path::new("/dev/zero");
        assert!(matches!(KeyFile::whole(zero).read(), Err(KeySourceError::SizeNeeded { .. })));
        assert_eq!(read(zero, 10, Some(32)).unwrap().expose(), [0; 32]);
    }

    #[test]
    fn a_folder_or_a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(KeyFile::whole(folder.path()).read(), Err(KeySourceError::NotAFile { .. })));
        let error = KeyFile::whole(&folder.path().join("missing.key")).read().unwrap_err();
        assert!(error.to_string().contains("missing.key"), "{error}");
    }
}
