//! The keys of a [`Store`]: made, imported, activated, read, pruned, forgotten, counted, verified; and what a rotation
//! does to them.

use super::layout::{active_file, numbered_file};
use super::{Checked, Store};
use crate::files::{Files, destroy, replace};
use crate::limits::{IEEE_1619_BYTES_MAX, SEALED_BYTES_MAX, VOLUME_KEY_BYTES};
use crate::master::random_secret;
use crate::sealed::{self, FILE_BYTES_MAX};
use crate::{Error, KeyKind, KeyName, KeyRecord, KeyState, Metadata, OldKey, Rotation, Step, Timestamp};
use secret::Secret;
use uuid::Uuid;

/// The record of `name`, to change it.
pub(super) fn record_of<'a>(metadata: &'a mut Metadata, name: &KeyName) -> Result<&'a mut KeyRecord, Error> {
    metadata.keys.get_mut(name).ok_or_else(|| Error::NoKey { name: name.to_string() })
}

fn state_error(name: &KeyName, problem: impl Into<String>) -> Error {
    Error::State { name: name.to_string(), problem: problem.into() }
}

impl<F: Files> Store<F> {
    /// Makes a key of 64 random bytes, staged as generation 1, and durable. A key that is staged already (the command was
    /// cut off) stays as it is. `volume` is nil for a key without a volume.
    ///
    /// # Errors
    /// [`Error::State`] if there is a key of this name in use or for another volume, [`Error::Full`], and as [`Files`].
    pub fn add_key(&mut self, name: &KeyName, kind: KeyKind, volume: Uuid, now: Timestamp) -> Result<(), Error> {
        self.stage_first(name, kind, volume, now)?;
        if self.find_key(name, 1)?.is_none() {
            self.write_key(name, 1, &random_secret(VOLUME_KEY_BYTES)?, now)?;
        }
        Ok(())
    }

    /// Takes over `key`, the bytes of a key file, as generation 1, staged. Again with the same bytes changes nothing.
    ///
    /// # Errors
    /// As [`Store::add_key`]; [`Error::State`] if another key is staged already, or `key` is empty; [`Error::TooLarge`]
    /// beyond 64 KiB.
    pub fn import_key(&mut self, name: &KeyName, volume: Uuid, key: &Secret, now: Timestamp) -> Result<(), Error> {
        if key.is_empty() {
            return Err(state_error(name, "cannot be imported: it is empty"));
        }
        if key.len() > SEALED_BYTES_MAX {
            return Err(Error::TooLarge { file: active_file(name), limit_bytes: SEALED_BYTES_MAX });
        }
        self.stage_first(name, KeyKind::Volume, volume, now)?;
        match self.find_key(name, 1)? {
            None => self.write_key(name, 1, key, now),
            Some((_, staged)) if staged.ct_eq(key.expose()) => Ok(()),
            Some(_) => Err(state_error(name, "is staged already, with other bytes")),
        }
    }

    /// Makes the record of a key without a generation, unless it is there.
    pub(crate) fn add_empty(&mut self, name: &KeyName, kind: KeyKind, now: Timestamp) -> Result<(), Error> {
        if self.metadata.keys.contains_key(name) {
            return Ok(());
        }
        self.edit(now, |metadata| {
            metadata.keys.insert(name.clone(), KeyRecord::new(kind, Uuid::nil()));
            Ok(())
        })
    }

    fn stage_first(&mut self, name: &KeyName, kind: KeyKind, volume: Uuid, now: Timestamp) -> Result<(), Error> {
        if let Some(record) = self.metadata.keys.get(name) {
            if record.kind != kind || record.volume != volume {
                return Err(state_error(name, format!("is there already, for volume {}", record.volume)));
            }
            let only_staged = record.generations.iter().all(|generation| generation.state == KeyState::Staged);
            return if only_staged { Ok(()) } else { Err(state_error(name, "is in use already")) };
        }
        for file in [active_file(name), numbered_file(name, 1)] {
            let content = self.files.read(&file, FILE_BYTES_MAX)?;
            if content.is_some_and(|content| content.starts_with(sealed::MAGIC)) {
                let problem = format!("is not in the metadata, but {file} is there: was an older copy put back?");
                return Err(state_error(name, problem));
            }
        }
        self.edit(now, |metadata| {
            let mut record = KeyRecord::new(kind, volume);
            record.stage(metadata.trusted(now));
            metadata.keys.insert(name.clone(), record);
            Ok(())
        })
    }

    /// Seals `key` as `generation`, durably. There must be no such file: what is there may be the only copy of a key.
    pub(crate) fn write_key(
        &mut self,
        name: &KeyName,
        generation: u64,
        key: &Secret,
        now: Timestamp,
    ) -> Result<(), Error> {
        let label = self.label(name, self.record(name)?, generation);
        let file = numbered_file(name, generation);
        if self.files.read(&file, FILE_BYTES_MAX)?.is_some() {
            return Err(state_error(
                name,
                format!("cannot be written: {file} is there, which the metadata does not know"),
            ));
        }
        let content = sealed::seal(&self.master, &label, self.metadata.trusted(now), key)?;
        replace(&mut self.files, &file, &content)
    }

