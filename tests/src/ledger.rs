//! A ledger of synced files, kept outside the disk under test, and the writers that fill it.
//!
//! Each slot is a file that is replaced again and again: the next version is written beside it, synced, renamed over it and
//! the folder synced; some versions are appended to afterwards and synced again. Only then does the ledger say "slot S has
//! at least version V". After a power cut the file must be there, be exactly some version that was ever begun, and be no
//! older than the ledger says.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::disk_model::xorshift;

/// Versions that are known to be durable, by slot: 0 is "none yet".
#[derive(Debug, Default)]
pub struct Ledger {
    versions: Mutex<Vec<u64>>,
}

impl Ledger {
    /// A ledger of `slots` files.
    #[must_use]
    pub fn new(slots: usize) -> Ledger {
        Ledger { versions: Mutex::new(vec![0; slots]) }
    }

    /// What is durable at this moment. Taken *before* the cut: all it lists was synced by then.
    ///
    /// # Panics
    /// If a writer panicked.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u64> {
        self.versions.lock().map(|versions| versions.clone()).unwrap_or_default()
    }

    fn record(&self, slot: usize, version: u64) {
        if let Ok(mut versions) = self.versions.lock() {
            versions[slot] = version;
        }
    }
}

/// The bytes of one version of a slot: a head that names both, then a stream made from them.
#[must_use]
pub fn content(slot: usize, version: u64) -> Vec<u8> {
    let mut state = (slot as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version.wrapping_mul(0xD1B5_4A32_D192_ED03);
    let sectors = 1 + state % 97;
    let length = usize::try_from(sectors * 613).unwrap_or(613);
    let mut bytes = format!("slot {slot} version {version} length {length}\n").into_bytes();
    while bytes.len() < length {
        bytes.extend(xorshift(&mut state).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn file_of(folder: &Path, slot: usize) -> PathBuf {
    folder.join(format!("slot-{slot}"))
}

/// Writes the next version of `slot` and records it when its syncs have returned.
///
/// # Errors
/// The first failed call; nothing is recorded then.
pub fn write_version(folder: &Path, ledger: &Ledger, slot: usize, version: u64) -> std::io::Result<()> {
    let bytes = content(slot, version);
    let beside = folder.join(format!("slot-{slot}.next"));
    let mut file = File::create(&beside)?;
    for piece in bytes.chunks(10_000) {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    std::fs::rename(&beside, file_of(folder, slot))?;
    File::open(folder)?.sync_all()?;
    ledger.record(slot, version);
    Ok(())
}

/// Compares the files under `folder` with a ledger; returns a line for each that is missing, torn or too old.
#[must_use]
pub fn check(folder: &Path, durable: &[u64]) -> Vec<String> {
    durable.iter().enumerate().filter_map(|(slot, &version)| check_slot(folder, slot, version).err()).collect()
}

fn check_slot(folder: &Path, slot: usize, durable: u64) -> Result<(), String> {
    let bytes = match std::fs::read(file_of(folder, slot)) {
        Ok(bytes) => bytes,
        Err(_) if durable == 0 => return Ok(()),
        Err(error) => return Err(format!("slot {slot}, synced at version {durable}: {error}")),
    };
    let head = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let found = head.split(' ').nth(3).and_then(|version| version.parse::<u64>().ok());
    match found {
        Some(version) if version >= durable && bytes == content(slot, version) => Ok(()),
        Some(version) if version < durable => Err(format!("slot {slot}: version {version}, but {durable} was synced")),
        _ => Err(format!("slot {slot}, synced at version {durable}: torn content ({} bytes, {head:.60})", bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_passes_and_what_was_lost_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(3);
        write_version(folder.path(), &ledger, 0, 1).unwrap();
        write_version(folder.path(), &ledger, 1, 5).unwrap();
        assert_eq!(ledger.snapshot(), [1, 5, 0]);
        assert_eq!(check(folder.path(), &ledger.snapshot()), Vec::<String>::new());
        write_version(folder.path(), &ledger, 1, 4).unwrap();
        assert_eq!(check(folder.path(), &[1, 5, 0]).len(), 1, "an old version");
        let mut torn = content(0, 1);
        let last = torn.len() - 1;
        torn[last] ^= 1;
        std::fs::write(folder.path().join("slot-0"), torn).unwrap();
        std::fs::remove_file(folder.path().join("slot-1")).unwrap();
        assert_eq!(check(folder.path(), &[1, 5, 0]).len(), 2, "a torn and a missing file");
    }
}
