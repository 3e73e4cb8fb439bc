//! [`Set`]: the managed set, opened to be worked with: its configuration, its lock, its audit log and its key store.
//!
//! ```text
//! Set::load ─► lock (one command at a time) ─► store / create_store ─► changes ─► back_up_keys ─► remember
//!                └─ record: what is about to be done, before it counts as done
//! ```
//!
//! Invariants: the key store is opened with the master secret that the configuration names and held against the head that
//! the audit log remembers, so an older copy that was put back is found; the first key of the audit log's chain lies sealed
//! in the store once there is one, and nowhere else; a failed opening is recorded.

mod head;
mod lock;
mod master;
mod seed;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keystore::{Folder, Metadata, Policy, Store, Timestamp, key_backup};
use secret::{KeyProvider, Secret};

use crate::VolumesError;
use crate::audit::{AuditLog, Category, Event, Level, Moment, Outcome, SystemJournal};
use crate::config::Config;

pub use lock::SetLock;
pub use seed::RESERVED;

/// How long a command waits for another one that has the key store.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// What the audit log calls the key store where it stands for a volume.
const STORE_TARGET: &str = "key-store";

/// An open key store of a set.
pub type SetStore = Store<Folder>;

/// A managed set.
pub struct Set {
    config: Config,
    path: PathBuf,
    /// Whom to ask for the master passphrase.
    asked: Option<Rc<RefCell<Box<dyn KeyProvider>>>>,
}

