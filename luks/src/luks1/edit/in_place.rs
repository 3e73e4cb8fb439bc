//! A keyslot of LUKS1 changed where it lies, for when all eight are in use.
//!
//! Order as in LUKS2: the new key material goes over the old one and is proven from the disk, then the sector of the header
//! that decides is written. A write or a proof that fails is answered with the old bytes; a crash between the two loses that
//! keyslot, and only that.
//!
//! The border between the two sectors of the header goes through the salt of keyslot 6 (`luks1/write.rs`). So that one write
//! decides there, too, this keyslot keeps the part of its salt behind the border, which was random when the keyslot was made,
//! and gets only a new beginning.

use block::BlockIo;
use secret::Secret;

use super::{Staged, at, iterations};
use crate::area::AreaLayout;
use crate::edit::NewKeyslot;
use crate::env::Env;
use crate::error::Error;
use crate::limits::Limits;
use crate::luks1::container::{Luks1Container, check_id};
use crate::luks1::header::{Luks1Header, Luks1Slot};
use crate::luks1::load::load_unlocked;
use crate::luks1::write;
use crate::metadata::KeyslotId;
use crate::store::HeaderStore;
use crate::unlock::{self, derive_area_key};
use crate::volume_key::VolumeKey;

impl Staged {
    /// Prepares a keyslot for `key` under `passphrase` over the one that has this `id`. Derives a key; writes nothing.
    fn over(
        header: &Luks1Header,
        env: &Env<'_>,
        limits: &Limits,
        key: &Secret,
        passphrase: &Secret,
        (id, parameters): (KeyslotId, &NewKeyslot),
    ) -> Result<Staged, Error> {
        let mut slot = Luks1Slot { iterations: iterations(header, parameters)?, ..*at(header, id)? };
        env.rng.fill(write::salt_beginning(id, &mut slot.salt))?;
        let keyslot = header.keyslot(&slot);
        let layout = AreaLayout::of(&header.metadata(), &keyslot, limits)?;
        let area_key = derive_area_key(env, limits, &keyslot, &layout, passphrase)?;
        let sealed = layout.seal(env, &area_key, key)?;
        Ok(Staged { id, slot, sealed })
    }

    /// What stands on the disk for this keyslot now, to be written back.
    fn present<S: BlockIo>(header: &Luks1Header, id: KeyslotId, limits: &Limits, store: &S) -> Result<Staged, Error> {
        let slot = *at(header, id)?;
        let layout = AreaLayout::of(&header.metadata(), &header.keyslot(&slot), limits)?;
        Ok(Staged { id, slot, sealed: layout.read(store)? })
    }
}

impl<H: HeaderStore, D: BlockIo> Luks1Container<H, D> {
    /// Replaces the passphrase `old` of a keyslot (only `id`, if given) by `new` in the same place. Needs no free keyslot;
    /// `parameters.id` is not looked at. A failed write or a failed proof is answered by writing the old bytes back; a crash
    /// may lose this keyslot.
    ///
    /// # Errors
    /// [`Error::NoKey`] if `old` opens nothing, [`Error::NotProven`], [`Error::Luks1Has`], those of every change.
    pub fn keyslot_change_in_place(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        check_id(id)?;
        let (key, id) = self.opened_by(env, id, old)?;
        let staged = Staged::over(&self.header, env, &self.limits, key.secret(), new, (id, parameters))?;
        self.edit(|container| container.overwrite(env, &key, new, &staged))?;
        Ok(id)
    }

    /// Writes a staged keyslot over the one that has its id. What was there comes back if that fails.
    fn overwrite(&mut self, env: &Env<'_>, key: &VolumeKey, passphrase: &Secret, staged: &Staged) -> Result<(), Error> {
        let (id, next) = (staged.id, staged.enabled_in(&self.header));
        self.policy.check_luks1(&next)?;
        let before = Staged::present(&self.header, id, &self.limits, &self.store)?;
        let written = staged.write_material(&self.store, &self.header).and_then(|()| {
            unlock::prove(&self.store, &next.metadata(), id, env, &self.limits, key.secret(), passphrase).map(drop)
        });
        if written.is_err() {
            before.write_material(&self.store, &self.header)?;
            return written;
        }
        let committed = self.commit(next);
        if committed.is_err() && self.names_the_old_one(&before) {
            before.write_material(&self.store, &self.header)?;
        }
        committed
    }

