//! A rotation that is cut at every change: the volume opens with what the store holds, and the next command ends it.

use super::cut::{Dice, Power};
use super::disk::Disk;
use super::volume::Volume;
use keystore::{KeyKind, KeyName, KeyState, Master, OldKey, Outcome, Policy, Slots, Store, Timestamp, rotate, settle};
use secret::Secret;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_bytes([7; 16]);

fn now(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_733_054_400 + seconds)
}

pub(crate) fn master() -> Master {
    Master::new(Secret::copy_of(&[0x5a; 32]).unwrap(), "a test").unwrap()
}

fn data() -> KeyName {
    KeyName::new("data").unwrap()
}

/// A disk with a store whose key `data` opens the volume.
fn scene(power: &Power) -> (Disk, Volume) {
    let disk = Disk::new(power);
    let mut store = Store::create(disk.clone(), master(), Policy::STANDARD, now(0)).unwrap();
    store.add_key(&data(), KeyKind::Volume, VOLUME, now(1)).unwrap();
    store.activate(&data(), now(2)).unwrap();
    let volume = Volume::new(&store.key(&data()).unwrap(), power);
    (disk, volume)
}

fn opened(disk: &Disk) -> Store<Disk> {
    Store::open(disk.clone(), master()).unwrap()
}

fn active_opens(disk: &Disk, volume: &mut Volume, case: &str) {
    let key = opened(disk).key(&data()).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(volume.opens(&key).unwrap(), "{case}: the active key does not open the volume");
    for seen in &volume.seen {
        assert!(!disk.holds(seen), "{case}: a key lies on the disk in the clear");
    }
}

/// What must hold when nothing is under way any more.
fn is_at_rest(disk: &Disk, volume: &mut Volume, case: &str) {
    active_opens(disk, volume, case);
    assert_eq!(volume.slots.len(), 1, "{case}: an old key opens the volume");
    let store = opened(disk);
    let record = &store.metadata().keys[&data()];
    assert_eq!(record.rotation, None, "{case}");
    let live: Vec<KeyState> = record.live().map(|generation| generation.state).collect();
    assert_eq!(live, [KeyState::Active], "{case}");
    assert_eq!(disk.file_names(), ["data.key", "key_metadata.json"], "{case}");
    assert!(store.verify().iter().all(|checked| checked.result.is_ok()), "{case}");
}

/// The next command: half of the cases `rotate`, half `up`, which settles, and then a new rotation.
fn next_command(disk: &Disk, volume: &mut Volume, seed: u64) -> Result<(), keystore::Error> {
    let mut store = opened(disk);
    if seed.is_multiple_of(2) {
        let outcome = rotate(&mut store, &data(), volume, OldKey::Wipe, now(200))?;
        assert!(matches!(outcome, Outcome::Rotated { .. }));
    } else {
        settle(&mut store, &data(), volume, now(200))?;
        // What a cut left in the files is put in order by the next change.
        store.set_policy(Policy::PCI_DSS, now(201))?;
    }
    Ok(())
}

#[test]
fn a_rotation_cut_at_every_change_leaves_a_volume_that_opens() {
    let power = Power::default();
    let (disk, volume) = scene(&power);
    let mut cuts = 0;
    for cut in 0.. {
        let mut whole = false;
        for seed in 0..6 {
            let case = format!("cut {cut}, seed {seed}");
            let power = Power::default();
            let (disk, mut volume) = (disk.copy(&power), volume.copy(&power));
            let mut store = opened(&disk);
            power.cut_after(cut);
            let result = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(100));
            whole = result.is_ok();
            drop(store);
            power.restore();
            disk.crash(&mut Dice::new(seed));
            active_opens(&disk, &mut volume, &case);
            next_command(&disk, &mut volume, seed).unwrap_or_else(|error| panic!("{case}: {error}"));
            is_at_rest(&disk, &mut volume, &case);
            cuts += u32::from(!whole);
        }
        if whole {
            break;
        }
    }
    assert!(cuts > 6 * 30, "only {cuts} cuts");
}

/// A full disk, or a disk or a volume that says no for another reason, once.
#[test]
fn a_rotation_that_is_refused_one_change_leaves_a_volume_that_opens() {
    let power = Power::default();
    let (disk, volume) = scene(&power);
    for refused in 0.. {
        let power = Power::default();
        let (disk, mut volume) = (disk.copy(&power), volume.copy(&power));
        let mut store = opened(&disk);
        power.refuse_after(refused);
        let result = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(100));
        let case = format!("change {refused}: {result:?}");
        if power.will_refuse() {
            assert!(refused > 30);
            break;
        }
        // The same handle goes on or says that it must be opened again; it never does harm.
        let again = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(101));
        assert!(again.is_ok() || matches!(again, Err(keystore::Error::Reopen)), "{case}, {again:?}");
        drop(store);
        active_opens(&disk, &mut volume, &case);
        next_command(&disk, &mut volume, u64::from(refused)).unwrap_or_else(|error| panic!("{case}: {error}"));
        is_at_rest(&disk, &mut volume, &case);
    }
}

