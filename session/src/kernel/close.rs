//! Closing a mapping, and taking away what a killed `open` or `close`, or another tool, left of an entry.
//!
//! What the kernel caches is written back first, because a removal tells nobody of a page that was lost. The entry goes
//! last: a killed `close` leaves an entry whose mapping is gone, which the next look at it takes away.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use dmsetup::{DevNo, DmError, LoopInfo, Removal};

use super::errors::session_error;
use super::{Subject, below, find_recorded, forget};
use crate::registry::{Behind, Info, Liveness, MappingRecord, RegistryLock, behind, liveness};
use crate::run_dir::{Entry, RunDir};
use crate::suspend::sync_device;
use crate::{CloseReport, SessionError, busy};

/// Closes the mapping. A busy one is refused, or goes with its last user if `deferred`.
pub(crate) fn close(subject: Subject, deferred: bool) -> Result<CloseReport, SessionError> {
    let mapping = &subject.found.mapping;
    let name = subject.name().to_owned();
    if !deferred && mapping.is_claimed() {
        return Err(in_use(&subject, "mounted, or part of another mapping", None));
    }
    // A suspended mapping would let the sync wait until somebody resumes it.
    let synced = if subject.found.info.suspended { Ok(()) } else { sync_device(&mapping.device_path()) };
    let below = loop_below(&subject);
    let removal = match mapping.remove(deferred) {
        Ok(removal) => removal,
        Err(DmError::Busy { how, .. }) => return Err(in_use(&subject, how, synced.err())),
        Err(error) => return Err(session_error(&name, error)),
    };
    if removal == Removal::Removed {
        if let Some(device) = below {
            below::wait_until_detached(&device);
        }
        if let Some(ours) = &subject.ours {
            forget(&ours.entry, &ours.lock)?;
        }
    }
    match (synced, removal) {
        (Err(reason), Removal::Removed) => Err(SessionError::LostWrites { name, reason }),
        (Err(reason), Removal::Deferred) => Err(SessionError::NotSynced { name, reason }),
        (Ok(()), Removal::Removed) => Ok(CloseReport::Closed),
        (Ok(()), Removal::Deferred) => Ok(CloseReport::Deferred),
    }
}

/// The loop device below the mapping, if there is one.
fn loop_below(subject: &Subject) -> Option<LoopInfo> {
    let devices = subject.found.mapping.dependencies().ok()?;
    devices.into_iter().find_map(below::loop_of).map(|(info, _)| info)
}

fn in_use(subject: &Subject, how: &str, lost: Option<String>) -> SessionError {
    let named = users(subject);
    let how = if named.is_empty() { how.to_owned() } else { named.join("; ") };
    let how = lost.into_iter().fold(how, |how, reason| format!("{how}; and writes were lost: {reason}"));
    SessionError::Busy { name: subject.name().to_owned(), how }
}

/// Who uses the mapping, in words, as far as can be seen.
fn users(subject: &Subject) -> Vec<String> {
    // With udev the first is the device, without it both are.
    let node = PathBuf::from(format!("/dev/dm-{}", subject.found.info.device.minor));
    let mut users = busy::users(&node);
    for user in busy::users(&subject.found.mapping.device_path()) {
        if !users.contains(&user) {
            users.push(user);
        }
    }
    users
}

/// Takes away what is left of `entry`, whose opening or closing died: the mapping if it is of this record, its node, the
/// folder. The caller holds the registry lock.
pub(crate) fn clean(entry: &Entry, record: &MappingRecord) -> Result<(), SessionError> {
    if let Some(found) = find_recorded(entry, record)? {
        let below = found.mapping.dependencies().ok().and_then(|all| all.into_iter().find_map(below::loop_of));
        found.mapping.remove(false).map_err(|error| match error {
            DmError::Busy { how, .. } => SessionError::Leftover {
                name: entry.name.to_string(),
                what: format!("the mapping {}, which is in use: {how}", found.mapping.device_path().display()),
            },
            other => session_error(entry.name.as_str(), other),
        })?;
        if let Some((device, _)) = below {
            below::wait_until_detached(&device);
        }
    }
    remove_stale_node(&Path::new("/dev/mapper").join(entry.name.as_str()))?;
    entry.remove()
}

