//! Changes to a LUKS1 header: keyslots and UUID.
//!
//! Every change runs under the exclusive metadata lock. There is no sequence number, so the header on disk must still be the
//! one in memory byte for byte ([`Error::ChangedSinceRead`]). Key derivations happen outside the lock.
//!
//! Order of writes: the key material of a new keyslot is written and flushed before the header enables it; that of a removed
//! one is overwritten and flushed before the header disables it; the header itself as [`super::write`] says. A new keyslot is
//! proven by unlocking it from the disk before success is reported, and before an old one goes. After a crash the header opens
//! with the old passphrase, the new one, or both; a keyslot may be listed whose material is already overwritten.
//!
//! A change needs a free keyslot for the time it takes, and the keyslot keeps its number: the new passphrase goes to the free
//! one and is proven there; the old one is wiped and disabled; its place gets the new material and is enabled; the free one is
//! wiped and disabled again. In every state between, one of the two passphrases opens. Without a free keyslot there is only
//! [`Luks1Container::keyslot_change_in_place`].

mod in_place;

use block::{BlockIo, ByteView};
use secret::Secret;

use crate::area::{AreaLayout, wipe_area};
use crate::edit::{LastSlot, NewKeyslot};
use crate::env::Env;
use crate::error::Error;
use crate::kdf::Params;
use crate::limits::Limits;
use crate::luks1::container::{Luks1Container, check_id};
use crate::luks1::header::{KEYSLOTS, Luks1Header, Luks1Slot};
use crate::luks1::load::load_unlocked;
use crate::luks1::text::FixedText;
use crate::luks1::write;
use crate::metadata::KeyslotId;
use crate::store::{HeaderStore, LockMode};
use crate::unlock::derive_area_key;
use crate::volume_key::VolumeKey;

/// A new keyslot, worked out and encrypted, not yet written.
pub(super) struct Staged {
    pub(super) id: KeyslotId,
    slot: Luks1Slot,
    sealed: Secret,
}

impl Staged {
    /// Prepares a keyslot for `key` under `passphrase` at its place in `header`. Derives a key; writes nothing.
    pub(super) fn new(
        header: &Luks1Header,
        env: &Env<'_>,
        limits: &Limits,
        key: &Secret,
        passphrase: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<Staged, Error> {
        let id = free_id(header, parameters.id)?;
        let iterations = iterations(header, parameters)?;
        let mut slot = Luks1Slot { enabled: true, iterations, ..*at(header, id)? };
        env.rng.fill(&mut slot.salt)?;
        let keyslot = header.keyslot(&slot);
        let layout = AreaLayout::of(&header.metadata(), &keyslot, limits)?;
        let area_key = derive_area_key(env, limits, &keyslot, &layout, passphrase)?;
        let sealed = layout.seal(env, &area_key, key)?;
        Ok(Staged { id, slot, sealed })
    }

    /// The same key material for another keyslot.
    fn moved(self, header: &Luks1Header, id: KeyslotId) -> Result<Staged, Error> {
        let place = at(header, id)?.key_material_offset_sectors;
        Ok(Staged { id, slot: Luks1Slot { key_material_offset_sectors: place, ..self.slot }, sealed: self.sealed })
    }

    /// Writes the key material and makes it durable; the header does not name it yet.
    pub(super) fn write_material<S: BlockIo>(&self, store: &S, header: &Luks1Header) -> Result<(), Error> {
        let view = ByteView::new(store);
        view.write(header.material_offset(&self.slot), self.sealed.expose(), false)?;
        Ok(view.flush()?)
    }

    /// Whether the device gives back what was written.
    fn is_on<S: BlockIo>(&self, store: &S, header: &Luks1Header) -> Result<bool, Error> {
        let view = ByteView::new(store);
        let read = Secret::fill_with(self.sealed.len(), |bytes| {
            view.read(header.material_offset(&self.slot), bytes).map_err(Error::from)
        })?;
        Ok(read.ct_eq(self.sealed.expose()))
    }

    /// The header with the keyslot enabled.
    pub(super) fn enabled_in(&self, header: &Luks1Header) -> Luks1Header {
        with_slot(header, self.id, self.slot)
    }
}

impl<H: HeaderStore, D: BlockIo> Luks1Container<H, D> {
    /// Runs `change` under the exclusive lock, on a header that is still the one in memory.
    pub(super) fn edit<R>(&mut self, change: impl FnOnce(&mut Self) -> Result<R, Error>) -> Result<R, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let _guard = self.store.lock(LockMode::Exclusive, self.limits.lock_wait)?;
        if load_unlocked(&self.store)? != self.header {
            return Err(Error::ChangedSinceRead);
        }
        self.check_policy()?;
        let changed = change(self);
        if let Err(Error::Block(_)) = &changed {
            self.poisoned = true;
        }
        changed
    }

