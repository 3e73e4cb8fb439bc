//! The table of operations that write metadata. Each is run on a sample container, and says which passphrases open which
//! keyslots before it and after it. A new operation is one entry.
#![allow(clippy::unwrap_used)]

use block::MemDisk;
use luks::edit::{LastSlot, NewKeyslot};
use luks::repair::{ForeignSignature, repair};
use luks::{Container, Error, KeyslotId, Limits};

use super::Store;
use super::sample::{self, cheap, key, params, secret};
use super::surroundings::Surroundings;

/// Passphrases by keyslot.
pub type Slots = &'static [(u32, &'static str)];

/// The handle that an edit works on.
pub type Handle = Container<Store, Store>;

/// What an operation is called on.
#[derive(Clone, Copy)]
pub enum Run {
    /// An open container.
    Edit(fn(&mut Handle, &Surroundings) -> Result<(), Error>),
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
}

/// Both keyslots of the sample container.
const BOTH: Slots = &[(0, "first"), (1, "other")];

/// An edit of the sample container that leaves its keyslots alone.
const fn edit(name: &'static str, run: fn(&mut Handle, &Surroundings) -> Result<(), Error>) -> Operation {
    Operation { name, start: sample::plain, run: Run::Edit(run), before: BOTH, after: BOTH, may_be_nothing: false }
}

/// Every operation that writes metadata.
#[must_use]
pub fn operations() -> Vec<Operation> {
    let mut all = formats();
    all.extend(keyslots());
    all.extend(texts());
    all.extend(repairs());
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
    let format =
        |name, start, before| Operation { name, start, run: Run::Disk(run), before, after: new, may_be_nothing: true };
    vec![format("format an empty disk", sample::empty, &[]), format("format over a container", sample::plain, BOTH)]
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
        repair(store, surroundings.env().rng, &Limits::default(), ForeignSignature::Refuse).map(drop)
    };
    let repair =
        |name, start| Operation { name, start, run: Run::Disk(run), before: BOTH, after: BOTH, may_be_nothing: false };
    vec![
        repair("repair of the primary copy", sample::primary_broken),
        repair("repair of the secondary copy", sample::secondary_broken),
        repair("repair of a stale copy", sample::secondary_stale),
    ]
}
