//! A keyslot replaced by another one for the same key: another passphrase, another key derivation, another cipher.
//!
//! The new keyslot gets an id and an area of its own, stands in the header and is proven before the old one goes; then the
//! ids are exchanged, so that people and tokens find it where the old one was (luks2-format §3.7). No crash loses a keyslot.
//!
//! Without room for a second keyslot there is only [`Container::keyslot_change_in_place`], which overwrites the old area. An
//! error there is answered with the old bytes; a crash between the area and the header loses that keyslot, and only that.

use block::BlockIo;
use secret::Secret;

use crate::area::AreaLayout;
use crate::container::Container;
use crate::edit::{Edit, NewKeyslot, Staged, keyslot};
use crate::env::Env;
use crate::error::Error;
use crate::header::load_unlocked;
use crate::limits::Limits;
use crate::metadata::KeyslotId;
use crate::requirements::{self, Action};
use crate::store::HeaderStore;
use crate::unlock::{self, Purpose, UnlockRequest};
use crate::volume_key::VolumeKey;

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Replaces the keyslot that the passphrase `old` opens (only `id`, if given) by one for the passphrase `new`, which keeps
    /// the id, or moves to `parameters.id`. The new keyslot is in the header and proven before the old one goes.
    ///
    /// # Errors
    /// As [`Container::keyslot_add`]: a free id and a free area are needed. [`Error::NoKey`] if `old` opens nothing.
    pub fn keyslot_change(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        requirements::check(&self.header.metadata().config, Action::Change)?;
        let request = UnlockRequest { keyslot: id, purpose: Purpose::AnyDigest };
        let (key, old_id) = self.opened_by(env, &request, old)?;
        let kept = parameters.id.is_none_or(|wanted| wanted == old_id);
        let priority = self.header.metadata().keyslots.get(old_id).and_then(|slot| slot.priority);
        let staged_id = if kept { None } else { parameters.id };
        let parameters = NewKeyslot { id: staged_id, priority: parameters.priority.or(priority), ..parameters.clone() };
        let mut staged = Staged::new(self.header.metadata(), env, &self.limits, &key, new, &parameters)?;
        staged.copy_tokens(old_id);
        let new_id = staged.id;
        self.write_staged(staged)?;
        self.prove(env, &key, new_id, new)?;
        self.edit(Action::Change, |edit| {
            if kept {
                let mut swapped = edit.header.metadata().clone();
                keyslot::swap(&mut swapped, old_id, new_id);
                edit.commit(swapped)?;
            }
            edit.remove(env, if kept { new_id } else { old_id })
        })?;
        Ok(if kept { old_id } else { new_id })
    }

    /// Writes the keyslot that `passphrase` opens (only `id`, if given) anew for the same passphrase, with another key
    /// derivation or another keyslot cipher. It keeps its id, its tokens and, unless `parameters` has one, its priority.
    ///
    /// # Errors
    /// As [`Container::keyslot_change`].
    pub fn keyslot_convert(
        &mut self,
        env: &Env<'_>,
        passphrase: &Secret,
        id: Option<KeyslotId>,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        self.keyslot_change(env, passphrase, id, passphrase, parameters)
    }

    /// Replaces the keyslot that the passphrase `old` opens (only `id`, if given) by one for the passphrase `new` in the same
    /// place. Needs no free id, no free area and no room in the metadata; `parameters.id` is not looked at. A failed write or
    /// a failed proof is answered by writing the old bytes back; a crash may lose this keyslot.
    ///
    /// # Errors
    /// [`Error::NoKey`] if `old` opens nothing, [`Error::NotProven`], those of every change.
    pub fn keyslot_change_in_place(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        requirements::check(&self.header.metadata().config, Action::Change)?;
        let request = UnlockRequest { keyslot: id, purpose: Purpose::AnyDigest };
        let (key, id) = self.opened_by(env, &request, old)?;
        let staged = Staged::over(self.header.metadata(), env, &self.limits, &key, new, id, parameters)?;
        let limits = self.limits.clone();
        self.edit(Action::Change, |edit| edit.overwrite(env, &limits, &key, new, staged))?;
        Ok(id)
    }
}

impl<H: HeaderStore> Edit<'_, H> {
    /// Writes a staged keyslot over the one that has its id. What was there comes back if that fails.
    fn overwrite(
        &mut self,
        env: &Env<'_>,
        limits: &Limits,
        key: &VolumeKey,
        passphrase: &Secret,
        staged: Staged,
    ) -> Result<(), Error> {
        let id = staged.id;
        let Some(before) = self.header.metadata().keyslots.get(id) else {
            return Err(Error::KeyslotMissing { keyslot: id });
        };
        keyslot::check_text(&staged.metadata)?;
        self.accepts(&staged.metadata)?;
        let layout = AreaLayout::of(self.header.metadata(), before, limits)?;
        let bytes = layout.read(self.store)?;
        let written = staged.write_area(self.store).and_then(|()| {
            let metadata = &staged.metadata;
            unlock::prove(self.store, metadata, id, env, limits, key.secret(), passphrase).map(drop)
        });
        if written.is_err() {
            let restored = layout.write(self.store, &bytes);
            self.noted(restored)?;
            return self.noted(written);
        }
        let committed = self.commit(staged.metadata.clone());
        if committed.is_err() && self.names_the_old_one(id, &staged, limits) {
            layout.write(self.store, &bytes)?;
        }
        committed
    }

    /// Whether the header on disk, after a write that failed, still describes the keyslot that was to be replaced.
    fn names_the_old_one(&self, id: KeyslotId, staged: &Staged, limits: &Limits) -> bool {
        load_unlocked(self.store, limits)
            .is_ok_and(|header| header.metadata().keyslots.get(id) != staged.metadata.keyslots.get(id))
    }
}
