//! The keys of a set at work: rotation of one volume's key, of the key of backups, of the master secret; what is due; and the
//! report.
//!
//! A rotation is `keystore`'s, over the keyslots of the volume ([`VolumeSlots`]). What is added here: the audit log, a backup
//! of keys before the old keyslot goes, and the header backups: those that the old key opens are destroyed, or kept with it.
//!
//! Invariant: at every cut the newest backup of keys has a key that opens the volume, and so has the store.

mod report;
mod slots;
mod verify;
pub mod written;

use std::path::PathBuf;
use std::time::Duration;

use keystore::{Files, Folder, KeyKind, KeyName, KeyState, OldKey, Outcome, key_backup};
use serde::Serialize;
use uuid::Uuid;

use crate::approval::{self, Operation};
use crate::audit::{self, Category, Event};
use crate::config::VolumeSpec;
use crate::error::Trouble;
use crate::set::{Set, SetStore};
use crate::{VolumesError, header_backup};

pub use report::{HeaderBackup, KeyReport, Report};
pub use slots::VolumeSlots;
pub use verify::{Verified, verify};

/// The name of the key that backups of data are encrypted with.
pub const BACKUP_KEY: &str = "backup-encryption";
/// How long another command may hold the folder of backups.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes backups of keys while a rotation runs.
#[derive(Debug)]
pub struct VolumeKeys {
    folder: PathBuf,
    written: Vec<String>,
}

