//! The table of operations that write metadata. Each is run on a sample container, and says which passphrases open which
//! keyslots before it and after it. A new operation is one entry.
#![allow(clippy::unwrap_used)]

mod slots;
mod whole;

use block::MemDisk;
use luks::edit::{LastSlot, NewKeyslot};
use luks::luks1::format::format as format1;
use luks::luks1::{self, Luks1Container};
use luks::repair::{ForeignSignature, plan, repair};
use luks::{Container, Error, KeyslotId, Limits, load_unlocked};

use super::Store;
use super::sample::{self, cheap, key, params, secret};
use super::surroundings::Surroundings;

/// Passphrases by keyslot.
pub type Slots = &'static [(u32, &'static str)];

/// An open LUKS2 container.
pub type Handle = Container<Store, Store>;

/// An open LUKS1 container.
pub type Handle1 = Luks1Container<Store, Store>;

/// What an operation is called on.
#[derive(Clone, Copy)]
pub enum Run {
    /// An open LUKS2 container.
    Edit(fn(&mut Handle, &Surroundings) -> Result<(), Error>),
    /// An open LUKS1 container.
    Edit1(fn(&mut Handle1, &Surroundings) -> Result<(), Error>),
    /// The whole disk.
    Disk(fn(&Store, &Surroundings) -> Result<(), Error>),
}

/// One operation.
#[derive(Clone, Copy)]
pub struct Operation {
    /// Its name in reports.
    pub name: &'static str,
    /// What it starts from.
    pub start: fn(&Surroundings) -> MemDisk,
    /// What it does.
    pub run: Run,
    /// Which passphrase opens which keyslot before.
    pub before: Slots,
    /// Which passphrase opens which keyslot after.
    pub after: Slots,
    /// Whether a moment without any header is honest: the old one is given up, the new one not there yet.
    pub may_be_nothing: bool,
    /// Whether a keyslot that stays may pass through another id, where the format has no room for a better way.
    pub moves: bool,
    /// Passphrases that a cut may lose, as the operation says beforehand.
    pub at_risk: &'static [&'static str],
    /// Whether the same again finishes it, whatever a cut left: it starts from a header that does not load.
    pub repeatable: bool,
    /// Whether the header is kept aside first, as the format cannot make the operation atomic: then restoring that may be
    /// what brings the old state back.
    pub recovery: bool,
}

/// Both keyslots of the sample container.
const BOTH: Slots = &[(0, "first"), (1, "other")];

/// Both keyslots of the LUKS1 sample container; number 6 lies in two sectors of the header.
const BOTH1: Slots = &[(0, "first"), (6, "other")];

/// An edit of the sample container that leaves its keyslots alone.
const fn edit(name: &'static str, run: fn(&mut Handle, &Surroundings) -> Result<(), Error>) -> Operation {
    on_both(name, sample::plain, Run::Edit(run))
}

/// An operation that leaves the keyslots of the sample container alone.
const fn on_both(name: &'static str, start: fn(&Surroundings) -> MemDisk, run: Run) -> Operation {
    Operation {
        name,
        start,
        run,
        before: BOTH,
        after: BOTH,
        may_be_nothing: false,
        moves: false,
        at_risk: &[],
        repeatable: false,
        recovery: false,
    }
}

/// Every operation that writes metadata.
#[must_use]
pub fn operations() -> Vec<Operation> {
    let mut all = formats();
    all.extend(keyslots());
    all.extend(texts());
    all.extend(repairs());
    all.extend(luks1_keyslots());
    all.extend(luks1_repairs());
    all.extend(slots::operations());
    all.extend(whole::operations());
    if let Ok(only) = std::env::var("LUKS_CRASH_ONLY") {
        all.retain(|operation| operation.name.contains(&only));
    }
    all
}

fn formats() -> Vec<Operation> {
    let run: fn(&Store, &Surroundings) -> Result<(), Error> = |store, surroundings| {
        luks::format::format(store, store, &surroundings.env(), &params(), &secret("second")).map(drop)
    };
    let new: Slots = &[(0, "second")];
    let run1: fn(&Store, &Surroundings) -> Result<(), Error> = |store, surroundings| {
        format1(store, store, &surroundings.env(), &sample::params1(), &secret("second")).map(drop)
    };
    let format = |name, start, run, before| Operation {
        before,
        after: new,
        may_be_nothing: true,
        ..on_both(name, start, Run::Disk(run))
    };
    vec![
        format("format an empty disk", sample::empty, run, &[]),
        format("format over a container", sample::plain, run, BOTH),
        format("format over a LUKS1 container", sample::plain1, run, BOTH1),
        format("LUKS1: format an empty disk", sample::empty, run1, &[]),
        format("LUKS1: format over a container", sample::plain1, run1, BOTH1),
        format("LUKS1: format over a LUKS2 container", sample::plain, run1, BOTH),
    ]
}

