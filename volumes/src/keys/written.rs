//! How much was written under each volume key, for the limit of IEEE 1619: measured when a volume goes down, noted in the key
//! store's folder without its master secret, and counted in its metadata by the next command that opens it.
//!
//! ```text
//! KEYS/written     lines `NAME BYTES`, in text
//! ```
//!
//! The kernel measures: sectors written through a mapping, or bytes that the server's process wrote. Cut between counting and
//! taking the notes away, they are counted twice: too much is the safe side.

use std::collections::BTreeMap;
use std::path::Path;

use keystore::{Files, KeyName, files::replace};
use session::{RunDir, Status};

use crate::VolumesError;
use crate::config::VolumeSpec;
use crate::set::{Set, SetStore};

/// The file of the notes.
const NOTES: &str = "written";
/// Longest file of notes.
const NOTES_BYTES_MAX: usize = 64 << 10;
/// Where the sectors written stand in a block device's `stat`: Documentation/block/stat.rst.
const STAT_WRITTEN_AT: usize = 6;
/// Bytes of those sectors.
const STAT_SECTOR_BYTES: u64 = 512;

/// Bytes that were written since the volume was opened; none where it is not open or nobody counted.
#[must_use]
pub fn measured(set: &Set, spec: &VolumeSpec, run: &RunDir) -> Option<u64> {
    let status = session::status(run, &set.config().mapping(spec)).ok()?;
    for point in &status.mount_points {
        // What is on its way counts, too.
        if let Ok(folder) = std::fs::File::open(point)
            && let Err(error) = rustix::fs::syncfs(&folder)
        {
            log::info!("{}: {error}", point.display());
        }
    }
    if status.backend.as_deref() == Some("dm-crypt") { through_mapping(&status) } else { by_server(&status) }
}

fn through_mapping(status: &Status) -> Option<u64> {
    let device = std::fs::canonicalize(status.device.as_ref()?).ok()?;
    let stat = Path::new("/sys/class/block").join(device.file_name()?).join("stat");
    let text = std::fs::read_to_string(stat).ok()?;
    let sectors: u64 = text.split_ascii_whitespace().nth(STAT_WRITTEN_AT)?.parse().ok()?;
    sectors.checked_mul(STAT_SECTOR_BYTES)
}

fn by_server(status: &Status) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/io", status.pid?)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

/// Notes what was written to volumes.
///
/// # Errors
/// [`VolumesError::KeyStore`].
pub fn note(set: &Set, written: &[(String, u64)]) -> Result<(), VolumesError> {
    if written.iter().all(|(_, bytes)| *bytes == 0) || !set.has_store() {
        return Ok(());
    }
    let mut folder = set.folder()?;
    let mut sums = noted(&folder)?;
    for (name, bytes) in written {
        let sum = sums.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*bytes);
    }
    let text: String = sums.iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
    Ok(replace(&mut folder, NOTES, text.as_bytes())?)
}

/// What is noted and not counted yet.
pub(crate) fn noted(folder: &impl Files) -> Result<BTreeMap<String, u64>, keystore::Error> {
    let text = folder.read(NOTES, NOTES_BYTES_MAX)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let note = |line: &str| line.split_once(' ').and_then(|(name, bytes)| Some((name.to_owned(), bytes.parse().ok()?)));
    Ok(text.lines().filter_map(note).collect())
}

/// Counts the notes in the metadata and takes them away.
pub(crate) fn count(set: &Set, store: &mut SetStore) -> Result<(), VolumesError> {
    let noted = noted(store.files())?;
    if noted.is_empty() {
        return Ok(());
    }
    for (name, bytes) in noted {
        if let Some(name) = KeyName::new(&name).ok().filter(|name| store.metadata().keys.contains_key(name)) {
            store.add_written(&name, bytes, Set::now())?;
        }
    }
    set.remember(store)?;
    let path = set.config().store.keys.join(NOTES);
    std::fs::remove_file(&path).map_err(VolumesError::io("remove", path))
}
