//! A new master secret: every sealed file is sealed anew beside the old one (`.next`), then the metadata is written under
//! the new master secret, then the files take their places.
//!
//! Invariant: the metadata is the switch. Before it is durable the store opens with the old master secret, after it with
//! the new one; reading finds the files of either under both names.

use super::Store;
use super::layout::NEXT;
use crate::files::{Files, replace};
use crate::sealed;
use crate::{Error, KeyName, Master, Timestamp};

impl<F: Files> Store<F> {
    /// Lets the store hang on `master` from now on. Its source must have it already, durably, and the old source keep the
    /// old one until this is done: a command that is cut off leaves a store that opens with one of the two
    /// ([`Store::open_by`]). The old master secret opens nothing in the folder afterwards; it still
    /// opens copies of the old files, so a key that may be known should be rotated too.
    ///
    /// # Errors
    /// What [`Store::key_of`] refuses, before anything is changed; and as [`Files`].
    pub fn change_master(&mut self, master: Master, now: Timestamp) -> Result<(), Error> {
        if self.has_failed {
            return Err(Error::Reopen);
        }
        self.tidy()?;
        let moved = self.seal_beside(&master, now)?;
        let old = std::mem::replace(&mut self.master, master);
        let id = self.master.id(self.metadata.store)?;
        let switched = self.edit(now, |metadata| {
            metadata.master_id = id;
            metadata.master_since = metadata.trusted(now);
            Ok(())
        });
        if let Err(error) = switched {
            // Which of the two the file hangs on shows when it is opened again.
            self.master = old;
            self.has_failed = true;
            return Err(error);
        }
        for file in &moved {
            self.files.rename(&format!("{file}{NEXT}"), file)?;
        }
        self.files.sync_folder("")?;
        self.files.sync_folder(super::VALUES_FOLDER)
    }

    /// Seals everything under `master` beside the files that are there; their names.
    fn seal_beside(&mut self, master: &Master, now: Timestamp) -> Result<Vec<String>, Error> {
        let mut moved = Vec::new();
        let created = self.metadata.trusted(now);
        let live = self.metadata.keys.iter().flat_map(|(name, record)| {
            record.live().map(move |generation| (name.clone(), generation.number, generation.created))
        });
        for (name, generation, created) in live.collect::<Vec<_>>() {
            // A staged key may not be made yet.
            let Some((file, key)) = self.find_key(&name, generation)? else { continue };
            let label = self.label(&name, self.record(&name)?, generation);
            let content = sealed::seal(master, &label, created, &key)?;
            replace(&mut self.files, &format!("{file}{NEXT}"), &content)?;
            moved.push(file);
        }
        let values: Vec<KeyName> = self.metadata.values.keys().cloned().collect();
        for name in values {
            let (file, value, generation) = self.find_value(&name)?;
            let content = sealed::seal(master, &self.value_label(&name, generation), created, &value)?;
            replace(&mut self.files, &format!("{file}{NEXT}"), &content)?;
            moved.push(file);
        }
        Ok(moved)
    }
}
