//! Changes to a container's metadata: keyslots, tokens, flags, label, subsystem, UUID.
//!
//! Every change is a transaction under the exclusive metadata lock: the header is read again, and if it is not the one this
//! handle knows the change is refused ([`Error::ConcurrentUpdate`]; [`Container::reload`] and try again). What takes seconds,
//! the key derivations, happens outside the lock, as another program would otherwise hang on it.
//!
//! Order of writes (luks2-format §3.7): the area of a new keyslot is written and flushed before the header names it; the area
//! of a removed one is overwritten and flushed before the header forgets it. A new keyslot is proven by unlocking it from the
//! disk before success is reported, and before an old one goes. A crash anywhere leaves a header that opens with the old
//! passphrase, the new one, or both.
//!
//! The container's policy is held against the header that is edited and against the one that would be written, before the
//! first byte of it.
//!
//! After a failed write the handle is poisoned and refuses changes until reopened or reloaded. Unknown members are kept.

pub(crate) mod area;
mod change;
pub(crate) mod erase;
mod finish;
mod flags;
pub(crate) mod keyslot;
pub(crate) mod names;
mod slot_names;
mod tokens;
mod unbound;

use block::BlockIo;
use secret::Secret;

use crate::area::wipe_area;
use crate::container::Container;
use crate::env::Env;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::header::{Header, load_unlocked};
use crate::kdf::KdfParams;
use crate::metadata::keyslot::Priority;
use crate::metadata::slot_name::SlotName;
use crate::metadata::{KeyslotId, Metadata};
use crate::policy::Policy;
use crate::requirements::{self, Action};
use crate::store::{HeaderStore, LockMode};
use crate::unlock::{self, Purpose, UnlockRequest};
use crate::volume_key::VolumeKey;
use crate::write;

pub use flags::ActivationFlag;
pub(crate) use keyslot::Staged;
pub use names::HeaderSettings;

/// What a new keyslot is like.
#[derive(Debug, Clone)]
pub struct NewKeyslot {
    /// Its id; the lowest free one if `None`.
    pub id: Option<KeyslotId>,
    /// Key derivation and its cost.
    pub kdf: KdfParams,
    /// Hash of the anti-forensic splitter.
    pub hash: HashAlg,
    /// Cipher of the area and size of its key in bytes; those of the data segment if `None`, or `aes-xts-plain64` with
    /// 64 bytes where the segment's cipher cannot serve a keyslot.
    pub encryption: Option<(String, u32)>,
    /// When it is tried; as [`Priority::Normal`] if `None`. A changed keyslot keeps its priority then.
    pub priority: Option<Priority>,
    /// What it is for; it comes with the keyslot or not at all. A changed keyslot keeps its name.
    pub name: Option<SlotName>,
}

impl NewKeyslot {
    /// A keyslot with these costs and everything else as cryptsetup chooses it.
    pub fn new(kdf: KdfParams) -> NewKeyslot {
        let hash = kdf.hash();
        NewKeyslot { id: None, kdf, hash, encryption: None, priority: None, name: None }
    }
}

/// Whether the last keyslot that opens the data may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSlot {
    /// No: [`Error::LastKeyslot`].
    Refuse,
    /// Yes. Without a backup of the header or of the volume key the data is gone.
    Allow,
}

/// One transaction: the lock is held, the header on disk is the one in memory.
struct Edit<'a, H: HeaderStore> {
    store: &'a H,
    header: &'a mut Header,
    policy: &'a Policy,
    poisoned: &'a mut bool,
}