impl VolumeKeys {
    /// Writes the backup if there is a recovery key.
    fn before_removal(
        &mut self,
        write: &mut dyn FnMut(&mut dyn Files) -> Result<String, keystore::Error>,
    ) -> Result<(), VolumesError> {
        let mut folder = Folder::create(&self.folder, PATIENCE)?;
        match write(&mut folder) {
            Ok(name) => self.written.push(name),
            // Nobody has a recovery key, as `--no-recovery` was chosen.
            Err(keystore::Error::NoKey { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rotated {
    /// The key.
    pub name: String,
    /// The generation that was in use before.
    pub from: u64,
    /// The one that is now.
    pub to: u64,
    /// The backup of keys that was written for the recovery key; none without one.
    pub key_backup: Option<String>,
    /// Header backups that the old key opened and that are gone.
    pub header_backups_destroyed: Vec<PathBuf>,
    /// Those that stay, with the generation that opens them.
    pub header_backups_kept: Vec<HeaderBackup>,
}

fn known<'a>(set: &'a Set, name: &str) -> Result<&'a VolumeSpec, VolumesError> {
    let spec = set.config().volume(name);
    spec.ok_or_else(|| VolumesError::refused(Trouble::Missing, name, "is no volume of this set", "luksctl key report"))
}

fn volume_of(store: &SetStore, name: &KeyName) -> Result<Uuid, VolumesError> {
    let record = store.metadata().keys.get(name).filter(|record| record.kind == KeyKind::Volume);
    record.map(|record| record.volume).ok_or_else(|| {
        let what = "has no key in the store yet";
        VolumesError::refused(Trouble::Missing, name.to_string(), what, "luksctl volume setup")
    })
}

/// Gives a volume a new key, through all stages; a rotation that was cut off is finished instead. With [`OldKey::Keep`] the
/// old key stays sealed in the store, and the header backups that it opens stay, too.
///
/// # Errors
/// [`VolumesError::Refused`] for a volume that is not there, [`VolumesError::Unapproved`], [`VolumesError::KeyStore`]; the active key opens the volume
/// whatever happens, and the next call goes on.
pub fn rotate(set: &Set, store: &mut SetStore, name: &str, old_key: OldKey) -> Result<Rotated, VolumesError> {
    let spec = known(set, name)?;
    let key = KeyName::new(name)?;
    let volume = volume_of(store, &key)?;
    let now = store.metadata().trusted(Set::now());
    if store.metadata().keys.get(&key).is_none_or(|record| record.rotation.is_none()) {
        approval::demand(set, Operation::Rotate, name)?;
    }
    set.record(&Event::new(Category::Key, "rotate-begin", name))?;
    let done = run(set, spec, volume, |slots| keystore::rotate(store, &key, slots, old_key, now));
    let (outcome, written) = noted(set, name, done)?;
    let Outcome::Rotated { from, to } = outcome else {
        let what = "is as it was: the rotation was undone";
        return Err(VolumesError::refused(Trouble::Wrong, name, what, format!("luksctl key rotate {name}")));
    };
    finish(set, store, spec, (from, to), written)
}

/// Ends a rotation that was cut off, one way or the other, and what it left beside the volume. `None` if there was none.
///
/// # Errors
/// As [`rotate`].
pub fn settle(set: &Set, store: &mut SetStore, name: &str) -> Result<Option<Rotated>, VolumesError> {
    let spec = known(set, name)?;
    let key = KeyName::new(name)?;
    // A rotation may have ended, but for the files of the old key.
    store.tidy()?;
    if store.metadata().keys.get(&key).is_none_or(|record| record.rotation.is_none()) {
        turn_header_backups(set, store, spec)?;
        return Ok(None);
    }
    let volume = volume_of(store, &key)?;
    let now = store.metadata().trusted(Set::now());
    let done = run(set, spec, volume, |slots| keystore::settle(store, &key, slots, now));
    match noted(set, name, done)? {
        (Outcome::Rotated { from, to }, written) => finish(set, store, spec, (from, to), written).map(Some),
        (Outcome::Undone { from }, _) => {
            set.record(&Event::new(Category::Key, "rotate-undone", name).detail("generation", from))?;
            set.remember(store)?;
            Ok(None)
        }
        (Outcome::Nothing, _) => Ok(None),
    }
}

/// Runs a rotation over the keyslots, between looks for keyslots whose removal was cut off.
fn run(
    set: &Set,
    spec: &VolumeSpec,
    volume: Uuid,
    rotation: impl FnOnce(&mut VolumeSlots<'_>) -> Result<Outcome, keystore::Error>,
) -> Result<(Outcome, Vec<String>), VolumesError> {
    let mut keys = VolumeKeys { folder: set.config().store.key_backup.clone(), written: Vec::new() };
    let mut slots = VolumeSlots::new(spec, volume).telling(&mut keys);
    slots.finish_removals()?;
    let outcome = rotation(&mut slots)?;
    drop(slots);
    Ok((outcome, keys.written))
}

/// Records a rotation that failed.
fn noted<T>(set: &Set, name: &str, done: Result<T, VolumesError>) -> Result<T, VolumesError> {
    done.inspect_err(|error| {
        let event = Event::new(Category::Key, "rotate", name).ended(audit::Outcome::Failed).detail("reason", error);
        if let Err(other) = set.record(&event) {
            log::warn!("the failed rotation of {name} is not in the audit log: {other}");
        }
    })
}

/// What comes after a rotation: records, old backups of keys, header backups.
fn finish(
    set: &Set,
    store: &mut SetStore,
    spec: &VolumeSpec,
    (from, to): (u64, u64),
    written: Vec<String>,
) -> Result<Rotated, VolumesError> {
    let name = spec.name.as_str();
    set.record(&Event::new(Category::Key, "rotate", name).detail("from", from).detail("to", to))?;
    for backup in &written {
        set.record(&Event::new(Category::Backup, "keys-back-up", backup))?;
    }
    set.remember(store)?;
    if !written.is_empty() {
        prune_backups(set, store)?;
    }
    let header_backups_destroyed = turn_header_backups(set, store, spec)?;
    let header_backups_kept = report::header_backups(set, store.metadata(), name)?;
    let key_backup = written.into_iter().next_back();
    Ok(Rotated { name: name.to_owned(), from, to, key_backup, header_backups_destroyed, header_backups_kept })
}

fn prune_backups(set: &Set, store: &SetStore) -> Result<(), VolumesError> {
    let mut folder = Folder::open(&set.config().store.key_backup, PATIENCE)?;
    let now = store.metadata().trusted(Set::now());
    for old in key_backup::prune(&mut folder, set.config().keys.backup_retention_days, now)? {
        set.record(&Event::new(Category::Backup, "keys-prune", &old))?;
    }
    Ok(())
}

/// Makes a header backup for the generation in use where there was one before, and destroys those of wiped generations.
///
/// # Errors
/// [`VolumesError::Io`], [`VolumesError::Luks`], and as [`Set::record`].
pub fn turn_header_backups(set: &Set, store: &SetStore, spec: &VolumeSpec) -> Result<Vec<PathBuf>, VolumesError> {
    let name = spec.name.as_str();
    let (config, key) = (set.config(), KeyName::new(name)?);
    let Some(record) = store.metadata().keys.get(&key) else { return Ok(Vec::new()) };
    let backups = header_backup::list(config, name)?;
    let active = record.active().map(|active| active.number);
    if let Some(active) = active.filter(|active| !backups.is_empty() && backups.iter().all(|(of, _)| of != active)) {
        set.record(&Event::new(Category::Backup, "header-back-up", name).detail("generation", active))?;
        header_backup::write(config, name, active, spec.place.path())?;
    }
    let is_gone = |of: u64| record.generation(of).is_none_or(|generation| generation.state == KeyState::Wiped);
    let mut destroyed = Vec::new();
    for (of, path) in backups.into_iter().filter(|(of, _)| is_gone(*of) && Some(*of) != active) {
        set.record(&Event::new(Category::Backup, "header-backup-destroy", name).detail("generation", of))?;
        header_backup::destroy(&path)?;
        destroyed.push(path);
    }
    Ok(destroyed)
}

/// Gives backups of data a new key, or their first. The old one stays sealed in the store, as older backups need it.
///
/// # Errors
/// [`VolumesError::KeyStore`], and as [`Set::record`].
pub fn rotate_backup(set: &Set, store: &mut SetStore) -> Result<Rotated, VolumesError> {
    let name = KeyName::new(BACKUP_KEY)?;
    let now = store.metadata().trusted(Set::now());
    let active = |store: &SetStore| store.metadata().keys.get(&name).and_then(|record| Some(record.active()?.number));
    let from = active(store).unwrap_or(0);
    approval::demand(set, Operation::RotateBackup, "")?;
    set.record(&Event::new(Category::Key, "rotate-begin", BACKUP_KEY))?;
    if from == 0 {
        store.add_key(&name, KeyKind::Backup, Uuid::nil(), now)?;
        store.activate(&name, now)?;
    } else {
        store.replace_key(&name, None, OldKey::Keep, now)?;
    }
    let to = active(store).unwrap_or(0);
    set.record(&Event::new(Category::Key, "rotate", BACKUP_KEY).detail("from", from).detail("to", to))?;
    set.remember(store)?;
    let key_backup = set.back_up_keys(store)?;
    let (header_backups_destroyed, header_backups_kept) = (Vec::new(), Vec::new());
    Ok(Rotated { name: BACKUP_KEY.to_owned(), from, to, key_backup, header_backups_destroyed, header_backups_kept })
}
