//! Restores on disks in memory: what is refused, what is said, and every power cut on the way.

use std::sync::Arc;

use block::MemDisk;

use super::*;
use crate::backup::BackupFlaw;
use crate::edit::LastSlot;
use crate::format::sample::{Cutter, cheap, fixed, formatted, open, params, secret, try_open};
use crate::format::{FormatParams, format};
use crate::metadata::KeyslotId;
use crate::replace::NoRecovery;

fn limits() -> Limits {
    Limits::default()
}

fn backup_of(disk: &MemDisk) -> Backup {
    let read = Backup::read(disk, &limits()).unwrap();
    Backup::parse(read.bytes().to_vec(), &limits()).unwrap()
}

fn opens(disk: &MemDisk, passphrase: &str) -> bool {
    try_open(&open(&Arc::new(disk.snapshot())), passphrase).is_ok()
}

/// A device that `first` opens, its backup, and what happened since: `first` changed to `second`.
fn changed() -> (Arc<MemDisk>, Backup) {
    let disk = formatted(&params());
    let backup = backup_of(&disk);
    open(&disk).keyslot_change(&fixed().env(), &secret("first"), None, &secret("second"), &cheap()).unwrap();
    (disk, backup)
}

#[test]
fn a_restored_header_is_the_backup_byte_for_byte() {
    let (disk, backup) = changed();
    let plan = plan(&disk, &backup, &limits()).unwrap();
    assert!(plan.atomic, "the old slot's area was free");
    assert!(matches!(plan.concerns[..], [Concern::OlderSeqid { .. }]), "{:?}", plan.concerns);
    let before = backup_of(&disk);
    let mut saved = Vec::new();
    let mut keep = |region: &[u8]| {
        saved = region.to_vec();
        Ok(())
    };
    restore(&disk, &backup, &plan, &limits(), &mut keep).unwrap();
    assert!(saved == before.bytes(), "the recovery file is a backup of what stood there");
    assert!(backup_of(&disk).bytes() == backup.bytes());
    assert!(opens(&disk, "first") && !opens(&disk, "second"));
    // The recovery file takes it back.
    let undo = Backup::parse(saved, &limits()).unwrap();
    let plan = super::plan(&disk, &undo, &limits()).unwrap();
    assert_eq!(plan.concerns, []);
    restore(&disk, &undo, &plan, &limits(), &mut NoRecovery).unwrap();
    assert!(opens(&disk, "second") && !opens(&disk, "first"));
}

/// The device after each cut of a restore.
fn cuts(disk: &MemDisk, backup: &Backup, plan: &RestorePlan) -> Vec<MemDisk> {
    (0..4)
        .flat_map(|seed| {
            let cutter = Cutter::new(disk, seed);
            restore(&cutter, backup, plan, &limits(), &mut NoRecovery).unwrap();
            cutter.cuts()
        })
        .collect()
}

#[test]
fn an_atomic_restore_opens_as_old_or_new_at_every_cut() {
    let (disk, backup) = changed();
    let planned = plan(&disk, &backup, &limits()).unwrap();
    let states = cuts(&disk, &backup, &planned);
    let both: Vec<(bool, bool)> = states.iter().map(|disk| (opens(disk, "second"), opens(disk, "first"))).collect();
    assert!(both.iter().all(|(old, new)| old != new), "{both:?}");
    assert!(both.contains(&(true, false)) && both.contains(&(false, true)), "{both:?}");
}

#[test]
fn one_that_is_not_is_mended_by_either_file() {
    let disk = formatted(&params());
    let backup = backup_of(&disk);
    // The same area twice: killed, and used again by another passphrase.
    let mut container = open(&disk);
    let key = try_open(&container, "first").unwrap();
    container.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Allow).unwrap();
    container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).unwrap();
    let recovery = backup_of(&disk);
    let planned = plan(&disk, &backup, &limits()).unwrap();
    assert!(!planned.atomic);
    let states = cuts(&disk, &backup, &planned);
    assert!(states.iter().any(|disk| !opens(disk, "first") && !opens(disk, "second")), "then it is atomic after all");
    for state in &states {
        for (file, passphrase) in [(&backup, "first"), (&recovery, "second")] {
            let state = state.snapshot();
            let again = plan(&state, file, &limits()).unwrap();
            restore(&state, file, &again, &limits(), &mut NoRecovery).unwrap();
            assert!(backup_of(&state).bytes() == file.bytes() && opens(&state, passphrase));
        }
    }
}

#[test]
fn a_device_without_a_header_gets_one_and_a_foreign_one_is_named() {
    let disk = formatted(&params());
    let backup = backup_of(&disk);
    let empty = MemDisk::new(Bytes(4 << 20));
    let planned = plan(&empty, &backup, &limits()).unwrap();
    assert_eq!(planned.concerns, [Concern::NoHeader]);
    for state in cuts(&empty, &backup, &planned) {
        match crate::header::load_unlocked(&state, &limits()) {
            Ok(_) => assert!(opens(&state, "first")),
            Err(error) => assert!(matches!(error, Error::NotLuks | Error::NoValidCopy { .. }), "{error}"),
        }
    }
    let mut superblock = [0; 1024];
    superblock[..4].copy_from_slice(b"XFSB");
    empty.write_at(Bytes(0), &superblock, false).unwrap();
    let planned = plan(&empty, &backup, &limits()).unwrap();
    assert!(matches!(planned.concerns[..], [Concern::NoHeader, Concern::Foreign { name: "xfs", .. }]));
    assert!(planned.is_grave());
    let broken = disk.snapshot();
    broken.write_at(Bytes(4096), &[7; 4096], false).unwrap();
    broken.write_at(Bytes(0x5000), &[7; 4096], false).unwrap();
    let planned = plan(&broken, &backup, &limits()).unwrap();
    assert_eq!((planned.found.clone(), &planned.concerns[..]), (Found::Broken, &[Concern::BrokenHeader][..]));
    restore(&broken, &backup, &planned, &limits(), &mut NoRecovery).unwrap();
    assert!(opens(&broken, "first"));
}

