//! The recovery key: made, proven by unlocking, shown once; and the backups of keys that it opens.
//!
//! Killed between making and showing, nobody has seen the key. So it counts as handed over only when a backup for it stands in
//! the folder of backups, which is written after it was shown; without one the next run makes another key.

use std::collections::BTreeMap;
use std::time::Duration;

use keystore::{Error, Files, Folder, KeyKind, KeyName, Metadata, RecoveryKey, Store, Timestamp, key_backup};
use secret::Secret;

use super::{Action, Standpoint, Step};
use crate::VolumesError;
use crate::config::Config;
use crate::error::Trouble;
use crate::image;

/// How long another command may hold the folder of backups.
const PATIENCE: Duration = Duration::from_secs(10);
/// Under which name the store keeps the recovery key.
const RECOVERY: &str = "recovery";

/// When the keys last changed.
pub(crate) fn last_change(store: &Metadata) -> Option<Timestamp> {
    let generations = store.keys.values().flat_map(|record| &record.generations);
    generations.filter_map(|generation| generation.activated).max()
}

/// When the recovery key came into use, if there is one.
pub(crate) fn recovery_since(store: &Metadata) -> Option<Timestamp> {
    let record = store.keys.values().find(|record| record.kind == KeyKind::Recovery)?;
    record.active()?.activated
}

/// The time of the newest backup of keys. A folder that is not there has none.
///
/// # Errors
/// What the folder says.
pub(crate) fn newest_backup(config: &Config) -> Result<Option<Timestamp>, VolumesError> {
    if !config.store.key_backup.is_dir() {
        return Ok(None);
    }
    let folder = Folder::open(&config.store.key_backup, PATIENCE)?;
    Ok(key_backup::list(&folder)?.last().map(|(time, _)| *time))
}

/// The steps for recovery key and backup. With `new_volumes` there will be a key that no backup has.
pub(super) fn steps(config: &Config, store: Option<&Metadata>, new_volumes: bool) -> Result<Vec<Step>, VolumesError> {
    let backup = newest_backup(config).unwrap_or(None);
    let since = store.and_then(recovery_since);
    let is_handed_over = matches!((since, backup), (Some(since), Some(backup)) if backup >= since);
    let changed = store.and_then(last_change);
    let is_current = is_handed_over && !new_volumes && backup >= changed;
    let state = |good| if good { Standpoint::There } else { Standpoint::Missing };
    let note = if is_handed_over { "handed over" } else { "shown once, and proven by unlocking every volume" };
    let folder = config.store.key_backup.display().to_string();
    Ok(vec![
        Step::new(Action::Recovery, RECOVERY, state(is_handed_over), note),
        Step::new(Action::KeyBackup, folder, state(is_current), "opens with gpg, tar and cryptsetup alone"),
    ])
}

/// A new recovery key, kept by the store and proven: a backup in memory is opened with it, and every key in use that is in
/// there unlocks its volume.
pub(super) fn make(config: &Config, store: &mut Store<Folder>, now: Timestamp) -> Result<RecoveryKey, VolumesError> {
    let key = RecoveryKey::random()?;
    store.set_recovery_key(&key, now)?;
    let mut memory = Memory::default();
    let name = key_backup::write(store, &mut memory, now)?;
    let message = key_backup::read(&memory, &name)?;
    let files = key_backup::open(&key, &name, &message)?;
    prove(config, store, &files)?;
    Ok(key)
}

fn prove(config: &Config, store: &Store<Folder>, files: &[(String, Secret)]) -> Result<(), VolumesError> {
    for volume in &config.volumes {
        let in_use = store.metadata().keys.get(&KeyName::new(&volume.name)?).is_some_and(|key| key.active().is_some());
        if !in_use {
            continue;
        }
        let wanted = format!("{}.key", volume.name);
        let key = files.iter().find(|(name, _)| *name == wanted).map(|(_, key)| key);
        let opens = key.map(|key| image::opens(volume.place.path(), key)).transpose()?;
        if opens != Some(true) {
            let what = "the key in the backup for the recovery key does not open it";
            let mend = format!("luksctl volume status {}", volume.name);
            return Err(VolumesError::refused(Trouble::Wrong, &volume.name, what, mend));
        }
    }
    Ok(())
}

/// Files in memory: a backup for a proof, which is encrypted as any other.
#[derive(Default)]
struct Memory(BTreeMap<String, Vec<u8>>);

impl Files for Memory {
    fn read(&self, name: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        let found = self.0.get(name);
        if found.is_some_and(|content| content.len() > limit_bytes) {
            return Err(Error::TooLarge { file: name.to_owned(), limit_bytes });
        }
        Ok(found.cloned())
    }

    fn list(&self, _folder: &str) -> Result<Vec<String>, Error> {
        Ok(self.0.keys().cloned().collect())
    }

    fn make_folder(&mut self, _folder: &str) -> Result<(), Error> {
        Ok(())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        self.0.insert(name.to_owned(), content.to_owned());
        Ok(())
    }

    fn sync(&mut self, _name: &str) -> Result<(), Error> {
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let content = self.0.remove(from).ok_or_else(|| Error::Missing { file: from.to_owned() })?;
        self.0.insert(to.to_owned(), content);
        Ok(())
    }

    fn overwrite(&mut self, name: &str) -> Result<(), Error> {
        if let Some(content) = self.0.get_mut(name) {
            content.fill(0);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.0.remove(name);
        Ok(())
    }

    fn sync_folder(&mut self, _folder: &str) -> Result<(), Error> {
        Ok(())
    }
}
