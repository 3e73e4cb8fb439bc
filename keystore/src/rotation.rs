//! The rotation of a volume's key, in steps that a journal in the metadata makes durable one after the other.
//!
//! ```text
//! staged ─► slot written ─► proven ─► committed ─► old slot wiped ─► (old key wiped; the journal goes)
//! ```
//!
//! Each step is durable before the next action begins, and an action may have been done or not when its step does not
//! stand yet. So after a cut nothing is taken from the journal but how far it went for certain; what is true is asked of
//! the volume ([`Slots::opens`]), and [`decide`] says what to do.
//!
//! Invariants: until `committed` the old key is the active one and its slot is not touched; from then on the new one is,
//! and it opened the volume before. So the active key opens the volume at every cut.

use crate::files::Files;
use crate::limits::ROTATION_TURNS_MAX;
use crate::{BoxedError, Error, KeyName, OldKey, Rotation, Step, Store, Timestamp, key_backup};
use secret::Secret;

/// The keyslots of one volume, as a rotation needs them.
pub trait Slots {
    /// Whether `key` opens the volume: a slot takes it and a digest accepts the volume key.
    ///
    /// # Errors
    /// What kept it from finding out; a wrong key is no error.
    fn opens(&mut self, key: &Secret) -> Result<bool, BoxedError>;

    /// Adds a slot for `new`, with `existing` as the key that is there; durably.
    ///
    /// # Errors
    /// What kept it from doing so; the other slots are as they were.
    fn add(&mut self, existing: &Secret, new: &Secret) -> Result<(), BoxedError>;

    /// The new key is the active one and opens the volume, and the slot of the old one is about to be wiped: from then on
    /// backups of keys from before are of no use. `write` writes one into a folder and says its name; [`Error::NoKey`] if
    /// there is no recovery key.
    ///
    /// # Errors
    /// What kept the backup from being written; the old slot stays then.
    fn before_removal(
        &mut self,
        write: &mut dyn FnMut(&mut dyn Files) -> Result<String, Error>,
    ) -> Result<(), BoxedError> {
        let _ = write;
        Ok(())
    }

    /// Wipes every slot that `key` opens, durably; `remaining` opens another one, which stays.
    ///
    /// # Errors
    /// What kept it from doing so.
    fn remove(&mut self, key: &Secret, remaining: &Secret) -> Result<(), BoxedError>;
}

/// What the volume says about the two keys of a rotation; `None` if the key is not in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the new key opens it.
    pub new_opens: Option<bool>,
    /// Whether the old key opens it.
    pub old_opens: Option<bool>,
}

/// What somebody wants who finds a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A new key: go on.
    Rotate,
    /// A volume that opens, and order: go on if the new slot is there, otherwise back.
    Settle,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the slot of the new key.
    WriteSlot,
    /// Make this step durable.
    Record(Step),
    /// Wipe the slot of the old key.
    WipeOldSlot,
    /// The volume is done: the old key goes, and the journal.
    Finish,
    /// The new key opens nothing and goes; the old one stays active.
    Undo,
    /// Neither key opens the volume: nothing is changed.
    NeitherOpens,
    /// The old key is gone, so its slot cannot be told from others: nothing is changed.
    OldKeyGone,
}

/// What to do about a rotation that is at `step`, given what the volume says. Pure.
pub fn decide(step: Step, facts: Facts, wish: Wish) -> Decision {
    let (new, old) = (facts.new_opens == Some(true), facts.old_opens == Some(true));
    match step {
        // The header may be an older one that was restored: the step is not believed without the slot.
        Step::Staged | Step::SlotWritten | Step::Proven if !new => match (old, wish) {
            (false, _) => Decision::NeitherOpens,
            (true, Wish::Rotate) if facts.new_opens.is_some() => Decision::WriteSlot,
            (true, _) => Decision::Undo,
        },
        Step::Staged => Decision::Record(Step::SlotWritten),
        Step::SlotWritten => Decision::Record(Step::Proven),
        Step::Proven => Decision::Record(Step::Committed),
        Step::Committed | Step::OldSlotWiped => match (new, old) {
            (true, true) => Decision::WipeOldSlot,
            (true, false) if step == Step::OldSlotWiped => Decision::Finish,
            (true, false) if facts.old_opens.is_none() => Decision::OldKeyGone,
            (true, false) => Decision::Record(Step::OldSlotWiped),
            // A header from before the rotation was restored.
            (false, true) => Decision::Undo,
            (false, false) => Decision::NeitherOpens,
        },
    }
}

/// How a rotation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to settle.
    Nothing,
    /// The new generation is active and the old one opens nothing.
    Rotated {
        /// The old generation.
        from: u64,
        /// The new one.
        to: u64,
    },
    /// The old generation is active again, or still.
    Undone {
        /// It.
        from: u64,
    },
}