impl Set {
    /// The set that the file at `path` describes. Nothing is locked or opened yet.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(path: &Path) -> Result<Set, VolumesError> {
        Ok(Set::new(Config::load(path)?, path))
    }

    /// The set of a configuration that came from the file at `path`.
    #[must_use]
    pub fn new(config: Config, path: &Path) -> Set {
        Set { config, path: path.to_owned(), asked: None }
    }

    /// The same, asking `provider` where the master secret is a passphrase.
    #[must_use]
    pub fn asking(self, provider: Box<dyn KeyProvider>) -> Set {
        Set { asked: Some(Rc::new(RefCell::new(provider))), ..self }
    }

    /// What the set is.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file that describes it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the set's lock, which every command that changes something holds while it runs.
    ///
    /// # Errors
    /// [`VolumesError::SetBusy`] if another command keeps it, [`VolumesError::Io`].
    pub fn lock(&self) -> Result<SetLock, VolumesError> {
        SetLock::take(&self.path, lock::PATIENCE)
    }

    /// The time now, for the store.
    #[must_use]
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_seconds(since.as_secs())
    }

    /// How long keys and backups live, as the store has it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let keys = &self.config.keys;
        Policy { key_rotation_days: keys.rotation_days, key_backup_retention_days: keys.backup_retention_days }
    }

    /// Whether there is a key store. Of a store that cannot be looked at the answer is yes.
    #[must_use]
    pub fn has_store(&self) -> bool {
        let metadata = self.config.store.keys.join(keystore::metadata::METADATA_FILE);
        !matches!(metadata.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
    }

    /// What the key store says, without its master secret and so unproven: for reports.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`].
    pub fn metadata(&self) -> Result<Metadata, VolumesError> {
        Ok(Metadata::read(&self.folder()?)?)
    }

    /// The folder of the key store, locked.
    pub(crate) fn folder(&self) -> Result<Folder, VolumesError> {
        let path = &self.config.store.keys;
        if !self.has_store() {
            let file = path.join(keystore::metadata::METADATA_FILE).display().to_string();
            return Err(keystore::Error::NoStore { file }.into());
        }
        Ok(Folder::open(path, STORE_PATIENCE)?)
    }

    /// Opens the key store; other commands wait for as long as it is open. A change of the master secret that was cut off
    /// is finished, the policy of the configuration becomes the store's, and the seed of the audit log is sealed in it.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`] with what is wrong with the store, its files or its master secret: an older copy that was
    /// put back is [`keystore::Error::OlderStore`] or [`keystore::Error::ForkedStore`].
    pub fn store(&self) -> Result<SetStore, VolumesError> {
        let (mut store, is_next) = self.open_store()?;
        if let Err(error) = self.hold_against_head(&store) {
            let event = Event::new(Category::Security, "store-rolled-back", STORE_TARGET)
                .level(Level::High)
                .ended(Outcome::Denied)
                .detail("epoch", store.metadata().epoch);
            self.record(&event)?;
            return Err(error);
        }
        self.settle_store(&mut store, is_next)?;
        Ok(store)
    }

    /// Opens the key store although it is older than what is remembered or another one, and remembers it from now on: for
    /// who put an older copy back and means it.
    ///
    /// # Errors
    /// As [`Set::store`], without the older copies.
    pub fn accept_store(&self) -> Result<SetStore, VolumesError> {
        let (mut store, is_next) = self.open_store()?;
        let event = Event::new(Category::Security, "store-accepted", STORE_TARGET).level(Level::High);
        self.record(&event.detail("epoch", store.metadata().epoch))?;
        self.remember(&store)?;
        self.settle_store(&mut store, is_next)?;
        Ok(store)
    }

    /// The store, and whether its master secret is the next one.
    fn open_store(&self) -> Result<(SetStore, bool), VolumesError> {
        let folder = self.folder()?;
        let master = self.master_of(&folder);
        let opened = master.and_then(|(master, is_next)| Ok((Store::open(folder, master)?, is_next)));
        if let Err(VolumesError::KeyStore(error)) = &opened {
            self.open_failed(error)?;
        }
        opened
    }

    /// What every opening for work ends: a cut change of the master secret, the policy, the seed.
    fn settle_store(&self, store: &mut SetStore, is_next: bool) -> Result<(), VolumesError> {
        self.settle_master(is_next)?;
        let (old, new) = (store.metadata().policy, self.policy());
        if old != new {
            for (setting, old, new) in [
                ("rotation-days", old.key_rotation_days, new.key_rotation_days),
                ("backup-retention-days", old.key_backup_retention_days, new.key_backup_retention_days),
            ] {
                if old != new {
                    self.record(&Event::config(self.path.display(), format!("keys.{setting}"), old, new))?;
                }
            }
            store.set_policy(new, Set::now())?;
            self.remember(store)?;
        }
        self.seal_seed(store)?;
        crate::keys::written::count(self, store)
    }

    /// A wrong or missing master secret counts as a failed unlocking.
    fn open_failed(&self, error: &keystore::Error) -> Result<(), VolumesError> {
        use keystore::Error::{MetadataChanged, NoMaster, WrongMaster};
        let is_failed = matches!(error, WrongMaster | NoMaster { .. } | MetadataChanged);
        match self.audit() {
            Some(log) if is_failed => log.unlock_failed(STORE_TARGET, &error.to_string(), Moment::now()).map(drop),
            _ => Ok(()),
        }
    }

    /// Makes the key store, and its master secret where that is a file that is not there yet. What a command that was cut
    /// off left of it is taken over.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`]: [`keystore::Error::Exists`] where there is a store, [`keystore::Error::NoMaster`] where the
    /// source has no secret, and what the folder says.
    pub fn create_store(&self) -> Result<SetStore, VolumesError> {
        if self.has_store() {
            let file = self.config.store.keys.join(keystore::metadata::METADATA_FILE).display().to_string();
            return Err(keystore::Error::Exists { file }.into());
        }
        let mut folder = Folder::create(&self.config.store.keys, STORE_PATIENCE)?;
        let master = self.new_master(&mut folder)?;
        let mut store = Store::create(folder, master, self.policy(), Set::now())?;
        self.seal_seed(&mut store)?;
        self.record(&Event::new(Category::Key, "store-create", self.config.store.keys.display()))?;
        self.remember(&store)?;
        Ok(store)
    }

    /// Writes a backup of all keys for the recovery key and removes those that are too old; its name. `None` if there is
    /// no recovery key.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`], and as [`Set::record`].
    pub fn back_up_keys(&self, store: &SetStore) -> Result<Option<String>, VolumesError> {
        if store.recovery_key()?.is_none() {
            return Ok(None);
        }
        let mut folder = Folder::create(&self.config.store.key_backup, STORE_PATIENCE)?;
        let now = store.metadata().trusted(Set::now());
        let name = key_backup::write(store, &mut folder, now)?;
        self.record(&Event::new(Category::Backup, "keys-back-up", &name))?;
        for old in key_backup::prune(&mut folder, self.config.keys.backup_retention_days, now)? {
            self.record(&Event::new(Category::Backup, "keys-prune", &old))?;
        }
        Ok(Some(name))
    }

    /// The audit log; none where the configuration has none.
    #[must_use]
    pub fn audit(&self) -> Option<AuditLog> {
        let audit = &self.config.audit;
        audit.enabled.then(|| AuditLog::new(audit, Box::new(SystemJournal::default())))
    }

    /// Writes a record to the audit log, durably. What it says must not count as done if this fails.
    ///
    /// # Errors
    /// As [`AuditLog::record`].
    pub fn record(&self, event: &Event) -> Result<(), VolumesError> {
        self.audit().map_or(Ok(()), |log| log.record(event, Moment::now()).map(drop))
    }

    /// The first keys of the audit log's chains, by the chains' names, as the store has them: for `audit verify`.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`].
    pub fn audit_seeds(&self) -> Result<Vec<(String, Secret)>, VolumesError> {
        seed::all(&self.open_store()?.0)
    }
}

#[cfg(test)]
mod tests;