impl<H: HeaderStore> Edit<'_, H> {
    /// Writes both copies of the header with `metadata`.
    fn commit(&mut self, metadata: Metadata) -> Result<(), Error> {
        keyslot::check_text(&metadata)?;
        self.commit_header(|header| *header.metadata_mut() = metadata)
    }

    fn commit_header(&mut self, change: impl FnOnce(&mut Header)) -> Result<(), Error> {
        let mut next = self.header.clone();
        change(&mut next);
        self.policy.check(&next)?;
        let written = write::commit(self.store, &mut next);
        *self.poisoned |= next.poisoned;
        written?;
        *self.header = next;
        Ok(())
    }

    /// Whether the policy accepts the header with `metadata`, for who writes something else before it.
    fn accepts(&self, metadata: &Metadata) -> Result<(), Error> {
        let mut next = self.header.clone();
        *next.metadata_mut() = metadata.clone();
        self.policy.check(&next)
    }

    /// A failed write leaves the disk in doubt.
    fn noted(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(Error::Block(_)) = &result {
            *self.poisoned = true;
        }
        result
    }
}

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Runs `change` under the exclusive lock, on a header that is still the one in memory.
    fn edit<R>(
        &mut self,
        action: Action,
        change: impl FnOnce(&mut Edit<'_, H>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let _guard = self.store.lock(LockMode::Exclusive, self.limits.lock_wait)?;
        let fresh = load_unlocked(&self.store, &self.limits)?;
        if !fresh.says_the_same(&self.header) {
            return Err(Error::ConcurrentUpdate { seqid: self.header.seqid() });
        }
        self.policy.check(&fresh)?;
        requirements::check(&fresh.metadata().config, action)?;
        if fresh.seqid() == u64::MAX {
            // Known before an area is wiped that the header would go on naming.
            return Err(Error::SeqidExhausted);
        }
        self.header = fresh;
        let (header, policy, poisoned) = (&mut self.header, &self.policy, &mut self.poisoned);
        change(&mut Edit { store: &self.store, header, policy, poisoned })
    }

    /// Adds a keyslot in which the passphrase `new` opens the key `existing`.
    ///
    /// # Errors
    /// [`Error::KeyslotInUse`], [`Error::KeyslotRange`], [`Error::NoFreeKeyslot`], [`Error::NoFreeArea`], and
    /// [`Error::NotProven`] if the new keyslot does not open when read back from the disk: it is taken away again.
    pub fn keyslot_add(
        &mut self,
        env: &Env<'_>,
        existing: &VolumeKey,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        requirements::check(&self.header.metadata().config, Action::Change)?;
        let staged = Staged::new(self.header.metadata(), env, &self.limits, existing, new, parameters)?;
        let id = staged.id;
        self.write_staged(staged)?;
        self.prove(env, existing, id, new)?;
        Ok(id)
    }

    /// Removes the keyslot `id`: wipes its area, then forgets it in the header, the digests and the tokens.
    ///
    /// # Errors
    /// [`Error::KeyslotMissing`], [`Error::LastKeyslot`].
    pub fn keyslot_kill(&mut self, env: &Env<'_>, id: KeyslotId, last: LastSlot) -> Result<(), Error> {
        self.edit(Action::Remove, |edit| {
            keyslot::check_removable(edit.header.metadata(), id, last)?;
            edit.remove(env, id)
        })
    }

    /// Removes the keyslot that `passphrase` opens, and says which one that was.
    ///
    /// # Errors
    /// As [`Container::keyslot_kill`], and [`Error::NoKey`] if the passphrase opens none.
    pub fn keyslot_remove(&mut self, env: &Env<'_>, passphrase: &Secret, last: LastSlot) -> Result<KeyslotId, Error> {
        let request = UnlockRequest { keyslot: None, purpose: Purpose::AnyDigest };
        let id = self.opened_by(env, &request, passphrase)?.1;
        self.keyslot_kill(env, id, last)?;
        Ok(id)
    }

    /// Writes the area of a staged keyslot, and then the header that names it.
    fn write_staged(&mut self, staged: Staged) -> Result<(), Error> {
        self.edit(Action::Change, |edit| {
            edit.accepts(&staged.metadata)?;
            let written = staged.write_area(edit.store);
            edit.noted(written)?;
            edit.commit(staged.metadata)
        })
    }

    /// Unlocks the new keyslot from the disk; one that does not give the key back is taken away again.
    fn prove(&mut self, env: &Env<'_>, key: &VolumeKey, id: KeyslotId, passphrase: &Secret) -> Result<(), Error> {
        let request = UnlockRequest { keyslot: Some(id), purpose: Purpose::AnyDigest };
        let proof = unlock::unlock(&self.store, &self.header, env, &self.limits, &request, passphrase);
        let failed = match proof {
            Ok(proven) if proven.digest() == key.digest() && proven.secret().ct_eq(key.expose()) => return Ok(()),
            Ok(_) | Err(Error::NoKey { .. }) => Error::NotProven { keyslot: id },
            Err(error) => error,
        };
        self.edit(Action::Change, |edit| edit.remove(env, id))?;
        Err(failed)
    }

    fn opened_by(
        &self,
        env: &Env<'_>,
        request: &UnlockRequest,
        passphrase: &Secret,
    ) -> Result<(VolumeKey, KeyslotId), Error> {
        let key = self.unlock(env, request, passphrase)?;
        match key.keyslot() {
            Some(id) => Ok((key, id)),
            None => Err(Error::NoUsableKeyslot { broken: Vec::new() }),
        }
    }
}

impl<H: HeaderStore> Edit<'_, H> {
    /// Wipes the area of `id`, then writes a header without it.
    fn remove(&mut self, env: &Env<'_>, id: KeyslotId) -> Result<(), Error> {
        let mut metadata = self.header.metadata().clone();
        let Some(gone) = keyslot::take_out(&mut metadata, id) else {
            return Err(Error::KeyslotMissing { keyslot: id });
        };
        let wiped = wipe_area(self.store, env, &gone.area);
        self.noted(wiped)?;
        self.commit(metadata)
    }
}

#[cfg(test)]
mod slots_tests;
#[cfg(test)]
mod tests;