/// Gives the volume of `name` a new key, through all steps. What an earlier rotation left is ended first, and counts.
///
/// # Errors
/// [`Error::Stuck`] if neither key opens the volume, [`Error::Slots`] for what `slots` says, and as [`Store`]. Whatever it
/// is: the active key opens the volume, and the next call goes on.
pub fn rotate<F: Files>(
    store: &mut Store<F>,
    name: &KeyName,
    slots: &mut dyn Slots,
    old_key: OldKey,
    now: Timestamp,
) -> Result<Outcome, Error> {
    if let rotated @ Outcome::Rotated { .. } = run(store, name, slots, Wish::Rotate, now)? {
        return Ok(rotated);
    }
    let active = store.key(name)?;
    let opens = slots.opens(&active).map_err(|source| Error::Slots { name: name.to_string(), source })?;
    if !opens {
        let problem = "the key in use does not open the volume: was the image replaced?";
        return Err(Error::State { name: name.to_string(), problem: problem.to_owned() });
    }
    drop(active);
    store.begin_rotation(name, old_key, now)?;
    run(store, name, slots, Wish::Rotate, now)
}

/// Finishes or undoes the rotation of `name` that was cut off, if there is one.
///
/// # Errors
/// As [`rotate`].
pub fn settle<F: Files>(
    store: &mut Store<F>,
    name: &KeyName,
    slots: &mut dyn Slots,
    now: Timestamp,
) -> Result<Outcome, Error> {
    run(store, name, slots, Wish::Settle, now)
}

fn run<F: Files>(
    store: &mut Store<F>,
    name: &KeyName,
    slots: &mut dyn Slots,
    wish: Wish,
    now: Timestamp,
) -> Result<Outcome, Error> {
    let failed = |source| Error::Slots { name: name.to_string(), source };
    let journal = |store: &Store<F>| store.metadata().keys.get(name).and_then(|record| record.rotation);
    for _ in 0..ROTATION_TURNS_MAX {
        let Some(Rotation { from, to, step, .. }) = journal(store) else { return Ok(Outcome::Nothing) };
        let (old, new) = (store.key_if_there(name, from)?, store.key_if_there(name, to)?);
        let mut opens = |key: &Option<Secret>| key.as_ref().map(|key| slots.opens(key)).transpose();
        let facts = Facts { new_opens: opens(&new).map_err(failed)?, old_opens: opens(&old).map_err(failed)? };
        let stuck = |problem| Err(Error::Stuck { name: name.to_string(), step, problem });
        match (decide(step, facts, wish), &old, &new) {
            (Decision::Record(step), ..) => store.record_step(name, step, now)?,
            (Decision::WriteSlot, Some(old), Some(new)) => slots.add(old, new).map_err(failed)?,
            (Decision::WipeOldSlot, Some(old), Some(new)) => {
                slots.before_removal(&mut |folder| key_backup::write(store, folder, now)).map_err(failed)?;
                slots.remove(old, new).map_err(failed)?;
            }
            (Decision::Finish, ..) => {
                store.end_rotation(name, true, now)?;
                return Ok(Outcome::Rotated { from, to });
            }
            (Decision::Undo, ..) => {
                store.end_rotation(name, false, now)?;
                return Ok(Outcome::Undone { from });
            }
            (Decision::OldKeyGone, ..) => return stuck("the old key is missing, so its slot cannot be found"),
            (Decision::NeitherOpens | Decision::WriteSlot | Decision::WipeOldSlot, ..) => {
                return stuck("neither key opens the volume: was the image replaced, or an old header restored?");
            }
        }
    }
    Err(Error::Stuck { name: name.to_string(), step: Step::Staged, problem: "the volume gives changing answers" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 5] = [Step::Staged, Step::SlotWritten, Step::Proven, Step::Committed, Step::OldSlotWiped];

    fn all() -> impl Iterator<Item = (Step, Facts, Wish)> {
        let answers = [None, Some(false), Some(true)];
        STEPS.into_iter().flat_map(move |step| {
            answers.into_iter().flat_map(move |new_opens| {
                answers.into_iter().flat_map(move |old_opens| {
                    [Wish::Rotate, Wish::Settle].map(|wish| (step, Facts { new_opens, old_opens }, wish))
                })
            })
        })
    }

    #[test]
    fn no_decision_takes_away_the_last_key_that_opens() {
        for (step, facts, wish) in all() {
            let decision = decide(step, facts, wish);
            let (new, old) = (facts.new_opens == Some(true), facts.old_opens == Some(true));
            let loses = match decision {
                Decision::WipeOldSlot | Decision::Finish | Decision::Record(Step::Committed) => !new,
                Decision::Undo => !old,
                Decision::WriteSlot => !old || facts.new_opens.is_none(),
                Decision::Record(_) => !new,
                Decision::NeitherOpens => new || old,
                Decision::OldKeyGone => !new || facts.old_opens.is_some(),
            };
            assert!(!loses, "{step:?} {facts:?} {wish:?}: {decision:?}");
        }
    }

    #[test]
    fn the_end_is_only_where_the_old_key_opens_nothing() {
        for (step, facts, wish) in all() {
            if decide(step, facts, wish) == Decision::Finish {
                assert_ne!(facts.old_opens, Some(true), "{step:?} {facts:?}");
            }
        }
    }

    #[test]
    fn up_goes_back_where_the_slot_is_not_there_and_on_where_it_is() {
        let facts = |new, old| Facts { new_opens: Some(new), old_opens: Some(old) };
        for step in [Step::Staged, Step::SlotWritten, Step::Proven] {
            assert_eq!(decide(step, facts(false, true), Wish::Settle), Decision::Undo);
            assert_eq!(decide(step, facts(false, true), Wish::Rotate), Decision::WriteSlot);
            assert!(matches!(decide(step, facts(true, true), Wish::Settle), Decision::Record(_)));
        }
    }
}