/// Without udev the node of a mapping is removed after the mapping, by whoever removes it.
fn remove_stale_node(path: &Path) -> Result<(), SessionError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let device = DevNo::from_rdev(metadata.rdev());
    if metadata.file_type().is_block_device() && !Path::new(&format!("/sys/dev/block/{device}")).exists() {
        fs::remove_file(path).map_err(SessionError::io("remove", path))?;
    }
    Ok(())
}

/// Takes a complete entry away whose mapping somebody else closed. Whether it did.
pub(crate) fn tidy(run: &RunDir, entry: &Entry) -> Result<bool, SessionError> {
    let is_closed = || {
        let record = Info::read(entry).and_then(|info| info.mapping).filter(|record| record.complete);
        record.is_some() && matches!(behind(entry), Ok(Behind::Dead))
    };
    if !is_closed() {
        return Ok(false);
    }
    let registry = RegistryLock::take(run)?;
    let Some(record) = Info::read(entry).and_then(|info| info.mapping).filter(|_| is_closed()) else {
        return Ok(false);
    };
    // Whoever holds the entry is about to take it away.
    let removed = liveness(entry)? == Liveness::Dead;
    if removed {
        clean(entry, &record)?;
    }
    drop(registry);
    if removed {
        log::info!("{} was closed by another tool; its entry is gone now", entry.name);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{DigestMark, claim};
    use crate::{CloseOptions, SessionError, State};

    /// Only root may ask device-mapper; where there is none, nobody needs to.
    fn may_look(test: &str) -> bool {
        let may = rustix::process::geteuid().is_root() || !Path::new("/dev/mapper/control").exists();
        if !may {
            eprintln!("SKIPPED session::kernel {test}: needs root to ask device-mapper");
        }
        may
    }

    /// An entry whose mapping is nowhere.
    fn entry(run: &RunDir, complete: bool) -> Entry {
        let entry = run.entry(&"gone-mapping-of-a-test".parse().unwrap());
        let record = MappingRecord {
            uuid: "CRYPT-LUKS2-00000000000000000000000000000000-gone-mapping-of-a-test".into(),
            complete,
            keyslot: None,
            policy: None,
            digest: DigestMark { id: 0, salt: None, value: None },
        };
        let info = Info {
            image: "/image".into(),
            header: None,
            identity: "file:0:0".into(),
            uuid: String::new(),
            pid: None,
            device: "/dev/mapper/gone-mapping-of-a-test".into(),
            backend: "dm-crypt".into(),
            read_only: false,
            opened_unix_s: 0,
            mapping: Some(record),
        };
        entry.create().unwrap();
        info.write(&entry).unwrap();
        entry
    }

    #[test]
    fn what_another_tool_closed_is_forgotten_by_whoever_looks() {
        if !may_look("what_another_tool_closed_is_forgotten_by_whoever_looks") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        let name = "gone-mapping-of-a-test";
        let looks: [fn(&RunDir, &str) -> bool; 4] = [
            |run, name| matches!(crate::status(run, name), Err(SessionError::NotOpen { .. })),
            |run, _| crate::list(run).is_ok_and(|all| all.iter().all(|status| status.name != "gone-mapping-of-a-test")),
            |run, name| matches!(crate::close(run, name, &CloseOptions::default()), Ok(CloseReport::CleanedUp)),
            |run, name| matches!(crate::suspend(run, name), Err(SessionError::NotOpen { .. })),
        ];
        for look in looks {
            let entry = entry(&run, true);
            assert!(look(&run, name));
            assert!(!entry.exists());
        }
    }

    #[test]
    fn an_opening_that_was_broken_off_is_dead_until_it_is_closed() {
        if !may_look("an_opening_that_was_broken_off_is_dead_until_it_is_closed") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        let entry = entry(&run, false);
        let name = entry.name.as_str();
        let lock = claim(&entry).unwrap();
        assert_eq!(crate::status(&run, name).unwrap().state, State::Opening);
        assert!(matches!(crate::close(&run, name, &CloseOptions::default()), Err(SessionError::Busy { .. })));
        drop(lock);
        assert_eq!(crate::status(&run, name).unwrap().state, State::Dead);
        assert!(matches!(crate::suspend(&run, name), Err(SessionError::Leftover { .. })));
        assert!(matches!(crate::close(&run, name, &CloseOptions::default()), Ok(CloseReport::CleanedUp)));
        assert!(!entry.exists());
    }
}
