//! Doing what a plan lacks, step by step. Each step looks again at what is there, so a plan may be older than the world.

use keystore::{KeyKind, KeyName, RecoveryKey, Timestamp};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use uuid::Uuid;

use super::images::{Stand, stand};
use super::{Action, Machine, Plan, Standpoint, Step, build, recovery};
use crate::audit::{Category, Event};
use crate::config::VolumeSpec;
use crate::error::Trouble;
use crate::set::{Set, SetStore};
use crate::{VolumesError, header_backup, life, mount_point};

/// What performing a step gave.
#[derive(Debug)]
pub enum Performed {
    /// It is there now.
    Done,
    /// A recovery key, which has to be shown to a person before the next step is performed.
    Recovery(RecoveryKey),
}

/// What steps are performed with: a set whose key store is open.
pub struct Performer<'a> {
    /// The set.
    pub set: &'a Set,
    /// Its keys.
    pub store: &'a mut SetStore,
    /// Where volumes are opened.
    pub machine: Machine<'a>,
}

/// Makes the folders of a set that are missing: mode 0700, durable. This comes before the key store, which lies in one.
///
/// # Errors
/// [`VolumesError::Io`].
pub fn make_folders(plan: &Plan) -> Result<(), VolumesError> {
    for step in &plan.steps {
        if step.action != Action::Folder || step.state != Standpoint::Missing {
            continue;
        }
        let path = Path::new(&step.target);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(VolumesError::io("make", path))?;
        for above in path.ancestors().skip(1).take(2) {
            let synced = std::fs::File::open(above).and_then(|folder| folder.sync_all());
            synced.map_err(VolumesError::io("sync", above))?;
        }
    }
    Ok(())
}

impl Performer<'_> {
    /// Performs one step, unless it is there.
    ///
    /// # Errors
    /// What kept it from being done; the next run goes on from there.
    pub fn perform(&mut self, step: &Step, now: Timestamp) -> Result<Performed, VolumesError> {
        if step.state != Standpoint::Missing {
            return Ok(Performed::Done);
        }
        let performed = self.missing(step, now)?;
        self.set.remember(self.store)?;
        Ok(performed)
    }

    fn missing(&mut self, step: &Step, now: Timestamp) -> Result<Performed, VolumesError> {
        match step.action {
            // Made before the key store was, which was opened for this.
            Action::Folder | Action::Space | Action::KeyStore => {}
            // Steps of `Outside` and of `adopt`.
            Action::Units | Action::Compose | Action::Config | Action::Adopt | Action::WipeRawKey => {}
            Action::Volume => self.volume(&step.target, now)?,
            Action::HeaderBackup => self.header_backup(&step.target)?,
            Action::Recovery => {
                self.set.record(&Event::new(Category::Recovery, "make recovery key", "set"))?;
                return Ok(Performed::Recovery(recovery::make(self.set.config(), self.store, now)?));
            }
            Action::KeyBackup => {
                self.set.back_up_keys(self.store)?;
            }
            Action::MountPoint => {
                let volume = self.spec(&step.target)?;
                if let Some(mount) = &volume.mount {
                    mount_point::protect(mount)?;
                }
            }
            Action::Up => {
                let volume = self.spec(&step.target)?.clone();
                let up = life::Up { set: self.set, machine: self.machine, mount: true };
                up.volume(&volume, self.store)?;
            }
        }
        Ok(Performed::Done)
    }

    fn spec(&self, name: &str) -> Result<&VolumeSpec, VolumesError> {
        let found = self.set.config().volume(name);
        found.ok_or_else(|| {
            VolumesError::refused(Trouble::Missing, name, "is no volume of this set", "luksctl volume list")
        })
    }

    fn volume(&mut self, name: &str, now: Timestamp) -> Result<(), VolumesError> {
        let volume = self.spec(name)?.clone();
        let key_name = KeyName::new(name)?;
        // Looked at again: minutes may have gone by while a person read the plan.
        match stand(&volume, Some(self.store.metadata()))? {
            Stand::Ours => return Ok(()),
            Stand::Foreign(what, mend) => return Err(VolumesError::refused(Trouble::Busy, name, what, mend)),
            Stand::Built => return Ok(self.store.activate(&key_name, now)?),
            Stand::Missing => {}
        }
        let id = match self.store.metadata().keys.get(&key_name) {
            Some(record) => record.volume,
            None => random_uuid(name)?,
        };
        let event = Event::new(Category::Key, "make volume", name).detail("uuid", id);
        self.set.record(&event.detail("image", volume.place.path().display()))?;
        self.store.add_key(&key_name, KeyKind::Volume, id, now)?;
        let key = self.store.key_of(&key_name, 1)?;
        build::build(self.set.config(), &volume, id, &key, &self.machine)?;
        Ok(self.store.activate(&key_name, now)?)
    }

    fn header_backup(&mut self, name: &str) -> Result<(), VolumesError> {
        let volume = self.spec(name)?.clone();
        let generation = life::active_generation(self.store.metadata(), name);
        let Some(generation) = generation else {
            let what = "has no key in use, so its header is not backed up";
            return Err(VolumesError::refused(Trouble::Wrong, name, what, "luksctl volume setup"));
        };
        self.set.record(&Event::new(Category::Backup, "back up header", name).detail("generation", generation))?;
        header_backup::write(self.set.config(), name, generation, volume.place.path()).map(drop)
    }
}

fn random_uuid(name: &str) -> Result<Uuid, VolumesError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| VolumesError::Io {
        what: "draw a UUID for",
        path: name.into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