fn keyslots() -> Vec<Operation> {
    vec![
        Operation {
            after: &[(0, "first"), (1, "other"), (2, "second")],
            ..edit("keyslot add", |container, surroundings| {
                let volume_key = key(container, surroundings, "first")?;
                container.keyslot_add(&surroundings.env(), &volume_key, &secret("second"), &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(0, "first")],
            ..edit("keyslot kill", |container, surroundings| {
                container.keyslot_kill(&surroundings.env(), KeyslotId(1), LastSlot::Refuse)
            })
        },
        Operation {
            after: &[(1, "other")],
            ..edit("keyslot remove", |container, surroundings| {
                container.keyslot_remove(&surroundings.env(), &secret("first"), LastSlot::Refuse).map(drop)
            })
        },
        Operation {
            after: &[(0, "second"), (1, "other")],
            ..edit("keyslot change", |container, surroundings| {
                let (old, new) = (secret("first"), secret("second"));
                container.keyslot_change(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(1, "other"), (6, "second")],
            ..edit("keyslot change to another id", |container, surroundings| {
                let (old, new) = (secret("first"), secret("second"));
                let moved = NewKeyslot { id: Some(KeyslotId(6)), ..cheap() };
                container.keyslot_change(&surroundings.env(), &old, None, &new, &moved).map(drop)
            })
        },
    ]
}

fn texts() -> Vec<Operation> {
    let broken = |name, start| Operation { start, ..edit(name, |container, _| container.set_label(Some("after"))) };
    vec![
        edit("label", |container, _| container.set_label(Some("after"))),
        broken("label, primary copy broken", sample::primary_broken),
        broken("label, secondary copy broken", sample::secondary_broken),
        broken("label, secondary copy stale", sample::secondary_stale),
        edit("subsystem", |container, _| container.set_subsystem(Some("vault"))),
        edit("uuid", |container, _| container.set_uuid("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")),
    ]
}

fn repairs() -> Vec<Operation> {
    let run: fn(&Store, &Surroundings) -> Result<(), Error> = |store, surroundings| {
        let limits = Limits::default();
        let planned = plan(&load_unlocked(store, &limits)?);
        repair(store, surroundings.env().rng, &limits, ForeignSignature::Refuse, &planned)
    };
    let repair = |name, start| on_both(name, start, Run::Disk(run));
    vec![
        repair("repair of the primary copy", sample::primary_broken),
        repair("repair of the secondary copy", sample::secondary_broken),
        repair("repair of a stale copy", sample::secondary_stale),
        Operation {
            start: sample::half_removed,
            before: &[(0, "first")],
            after: &[(0, "first")],
            ..edit("repair that finishes a removal", |container, surroundings| {
                container.finish_removals(&surroundings.env()).map(drop)
            })
        },
    ]
}

fn luks1_repairs() -> Vec<Operation> {
    let run: fn(&Store, &Surroundings) -> Result<(), Error> = |store, surroundings| {
        let limits = Limits::default();
        let planned = luks1::repair::plan(store, &limits)?;
        luks1::repair::repair(store, &surroundings.env(), &limits, &planned)
    };
    vec![
        Operation {
            before: &[],
            after: BOTH1,
            repeatable: true,
            ..on_both("LUKS1: repair of damaged fields", sample::damaged1, Run::Disk(run))
        },
        Operation {
            before: &[(0, "first")],
            after: &[(0, "first")],
            ..on_both("LUKS1: repair that finishes a removal", sample::half_removed1, Run::Disk(run))
        },
    ]
}

/// An edit of the LUKS1 sample container that leaves its keyslots alone.
const fn edit1(name: &'static str, run: fn(&mut Handle1, &Surroundings) -> Result<(), Error>) -> Operation {
    on_both(name, sample::plain1, Run::Edit1(run))
}

fn luks1_keyslots() -> Vec<Operation> {
    vec![
        Operation {
            after: &[(0, "first"), (1, "second"), (6, "other")],
            ..edit1("LUKS1: keyslot add", |container, surroundings| {
                let volume_key = container.unlock(&surroundings.env(), None, &secret("first"))?;
                container.keyslot_add(&surroundings.env(), &volume_key, &secret("second"), &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(0, "first")],
            ..edit1("LUKS1: keyslot kill", |container, surroundings| {
                container.keyslot_kill(&surroundings.env(), KeyslotId(6), LastSlot::Refuse)
            })
        },
        Operation {
            after: &[(6, "other")],
            ..edit1("LUKS1: keyslot remove", |container, surroundings| {
                container.keyslot_remove(&surroundings.env(), &secret("first"), LastSlot::Refuse).map(drop)
            })
        },
        Operation {
            after: &[(0, "second"), (6, "other")],
            moves: true,
            ..edit1("LUKS1: keyslot change", |container, surroundings| {
                let (old, new) = (secret("first"), secret("second"));
                container.keyslot_change(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(0, "first"), (6, "second")],
            moves: true,
            ..edit1("LUKS1: change of the keyslot in two sectors", |container, surroundings| {
                let (old, new) = (secret("other"), secret("second"));
                container.keyslot_change(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(0, "second"), (6, "other")],
            at_risk: &["first", "second"],
            ..edit1("LUKS1: keyslot change in place", |container, surroundings| {
                let (old, new) = (secret("first"), secret("second"));
                container.keyslot_change_in_place(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
        Operation {
            after: &[(0, "first"), (6, "second")],
            at_risk: &["other", "second"],
            ..edit1("LUKS1: change in place of the keyslot in two sectors", |container, surroundings| {
                let (old, new) = (secret("other"), secret("second"));
                container.keyslot_change_in_place(&surroundings.env(), &old, None, &new, &cheap()).map(drop)
            })
        },
        edit1("LUKS1: uuid", |container, _| container.set_uuid("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")),
    ]
    .into_iter()
    .map(|operation| Operation { before: BOTH1, ..operation })
    .map(|operation| Operation { after: if operation.after == BOTH { BOTH1 } else { operation.after }, ..operation })
    .collect()
}
