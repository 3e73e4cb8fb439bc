//! Small values for programs: sealed in `secrets/NAME.sealed`, at most 64 KiB each.
//!
//! The metadata has the number of the last setting. The file is written first, so after a cut it may be one ahead of the
//! metadata, never behind: an older value that was put back is an error.

use super::Store;
use super::layout::NEXT;
use crate::files::{Files, destroy, replace};
use crate::metadata::ValueRecord;
use crate::sealed::{self, FILE_BYTES_MAX, Label, Purpose};
use crate::{Error, KeyName, Timestamp};
use secret::Secret;
use uuid::Uuid;

/// The sub-folder of the values.
pub(crate) const VALUES_FOLDER: &str = "secrets";

pub(super) fn value_file(name: &KeyName) -> String {
    format!("{VALUES_FOLDER}/{name}.sealed")
}

impl<F: Files> Store<F> {
    pub(super) fn value_label(&self, name: &KeyName, generation: u64) -> Label {
        let (purpose, store, volume) = (Purpose::Value, self.metadata.store, Uuid::nil());
        Label { purpose, store, volume, name: name.to_string(), generation }
    }

    /// Sets the value `name`, durably.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond 64 KiB, [`Error::Full`], and as [`Files`]; the old value is then still there.
    pub fn set_value(&mut self, name: &KeyName, value: &Secret, now: Timestamp) -> Result<(), Error> {
        if self.has_failed {
            return Err(Error::Reopen);
        }
        self.tidy()?;
        let is_new = !self.metadata.values.contains_key(name);
        if is_new && self.metadata.values.len() == crate::limits::VALUES_MAX {
            return Err(Error::Full { what: "small values", limit: crate::limits::VALUES_MAX });
        }
        let updated = self.metadata.trusted(now);
        // The file may be ahead of the metadata by a setting that was cut off.
        let generation = self.metadata.values.get(name).map_or(0, |record| record.generation) + 1;
        let content = sealed::seal(&self.master, &self.value_label(name, generation), updated, value)?;
        self.files.make_folder(VALUES_FOLDER)?;
        replace(&mut self.files, &value_file(name), &content)?;
        self.edit(now, |metadata| {
            metadata.values.insert(name.clone(), ValueRecord { generation, updated });
            Ok(())
        })
    }

    /// The value `name`.
    ///
    /// # Errors
    /// [`Error::NoKey`], [`Error::Missing`], what [`sealed::open`] refuses.
    pub fn value(&self, name: &KeyName) -> Result<Secret, Error> {
        Ok(self.find_value(name)?.1)
    }

    /// The file, the value and its generation: that of the metadata, or the next one.
    pub(super) fn find_value(&self, name: &KeyName) -> Result<(String, Secret, u64), Error> {
        let record = self.metadata.values.get(name).ok_or_else(|| Error::NoKey { name: name.to_string() })?;
        let file = value_file(name);
        let own = [file.clone(), format!("{file}{NEXT}")];
        let ahead = record.generation + 1;
        if let Ok(Some((file, value))) = self.find(&self.value_label(name, ahead), &own, &[]) {
            return Ok((file, value, ahead));
        }
        let found = self.find(&self.value_label(name, record.generation), &own, &[])?;
        found.map(|(file, value)| (file, value, record.generation)).ok_or(Error::Missing { file })
    }

    /// Removes the value `name`; its file is overwritten.
    ///
    /// # Errors
    /// [`Error::NoKey`], and as [`Files`].
    pub fn remove_value(&mut self, name: &KeyName, now: Timestamp) -> Result<(), Error> {
        if !self.metadata.values.contains_key(name) {
            return Err(Error::NoKey { name: name.to_string() });
        }
        self.tidy()?;
        let file = value_file(name);
        if self.files.read(&file, FILE_BYTES_MAX)?.is_some() {
            destroy(&mut self.files, &file)?;
        }
        self.edit(now, |metadata| {
            metadata.values.remove(name);
            Ok(())
        })
    }
}
