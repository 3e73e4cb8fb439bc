//! Every other change of a store, cut at every change of the disk: what was there before is there, or what comes after.

use super::cut::{Dice, Power};
use super::disk::Disk;
use super::rotations::master;
use keystore::{Error, KeyKind, KeyName, Master, OldKey, Policy, Store, Timestamp};
use secret::Secret;
use uuid::Uuid;

fn now(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_733_054_400 + seconds)
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn secret(text: &str) -> Secret {
    Secret::copy_of(text.as_bytes()).unwrap()
}

fn second_master() -> Master {
    Master::new(Secret::copy_of(&[0x66; 40]).unwrap(), "a test").unwrap()
}

/// A store with a volume's key, two generations of a backup key, a value, and a key that may be forgotten.
fn scene() -> Disk {
    let disk = Disk::default();
    let mut store = Store::create(disk.clone(), master(), Policy::STANDARD, now(0)).unwrap();
    for (key, kind, volume) in [
        ("data", KeyKind::Volume, [7; 16]),
        ("old", KeyKind::Volume, [8; 16]),
        ("backup-encryption", KeyKind::Backup, [0; 16]),
    ] {
        store.add_key(&name(key), kind, Uuid::from_bytes(volume), now(1)).unwrap();
        store.activate(&name(key), now(2)).unwrap();
    }
    store.replace_key(&name("backup-encryption"), Some(&secret("two")), OldKey::Keep, now(3)).unwrap();
    store.set_value(&name("TOKEN"), &secret("first"), now(4)).unwrap();
    disk
}

fn opened(disk: &Disk) -> Store<Disk> {
    match Store::open(disk.clone(), master()) {
        Err(Error::WrongMaster) => Store::open(disk.clone(), second_master()).unwrap(),
        opened => opened.unwrap(),
    }
}

type Operation = fn(&mut Store<Disk>) -> Result<(), Error>;

const OPERATIONS: [(&str, Operation); 9] = [
    ("add", |store| {
        if store.metadata().keys.get(&name("logs")).is_some_and(|record| record.active().is_some()) {
            return Ok(());
        }
        store.add_key(&name("logs"), KeyKind::Volume, Uuid::from_bytes([9; 16]), now(10))?;
        store.activate(&name("logs"), now(11))
    }),
    ("replace", |store| store.replace_key(&name("backup-encryption"), Some(&secret("three")), OldKey::Keep, now(10))),
    ("replace and wipe", |store| {
        store.replace_key(&name("backup-encryption"), Some(&secret("three")), OldKey::Wipe, now(10))
    }),
    ("prune", |store| match store.prune(&name("backup-encryption"), 1, now(10)) {
        Err(Error::State { .. }) => Ok(()),
        other => other,
    }),
    ("set", |store| store.set_value(&name("TOKEN"), &secret("second"), now(10))),
    ("remove", |store| match store.remove_value(&name("TOKEN"), now(10)) {
        Err(Error::NoKey { .. }) => Ok(()),
        other => other,
    }),
    ("forget", |store| match store.forget(&name("old"), now(10)) {
        Err(Error::NoKey { .. }) => Ok(()),
        other => other,
    }),
    ("change of the master", |store| store.change_master(second_master(), now(10))),
    ("count", |store| store.add_written(&name("data"), 4096, now(10))),
];

#[test]
fn every_change_cut_at_every_change_of_the_disk_is_done_or_not_and_can_be_done_again() {
    let base = scene();
    let data = opened(&base).key(&name("data")).unwrap();
    for (operation, run) in OPERATIONS {
        let mut cut = 0;
        loop {
            let mut whole = false;
            for seed in 0..6 {
                let case = format!("{operation}, cut {cut}, seed {seed}");
                let power = Power::default();
                let disk = base.copy(&power);
                let mut store = opened(&disk);
                power.cut_after(cut);
                let result = run(&mut store);
                whole = result.is_ok();
                drop(store);
                power.restore();
                disk.crash(&mut Dice::new(seed));
                holds(&opened(&disk), &data, &case);
                let mut store = opened(&disk);
                run(&mut store).unwrap_or_else(|error| panic!("{case}: {error}"));
                drop(store);
                let mut store = opened(&disk);
                holds(&store, &data, &case);
                is_done(&mut store, &disk, operation, &case);
            }
            if whole {
                break;
            }
            cut += 1;
        }
        assert!(cut > 3, "{operation} makes only {cut} changes");
    }
}