#[test]
fn a_command_that_is_cut_while_it_mends_a_cut_loses_nothing_either() {
    let power = Power::default();
    let (disk, volume) = scene(&power);
    for cut in 0.. {
        let first = Power::default();
        let (disk, mut volume) = (disk.copy(&first), volume.copy(&first));
        let mut store = opened(&disk);
        first.cut_after(cut);
        let whole = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(100)).is_ok();
        first.restore();
        disk.crash(&mut Dice::new(u64::from(cut) + 2));
        for second_cut in (cut % 3..).step_by(3) {
            let seed = u64::from(cut * 31 + second_cut) + 2;
            let case = format!("cut {cut}, then {second_cut}, seed {seed}");
            let power = Power::default();
            let (disk, mut volume) = (disk.copy(&power), volume.copy(&power));
            let mut store = opened(&disk);
            power.cut_after(second_cut);
            let mended = match seed % 2 {
                0 => rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(150)).map(drop),
                _ => settle(&mut store, &data(), &mut volume, now(150)).map(drop),
            };
            drop(store);
            power.restore();
            disk.crash(&mut Dice::new(seed));
            active_opens(&disk, &mut volume, &case);
            next_command(&disk, &mut volume, seed / 2).unwrap_or_else(|error| panic!("{case}: {error}"));
            is_at_rest(&disk, &mut volume, &case);
            if mended.is_ok() {
                break;
            }
        }
        if whole {
            break;
        }
    }
}

#[test]
fn an_old_key_that_is_to_be_kept_stays_sealed_until_it_is_pruned() {
    let power = Power::default();
    let (disk, mut volume) = scene(&power);
    let mut store = opened(&disk);
    let old = store.key(&data()).unwrap();
    let outcome = rotate(&mut store, &data(), &mut volume, OldKey::Keep, now(100)).unwrap();
    assert_eq!(outcome, Outcome::Rotated { from: 1, to: 2 });
    assert!(store.key_of(&data(), 1).unwrap().ct_eq(old.expose()));
    assert!(!volume.opens(&old).unwrap());
    assert_eq!(disk.file_names(), ["data.key", "data.key.1", "key_metadata.json"]);
    assert!(store.prune(&data(), 2, now(101)).is_err(), "the one in use");
    store.prune(&data(), 1, now(101)).unwrap();
    assert!(store.key_of(&data(), 1).is_err());
    is_at_rest(&disk, &mut volume, "pruned");
}

#[test]
fn a_header_restored_from_before_the_rotation_is_settled_or_refused_but_never_made_worse() {
    for cut in 0..60 {
        let power = Power::default();
        let (disk, mut volume) = scene(&power);
        let before = volume.slots.clone();
        let mut store = opened(&disk);
        power.cut_after(cut);
        let whole = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(100)).is_ok();
        power.restore();
        volume.slots = before;
        let mut store = opened(&disk);
        let settled = settle(&mut store, &data(), &mut volume, now(101));
        if whole {
            // The old key is wiped: nothing in the store opens that header, and it says so.
            assert_eq!(settled.unwrap(), Outcome::Nothing);
            let error = rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(102)).unwrap_err();
            assert!(error.to_string().contains("does not open the volume"), "{error}");
            return;
        }
        let generations = [1, 2].map(|generation| store.key_of(&data(), generation).ok());
        let has_it = generations.iter().flatten().any(|key| volume.opens(key).unwrap());
        // Without it the store says so, or has no journal any more: the old key is wiped.
        let is_fine = if has_it { settled.is_ok() } else { matches!(settled, Err(_) | Ok(Outcome::Nothing)) };
        assert!(is_fine, "cut {cut}: {settled:?}");
        if has_it {
            rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(102)).unwrap();
            active_opens(&disk, &mut volume, &format!("cut {cut}"));
        }
    }
    panic!("the rotation did not end within 60 changes");
}

#[test]
fn an_image_that_was_replaced_changes_nothing() {
    let power = Power::default();
    let (disk, mut volume) = scene(&power);
    let mut store = opened(&disk);
    power.cut_after(20);
    rotate(&mut store, &data(), &mut volume, OldKey::Wipe, now(100)).unwrap_err();
    power.restore();
    volume.slots = vec![vec![1; 64]];
    let mut store = opened(&disk);
    let before = store.metadata().clone();
    assert!(before.keys[&data()].rotation.is_some());
    for _ in 0..2 {
        let error = settle(&mut store, &data(), &mut volume, now(101)).unwrap_err();
        assert!(error.to_string().contains("neither key opens the volume"), "{error}");
        assert_eq!(*store.metadata(), before);
    }
}
