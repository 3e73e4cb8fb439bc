//! Repair of a LUKS1 header: damage to the fields of a keyslot that makes every program refuse the whole header, and of which
//! what stood there is known. A verb that the user types; nothing repairs by itself. Key material is never touched here.
//!
//! | field | what is known of it |
//! |---|---|
//! | stripes | 4000, whoever wrote the header |
//! | state | one of two constants. With salt and iterations the keyslot held a key and is enabled; without, disabled |
//! | place | keyslot `n` stands where every writer puts it: sector 8 and then one after the other, each rounded up to 4096 bytes. An enabled one is put there only if all others stand there |
//!
//! A state that is wrong this way loses nothing: an enabled keyslot without key material opens nothing, and can be removed.
//! Which of two keyslots that overlap is out of place is told by the layout; if both are, nothing is known and nothing is done.
//! Each sector is written whole; cut short, the same again finishes it. Source: luks2-format §10; what cryptsetup
//! 2.6.1 repairs, by experiment (`tests/tests/luks1_repair.rs`): unused keyslots only.

use std::fmt;

use block::{ByteView, Bytes};

use crate::af::STRIPES;
use crate::check;
use crate::env::Env;
use crate::error::Error;
use crate::limits::Limits;
use crate::luks1::container::Luks1Container;
use crate::luks1::format::standard_sectors;
use crate::luks1::header::{HEADER_BYTES, KEYSLOTS, Luks1Header, Luks1Slot, RawSlot};
use crate::luks1::load::{load_unlocked, not_luks1, read_bytes};
use crate::metadata::KeyslotId;
use crate::rule::{Rule, Violation};
use crate::store::{HeaderStore, LockMode};

/// The first sector of the header, which is written whole.
const SECTOR: usize = 512;
/// Stripes of every keyslot.
const STRIPES_WRITTEN: u32 = 4000;
const _: () = assert!(STRIPES_WRITTEN as usize == STRIPES);

/// One field of a keyslot that gets its value back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mend {
    /// The keyslot.
    pub keyslot: KeyslotId,
    /// Whether it holds a key, afterwards.
    pub enabled: bool,
    /// The field and its two values.
    pub field: MendedField,
}

/// The field and its two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MendedField {
    /// The number of stripes, which becomes 4000.
    Stripes {
        /// What stands there.
        found: u32,
    },
    /// Whether the keyslot holds a key.
    State {
        /// What stands there.
        found: u32,
    },
    /// Where the key material starts.
    Place {
        /// What stands there.
        found_sectors: u32,
        /// What will.
        right_sectors: u32,
    },
}

impl MendedField {
    /// The field in a word.
    pub fn name(self) -> &'static str {
        match self {
            MendedField::Stripes { .. } => "stripes",
            MendedField::State { .. } => "state",
            MendedField::Place { .. } => "place",
        }
    }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.keyslot;
        let state = if self.enabled { "enabled" } else { "disabled" };
        match self.field {
            MendedField::Stripes { found } => {
                write!(f, "keyslot {id} ({state}): {found} stripes become {STRIPES_WRITTEN}")
            }
            MendedField::State { found } => write!(f, "keyslot {id}: its state {found:08x} becomes {state}"),
            MendedField::Place { found_sectors, right_sectors } => {
                write!(f, "keyslot {id} ({state}): its place, sector {found_sectors}, becomes sector {right_sectors}")
            }
        }
    }
}

/// What a repair would do.
#[derive(Debug, Clone)]
pub struct Luks1RepairPlan {
    /// The fields that get their values back; empty if the header is valid.
    pub mends: Vec<Mend>,
    /// Enabled keyslots whose removal was cut short: their key material is overwritten at its start.
    pub half_removed: Vec<KeyslotId>,
    /// The header as it will be read, before keyslots are taken off.
    pub header: Luks1Header,
    before: [u8; HEADER_BYTES],
}

impl Luks1RepairPlan {
    /// Whether there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.mends.is_empty() && self.half_removed.is_empty()
    }
}

