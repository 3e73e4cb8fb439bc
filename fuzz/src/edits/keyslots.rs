//! The steps that make and remove keyslots.

use luks::digest_check::DigestCost;
use luks::{Error, HashAlg, KdfParams, KeyslotId, LastSlot, NewKeyslot, Priority};
use secret::Secret;

use super::model::{IDS, Slot, area_size, first_free, put};
use super::{KEY_BYTES, PASSPHRASES, Pair, secret};

/// Lengths of keys that no segment has: the least, the volume key's, and one that needs two areas.
const UNBOUND: [usize; 3] = [1, KEY_BYTES, 2 * KEY_BYTES];

pub(super) fn last(choice: u8) -> LastSlot {
    if choice & 1 == 0 { LastSlot::Refuse } else { LastSlot::Allow }
}

/// Bit 7: a wish for an id, which the low bits are. Bits 5 and 6: priority, hash and cipher.
fn new_keyslot(choice: u8) -> NewKeyslot {
    let id = (choice & 0x80 != 0).then(|| KeyslotId(u32::from(choice % 34)));
    let (hash, encryption, priority) = match choice >> 5 & 3 {
        0 | 1 => (HashAlg::Sha256, None, None),
        2 => (HashAlg::Sha512, Some(("aes-xts-plain64".to_owned(), 32)), None),
        _ => {
            let priority = if choice & 1 == 0 { Priority::Prefer } else { Priority::Ignore };
            (HashAlg::Sha256, None, Some(priority))
        }
    };
    NewKeyslot { id, hash, encryption, priority, ..NewKeyslot::new(KdfParams::minimal_for_random_key()) }
}

