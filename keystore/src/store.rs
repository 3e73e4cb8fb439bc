//! [`Store`]: a folder of sealed keys with its metadata, opened with its master secret.
//!
//! Invariants: opening writes nothing; every change is one durable replacement of `key_metadata.json`, before or after
//! which the files may be more than the metadata says, never less; a file is destroyed only after the metadata says that
//! its generation is wiped; a file of a generation that the metadata does not know is never written over or removed, as the
//! metadata may be an older copy. After a failed write nothing more is written until the store is opened again.

mod keys;
mod layout;
mod master_change;
mod values;

pub(crate) use values::VALUES_FOLDER;

use crate::files::{Files, replace};
use crate::limits::METADATA_BYTES_MAX;
use crate::master::MasterSource;
use crate::metadata::{METADATA_FILE, from_hex, from_json, to_hex, to_json};
use crate::{Error, KeyName, Master, Metadata, Policy, Timestamp};
use serde_json::Map;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// A state of the whole store, small enough to be kept elsewhere (in the audit log) and held against the store later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which store.
    pub store: Uuid,
    /// How often its metadata was written.
    pub epoch: u64,
    /// The authentication code of its metadata.
    pub mac: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.store, self.epoch, to_hex(&self.mac))
    }
}

impl FromStr for Head {
    type Err = Error;

    fn from_str(text: &str) -> Result<Head, Error> {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().unwrap_or_default();
        let (store, epoch, mac) = (Uuid::parse_str(part()), part().parse(), from_hex(part()));
        match (store, epoch, mac) {
            (Ok(store), Ok(epoch), Some(mac)) => Ok(Head { store, epoch, mac }),
            _ => Err(crate::metadata::field_error("a head", "must be STORE:EPOCH:CODE")),
        }
    }
}

/// What [`Store::verify`] found about one sealed file.
#[derive(Debug)]
pub struct Checked {
    /// The name of the key or value.
    pub name: KeyName,
    /// Its generation.
    pub generation: u64,
    /// Whether it is a small value.
    pub is_value: bool,
    /// Whether it opens.
    pub result: Result<(), Error>,
}

/// An open key store.
pub struct Store<F: Files> {
    files: F,
    master: Master,
    metadata: Metadata,
    mac: [u8; 32],
    /// Whether what earlier commands left behind was put in order by this one.
    is_tidy: bool,
    has_failed: bool,
}

impl<F: Files> Store<F> {
    /// Makes a store in `files`, hanging on `master`.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one, [`Error::OutOfBounds`] for the policy, and as [`Files`].
    pub fn create(files: F, master: Master, policy: Policy, now: Timestamp) -> Result<Store<F>, Error> {
        if files.read(METADATA_FILE, METADATA_BYTES_MAX)?.is_some() {
            return Err(Error::Exists { file: METADATA_FILE.to_owned() });
        }
        let mut random = [0; 16];
        crate::master::fill_random(&mut random)?;
        let id = uuid::Builder::from_random_bytes(random).into_uuid();
        let metadata = Metadata {
            store: id,
            epoch: 0,
            updated: now,
            master_id: master.id(id)?,
            master_since: now,
            policy,
            keys: BTreeMap::new(),
            values: BTreeMap::new(),
            unknown: Map::new(),
        };
        let mut store = Store { files, master, metadata, mac: [0; 32], is_tidy: true, has_failed: false };
        store.files.make_folder(VALUES_FOLDER)?;
        store.edit(now, |_| Ok(()))?;
        Ok(store)
    }

    /// Opens the store in `files`: holds the master secret and the authentication code of the metadata. Writes nothing.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::WrongMaster`], [`Error::MetadataChanged`], [`Error::Field`], and as [`Files`].
    pub fn open(files: F, master: Master) -> Result<Store<F>, Error> {
        let (metadata, covered, mac) = from_json(&metadata_text(&files)?)?;
        if !bool::from(metadata.master_id.ct_eq(&master.id(metadata.store)?)) {
            return Err(Error::WrongMaster);
        }
        if !bool::from(mac.ct_eq(&master.authenticate(metadata.store, &covered)?)) {
            return Err(Error::MetadataChanged);
        }
        Ok(Store { files, master, metadata, mac, is_tidy: false, has_failed: false })
    }

