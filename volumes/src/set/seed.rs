//! The seed of the audit log, the first key of its chain: sealed in the key store as a small value `luksctl-audit-CHAIN`,
//! one for each chain that there was. Only verifying needs it.
//!
//! A log that began before there was a store has its seed in the file `audit.seed`; the first opening of the store seals it
//! and destroys the file. A log that has not begun yet begins with a seed that is in the store first.

use keystore::KeyName;
use secret::Secret;

use super::{Set, SetStore, master};
use crate::VolumesError;
use crate::audit::{AuditLog, chain_of, new_seed, read_seed};

/// What the names of the values of this program begin with; a person's secrets cannot.
pub const RESERVED: &str = "luksctl-";
const PREFIX: &str = "luksctl-audit-";

/// Every seed in the store with its chain.
pub(super) fn all(store: &SetStore) -> Result<Vec<(String, Secret)>, VolumesError> {
    let names = store.metadata().values.keys();
    let chains = names.filter_map(|name| Some((name, name.to_string().strip_prefix(PREFIX)?.to_owned())));
    chains.map(|(name, chain)| Ok((chain, store.value(name)?))).collect()
}

impl Set {
    /// Puts the seed of the audit log where it belongs.
    pub(super) fn seal_seed(&self, store: &mut SetStore) -> Result<(), VolumesError> {
        let Some(log) = self.audit() else { return Ok(()) };
        let path = &self.config.audit.seed;
        if path.symlink_metadata().is_ok() {
            let seed = read_seed(path)?;
            self.keep(store, &seed)?;
            return master::destroy(path).map_err(VolumesError::io("destroy", path));
        }
        if !log.has_begun()? {
            let seed = new_seed(path)?;
            self.keep(store, &seed)?;
            log.begin(&seed)?;
            self.remember(store)?;
        }
        Ok(())
    }

    fn keep(&self, store: &mut SetStore, seed: &Secret) -> Result<(), VolumesError> {
        let name = KeyName::new(&format!("{PREFIX}{}", chain_of(seed)?))?;
        if store.metadata().values.contains_key(&name) && store.value(&name)?.ct_eq(seed.expose()) {
            return Ok(());
        }
        store.set_value(&name, seed, Set::now())?;
        // Before the log has begun nothing can be recorded: it would begin with another seed.
        if self.audit().map_or(Ok(false), |log: AuditLog| log.has_begun())? {
            self.remember(store)?;
        }
        Ok(())
    }
}