/// What a repair of the LUKS1 header on `store` would do. Writes nothing.
///
/// # Errors
/// [`Error::NotLuks`], [`Error::Luks2`]; [`Error::InvalidLuks1`] with the first rule that stays broken: what stood there is not
/// known; [`Error::Locked`] and errors of the disk.
pub fn plan<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<Luks1RepairPlan, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    let before = read_bytes(store)?;
    let (header, mends) = match load_unlocked(store) {
        Ok(header) => (header, Vec::new()),
        Err(Error::InvalidLuks1(_)) => mended(&before, store.geometry().size)?,
        Err(error) => return Err(error),
    };
    let half_removed = check::marked_unlocked(store, &header.metadata());
    Ok(Luks1RepairPlan { mends, half_removed, header, before })
}

/// Does what `plan` says, under the exclusive metadata lock.
///
/// # Errors
/// Those of [`plan`]; [`Error::ChangedSinceRead`] if the header is no longer the one that was planned for; errors of the disk,
/// after which the same again finishes it.
pub fn repair<S: HeaderStore + Clone>(
    store: &S,
    env: &Env<'_>,
    limits: &Limits,
    plan: &Luks1RepairPlan,
) -> Result<(), Error> {
    {
        let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
        if read_bytes(store)? != plan.before {
            return Err(Error::ChangedSinceRead);
        }
        let (view, after) = (ByteView::new(store), plan.header.to_bytes());
        let changed = after != plan.before;
        for part in [0..SECTOR, SECTOR..HEADER_BYTES] {
            if after[part.clone()] != plan.before[part.clone()] {
                view.write(Bytes::from_len(part.start), &after[part], false)?;
            }
        }
        if changed {
            view.flush()?;
        }
    }
    if plan.half_removed.is_empty() {
        return Ok(());
    }
    let mut container = Luks1Container::open(store.clone(), store.clone(), limits.clone())?;
    // Looked for again, under its lock: a keyslot that somebody has put there meanwhile is none of them.
    container.finish_removals(env).map(drop)
}

/// The header with every field mended of which is known what it was.
fn mended(bytes: &[u8; HEADER_BYTES], device: Bytes) -> Result<(Luks1Header, Vec<Mend>), Error> {
    let mut fixed = *bytes;
    let mut mends = Vec::new();
    for id in (0..KEYSLOTS).map(KeyslotId) {
        let mut slot = RawSlot::of(&fixed, id.0 as usize);
        let state = slot.state;
        let enabled = slot.mend_state();
        if slot.state != state {
            mends.push(Mend { keyslot: id, enabled, field: MendedField::State { found: state } });
        }
        if slot.stripes != STRIPES_WRITTEN {
            mends.push(Mend { keyslot: id, enabled, field: MendedField::Stripes { found: slot.stripes } });
            slot.stripes = STRIPES_WRITTEN;
        }
        slot.put(&mut fixed, id.0 as usize);
    }
    let mut header = Luks1Header::parse_unchecked(&fixed).map_err(not_luks1)?;
    mends.extend(put_in_place(&mut header, device)?);
    header.check().and_then(|()| header.check_device(device)).map_err(Error::InvalidLuks1)?;
    Ok((header, mends))
}

/// Puts the keyslots whose place cannot be right where every writer puts them.
fn put_in_place(header: &mut Luks1Header, device: Bytes) -> Result<Vec<Mend>, Error> {
    let right = standard_sectors(header.key_bytes);
    let ids: Vec<usize> = (0..KEYSLOTS as usize).collect();
    let out_of_place = |id: &usize| header.slots[*id].key_material_offset_sectors != right[*id];
    let strange: Vec<usize> = ids.into_iter().filter(out_of_place).collect();
    let wrong: Vec<usize> = strange.iter().copied().filter(|id| !may_stand(header, *id, device)).collect();
    if let Some(id) = wrong.iter().find(|id| header.slots[**id].enabled && wrong.len() != strange.len()) {
        // Other keyslots stand elsewhere than usual: who knows where this one did.
        let value = header.slots[*id].key_material_offset_sectors;
        return Err(Error::InvalidLuks1(Violation::new(Rule::Luks1SlotOffset, format!("keyslots.{id}"), value)));
    }
    let slots = (0..).map(KeyslotId).zip(&mut header.slots).zip(right).enumerate();
    Ok(slots.filter(|(id, _)| wrong.contains(id)).map(|(_, (slot, right))| put_one(slot, right)).collect())
}

