//! Finishing a removal that was cut short: the keyslot is still enabled, its key material is overwritten at least at its
//! start. As [`crate::edit`] does for LUKS2: a wipe begins with a sector of zeros that is durable before anything else happens,
//! and only a keyslot with that mark is taken for dead. Source: [`crate::check`].

use block::BlockIo;

use crate::check;
use crate::env::Env;
use crate::error::Error;
use crate::luks1::container::Luks1Container;
use crate::metadata::KeyslotId;
use crate::store::{HeaderStore, LockMode};

impl<H: HeaderStore, D: BlockIo> Luks1Container<H, D> {
    /// The keyslots whose removal was cut short. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Locked`].
    pub fn half_removed(&self) -> Result<Vec<KeyslotId>, Error> {
        let _guard = self.store.lock(LockMode::Shared, self.limits.lock_wait)?;
        Ok(self.dead())
    }

    /// Removes them: wipes their key material, this time to the end, and disables them. Says which. The last keyslot goes,
    /// too, for it opens nothing.
    ///
    /// # Errors
    /// Those of every change.
    pub fn finish_removals(&mut self, env: &Env<'_>) -> Result<Vec<KeyslotId>, Error> {
        self.edit(|container| {
            let ids = container.dead();
            ids.iter().try_for_each(|id| container.remove(env, *id))?;
            Ok(ids)
        })
    }

    fn dead(&self) -> Vec<KeyslotId> {
        check::marked_unlocked(&self.store, &self.header.metadata())
    }
}