    /// Opens the store with the first of `sources` that has its master secret. More than one source is for a change of the
    /// master secret that may have been cut off: the old one and the new one.
    ///
    /// # Errors
    /// What a source says, unless it has no master secret and is not the last; [`Error::WrongMaster`] if none fits; and as
    /// [`Store::open`].
    pub fn open_by(files: F, sources: &mut [Box<dyn MasterSource>]) -> Result<Store<F>, Error> {
        let metadata = Metadata::read(&files)?;
        let last = sources.len().saturating_sub(1);
        for (at, source) in sources.iter_mut().enumerate() {
            let master = match source.fetch() {
                Err(Error::NoMaster { .. }) if at < last => continue,
                fetched => fetched?,
            };
            if master.id(metadata.store)? == metadata.master_id {
                return Store::open(files, master);
            }
        }
        Err(Error::WrongMaster)
    }

    /// What the metadata says.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files, with their lock.
    pub fn files(&self) -> &F {
        &self.files
    }

    /// Gives the files back; the store is closed.
    pub fn into_files(self) -> F {
        self.files
    }

    /// The state of the store, to be kept elsewhere.
    pub fn head(&self) -> Head {
        Head { store: self.metadata.store, epoch: self.metadata.epoch, mac: self.mac }
    }

    /// Holds the store against a head that was kept elsewhere: it must be that state or a later one.
    ///
    /// # Errors
    /// [`Error::OtherStore`]; [`Error::OlderStore`] and [`Error::ForkedStore`] if an older copy was put back.
    pub fn check_against(&self, head: &Head) -> Result<(), Error> {
        let (found, epoch) = (self.metadata.store, self.metadata.epoch);
        if found != head.store {
            return Err(Error::OtherStore { found, expected: head.store });
        }
        if epoch < head.epoch {
            return Err(Error::OlderStore { epoch, expected: head.epoch });
        }
        if epoch == head.epoch && !bool::from(self.mac.ct_eq(&head.mac)) {
            return Err(Error::ForkedStore { epoch });
        }
        Ok(())
    }

    /// Sets the policy.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], and as [`Files`].
    pub fn set_policy(&mut self, policy: Policy, now: Timestamp) -> Result<(), Error> {
        policy.check()?;
        self.edit(now, |metadata| {
            metadata.policy = policy;
            Ok(())
        })
    }

    /// One durable change of the metadata, or none.
    fn edit<T>(&mut self, now: Timestamp, change: impl FnOnce(&mut Metadata) -> Result<T, Error>) -> Result<T, Error> {
        if self.has_failed {
            return Err(Error::Reopen);
        }
        self.tidy()?;
        let mut next = self.metadata.clone();
        let changed = change(&mut next)?;
        next.epoch += 1;
        next.updated = next.trusted(now);
        let (text, mac) = to_json(&next, |covered| self.master.authenticate(next.store, covered))?;
        if text.len() > METADATA_BYTES_MAX {
            return Err(Error::TooLarge { file: METADATA_FILE.to_owned(), limit_bytes: METADATA_BYTES_MAX });
        }
        if let Err(error) = replace(&mut self.files, METADATA_FILE, text.as_bytes()) {
            self.has_failed = true;
            return Err(error);
        }
        self.metadata = next;
        self.mac = mac;
        Ok(changed)
    }
}

impl Metadata {
    /// Reads the metadata in `files` without a master secret, so without holding its authentication code: for reports.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::Field`], and as [`Files`].
    pub fn read(files: &impl Files) -> Result<Metadata, Error> {
        Ok(from_json(&metadata_text(files)?)?.0)
    }
}

fn metadata_text(files: &impl Files) -> Result<Vec<u8>, Error> {
    let text = files.read(METADATA_FILE, METADATA_BYTES_MAX)?;
    text.ok_or_else(|| Error::NoStore { file: METADATA_FILE.to_owned() })
}
