//! Which file holds which generation: `NAME.key` the active one, `NAME.key.N` any other, and each of them with `.next`
//! while the master secret changes.
//!
//! Invariant: a name is only a hint; the header of the file says what it is, and reading looks at all the names that a
//! generation can have. So a rename that was cut off loses nothing, and putting names in order can be done at any time.

use super::Store;
use crate::files::{Files, NEW, destroy, folder_of};
use crate::sealed::{self, FILE_BYTES_MAX, Header, Label};
use crate::{Error, KeyName, KeyRecord, KeyState};
use secret::Secret;

/// What a file is called that waits for a change of the master secret.
pub(super) const NEXT: &str = ".next";

/// The file of the active generation.
pub(super) fn active_file(name: &KeyName) -> String {
    format!("{name}.key")
}

/// The file of another generation.
pub(super) fn numbered_file(name: &KeyName, generation: u64) -> String {
    format!("{name}.key.{generation}")
}

impl<F: Files> Store<F> {
    pub(super) fn label(&self, name: &KeyName, record: &KeyRecord, generation: u64) -> Label {
        let (purpose, store, volume) = (record.kind.purpose(), self.metadata.store, record.volume);
        Label { purpose, store, volume, name: name.to_string(), generation }
    }

    pub(super) fn record(&self, name: &KeyName) -> Result<&KeyRecord, Error> {
        self.metadata.keys.get(name).ok_or_else(|| Error::NoKey { name: name.to_string() })
    }

    fn header_of(&self, file: &str) -> Result<Option<Header>, Error> {
        let content = self.files.read(file, FILE_BYTES_MAX)?;
        Ok(content.and_then(|content| sealed::header(file, &content).ok()))
    }

    /// The file that holds what `label` says, of those that may; `None` if none is there. `own` names are only for this
    /// generation, so that anything else in them is an error; `shared` names may hold another one.
    pub(super) fn find(
        &self,
        label: &Label,
        own: &[String],
        shared: &[String],
    ) -> Result<Option<(String, Secret)>, Error> {
        let mut refused = None;
        for (file, is_own) in own.iter().map(|file| (file, true)).chain(shared.iter().map(|file| (file, false))) {
            let waits = file.ends_with(NEXT);
            let Some(content) = self.files.read(file, FILE_BYTES_MAX)? else { continue };
            match sealed::open(&self.master, label, file, &content) {
                Ok(secret) => return Ok(Some((file.clone(), secret))),
                // What waits for a master secret that never came.
                Err(_) if waits => {}
                Err(error) if is_own => refused = refused.or(Some(error)),
                Err(_) => {}
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// The secret of `generation`; `None` if no file holds it.
    pub(super) fn find_key(&self, name: &KeyName, generation: u64) -> Result<Option<(String, Secret)>, Error> {
        let record = self.record(name)?;
        let label = self.label(name, record, generation);
        let is_active = record.active().is_some_and(|active| active.number == generation);
        let (active, numbered) = (active_file(name), numbered_file(name, generation));
        let waiting = [format!("{active}{NEXT}"), format!("{numbered}{NEXT}")];
        if is_active {
            self.find(&label, &[vec![numbered, active], waiting.to_vec()].concat(), &[])
        } else {
            self.find(&label, &[vec![numbered], waiting.to_vec()].concat(), &[active])
        }
    }

    /// Puts in order what earlier commands left behind when they were cut off, once per opened store; every change begins
    /// with it.
    ///
    /// # Errors
    /// As [`Files`].
    pub fn tidy(&mut self) -> Result<(), Error> {
        if self.is_tidy {
            return Ok(());
        }
        for folder in ["", super::VALUES_FOLDER] {
            for name in self.files.list(folder)? {
                let file = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                self.tidy_file(&file)?;
            }
        }
        let names: Vec<KeyName> = self.metadata.keys.keys().cloned().collect();
        for name in names {
            self.order_names(&name)?;
            self.destroy_wiped(&name)?;
        }
        self.is_tidy = true;
        Ok(())
    }

    /// Settles a file that an interrupted command left: what was written aside goes; what was sealed under the master
    /// secret of the metadata takes its place.
    fn tidy_file(&mut self, file: &str) -> Result<(), Error> {
        if let Some(base) = file.strip_suffix(NEW) {
            let is_ours = base == crate::metadata::METADATA_FILE || base.contains(".key") || base.contains(".sealed");
            return if is_ours { self.files.remove(file) } else { Ok(()) };
        }
        let Some(base) = file.strip_suffix(NEXT) else { return Ok(()) };
        let Some(header) = self.header_of(file)?.filter(|header| header.label.store == self.metadata.store) else {
            return Ok(());
        };
        if header.master_id != self.metadata.master_id {
            return self.files.remove(file);
        }
        self.files.rename(file, base)?;
        self.files.sync_folder(folder_of(file))
    }

    /// Gives the active generation of a key the name `NAME.key`, and the one that has it its number. A file there that is
    /// not sealed (the raw key of somebody's script) stays, and the key keeps its number.
    pub(super) fn order_names(&mut self, name: &KeyName) -> Result<(), Error> {
        let active = self.record(name)?.active().map(|active| active.number);
        let first = active_file(name);
        if let Some(content) = self.files.read(&first, FILE_BYTES_MAX)? {
            let Ok(header) = sealed::header(&first, &content) else { return Ok(()) };
            if Some(header.label.generation) == active || header.label.name != name.as_str() {
                return Ok(());
            }
            let numbered = numbered_file(name, header.label.generation);
            if self.files.read(&numbered, FILE_BYTES_MAX)?.is_some() {
                return Ok(());
            }
            self.files.rename(&first, &numbered)?;
            self.files.sync_folder("")?;
        }
        let Some(active) = active else { return Ok(()) };
        let numbered = numbered_file(name, active);
        if self.files.read(&numbered, FILE_BYTES_MAX)?.is_some() {
            self.files.rename(&numbered, &first)?;
            self.files.sync_folder("")?;
        }
        Ok(())
    }

    /// Destroys the files of generations that the metadata calls wiped.
    pub(super) fn destroy_wiped(&mut self, name: &KeyName) -> Result<(), Error> {
        let record = self.record(name)?;
        let is_wiped = |generation: &&crate::Generation| generation.state == KeyState::Wiped;
        let wiped: Vec<u64> = record.generations.iter().filter(is_wiped).map(|generation| generation.number).collect();
        for generation in wiped {
            let file = numbered_file(name, generation);
            if self.files.read(&file, FILE_BYTES_MAX)?.is_some() {
                destroy(&mut self.files, &file)?;
            }
        }
        Ok(())
    }

    /// Sealed files of this store that the metadata does not know: left by an older copy of the metadata that was put
    /// back, or by hand. They are never removed here.
    ///
    /// # Errors
    /// As [`Files`].
    pub fn strays(&self) -> Result<Vec<String>, Error> {
        let mut strays = Vec::new();
        for file in self.files.list("")? {
            let Some(header) = self.header_of(&file)? else { continue };
            let known = KeyName::new(&header.label.name).ok().and_then(|name| {
                let record = self.metadata.keys.get(&name)?;
                let generation = record.generation(header.label.generation)?;
                (generation.state != KeyState::Wiped && record.volume == header.label.volume).then_some(())
            });
            if known.is_none() {
                strays.push(file);
            }
        }
        Ok(strays)
    }
}