impl Pair<'_> {
    /// Whether a new keyslot of this id and size is impossible, as `error` says.
    fn expect_refusal(&self, wanted: Option<KeyslotId>, size: u64, error: &Error) {
        match error {
            Error::KeyslotInUse { .. } => assert!(wanted.is_some_and(|id| self.model.slot(id.0).is_some())),
            Error::KeyslotRange { .. } => assert!(wanted.is_some_and(|id| id.0 >= IDS)),
            Error::NoFreeKeyslot { .. } => assert_eq!(first_free(&self.model.slots), None),
            Error::NoFreeArea { .. } => assert_eq!(self.model.gap(size), None),
            other => self.expect_full(other),
        }
    }

    fn expect_new(&mut self, id: KeyslotId, new: &NewKeyslot, passphrase: usize, unbound: Option<usize>) {
        let size = area_size(unbound.unwrap_or(KEY_BYTES));
        assert_eq!(Some(id.0), new.id.map(|id| id.0).or(first_free(&self.model.slots)));
        assert!(self.model.slot(id.0).is_none(), "keyslot {id} was taken");
        let area = (self.model.gap(size).expect("room"), size);
        put(&mut self.model.slots, id.0, Slot { passphrase, unbound, priority: new.priority, area });
    }

    pub(super) fn add(&mut self, passphrase: usize, choice: u8) {
        let new = new_keyslot(choice);
        match self.container.keyslot_add(&self.surroundings.env(), &self.key, &secret(passphrase), &new) {
            Ok(id) => self.expect_new(id, &new, passphrase, None),
            Err(error) => self.expect_refusal(new.id, area_size(KEY_BYTES), &error),
        }
    }

    pub(super) fn add_unbound(&mut self, passphrase: usize, len: u8, choice: u8) {
        let new = new_keyslot(choice);
        let len = UNBOUND[usize::from(len) % UNBOUND.len()];
        let key = Secret::copy_of(&[0xa5; 64][..len]).expect("memory");
        let env = self.surroundings.env();
        match self.container.keyslot_add_unbound(&env, &key, &secret(passphrase), &new, DigestCost::Minimal) {
            Ok(id) => self.expect_new(id, &new, passphrase, Some(len)),
            Err(Error::NoFreeDigest { max }) => {
                let unbound = self.model.slots.len() - self.model.bound().count();
                assert_eq!(unbound + 1, max as usize, "digests that nothing needs");
            }
            Err(error) => self.expect_refusal(new.id, area_size(len), &error),
        }
    }

    pub(super) fn kill(&mut self, id: u32, last: LastSlot) {
        match self.container.keyslot_kill(&self.surroundings.env(), KeyslotId(id), last) {
            Ok(()) => self.gone(id, last),
            Err(Error::KeyslotMissing { .. }) => assert!(self.model.slot(id).is_none()),
            Err(Error::LastKeyslot { .. }) => assert!(last == LastSlot::Refuse && self.model.is_last(id)),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn remove(&mut self, passphrase: usize, last: LastSlot) {
        let opened = self.model.opens(passphrase, true);
        match self.container.keyslot_remove(&self.surroundings.env(), &secret(passphrase), last) {
            Ok(id) => {
                assert_eq!(Some(id.0), opened);
                self.gone(id.0, last);
            }
            Err(Error::LastKeyslot { keyslot }) => {
                assert!(last == LastSlot::Refuse && Some(keyslot.0) == opened && self.model.is_last(keyslot.0));
            }
            Err(error) => self.expect_closed(passphrase, None, &error),
        }
    }

    fn gone(&mut self, id: u32, last: LastSlot) {
        assert!(last == LastSlot::Allow || !self.model.is_last(id), "the last keyslot went unasked");
        self.model.take_out(id).expect("it was not there");
    }

    /// `error` is why a passphrase opens nothing, or not the one keyslot that it was tried on.
    pub(super) fn expect_closed(&self, passphrase: usize, only: Option<u32>, error: &Error) {
        match (error, only) {
            (Error::KeyslotMissing { .. }, Some(only)) => assert!(self.model.slot(only).is_none()),
            (Error::NoKey { broken, .. }, Some(only)) => {
                assert!(broken.is_empty());
                assert_ne!(self.model.slot(only).expect("the keyslot").passphrase, passphrase);
            }
            (Error::NoKey { broken, .. }, None) => assert!(broken.is_empty() && !self.model.holds(passphrase)),
            (Error::NoUsableKeyslot { broken }, None) => {
                assert!(broken.is_empty() && !self.model.any_tried(true), "{broken:?}");
            }
            (error, _) => panic!("{error}"),
        }
    }

    /// Bit 4 of `choice`: in place; bit 3: only in the keyslot that the low bits name; the others as in [`new_keyslot`].
    pub(super) fn change(&mut self, passphrases: u8, choice: u8) {
        let (old, new) =
            (usize::from(passphrases) % PASSPHRASES.len(), usize::from(passphrases / 5) % PASSPHRASES.len());
        let only = (choice & 8 != 0).then(|| u32::from(choice % 8));
        let in_place = choice & 0x10 != 0;
        let parameters = new_keyslot(choice);
        let (env, only_id) = (self.surroundings.env(), only.map(KeyslotId));
        let [from, to] = [secret(old), secret(new)];
        let done = if in_place {
            self.container.keyslot_change_in_place(&env, &from, only_id, &to, &parameters)
        } else if old == new {
            self.container.keyslot_convert(&env, &from, only_id, &parameters)
        } else {
            self.container.keyslot_change(&env, &from, only_id, &to, &parameters)
        };
        let opened = match only {
            Some(id) => self.model.slot(id).is_some_and(|slot| slot.passphrase == old).then_some(id),
            None => self.model.opens(old, true),
        };
        match (done, opened) {
            (Ok(id), Some(old_id)) => self.changed(old_id, id.0, new, &parameters, in_place),
            (Ok(id), None) => panic!("keyslot {id} was changed without its passphrase"),
            (Err(error), None) => self.expect_closed(old, only, &error),
            (Err(error), Some(old_id)) => {
                let wish = parameters.id.filter(|wish| wish.0 != old_id && !in_place);
                let size = self.model.slot(old_id).expect("the keyslot").area.1;
                self.expect_refusal(wish, size, &error);
            }
        }
    }

    fn changed(&mut self, old_id: u32, id: u32, passphrase: usize, parameters: &NewKeyslot, in_place: bool) {
        let before = self.model.slot(old_id).expect("the keyslot").clone();
        let priority = parameters.priority.or(before.priority);
        let area = if in_place { before.area } else { (self.model.gap(before.area.1).expect("room"), before.area.1) };
        let after = Slot { passphrase, priority, area, ..before };
        let wish = parameters.id.filter(|_| !in_place).map_or(old_id, |wish| wish.0);
        assert_eq!(id, wish);
        if id == old_id {
            put(&mut self.model.slots, id, after);
            if !in_place {
                self.model.touch_tokens(id);
            }
            return;
        }
        assert!(self.model.slot(id).is_none());
        for (_, note) in self.model.tokens.iter_mut().filter(|(_, note)| note.keyslots.contains(&old_id)) {
            note.list(id);
        }
        put(&mut self.model.slots, id, after);
        self.model.take_out(old_id).expect("the keyslot");
    }
}