    fn commit(&mut self, next: Luks1Header) -> Result<(), Error> {
        self.policy.check_luks1(&next)?;
        write::replace(&self.store, &self.header, &next)?;
        self.header = next;
        Ok(())
    }

    /// Adds a keyslot in which the passphrase `new` opens the key `existing`. Its key derivation is PBKDF2 with the header's
    /// hash, its cipher that of the data: LUKS1 has no others.
    ///
    /// # Errors
    /// [`Error::KeyslotInUse`], [`Error::Luks1KeyslotRange`], [`Error::NoFreeKeyslot`], [`Error::Luks1Has`] for what LUKS1
    /// cannot do, and [`Error::NotProven`] if the new keyslot does not open when read back from the disk: it is taken away
    /// again.
    pub fn keyslot_add(
        &mut self,
        env: &Env<'_>,
        existing: &VolumeKey,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        let staged = Staged::new(&self.header, env, &self.limits, existing.secret(), new, parameters)?;
        let id = staged.id;
        self.write_staged(&staged)?;
        self.prove(env, existing, id, new)?;
        Ok(id)
    }

    /// Removes the keyslot `id`: wipes its key material, then disables it in the header.
    ///
    /// # Errors
    /// [`Error::KeyslotMissing`], [`Error::LastKeyslot`].
    pub fn keyslot_kill(&mut self, env: &Env<'_>, id: KeyslotId, last: LastSlot) -> Result<(), Error> {
        check_id(Some(id))?;
        self.edit(|container| {
            let header = &container.header;
            if !at(header, id)?.enabled {
                return Err(Error::KeyslotMissing { keyslot: id });
            }
            if last == LastSlot::Refuse && header.enabled().count() == 1 {
                return Err(Error::LastKeyslot { keyslot: id });
            }
            container.remove(env, id)
        })
    }

    /// Removes the keyslot that `passphrase` opens, and says which one that was.
    ///
    /// # Errors
    /// As [`Luks1Container::keyslot_kill`], and [`Error::NoKey`] if the passphrase opens none.
    pub fn keyslot_remove(&mut self, env: &Env<'_>, passphrase: &Secret, last: LastSlot) -> Result<KeyslotId, Error> {
        let (_, id) = self.opened_by(env, None, passphrase)?;
        self.keyslot_kill(env, id, last)?;
        Ok(id)
    }

    /// Replaces the passphrase `old` of a keyslot (only `id`, if given) by `new`. The keyslot keeps its number, or moves to
    /// `parameters.id`.
    ///
    /// # Errors
    /// As [`Luks1Container::keyslot_add`]: a free keyslot is needed. [`Error::NoKey`] if `old` opens nothing.
    pub fn keyslot_change(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        let (key, old_id) = self.opened_by(env, id, old)?;
        let kept = parameters.id.is_none_or(|wanted| wanted == old_id);
        let parameters = NewKeyslot { id: parameters.id.filter(|_| !kept), ..parameters.clone() };
        let staged = Staged::new(&self.header, env, &self.limits, key.secret(), new, &parameters)?;
        let new_id = staged.id;
        self.write_staged(&staged)?;
        self.prove(env, &key, new_id, new)?;
        self.edit(|container| {
            container.remove(env, old_id)?;
            if !kept {
                return Ok(new_id);
            }
            let back = staged.moved(&container.header, old_id)?;
            back.write_material(&container.store, &container.header)?;
            if !back.is_on(&container.store, &container.header)? {
                return Err(Error::NotProven { keyslot: old_id });
            }
            container.commit(back.enabled_in(&container.header))?;
            container.remove(env, new_id)?;
            Ok(old_id)
        })
    }

    /// Sets the UUID.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a text that cannot be one; those of every change.
    pub fn set_uuid(&mut self, uuid: &str) -> Result<(), Error> {
        let uuid = uuid_field(uuid)?;
        self.edit(|container| container.commit(Luks1Header { uuid, ..container.header.clone() }))
    }

