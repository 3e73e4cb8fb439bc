//! Operations on the header as a whole: erase, restore, conversion between the versions.

use block::{BlockIo, Bytes, MemDisk};
use luks::edit::LastSlot;
use luks::{Backup, Error, KeyslotId, Limits, NewKeyslot, convert, restore};
use std::sync::Arc;

use super::{BOTH1, Operation, Run, edit, on_both};
use crate::crash::Store;
use crate::crash::sample::{self, cheap, key, secret};
use crate::crash::surroundings::Surroundings;

type MemHandle = luks::Container<Arc<MemDisk>, Arc<MemDisk>>;

pub(super) fn operations() -> Vec<Operation> {
    let to_luks2: fn(&Store, &Surroundings) -> Result<(), Error> =
        |store, surroundings| converted(store, surroundings, luks::Version::Luks2);
    let to_luks1: fn(&Store, &Surroundings) -> Result<(), Error> =
        |store, surroundings| converted(store, surroundings, luks::Version::Luks1);
    let conversion = |name, start, run| Operation {
        before: BOTH1,
        after: BOTH1,
        recovery: true,
        ..on_both(name, start, Run::Disk(run))
    };
    vec![
        Operation {
            after: &[],
            ..edit("erase", |container, surroundings| container.erase(&surroundings.env()).map(drop))
        },
        Operation {
            after: &[(0, "first"), (1, "other"), (2, "second")],
            ..on_both("restore of a backup with its areas free", sample::plain, Run::Disk(restored_beside))
        },
        Operation {
            after: &[(0, "first"), (1, "second")],
            recovery: true,
            ..on_both("restore of a backup over areas in use", sample::plain, Run::Disk(restored_over))
        },
        conversion("convert to LUKS2", sample::plain1, to_luks2),
        conversion("convert to LUKS1", sample::converted, to_luks1),
    ]
}

fn restored_beside(store: &Store, surroundings: &Surroundings) -> Result<(), Error> {
    restored(store, |container| {
        let volume_key = key(container, surroundings, "first")?;
        container.set_label(Some("restored"))?;
        container.keyslot_add(&surroundings.env(), &volume_key, &secret("second"), &cheap()).map(drop)
    })
}

fn restored_over(store: &Store, surroundings: &Surroundings) -> Result<(), Error> {
    restored(store, |container| {
        let volume_key = key(container, surroundings, "first")?;
        container.keyslot_kill(&surroundings.env(), KeyslotId(1), LastSlot::Refuse)?;
        let again = NewKeyslot { id: Some(KeyslotId(1)), ..cheap() };
        container.keyslot_add(&surroundings.env(), &volume_key, &secret("second"), &again).map(drop)
    })
}

/// Restores the backup of a copy of the disk that `edit` changed.
fn restored(store: &Store, edit: impl FnOnce(&mut MemHandle) -> Result<(), Error>) -> Result<(), Error> {
    let limits = Limits::default();
    let mut bytes = vec![0; sample::SIZE.to_usize().unwrap_or_default()];
    store.read_at(Bytes(0), &mut bytes)?;
    let copy = Arc::new(MemDisk::from_bytes(&bytes));
    let mut container = luks::Container::open(Arc::clone(&copy), Arc::clone(&copy), limits.clone())?;
    edit(&mut container)?;
    let backup = Backup::read(&copy, &limits)?;
    let plan = restore::plan(store, &backup, &limits)?;
    restore::restore(store, &backup, &plan, &limits, &mut saved_before(store))
}

fn converted(store: &Store, surroundings: &Surroundings, to: luks::Version) -> Result<(), Error> {
    let limits = Limits::default();
    let plan = convert::plan(store, to, &limits)?;
    convert::convert(store, &surroundings.env(), &plan, &limits, &mut saved_before(store))
}

/// Demands that the present header is kept aside before the first write. The promise makes the same backup itself.
fn saved_before(store: &Store) -> impl FnMut(&[u8]) -> Result<(), String> {
    let store = Arc::clone(store);
    move |region: &[u8]| {
        let counts = store.counts();
        let early = counts.writes + counts.zeroes + counts.discards == 0;
        if early && !region.is_empty() { Ok(()) } else { Err("kept aside after the first write".to_owned()) }
    }
}