#[test]
fn the_only_good_copy_is_not_written_first() {
    let (disk, backup) = changed();
    for broken in [0u64, 0x4000] {
        let disk = disk.snapshot();
        disk.write_at(Bytes(broken), &[0; 4096], false).unwrap();
        let planned = plan(&disk, &backup, &limits()).unwrap();
        for state in cuts(&disk, &backup, &planned) {
            assert!(opens(&state, "second") != opens(&state, "first"), "broken copy at {broken}");
        }
    }
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let backup = backup_of(&formatted(&params()));
    let obstacle = |disk: &MemDisk, backup: &Backup| match plan(disk, backup, &limits()) {
        Err(Error::Restore(obstacle)) => obstacle,
        other => panic!("{other:?}"),
    };
    let smaller = formatted(&FormatParams { keyslots_size: Some(Bytes(256 << 10)), ..params() });
    assert!(matches!(obstacle(&smaller, &backup), RestoreObstacle::Region { .. }));
    let elsewhere = formatted(&FormatParams { data_offset: Some(Bytes(2 << 20)), ..params() });
    assert!(matches!(obstacle(&elsewhere, &backup), RestoreObstacle::DataOffset { .. }));
    let short = MemDisk::new(Bytes(256 << 10));
    assert!(matches!(plan(&short, &backup, &limits()), Err(Error::DeviceTooSmall { .. })));
    for (names, fine) in [(&["opal"][..], false), (&["of-the-future"], false), (&["inline-hw-tags"], true)] {
        let disk = formatted(&params());
        let mut header = crate::header::load_unlocked(&disk, &limits()).unwrap();
        header.metadata_mut().config.mandatory = names.iter().map(|name| (*name).to_owned()).collect();
        crate::write::commit(&disk, &mut header).unwrap();
        let required = backup_of(&disk);
        if fine {
            plan(&disk, &required, &limits()).unwrap();
        } else {
            assert!(matches!(obstacle(&disk, &required), RestoreObstacle::Requirements { .. }));
        }
    }
}

#[test]
fn another_container_is_a_grave_concern() {
    let backup = backup_of(&formatted(&params()));
    let other = Arc::new(MemDisk::new(Bytes(4 << 20)));
    let env = crate::env::fixed::FixedEnv::new(77, 1);
    format(&other, &other, &env.env(), &params(), &secret("first")).unwrap();
    let planned = plan(&other, &backup, &limits()).unwrap();
    assert!(planned.is_grave());
    assert!(matches!(planned.concerns[..], [Concern::OtherUuid { .. }, Concern::OtherKey]), "{:?}", planned.concerns);
}

#[test]
fn a_plan_that_is_no_longer_true_and_a_file_that_cannot_be_kept_stop_it() {
    let (disk, backup) = changed();
    let planned = plan(&disk, &backup, &limits()).unwrap();
    let before = backup_of(&disk);
    let mut full = |_: &[u8]| Err("no space left".to_owned());
    let error = restore(&disk, &backup, &planned, &limits(), &mut full).unwrap_err();
    assert!(matches!(&error, Error::Recovery { reason } if reason == "no space left"), "{error}");
    assert!(backup_of(&disk).bytes() == before.bytes());
    open(&disk).set_label(Some("changed since")).unwrap();
    let error = restore(&disk, &backup, &planned, &limits(), &mut NoRecovery).unwrap_err();
    assert!(matches!(error, Error::PlanChanged), "{error}");
    assert!(opens(&disk, "second"));
}

#[test]
fn a_backup_is_whole_or_refused() {
    let disk = formatted(&params());
    let good = backup_of(&disk).bytes().to_vec();
    let flaw = |bytes: &[u8]| match Backup::parse(bytes.to_vec(), &limits()) {
        Err(Error::Backup(flaw)) => flaw,
        other => panic!("{other:?}"),
    };
    assert!(matches!(flaw(&good[..good.len() - 4096]), BackupFlaw::Short { .. }));
    assert!(matches!(flaw(&[&good[..], &[0; 512]].concat()), BackupFlaw::Length { .. }));
    for (at, which) in [(5000, "primary"), (0x4000 + 5000, "secondary"), (0x4000 + 20, "secondary")] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(matches!(flaw(&bad), BackupFlaw::Copy { which: named, .. } if named == which), "byte {at}");
    }
    assert!(matches!(Backup::parse(vec![0; 1 << 20], &limits()), Err(Error::NotLuks)));
    assert!(matches!(Backup::parse(Vec::new(), &limits()), Err(Error::NotLuks)));
}
