//! Finishing a removal that was cut short: the keyslot is still listed, its area is overwritten at least at its start.
//!
//! A wipe begins with a sector of zeros that is durable before anything else happens (`area.rs`), and key material is
//! ciphertext, which no sector of zeros is. So a keyslot with that mark is dead whatever its passphrase, also if something
//! else wrote the zeros: taking it off the list loses nothing. A keyslot without it cannot be told dead by looking.
//! Source: luks2-format §3.7 (wipe first, then the metadata), [`crate::check`].

use block::BlockIo;

use crate::any::AnyContainer;
use crate::check;
use crate::container::Container;
use crate::env::Env;
use crate::error::Error;
use crate::metadata::KeyslotId;
use crate::requirements::Action;
use crate::store::{HeaderStore, LockMode};

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// The keyslots whose removal was cut short. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Locked`].
    pub fn half_removed(&self) -> Result<Vec<KeyslotId>, Error> {
        let _guard = self.store.lock(LockMode::Shared, self.limits.lock_wait)?;
        Ok(check::marked_unlocked(&self.store, self.header.metadata()))
    }

    /// Removes them: wipes their areas, this time to the end, and forgets them. Says which. The last keyslot goes, too, for
    /// it opens nothing.
    ///
    /// # Errors
    /// Those of every change.
    pub fn finish_removals(&mut self, env: &Env<'_>) -> Result<Vec<KeyslotId>, Error> {
        self.edit(Action::Remove, |edit| {
            let ids = check::marked_unlocked(edit.store, edit.header.metadata());
            for id in &ids {
                edit.remove(env, *id)?;
            }
            Ok(ids)
        })
    }
}

impl<H: HeaderStore, D: BlockIo> AnyContainer<H, D> {
    /// The keyslots whose removal was cut short. Writes nothing.
    ///
    /// # Errors
    /// As [`Container::half_removed`].
    pub fn half_removed(&self) -> Result<Vec<KeyslotId>, Error> {
        match self {
            AnyContainer::Luks1(container) => container.half_removed(),
            AnyContainer::Luks2(container) => container.half_removed(),
        }
    }

    /// Removes them, and says which.
    ///
    /// # Errors
    /// As [`Container::finish_removals`].
    pub fn finish_removals(&mut self, env: &Env<'_>) -> Result<Vec<KeyslotId>, Error> {
        match self {
            AnyContainer::Luks1(container) => container.finish_removals(env),
            AnyContainer::Luks2(container) => container.finish_removals(env),
        }
    }
}

#[cfg(test)]
mod tests {
    use block::BlockErrorKind;
    use block::fault::{FaultDisk, Op};
    use std::sync::Arc;

    use super::*;
    use crate::edit::LastSlot;
    use crate::format::sample::{cheap, fixed, formatted, open, params, secret, slots, try_open, try_slot};

    #[test]
    fn a_kill_that_is_cut_short_anywhere_is_finished() {
        let disk = formatted(&params());
        let mut container = open(&disk);
        let key = try_open(&container, "first").unwrap();
        container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).unwrap();
        let mut finished = 0;
        for nth in 1..=16 {
            let failing = Arc::new(FaultDisk::new(disk.snapshot()));
            failing.fail_from(Op::Change, nth, BlockErrorKind::Io);
            let killed = open(&failing).keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Refuse);
            failing.heal();
            let mut container = open(&failing);
            let half = container.half_removed().unwrap();
            assert_eq!(container.finish_removals(&fixed().env()).unwrap(), half);
            finished += half.len();
            try_slot(&container, 1, "second").expect("the other one stays");
            let listed = slots(&container).contains(&0);
            // What is still listed still opens.
            assert_eq!(listed, try_slot(&container, 0, "first").is_ok(), "change {nth}");
            assert!(killed.is_err() || !listed);
            assert!(container.half_removed().unwrap().is_empty());
        }
        assert!(finished >= 2, "{finished}");
    }
}