    /// Whether the header on disk, after a write that failed, still describes the keyslot that was to be replaced.
    fn names_the_old_one(&self, before: &Staged) -> bool {
        load_unlocked(&self.store).is_ok_and(|found| at(&found, before.id).is_ok_and(|slot| *slot == before.slot))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::fault::{FaultDisk, Op};
    use block::{BlockErrorKind, MemDisk};

    use super::*;
    use crate::env::fixed::FixedEnv;
    use crate::format::NewKdf;
    use crate::format::sample::{Cutter, SIZE, cheap, fixed, secret};
    use crate::kdf::KdfParams;
    use crate::luks1::format::{Luks1FormatParams, format};

    type Handle<S> = Luks1Container<S, S>;

    fn open<S: HeaderStore + Clone>(disk: &S) -> Handle<S> {
        Luks1Container::open(disk.clone(), disk.clone(), Limits::default()).unwrap()
    }

    /// A container with all keyslots in use, each with its number as the passphrase.
    fn full() -> Arc<MemDisk> {
        let disk = Arc::new(MemDisk::new(SIZE));
        let kdf = NewKdf::Given(KdfParams::minimal_for_random_key());
        let params = Luks1FormatParams { kdf, key_size_bits: Some(256), ..Luks1FormatParams::default() };
        format(&disk, &disk, &fixed().env(), &params, &secret("0")).unwrap();
        let mut container = open(&disk);
        let key = container.unlock(&fixed().env(), None, &secret("0")).unwrap();
        for id in 1..8 {
            let parameters = NewKeyslot { id: Some(KeyslotId(id)), ..cheap() };
            container.keyslot_add(&fixed().env(), &key, &secret(&id.to_string()), &parameters).unwrap();
        }
        disk
    }

    fn opens<S: HeaderStore>(container: &Handle<S>, id: u32, passphrase: &str) -> bool {
        container.unlock(&fixed().env(), Some(KeyslotId(id)), &secret(passphrase)).is_ok()
    }

    fn change<S: HeaderStore>(container: &mut Handle<S>, id: u32) -> Result<KeyslotId, Error> {
        let other_salt = FixedEnv::new(u64::from(id) + 100, 1);
        container.keyslot_change_in_place(&other_salt.env(), &secret(&id.to_string()), None, &secret("new"), &cheap())
    }

    fn others_open<S: HeaderStore>(container: &Handle<S>, changed: u32) -> bool {
        (0..8).filter(|id| *id != changed).all(|id| opens(container, id, &id.to_string()))
    }

    #[test]
    fn every_keyslot_is_changed_where_it_lies() {
        let disk = full();
        let before = load_unlocked(&disk).unwrap();
        for id in 0..8 {
            assert!(matches!(
                open(&disk).keyslot_change(&fixed().env(), &secret(&id.to_string()), None, &secret("new"), &cheap()),
                Err(Error::NoFreeKeyslot { max: 8 })
            ));
            assert_eq!(change(&mut open(&disk), id).unwrap(), KeyslotId(id));
            let again = open(&disk);
            assert!(
                opens(&again, id, "new") && !opens(&again, id, &id.to_string()) && (id == 7 || opens(&again, 7, "7"))
            );
            let (old, new) = (before.slots[id as usize], again.header().slots[id as usize]);
            assert_ne!(old.salt[..8], new.salt[..8]);
            assert_eq!(old.key_material_offset_sectors, new.key_material_offset_sectors);
        }
        let wrong = open(&disk).keyslot_change_in_place(&fixed().env(), &secret("x"), None, &secret("y"), &cheap());
        assert!(matches!(wrong, Err(Error::NoKey { .. })));
    }

    #[test]
    fn a_failed_write_brings_the_old_bytes_back() {
        let disk = full();
        for id in [0, 6, 7] {
            for (op, nth) in [(Op::Write, 0), (Op::Write, 1), (Op::Flush, 0), (Op::Flush, 1)] {
                let failing = Arc::new(FaultDisk::new(disk.snapshot()));
                let mut container = open(&failing);
                failing.fail_once(op, nth, BlockErrorKind::Io);
                assert!(matches!(change(&mut container, id), Err(Error::Block(_))), "{op:?} {nth}");
                assert!(matches!(change(&mut container, id), Err(Error::Poisoned)));
                let after = open(&failing);
                assert!(others_open(&after, id));
                assert!(opens(&after, id, &id.to_string()) || opens(&after, id, "new"), "{op:?} {nth} of keyslot {id}");
            }
        }
    }

    #[test]
    fn a_power_cut_costs_at_most_this_keyslot() {
        for id in [5, 6, 7] {
            let cutter = Arc::new(Cutter::new(&full(), 7));
            change(&mut open(&cutter), id).unwrap();
            let (mut new, mut lost) = (0, 0);
            for cut in cutter.cuts() {
                let after = open(&Arc::new(cut));
                assert!(others_open(&after, id));
                match (opens(&after, id, &id.to_string()), opens(&after, id, "new")) {
                    (true, false) => {}
                    (false, true) => new += 1,
                    (false, false) => lost += 1,
                    (true, true) => panic!("one keyslot opens with two passphrases"),
                }
            }
            assert!(new > 0 && lost > 0, "{new} new, {lost} lost");
        }
    }
}
