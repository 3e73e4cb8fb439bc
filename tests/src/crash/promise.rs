//! What must be true of every platter that a cut or an error leaves.
//!
//! 1. The header loads, and it is one that the operation wrote: the old one, the new one, or a step between; label, UUID,
//!    tokens and segments are all old or all new. Where a copy is broken or stale, `repair` mends it and changes nothing else.
//! 2. Every keyslot that is there before and after opens, with the old passphrase or the new one. Every passphrase of both
//!    states opens, and those of at least one whole state. What opens gives the key that it gave before.
//! 3. Only a keyslot that is going away may be listed and not open (the third state: its area is wiped already), and `check`
//!    names it then, since nobody else can tell noise from a key, and `repair` takes it off the list ([`super::mending`]). One
//!    that is coming opens from the moment it is listed.
//! 4. A keyslot that is not listed any more has left nothing in its area.
//! 5. All of this holds for the older copy too, where both are valid: it is what remains if the newer one breaks.
//! 6. Once the operation has said success: the new state, both copies, nothing less.
//!
//! An operation that gives up the old header by design (`format`) may also leave none at all. LUKS1 has no room for a second
//! header: there a keyslot that stays may for a time be found under another number only ([`Operation::moves`]). A change in
//! place puts its keyslot at risk and says so ([`Operation::at_risk`]); where it is dead then, nothing can tell. Where the format
//! cannot be atomic at all, restoring the header that was kept aside gives the old state back, as long as it is not the new
//! one ([`Operation::recovery`]). A repair of LUKS1 starts from a header that does not load; while that is so, the same again must
//! give the new state ([`Operation::repeatable`]).
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use block::fault::Recording;
use block::{BlockIo, Bytes, MemDisk};
use luks::Error;
use std::collections::{BTreeMap, BTreeSet};

use super::mending::{self, Mended};
use super::operation::Operation;
use super::sample::{COPY, FOREIGN_TOKEN};
use super::view::{Hash, Opener, Slot, View, stale_copy_alone};

/// What is expected of one operation on one disk.
pub struct Promise {
    operation: Operation,
    start: MemDisk,
    old: Option<View>,
    new: Option<View>,
    /// Every header that was live at some moment.
    steps: BTreeSet<Hash>,
    /// Those of the undisturbed run in their order, each with the areas that it was the first to name.
    path: Vec<Step>,
    /// What a copy said that was stale before the operation began.
    stale_before: Option<Hash>,
    /// The keys that a passphrase may open.
    keys: BTreeMap<&'static str, BTreeSet<Hash>>,
}

/// A header on the way from old to new.
struct Step {
    identity: Hash,
    /// Where an area starts, and what it held when it was named.
    areas: Vec<(Bytes, Vec<u8>)>,
}

/// How far the operation had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It was cut short, or failed.
    Broken,
    /// It had said success.
    Done,
}

impl Promise {
    /// The promise of `operation`, recorded on a disk without faults.
    ///
    /// # Errors
    /// Where the undisturbed run itself breaks it.
    pub fn of(operation: Operation, recording: &Recording, opener: &mut Opener) -> Result<Promise, String> {
        let (start, end) = (recording.live(0), recording.live(recording.events()));
        let (old, new) = (View::of(&start).ok(), View::of(&end).ok());
        let mut keys: BTreeMap<&'static str, BTreeSet<Hash>> = BTreeMap::new();
        for (disk, view, slots) in [(&start, &old, operation.before), (&end, &new, operation.after)] {
            for (id, passphrase) in slots {
                let slot = view.as_ref().and_then(|view| view.slots.iter().find(|slot| slot.id == *id));
                let opened = slot.and_then(|slot| opener.open(disk, view.as_ref()?, slot, passphrase));
                let key = opened.ok_or_else(|| format!("{passphrase:?} does not open keyslot {id}"))?;
                keys.entry(passphrase).or_default().insert(key);
            }
        }
        let (steps, path) = (BTreeSet::new(), path(recording));
        let mut promise = Promise { operation, start, old, new, steps, path, stale_before: None, keys };
        let alone = |view: &View| Some(stale_copy_alone(&promise.start, view.stale?, Bytes(COPY)));
        promise.stale_before =
            promise.old.as_ref().and_then(alone).and_then(|disk| Some(View::of(&disk).ok()?.identity));
        promise.keeps_what_nobody_knows()?;
        promise.add_steps(recording)?;
        Ok(promise)
    }

