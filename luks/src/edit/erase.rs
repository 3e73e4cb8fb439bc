//! Erase: every keyslot that opens the data goes, and with them the data, for who has no backup of the header.
//!
//! Keyslots without a segment stay, and the header stays valid. Order: the first sector of every area that goes becomes zeros,
//! flush; the rest of these areas is overwritten, flush; both copies
//! of the header, each with a flush; then what no keyslot names, for a change that was cut short may have left key material
//! there. Cut short, it leaves keyslots listed whose areas are overwritten: the same again finishes it.
//! Source: luks2-format §10, `luksErase`.

use std::collections::BTreeSet;

use block::{BlockIo, Bytes};

use crate::any::AnyContainer;
use crate::area::{fill_marked, fill_random, mark_area};
use crate::container::Container;
use crate::edit::{LastSlot, keyslot};
use crate::env::Env;
use crate::error::Error;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::{KeyslotId, Metadata};
use crate::requirements::Action;
use crate::store::HeaderStore;

/// The keyslots that [`Container::erase`] would destroy: those whose key opens a segment.
pub fn doomed(metadata: &Metadata) -> Vec<KeyslotId> {
    let bound = metadata.digests.iter().filter(|(_, digest)| !digest.segments.is_empty());
    let ids: BTreeSet<KeyslotId> = bound.flat_map(|(_, digest)| digest.keyslots.iter().copied()).collect();
    ids.into_iter().collect()
}

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Destroys every keyslot that opens the data, and says which. No passphrase is asked for; the data is lost for good
    /// without a backup of the header or of the volume key.
    ///
    /// # Errors
    /// Those of every change. An error of the disk may leave keys behind: do it again.
    pub fn erase(&mut self, env: &Env<'_>) -> Result<Vec<KeyslotId>, Error> {
        self.edit(Action::Remove, |edit| {
            let mut metadata = edit.header.metadata().clone();
            let ids = doomed(&metadata);
            let gone: Vec<Keyslot> = ids.iter().filter_map(|id| keyslot::take_out(&mut metadata, *id)).collect();
            // One flush for all marks, one for what is behind them: none may be forgotten by the header before its bytes are
            // gone for good.
            let mut wiped = gone.iter().try_for_each(|keyslot| mark_area(edit.store, &keyslot.area));
            wiped = wiped.and_then(|()| Ok(edit.store.flush()?));
            wiped =
                wiped.and_then(|()| gone.iter().try_for_each(|keyslot| fill_marked(edit.store, env, &keyslot.area)));
            wiped = wiped.and_then(|()| Ok(edit.store.flush()?));
            edit.noted(wiped)?;
            let gaps = gaps(&metadata);
            edit.commit(metadata)?;
            let mut wiped = gaps.iter().try_for_each(|(offset, size)| fill_random(edit.store, env, *offset, *size));
            if wiped.is_ok() {
                wiped = edit.store.flush().map_err(Error::from);
            }
            edit.noted(wiped)?;
            Ok(ids)
        })
    }
}

impl<H: HeaderStore, D: BlockIo> AnyContainer<H, D> {
    /// Destroys every keyslot that opens the data, and says which; of LUKS1 one after the other.
    ///
    /// # Errors
    /// As [`Container::erase`] and [`Luks1Container::keyslot_kill`](crate::luks1::Luks1Container::keyslot_kill).
    pub fn erase(&mut self, env: &Env<'_>) -> Result<Vec<KeyslotId>, Error> {
        match self {
            AnyContainer::Luks1(container) => {
                let ids: Vec<KeyslotId> = container.header().enabled().map(|(id, _)| KeyslotId(id)).collect();
                ids.iter().try_for_each(|id| container.keyslot_kill(env, *id, LastSlot::Allow))?;
                Ok(ids)
            }
            AnyContainer::Luks2(container) => container.erase(env),
        }
    }
}

/// What no keyslot names, in the keyslots area.
fn gaps(metadata: &Metadata) -> Vec<(Bytes, Bytes)> {
    let mut taken: Vec<(u64, u64)> =
        metadata.keyslots.iter().map(|(_, keyslot)| (keyslot.area.offset.0, keyslot.area.size.0)).collect();
    taken.sort_unstable();
    let end = metadata.config.keyslots_end().0;
    taken.push((end, 0));
    let mut start = metadata.config.keyslots_offset().0;
    let mut gaps = Vec::new();
    for (offset, size) in taken {
        if offset > start {
            gaps.push((Bytes(start), Bytes(offset - start)));
        }
        start = start.max(offset.saturating_add(size));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::sample::{cheap, fixed, formatted, open, params, secret, slots, try_open, try_slot};

    #[test]
    fn every_slot_of_the_data_goes_and_its_area_with_it() {
        let disk = formatted(&params());
        let mut container = open(&disk);
        let key = try_open(&container, "first").unwrap();
        container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).unwrap();
        // A slot that is gone, and an area of key material that no header names.
        container.keyslot_add(&fixed().env(), &key, &secret("third"), &cheap()).unwrap();
        let orphan = container.header().metadata().keyslots.get(KeyslotId(2)).unwrap().area.clone();
        let mut material = vec![0; orphan.size.to_usize().unwrap()];
        disk.read_at(orphan.offset, &mut material).unwrap();
        container.keyslot_kill(&fixed().env(), KeyslotId(2), LastSlot::Refuse).unwrap();
        disk.write_at(orphan.offset, &material, false).unwrap();

        let before = disk.snapshot();
        assert_eq!(container.erase(&fixed().env()).unwrap(), [KeyslotId(0), KeyslotId(1)]);
        assert!(slots(&container).is_empty());
        let again = open(&disk);
        assert!(again.header().health().is_healthy() && again.header().metadata().digests.len() == 1);
        assert!(matches!(try_open(&again, "first"), Err(Error::NoUsableKeyslot { .. })));
        // No piece of the keyslots area is what it was.
        let config = &again.header().metadata().config;
        let (start, len) = (config.keyslots_offset(), config.keyslots_size.to_usize().unwrap());
        let (mut old, mut new) = (vec![0; len], vec![0; len]);
        before.read_at(start, &mut old).unwrap();
        disk.read_at(start, &mut new).unwrap();
        assert!(old.chunks(64).zip(new.chunks(64)).all(|(old, new)| old != new));
    }

    #[test]
    fn an_unbound_slot_stays() {
        let disk = formatted(&params());
        let mut container = open(&disk);
        let key = try_open(&container, "first").unwrap();
        container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).unwrap();
        container
            .edit(Action::Change, |edit| {
                let mut metadata = edit.header.metadata().clone();
                let digest = metadata.digests.get(key.digest()).unwrap().clone();
                metadata.digests.get_mut(key.digest()).unwrap().keyslots.retain(|id| *id != KeyslotId(1));
                let unbound = crate::Digest { keyslots: vec![KeyslotId(1)], segments: Vec::new(), ..digest };
                metadata.digests.insert(crate::DigestId(1), unbound);
                edit.commit(metadata)
            })
            .unwrap();
        assert_eq!(container.erase(&fixed().env()).unwrap(), [KeyslotId(0)]);
        try_slot(&open(&disk), 1, "second").expect("it still opens its own key");
        assert_eq!(container.erase(&fixed().env()).unwrap(), [KeyslotId(0); 0]);
    }
}