    /// Writes the material of a staged keyslot, and then the header that enables it.
    fn write_staged(&mut self, staged: &Staged) -> Result<(), Error> {
        self.edit(|container| {
            // Before the material is written, too.
            container.policy.check_luks1(&staged.enabled_in(&container.header))?;
            staged.write_material(&container.store, &container.header)?;
            container.commit(staged.enabled_in(&container.header))
        })
    }

    /// Unlocks the new keyslot from the disk; one that does not give the key back is taken away again.
    fn prove(&mut self, env: &Env<'_>, key: &VolumeKey, id: KeyslotId, passphrase: &Secret) -> Result<(), Error> {
        let failed = match self.unlock(env, Some(id), passphrase) {
            Ok(proven) if proven.secret().ct_eq(key.expose()) => return Ok(()),
            Ok(_) | Err(Error::NoKey { .. }) => Error::NotProven { keyslot: id },
            Err(error) => error,
        };
        self.edit(|container| container.remove(env, id))?;
        Err(failed)
    }

    /// Wipes the key material of `id`, then disables it. What is left of it in the header is its place.
    pub(super) fn remove(&mut self, env: &Env<'_>, id: KeyslotId) -> Result<(), Error> {
        let slot = *at(&self.header, id)?;
        wipe_area(&self.store, env, &self.header.keyslot(&slot).area)?;
        self.commit(with_slot(&self.header, id, Luks1Slot { enabled: false, iterations: 0, salt: [0; 32], ..slot }))
    }

    fn opened_by(
        &self,
        env: &Env<'_>,
        id: Option<KeyslotId>,
        passphrase: &Secret,
    ) -> Result<(VolumeKey, KeyslotId), Error> {
        let key = self.unlock(env, id, passphrase)?;
        match key.keyslot() {
            Some(id) => Ok((key, id)),
            None => Err(Error::NoUsableKeyslot { broken: Vec::new() }),
        }
    }
}

/// The field for a UUID.
pub(super) fn uuid_field(uuid: &str) -> Result<FixedText<40>, Error> {
    let checked = crate::edit::names::checked_uuid(uuid)?;
    let allowed =
        || Error::Parameter { parameter: "UUID", value: checked.clone(), allowed: "36 characters".to_owned() };
    FixedText::new(&checked).ok_or_else(allowed)
}

fn at(header: &Luks1Header, id: KeyslotId) -> Result<&Luks1Slot, Error> {
    let slot = usize::try_from(id.0).ok().and_then(|at| header.slots.get(at));
    slot.ok_or(Error::Luks1KeyslotRange { keyslot: id })
}

fn with_slot(header: &Luks1Header, id: KeyslotId, slot: Luks1Slot) -> Luks1Header {
    let mut next = header.clone();
    if let Some(place) = usize::try_from(id.0).ok().and_then(|at| next.slots.get_mut(at)) {
        *place = slot;
    }
    next
}

fn free_id(header: &Luks1Header, wanted: Option<KeyslotId>) -> Result<KeyslotId, Error> {
    match wanted {
        Some(id) if at(header, id)?.enabled => Err(Error::KeyslotInUse { keyslot: id }),
        Some(id) => Ok(id),
        None => {
            let free = (0..).map(KeyslotId).zip(&header.slots).find(|(_, slot)| !slot.enabled);
            Ok(free.ok_or(Error::NoFreeKeyslot { max: KEYSLOTS })?.0)
        }
    }
}

/// What LUKS1 can have of the parameters of a keyslot: PBKDF2 iterations.
pub(super) fn iterations(header: &Luks1Header, parameters: &NewKeyslot) -> Result<u32, Error> {
    if parameters.encryption.is_some() {
        return Err(Error::Luks1Has { no: "keyslot ciphers of their own" });
    }
    if parameters.priority.is_some() {
        return Err(Error::Luks1Has { no: "keyslot priorities" });
    }
    if parameters.name.is_some() {
        return Err(Error::Luks1Has { no: "names of keyslots" });
    }
    match &parameters.kdf.0 {
        Params::Argon2(_) => Err(Error::Luks1Has { no: "key derivation but PBKDF2" }),
        Params::Pbkdf2 { hash, .. }
            if !header.hash_spec.to_text().eq_ignore_ascii_case(hash.name()) || *hash != parameters.hash =>
        {
            Err(Error::Luks1Has { no: "hash for a keyslot but that of its header" })
        }
        Params::Pbkdf2 { iterations, .. } => Ok(*iterations),
    }
}