    /// Takes the staged first generation into use.
    ///
    /// # Errors
    /// [`Error::State`] if none is staged or a rotation is under way, [`Error::Missing`] without its file, and as [`Files`].
    pub fn activate(&mut self, name: &KeyName, now: Timestamp) -> Result<(), Error> {
        let record = self.record(name)?;
        if record.rotation.is_some() || record.active().is_some() {
            return Err(state_error(name, "is in use already"));
        }
        let staged = record.in_state(KeyState::Staged).map(|staged| staged.number);
        let staged = staged.ok_or_else(|| state_error(name, "is not staged"))?;
        self.key_of(name, staged)?;
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            record_of(metadata, name)?.set_state(staged, KeyState::Active, now);
            Ok(())
        })?;
        self.order_names(name)
    }

    /// The key in use.
    ///
    /// # Errors
    /// [`Error::NoKey`], [`Error::State`] if none is in use yet, [`Error::Missing`], what [`sealed::open`] refuses.
    pub fn key(&self, name: &KeyName) -> Result<Secret, Error> {
        let active = self.record(name)?.active().map(|active| active.number);
        self.key_of(name, active.ok_or_else(|| state_error(name, "is not in use yet"))?)
    }

    /// The key of a generation that is not wiped.
    ///
    /// # Errors
    /// As [`Store::key`].
    pub fn key_of(&self, name: &KeyName, generation: u64) -> Result<Secret, Error> {
        let state = self.record(name)?.generation(generation).map(|generation| generation.state);
        match state {
            None => Err(state_error(name, format!("has no generation {generation}"))),
            Some(KeyState::Wiped) => {
                Err(state_error(name, format!("has generation {generation} no more: it is wiped")))
            }
            Some(_) => {
                let found = self.find_key(name, generation)?;
                found.map(|(_, key)| key).ok_or_else(|| Error::Missing { file: active_file(name) })
            }
        }
    }

    /// The key of a generation, if its file is there.
    pub(crate) fn key_if_there(&self, name: &KeyName, generation: u64) -> Result<Option<Secret>, Error> {
        Ok(self.find_key(name, generation)?.map(|(_, key)| key))
    }

    /// Gives a key that opens no volume (for backups, for recovery) a new generation at once. The old one stays sealed
    /// with [`OldKey::Keep`]. `key` is the new one; 64 random bytes if there is none.
    ///
    /// # Errors
    /// [`Error::State`] for the key of a volume, whose rotation is [`crate::rotate`]; and as [`Files`].
    pub fn replace_key(
        &mut self,
        name: &KeyName,
        key: Option<&Secret>,
        old_key: OldKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        let record = self.record(name)?;
        if record.kind == KeyKind::Volume {
            return Err(state_error(name, "opens a volume: it is rotated with it"));
        }
        let staged = record.in_state(KeyState::Staged).map(|staged| staged.number);
        let number = self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            // Left by a command that was cut off.
            if let Some(staged) = staged {
                record.set_state(staged, KeyState::Wiped, now);
            }
            Ok(record.stage(now))
        })?;
        self.destroy_wiped(name)?;
        match key {
            Some(key) => self.write_key(name, number, key, now)?,
            None => self.write_key(name, number, &random_secret(VOLUME_KEY_BYTES)?, now)?,
        }
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            if let Some(old) = record.active().map(|active| active.number) {
                record.set_state(old, KeyState::Retired, now);
                if old_key == OldKey::Wipe {
                    record.set_state(old, KeyState::Wiped, now);
                }
            }
            record.set_state(number, KeyState::Active, now);
            Ok(())
        })?;
        self.order_names(name)?;
        self.destroy_wiped(name)
    }

    /// Destroys a retired generation, when the last backup that needs it is gone.
    ///
    /// # Errors
    /// [`Error::State`] unless it is retired and no rotation needs it; and as [`Files`].
    pub fn prune(&mut self, name: &KeyName, generation: u64, now: Timestamp) -> Result<(), Error> {
        let record = self.record(name)?;
        let state = record.generation(generation).map(|generation| generation.state);
        if state != Some(KeyState::Retired) || record.rotation.is_some_and(|rotation| rotation.from == generation) {
            return Err(state_error(name, format!("has no retired generation {generation}")));
        }
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            record_of(metadata, name)?.set_state(generation, KeyState::Wiped, now);
            Ok(())
        })?;
        self.order_names(name)?;
        self.destroy_wiped(name)
    }

    /// Destroys a key with all its generations, and forgets it. Its volume cannot be opened with this store any more.
    ///
    /// # Errors
    /// [`Error::NoKey`], and as [`Files`].
    pub fn forget(&mut self, name: &KeyName, now: Timestamp) -> Result<(), Error> {
        let live: Vec<u64> = self.record(name)?.live().map(|generation| generation.number).collect();
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            record.rotation = None;
            live.iter().for_each(|number| record.set_state(*number, KeyState::Wiped, now));
            Ok(())
        })?;
        // Without an active one every file gets its number, and is then destroyed.
        self.order_names(name)?;
        for number in live {
            let file = numbered_file(name, number);
            if self.files.read(&file, FILE_BYTES_MAX)?.is_some() {
                destroy(&mut self.files, &file)?;
            }
        }
        self.edit(now, |metadata| {
            metadata.keys.remove(name);
            Ok(())
        })
    }

    /// Counts bytes that were written under the volume key of `name`.
    ///
    /// # Errors
    /// [`Error::NoKey`], and as [`Files`].
    pub fn add_written(&mut self, name: &KeyName, written_bytes: u64, now: Timestamp) -> Result<(), Error> {
        self.edit(now, |metadata| {
            let record = record_of(metadata, name)?;
            record.written_bytes = record.written_bytes.saturating_add(written_bytes.into());
            Ok(())
        })
    }

    /// The volume of `name` has a new volume key (it was re-encrypted): nothing was written under it yet.
    ///
    /// # Errors
    /// As [`Store::add_written`].
    pub fn volume_key_changed(&mut self, name: &KeyName, now: Timestamp) -> Result<(), Error> {
        self.edit(now, |metadata| {
            record_of(metadata, name)?.written_bytes = 0;
            Ok(())
        })
    }

    /// Unseals every generation and value, and says what each gave.
    pub fn verify(&self) -> Vec<Checked> {
        let mut checked = Vec::new();
        for (name, record) in &self.metadata.keys {
            for generation in record.live() {
                let (name, generation, is_value) = (name.clone(), generation.number, false);
                let result = self.key_of(&name, generation).map(drop);
                checked.push(Checked { name, generation, is_value, result });
            }
        }
        for (name, record) in &self.metadata.values {
            let (name, generation, is_value) = (name.clone(), record.generation, true);
            let result = self.value(&name).map(drop);
            checked.push(Checked { name, generation, is_value, result });
        }
        checked
    }

    /// Writes the journal of a new rotation, then the new key.
    pub(crate) fn begin_rotation(&mut self, name: &KeyName, old_key: OldKey, now: Timestamp) -> Result<(), Error> {
        let record = self.record(name)?;
        if record.kind != KeyKind::Volume {
            return Err(state_error(name, "opens no volume"));
        }
        let from = record.active().map(|active| active.number);
        let from = from.ok_or_else(|| state_error(name, "is not in use yet"))?;
        let to = self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            let to = record.stage(now);
            record.rotation = Some(Rotation { from, to, step: Step::Staged, old_key });
            Ok(to)
        })?;
        self.write_key(name, to, &random_secret(VOLUME_KEY_BYTES)?, now)
    }

    /// Makes one step of a rotation durable, with what it means for the states of the two generations.
    pub(crate) fn record_step(&mut self, name: &KeyName, step: Step, now: Timestamp) -> Result<(), Error> {
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            let Some(rotation) = record.rotation.as_mut() else {
                return Err(state_error(name, "is not being rotated"));
            };
            let is_commit = rotation.step < Step::Committed && step >= Step::Committed;
            rotation.step = step;
            let Rotation { from, to, .. } = *rotation;
            if is_commit {
                record.set_state(from, KeyState::Retired, now);
                record.set_state(to, KeyState::Active, now);
            }
            Ok(())
        })?;
        self.order_names(name)
    }

    /// Ends a rotation: generation `stays` is active; the other one is destroyed, or kept retired if it is the old one and
    /// is to be kept.
    pub(crate) fn end_rotation(&mut self, name: &KeyName, is_done: bool, now: Timestamp) -> Result<(), Error> {
        self.edit(now, |metadata| {
            let now = metadata.trusted(now);
            let record = record_of(metadata, name)?;
            let Some(rotation) = record.rotation.take() else { return Err(state_error(name, "is not being rotated")) };
            if is_done {
                if rotation.old_key == OldKey::Wipe {
                    record.set_state(rotation.from, KeyState::Wiped, now);
                }
            } else {
                record.set_state(rotation.to, KeyState::Wiped, now);
                record.set_state(rotation.from, KeyState::Active, now);
            }
            Ok(())
        })?;
        self.order_names(name)?;
        self.destroy_wiped(name)
    }
}

impl KeyRecord {
    /// How many bytes may still be written under the volume key before IEEE 1619's limit; 0 beyond it.
    pub fn writable_bytes(&self) -> u128 {
        IEEE_1619_BYTES_MAX.saturating_sub(self.written_bytes)
    }
}