    /// Admits the headers that another run of the operation had live, as one that failed and went back.
    ///
    /// # Errors
    /// A header whose label, tokens and so on are neither old nor new.
    pub fn add_steps(&mut self, recording: &Recording) -> Result<(), String> {
        for after in 0..=recording.events() {
            let Ok(view) = View::of(&recording.live(after)) else { continue };
            let known = [&self.old, &self.new].into_iter().flatten().any(|known| known.rest == view.rest);
            if !known {
                return Err(format!("a mix of old and new was written: {}", view.rest));
            }
            self.steps.insert(view.identity);
        }
        Ok(())
    }

    /// Whether a platter is what the operation started from, every keyslot still open: no third state.
    #[must_use]
    pub fn is_old(&self, platter: &MemDisk, opener: &mut Opener) -> bool {
        let (Ok(view), Some(old)) = (View::of(platter), &self.old) else {
            return self.old.is_none() && View::of(platter).is_err();
        };
        let mut opens = |(id, passphrase): &(u32, &str)| {
            let slot = view.slots.iter().find(|slot| slot.id == *id);
            slot.is_some_and(|slot| opener.open(platter, &view, slot, passphrase).is_some())
        };
        view.identity == old.identity && self.operation.before.iter().all(&mut opens)
    }

    fn keeps_what_nobody_knows(&self) -> Result<(), String> {
        let (Some(old), Some(new)) = (&self.old, &self.new) else { return Ok(()) };
        for text in [format!(r#""type":"{FOREIGN_TOKEN}","blob":{{"b":[1],"a":"x"}}"#), r#""note":"keep me""#.into()] {
            if old.rest.contains(&text) && !self.operation.may_be_nothing && !new.rest.contains(&text) {
                return Err(format!("{text} was not kept: {}", new.rest));
            }
        }
        Ok(())
    }

    /// Holds a platter against the promise, and says what there was to mend.
    ///
    /// # Errors
    /// What is broken.
    pub fn hold(&self, platter: &MemDisk, progress: Progress, opener: &mut Opener) -> Result<Mended, String> {
        let held = self.hold_as_it_is(platter, progress, opener);
        if !self.operation.recovery || progress == Progress::Done {
            return held;
        }
        // The recovery file works at every moment, or its refusal means that the new state is there.
        let why = held.as_ref().err().cloned().unwrap_or_default();
        match mending::recovered(&self.start, platter)
            .map_err(|error| format!("{why}; from the recovery file: {error}"))?
        {
            Some(disk) if self.is_old(&disk, opener) => {
                Ok(Mended { restored: u64::from(held.is_err()), ..held.unwrap_or_default() })
            }
            Some(_) => Err(format!("{why}; the recovery file does not give the old state back")),
            None => {
                let identity = View::of(platter).ok().map(|view| view.identity);
                if identity != self.new.as_ref().map(|new| new.identity) {
                    return Err(format!("{why}; the recovery file is refused, and it is not the new state"));
                }
                held
            }
        }
    }

    fn hold_as_it_is(&self, platter: &MemDisk, progress: Progress, opener: &mut Opener) -> Result<Mended, String> {
        let view = match View::of(platter) {
            Ok(view) => view,
            // A LUKS1 header lies in two sectors: one that is given up may be half there, with a keyslot 7 that is nothing.
            Err(Error::NotLuks | Error::InvalidLuks1(_))
                if progress == Progress::Broken && self.operation.may_be_nothing =>
            {
                return Ok(Mended::default());
            }
            Err(Error::InvalidLuks1(_)) if progress == Progress::Broken && self.operation.repeatable => {
                let again = mending::repaired1(platter)?;
                let view = View::of(&again).map_err(|error| format!("after the same again: {error}"))?;
                return self.is_new(&view).map(|()| Mended { copies: 1, ..Mended::default() });
            }
            Err(error) => return Err(format!("the header does not load: {error}")),
        };
        let dead = self.hold_view(platter, &view, opener)?;
        if !self.operation.recovery {
            // What was kept aside has the old key material anyway, and a conversion only moves it.
            self.forgotten_areas_are_wiped(platter, &view, &view)?;
        }
        if progress == Progress::Done {
            return self.is_new(&view).map(|()| Mended::default());
        }
        if let Some(stale) = view.stale {
            let alone = stale_copy_alone(platter, stale, Bytes(COPY));
            let older = View::of(&alone).map_err(|error| format!("the {stale} copy alone: {error}"))?;
            if Some(older.identity) != self.stale_before {
                self.hold_view(&alone, &older, opener)
                    .and_then(|dead| if dead.is_empty() { Ok(()) } else { self.are_named(&alone, &dead) })
                    .map_err(|why| format!("the {stale} copy alone: {why}"))?;
            }
        }
        if view.healthy && dead.is_empty() {
            Ok(Mended::default())
        } else {
            self.is_mended(platter, &view, &dead, opener)
        }
    }

    /// `check` names the dead keyslots, those aside that a change in place said it puts at risk, and no other.
    fn are_named(&self, platter: &MemDisk, dead: &[u32]) -> Result<(), String> {
        let named = mending::named(platter)?;
        if let Some(id) = named.iter().find(|id| !dead.contains(id)) {
            return Err(format!("keyslot {id} opens, and `check` calls it dead"));
        }
        match dead.iter().find(|id| !named.contains(id) && !self.is_at_risk(**id)) {
            Some(id) => Err(format!("keyslot {id} is listed, does not open, and `check` does not say so")),
            None => Ok(()),
        }
    }

    /// `check` says what is wrong, and after `repair` all is well: what opened opens, what did not is gone.
    fn is_mended(&self, platter: &MemDisk, view: &View, dead: &[u32], opener: &mut Opener) -> Result<Mended, String> {
        self.are_named(platter, dead)?;
        let (disk, after, mended) = mending::mend(platter, view)?;
        for slot in &after.slots {
            if self.opened(platter, view, slot, opener)? != self.opened(&disk, &after, slot, opener)? {
                return Err(format!("repair changed what opens keyslot {}", slot.id));
            }
        }
        if !self.operation.recovery {
            self.forgotten_areas_are_wiped(&disk, &after, view).map_err(|why| format!("after repair: {why}"))?;
        }
        Ok(mended)
    }

    /// Holds a header and its keyslots; hands back those that are listed and do not open.
    fn hold_view(&self, platter: &MemDisk, view: &View, opener: &mut Opener) -> Result<Vec<u32>, String> {
        if !self.steps.contains(&view.identity) {
            return Err(format!("a header that was never written, number {}: {}", view.seqid, view.rest));
        }
        let (before, after) = (self.operation.before, self.operation.after);
        let passphrases = |slots: &[(u32, &'static str)]| -> BTreeSet<&'static str> {
            slots.iter().map(|(_, passphrase)| *passphrase).collect()
        };
        let (old, new) = (passphrases(before), passphrases(after));
        let (mut open, mut left, mut dead) = (BTreeSet::new(), Vec::new(), Vec::new());
        for slot in &view.slots {
            let opened = self.opened(platter, view, slot, opener)?;
            if opened.is_empty() && !self.may_be_wiped(slot) {
                // A keyslot on its way between two places goes when what it carries has arrived.
                let passed = self.operation.moves && !after.iter().any(|(id, _)| *id == slot.id);
                if !passed {
                    return Err(format!("keyslot {} is listed and does not open", slot.id));
                }
                left.push(slot.id);
            }
            if opened.is_empty() {
                dead.push(slot.id);
            }
            open.extend(opened);
        }
        if let Some(id) = left.first().filter(|_| !new.is_subset(&open)) {
            return Err(format!("keyslot {id} is listed, does not open, and the new passphrases do not either"));
        }
        let both = |id: u32| after.iter().any(|(too, _)| *too == id);
        let gone = before.iter().find(|(id, _)| !self.operation.moves && both(*id) && !view.names(*id));
        if let Some((id, _)) = gone {
            return Err(format!("keyslot {id} is gone"));
        }
        if let Some(lost) = old.intersection(&new).find(|passphrase| !open.contains(*passphrase)) {
            return Err(format!("the passphrase {lost:?} of both states opens nothing"));
        }
        let whole = |state: &BTreeSet<&'static str>, other: &BTreeSet<&'static str>| {
            let mut own = state.difference(other);
            own.all(|passphrase| open.contains(passphrase) || self.operation.at_risk.contains(passphrase))
        };
        if whole(&old, &new) || whole(&new, &old) {
            Ok(dead)
        } else {
            Err(format!("neither the old passphrases nor the new ones open: only {open:?}"))
        }
    }

    /// Whether this keyslot is going away: its id is not to stay, and its area is one that the old header had.
    fn may_be_wiped(&self, slot: &Slot) -> bool {
        let operation = &self.operation;
        let of = |slots: &[(u32, &'static str)]| slots.iter().find(|(id, _)| *id == slot.id).map(|(_, text)| *text);
        let stays = of(operation.after).is_some() && !operation.moves;
        let old = self.old.iter().flat_map(|old| &old.slots).any(|old| old.offset == slot.offset);
        old && (!stays || self.is_at_risk(slot.id))
    }

    /// Whether the operation said that a cut may lose this keyslot.
    fn is_at_risk(&self, id: u32) -> bool {
        let before = self.operation.before.iter().find(|(one, _)| *one == id);
        before.is_some_and(|(_, text)| self.operation.at_risk.contains(text))
    }

    /// The passphrases that open a keyslot: of those that its id has before and after, or of all for a passing id.
    fn opened(
        &self,
        platter: &MemDisk,
        view: &View,
        slot: &Slot,
        opener: &mut Opener,
    ) -> Result<Vec<&'static str>, String> {
        let all: BTreeSet<(u32, &'static str)> =
            self.operation.before.iter().chain(self.operation.after).copied().collect();
        let own: BTreeSet<&'static str> =
            all.iter().filter(|(id, _)| *id == slot.id).map(|(_, passphrase)| *passphrase).collect();
        let candidates = if own.is_empty() || self.operation.moves {
            all.iter().map(|(_, passphrase)| *passphrase).collect()
        } else {
            own
        };
        let mut opened = Vec::new();
        for passphrase in candidates {
            let Some(key) = opener.open(platter, view, slot, passphrase) else { continue };
            if !self.keys[passphrase].contains(&key) {
                return Err(format!("{passphrase:?} opens keyslot {} to another key", slot.id));
            }
            opened.push(passphrase);
        }
        Ok(opened)
    }

    /// An area that the header does not name any more has no sector left of what it was, be it an old keyslot's or the place
    /// that one only passed through. `said` is the header up to which areas may have been named.
    fn forgotten_areas_are_wiped(&self, platter: &MemDisk, view: &View, said: &View) -> Result<(), String> {
        // A header of a run that failed and went back: then at least the areas of the old one.
        let reached = self.path.iter().rposition(|step| step.identity == said.identity);
        let reached = reached.unwrap_or(0).min(self.path.len().saturating_sub(1));
        for (offset, before) in self.path.iter().take(reached + 1).flat_map(|step| &step.areas) {
            if view.slots.iter().any(|named| named.offset == *offset) {
                continue;
            }
            let mut now = vec![0; before.len()];
            platter.read_at(*offset, &mut now).unwrap();
            // A sector of zeros is the mark of a removal that an earlier crash cut short.
            let kept = |(before, now): (&[u8], &[u8])| before == now && before.iter().any(|byte| *byte != 0);
            if before.chunks(512).zip(now.chunks(512)).any(kept) {
                return Err(format!("the area at {} is forgotten and not wiped", offset.0));
            }
        }
        Ok(())
    }

    fn is_new(&self, view: &View) -> Result<(), String> {
        let slots: Vec<u32> = view.slots.iter().map(|slot| slot.id).collect();
        let expected: Vec<u32> = self.operation.after.iter().map(|(id, _)| *id).collect();
        if Some(view.identity) != self.new.as_ref().map(|new| new.identity) || slots != expected {
            Err("success was said, and the old state is there".to_owned())
        } else if !view.healthy {
            Err("success was said, and a copy is not whole".to_owned())
        } else {
            Ok(())
        }
    }
}

/// The headers that were live one after the other.
fn path(recording: &Recording) -> Vec<Step> {
    let mut path: Vec<Step> = Vec::new();
    for after in 0..=recording.events() {
        let disk = recording.live(after);
        let Ok(view) = View::of(&disk) else { continue };
        if path.iter().any(|step| step.identity == view.identity) {
            continue;
        }
        let mut areas = Vec::new();
        for slot in &view.slots {
            let mut bytes = vec![0; slot.size.0 as usize];
            disk.read_at(slot.offset, &mut bytes).unwrap();
            let area = (slot.offset, bytes);
            if !path.iter().any(|step| step.areas.contains(&area)) {
                areas.push(area);
            }
        }
        path.push(Step { identity: view.identity, areas });
    }
    path
}
