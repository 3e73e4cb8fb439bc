//! [`Snapshot`]: the bytes of a log at one moment.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::FlockOperation;
use secret::Secret;

use super::Line;
use crate::VolumesError;
use crate::audit::STATE_NAME;
use crate::audit::folder::{names, no_follow, wait};
use crate::audit::line::Claim;
use crate::audit::state::{STATE_BYTES, State};

/// Most bytes of all files of a log.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// A log at one moment.
pub struct Snapshot {
    /// Files by month, with their bytes.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// What the state says; none if it is gone.
    pub(crate) state: Option<StateSays>,
}

/// What the state says.
pub(crate) struct StateSays {
    pub(crate) count: u64,
    pub(crate) head: [u8; 32],
    pub(crate) key: Secret,
}

impl Snapshot {
    /// Reads a log while no record is being written.
    ///
    /// # Errors
    /// [`VolumesError`]: the folder, a file or the state cannot be read, a writer holds the log, or there is more than 1 GiB.
    pub fn read(path: &Path) -> Result<Snapshot, VolumesError> {
        let refused = |what: String| VolumesError::File { path: path.to_owned(), what };
        let state_path = path.join(STATE_NAME);
        let state_file = match File::options().read(true).custom_flags(no_follow()).open(&state_path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(VolumesError::io("read", &state_path)(error)),
        };
        let state = match &state_file {
            Some(file) => {
                wait(file, path, FlockOperation::NonBlockingLockShared)?;
                let mut bytes = Secret::zeroed(STATE_BYTES)?;
                let (mut at, mut reader) = (0, file);
                while at < STATE_BYTES {
                    match reader.read(&mut bytes.expose_mut()[at..]).map_err(VolumesError::io("read", &state_path))? {
                        0 => break,
                        count => at += count,
                    }
                }
                StateSays::of(bytes.expose())?
            }
            None => None,
        };
        let mut files = Vec::new();
        let mut total = 0;
        for name in names(path).map_err(VolumesError::io("read", path))? {
            let file = path.join(&name);
            let failed = |error| VolumesError::Io { what: "read", path: file.clone(), source: error };
            let opened = File::options().read(true).custom_flags(no_follow()).open(&file).map_err(failed)?;
            let mut bytes = Vec::new();
            opened.take(LOG_BYTES_MAX - total + 1).read_to_end(&mut bytes).map_err(failed)?;
            total += bytes.len() as u64;
            if total > LOG_BYTES_MAX {
                return Err(refused("the log has more than 1 GiB".to_owned()));
            }
            files.push((name, bytes));
        }
        Ok(Snapshot { files, state })
    }

    /// All lines, in the order of the files.
    pub(super) fn lines(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        for (file, bytes) in &self.files {
            for (at, piece) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
                let has_end = piece.ends_with(b"\n");
                let bytes = piece.strip_suffix(b"\n").unwrap_or(piece);
                let claim = Claim::of(bytes);
                lines.push(Line { file, line: at as u64 + 1, bytes, has_end, claim, is_good: false });
            }
        }
        lines
    }
}

impl StateSays {
    /// Of the bytes of the state file; `None` if it holds no state.
    pub(crate) fn of(bytes: &[u8]) -> Result<Option<StateSays>, VolumesError> {
        let Some(state) = State::of(bytes)? else { return Ok(None) };
        Ok(Some(StateSays { count: state.count, head: state.head, key: Secret::copy_of(state.key.bytes())? }))
    }
}
