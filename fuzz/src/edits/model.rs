//! What the container must be like, worked out without the library: keyslots and their areas, tokens, flags, texts.
//!
//! Keyslots and tokens are in the order of the JSON, in which an unlock tries them (luks2-format §4).

use luks::Priority;

/// Where keyslot areas begin, and how much room they have: four areas of a key of 128 bits.
pub(super) const AREAS: u64 = 32 << 10;
pub(super) const ROOM: u64 = 4 * (64 << 10);
/// The type of the tokens that hold the names of keyslots.
pub(super) const NAME_TYPE: &str = "luksctl-slot";
/// Keyslots and tokens have ids below this.
pub(super) const IDS: u32 = 32;

/// Objects by their id, as `ById` orders them.
pub(super) type Ordered<T> = Vec<(u32, T)>;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slot {
    /// Which one.
    pub(super) passphrase: usize,
    /// The length of its own key, if it does not hold the volume's.
    pub(super) unbound: Option<usize>,
    pub(super) priority: Option<Priority>,
    /// Offset and size of the area.
    pub(super) area: (u64, u64),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Note {
    pub(super) type_name: String,
    pub(super) keyslots: Vec<u32>,
    /// The members beyond type and keyslots, as JSON text.
    pub(super) rest: String,
    /// The text that it was added as, as long as nothing of it changed.
    pub(super) spelled: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub(super) slots: Ordered<Slot>,
    pub(super) tokens: Ordered<Note>,
    pub(super) flags: Vec<&'static str>,
    pub(super) label: String,
    pub(super) subsystem: String,
    pub(super) uuid: String,
    pub(super) seqid: u64,
}

pub(super) fn get<T>(all: &Ordered<T>, id: u32) -> Option<&T> {
    all.iter().find(|(at, _)| *at == id).map(|(_, item)| item)
}

pub(super) fn first_free<T>(all: &Ordered<T>) -> Option<u32> {
    (0..IDS).find(|id| get(all, *id).is_none())
}

pub(super) fn put<T>(all: &mut Ordered<T>, id: u32, item: T) {
    match all.iter_mut().find(|(at, _)| *at == id) {
        Some((_, old)) => *old = item,
        None => all.push((id, item)),
    }
}

/// The size of the area for a key of this length: 4000 stripes in whole blocks.
pub(super) fn area_size(key_bytes: usize) -> u64 {
    (key_bytes as u64 * 4000).next_multiple_of(4096)
}

impl Model {
    pub(super) fn slot(&self, id: u32) -> Option<&Slot> {
        get(&self.slots, id)
    }

    /// Whether there is a keyslot with this passphrase, bound or not, that is not hidden.
    pub(super) fn holds(&self, passphrase: usize) -> bool {
        self.opens(passphrase, true).is_some()
    }

    /// The keyslot that a passphrase opens, of all or of those that open the data.
    pub(super) fn opens(&self, passphrase: usize, unbound_too: bool) -> Option<u32> {
        let fits = |slot: &Slot| slot.passphrase == passphrase && (unbound_too || slot.unbound.is_none());
        [Some(Priority::Prefer), None].into_iter().find_map(|priority| {
            let mut tried = self.slots.iter().filter(|(_, slot)| slot.priority == priority && fits(slot));
            tried.next().map(|(id, _)| *id)
        })
    }

    /// Whether any keyslot would be tried for the purpose.
    pub(super) fn any_tried(&self, unbound_too: bool) -> bool {
        let tried = |slot: &Slot| slot.priority != Some(Priority::Ignore) && (unbound_too || slot.unbound.is_none());
        self.slots.iter().any(|(_, slot)| tried(slot))
    }

    pub(super) fn bound(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|(_, slot)| slot.unbound.is_none()).map(|(id, _)| *id)
    }

    /// Whether `id` is the last keyslot that opens the data.
    pub(super) fn is_last(&self, id: u32) -> bool {
        self.bound().eq([id])
    }

    /// The first gap that holds an area of this size.
    pub(super) fn gap(&self, size: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self.slots.iter().map(|(_, slot)| slot.area).collect();
        taken.sort_unstable();
        let mut start = AREAS;
        for (offset, len) in taken {
            if offset - start >= size {
                return Some(start);
            }
            start = offset + len;
        }
        (AREAS + ROOM - start >= size).then_some(start)
    }

    /// A keyslot goes, and with it what tokens say of it.
    pub(super) fn take_out(&mut self, id: u32) -> Option<Slot> {
        let at = self.slots.iter().position(|(has, _)| *has == id)?;
        for (_, note) in &mut self.tokens {
            note.unlist(id);
        }
        self.drop_empty_names();
        Some(self.slots.remove(at).1)
    }

    /// A keyslot gets a name, or none, instead of those that it has.
    pub(super) fn name(&mut self, id: u32, name: Option<Note>) -> Result<(), ()> {
        let names = |note: &Note| note.type_name == NAME_TYPE && note.keyslots.contains(&id);
        let known = self.tokens.iter().find(|(_, note)| names(note)).map(|(token, _)| *token);
        self.tokens.iter_mut().filter(|(_, note)| names(note)).for_each(|(_, note)| note.unlist(id));
        self.drop_empty_names();
        let Some(note) = name else { return Ok(()) };
        let place = known.filter(|token| get(&self.tokens, *token).is_none()).or_else(|| first_free(&self.tokens));
        put(&mut self.tokens, place.ok_or(())?, note);
        Ok(())
    }

    /// For a while the tokens of this keyslot led to another one, too.
    pub(super) fn touch_tokens(&mut self, id: u32) {
        for (_, note) in self.tokens.iter_mut().filter(|(_, note)| note.keyslots.contains(&id)) {
            note.spelled = None;
        }
        self.drop_empty_names();
    }

    fn drop_empty_names(&mut self) {
        self.tokens.retain(|(_, note)| note.type_name != NAME_TYPE || !note.keyslots.is_empty());
    }
}

impl Note {
    pub(super) fn list(&mut self, id: u32) {
        if !self.keyslots.contains(&id) {
            self.keyslots.push(id);
            self.spelled = None;
        }
    }

    pub(super) fn unlist(&mut self, id: u32) {
        if self.keyslots.contains(&id) {
            self.keyslots.retain(|listed| *listed != id);
            self.spelled = None;
        }
    }
}