fn put_one((id, slot): (KeyslotId, &mut Luks1Slot), right_sectors: u32) -> Mend {
    let found_sectors = std::mem::replace(&mut slot.key_material_offset_sectors, right_sectors);
    let field = MendedField::Place { found_sectors, right_sectors };
    Mend { keyslot: id, enabled: slot.enabled, field }
}

/// Whether keyslot `id` breaks no rule where it stands.
fn may_stand(header: &Luks1Header, id: usize, device: Bytes) -> bool {
    let span = |id: usize| {
        let start = header.material_offset(&header.slots[id]);
        (start, start.checked_add(header.material_size()).unwrap_or(Bytes(u64::MAX)))
    };
    let (start, end) = span(id);
    let payload = header.payload_offset();
    let inside = start >= Bytes::from_len(HEADER_BYTES) && end <= device && (payload == Bytes::ZERO || end <= payload);
    let touches = |other: usize| {
        let (other_start, other_end) = span(other);
        start < other_end && other_start < end
    };
    inside && !(0..header.slots.len()).any(|other| other != id && touches(other))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::MemDisk;
    use secret::Secret;

    use super::*;
    use crate::edit::NewKeyslot;
    use crate::format::NewKdf;
    use crate::format::sample::{SIZE, cheap, fixed, secret};
    use crate::kdf::KdfParams;
    use crate::luks1::format::{Luks1FormatParams, format};

    const SLOTS_AT: u64 = 208;
    const STATE: u64 = 0;
    const PLACE: u64 = 40;
    const STRIPES_AT: u64 = 44;

    fn open(disk: &Arc<MemDisk>) -> Luks1Container<Arc<MemDisk>, Arc<MemDisk>> {
        Luks1Container::open(disk.clone(), disk.clone(), Limits::default()).unwrap()
    }

    /// Keyslots 0 (`first`), 1 and 6 (`second`).
    fn formatted() -> Arc<MemDisk> {
        let disk = Arc::new(MemDisk::new(SIZE));
        let kdf = NewKdf::Given(KdfParams::minimal_for_random_key());
        let params = Luks1FormatParams { kdf, key_size_bits: Some(256), ..Luks1FormatParams::default() };
        format(&disk, &disk, &fixed().env(), &params, &secret("first")).unwrap();
        let mut container = open(&disk);
        let key = container.unlock(&fixed().env(), None, &secret("first")).unwrap();
        for id in [1, 6] {
            let parameters = NewKeyslot { id: Some(KeyslotId(id)), ..cheap() };
            container.keyslot_add(&fixed().env(), &key, &secret("second"), &parameters).unwrap();
        }
        disk
    }

    fn put(disk: &Arc<MemDisk>, slot: u64, field: u64, value: u32) {
        let at = Bytes(SLOTS_AT + 48 * slot + field);
        ByteView::new(disk).write(at, &value.to_be_bytes(), false).unwrap();
    }

    fn mend(disk: &Arc<MemDisk>) -> Result<Luks1RepairPlan, Error> {
        let plan = plan(disk, &Limits::default())?;
        repair(disk, &fixed().env(), &Limits::default(), &plan)?;
        Ok(plan)
    }

    fn opens(disk: &Arc<MemDisk>, passphrase: &Secret, id: u32) -> bool {
        open(disk).unlock(&fixed().env(), Some(KeyslotId(id)), passphrase).is_ok()
    }

    #[test]
    fn what_is_known_comes_back_and_nothing_else_changes() {
        let sound = read_bytes(&formatted()).unwrap();
        for slot in 0..8 {
            for (field, values, name) in [
                (STATE, &[0x12_34, 0x00ac_71f2][..], "state"),
                (STRIPES_AT, &[0, 3999, u32::MAX][..], "stripes"),
                (PLACE, &[0, 1, u32::MAX, 1_000_000][..], "place"),
            ] {
                for value in values {
                    let disk = formatted();
                    put(&disk, slot, field, *value);
                    let damaged = load_unlocked(&disk);
                    assert!(matches!(damaged, Err(Error::InvalidLuks1(_))), "{slot} {name} {value}: {damaged:?}");
                    let done = mend(&disk).unwrap();
                    assert_eq!(done.mends.len(), 1, "{:?}", done.mends);
                    let mend = &done.mends[0];
                    assert_eq!((mend.keyslot, mend.field.name()), (KeyslotId(u32::try_from(slot).unwrap()), name));
                    assert_eq!(mend.enabled, [0, 1, 6].contains(&slot));
                    assert_eq!(read_bytes(&disk).unwrap(), sound, "{slot} {name} {value}");
                    assert!(opens(&disk, &secret("first"), 0) && opens(&disk, &secret("second"), 6));
                    assert!(plan(&disk, &Limits::default()).unwrap().is_nothing());
                }
            }
        }
    }

    #[test]
    fn of_two_that_overlap_the_strange_one_goes_back() {
        let disk = formatted();
        let first = load_unlocked(&disk).unwrap().slots[1].key_material_offset_sectors;
        put(&disk, 3, PLACE, first + 8);
        let done = mend(&disk).unwrap();
        assert_eq!(done.mends[0].keyslot, KeyslotId(3));
        assert!(opens(&disk, &secret("second"), 1));
        put(&disk, 1, PLACE, first + 8);
        let words = mend(&disk).unwrap().mends[0].to_string();
        assert_eq!(words, format!("keyslot 1 (enabled): its place, sector {}, becomes sector {first}", first + 8));
        assert!(opens(&disk, &secret("second"), 1));
    }

    #[test]
    fn what_is_not_known_is_refused_and_nothing_is_written() {
        let key_bytes_at = 108;
        // Keyslot 7 stands where no writer puts it, and may; so nobody knows where keyslot 1 stood.
        let disk = formatted();
        let elsewhere = load_unlocked(&disk).unwrap().slots[7].key_material_offset_sectors + 264;
        put(&disk, 7, PLACE, elsewhere);
        load_unlocked(&disk).unwrap();
        put(&disk, 1, PLACE, 0);
        let before = read_bytes(&disk).unwrap();
        let refused = mend(&disk);
        let rule = Rule::Luks1SlotOffset;
        assert!(matches!(&refused, Err(Error::InvalidLuks1(broken)) if broken.rule == rule), "{refused:?}");
        assert_eq!(read_bytes(&disk).unwrap(), before);
        let disk = formatted();
        for value in [0, u32::MAX] {
            ByteView::new(&disk).write(Bytes(key_bytes_at), &u32::to_be_bytes(value), false).unwrap();
            let refused = mend(&disk);
            let rule = Rule::Luks1KeyBytes;
            assert!(matches!(&refused, Err(Error::InvalidLuks1(broken)) if broken.rule == rule), "{refused:?}");
        }
    }

    #[test]
    fn a_stale_plan_and_another_format_are_refused() {
        let disk = formatted();
        put(&disk, 3, STRIPES_AT, 7);
        let planned = plan(&disk, &Limits::default()).unwrap();
        put(&disk, 4, STRIPES_AT, 7);
        let refused = repair(&disk, &fixed().env(), &Limits::default(), &planned);
        assert!(matches!(refused, Err(Error::ChangedSinceRead)));
        assert_eq!(mend(&disk).unwrap().mends.len(), 2);
        let luks2 = crate::format::sample::formatted(&crate::format::sample::params());
        assert!(matches!(mend(&luks2), Err(Error::Luks2)));
        assert!(matches!(mend(&Arc::new(MemDisk::new(SIZE))), Err(Error::NotLuks)));
    }

    #[test]
    fn a_removal_that_was_cut_short_is_finished() {
        let disk = formatted();
        let area = load_unlocked(&disk).unwrap().metadata().keyslots.get(KeyslotId(1)).unwrap().area.clone();
        crate::area::mark_area(&disk, &area).unwrap();
        let done = mend(&disk).unwrap();
        assert_eq!(done.half_removed, [KeyslotId(1)]);
        let ids: Vec<u32> = open(&disk).header().enabled().map(|(id, _)| id).collect();
        assert_eq!(ids, [0, 6]);
        assert!(plan(&disk, &Limits::default()).unwrap().is_nothing());
    }
}