/// A full disk, or one that says no for another reason, once.
#[test]
fn every_change_that_is_refused_one_change_of_the_disk_can_be_done_again() {
    let base = scene();
    let data = opened(&base).key(&name("data")).unwrap();
    for (operation, run) in OPERATIONS {
        for refused in 0.. {
            let power = Power::default();
            let disk = base.copy(&power);
            let mut store = opened(&disk);
            power.refuse_after(refused);
            let result = run(&mut store);
            if power.will_refuse() {
                assert!(refused > 3 && result.is_ok());
                break;
            }
            let case = format!("{operation}, change {refused}");
            drop(store);
            holds(&opened(&disk), &data, &case);
            let mut store = opened(&disk);
            run(&mut store).unwrap_or_else(|error| panic!("{case}: {error}"));
            is_done(&mut store, &disk, operation, &case);
        }
    }
}

fn holds(store: &Store<Disk>, data: &Secret, case: &str) {
    assert!(store.key(&name("data")).unwrap().ct_eq(data.expose()), "{case}");
    let backup = store.key(&name("backup-encryption")).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(backup.ct_eq(b"two") || backup.ct_eq(b"three"), "{case}");
    match store.value(&name("TOKEN")) {
        Ok(value) => assert!(value.ct_eq(b"first") || value.ct_eq(b"second"), "{case}"),
        Err(error) => assert!(case.starts_with("remove"), "{case}: {error}"),
    }
}

fn is_done(store: &mut Store<Disk>, disk: &Disk, operation: &str, case: &str) {
    // One more change puts in order what cuts left.
    store.set_policy(Policy::PCI_DSS, now(20)).unwrap();
    let files = disk.file_names();
    let leftovers: Vec<&String> =
        files.iter().filter(|file| file.ends_with(".new") || file.ends_with(".next")).collect();
    assert!(leftovers.is_empty(), "{case}: {leftovers:?}");
    assert_eq!(store.strays().unwrap(), [""; 0], "{case}");
    for checked in store.verify() {
        assert!(checked.result.is_ok(), "{case}: {checked:?}");
    }
    let has = |file: &str| files.iter().any(|name| name == file);
    match operation {
        "add" => assert!(has("logs.key")),
        "replace" => assert!(store.key(&name("backup-encryption")).unwrap().ct_eq(b"three")),
        "prune" => assert!(!has("backup-encryption.key.1"), "{case}"),
        "set" => assert!(store.value(&name("TOKEN")).unwrap().ct_eq(b"second")),
        "remove" => assert!(!has("secrets/TOKEN.sealed")),
        "forget" => assert!(!files.iter().any(|file| file.starts_with("old.")), "{case}: {files:?}"),
        "change of the master" => {
            assert!(matches!(Store::open(disk.clone(), master()), Err(Error::WrongMaster)), "{case}");
        }
        "count" => assert!(store.metadata().keys[&name("data")].written_bytes >= 4096),
        _ => {}
    }
}

#[test]
fn a_store_that_is_made_and_cut_is_not_there_or_whole() {
    for cut in 0.. {
        let mut whole = false;
        for seed in 0..6 {
            let power = Power::default();
            let disk = Disk::new(&power);
            power.cut_after(cut);
            whole = Store::create(disk.clone(), master(), Policy::STANDARD, now(0)).is_ok();
            power.restore();
            disk.crash(&mut Dice::new(seed));
            match Store::open(disk.clone(), master()) {
                Err(Error::NoStore { .. }) => {
                    assert!(!whole, "cut {cut}, seed {seed}");
                    Store::create(disk, master(), Policy::STANDARD, now(1)).unwrap();
                }
                opened => drop(opened.unwrap()),
            }
        }
        if whole {
            assert!(cut > 3);
            break;
        }
    }
}
