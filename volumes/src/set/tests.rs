//! A set from nothing: its store, its lock, its log; what was put back, swapped or opened to others is found.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use keystore::{Error, KeyKind, KeyName};
use tempfile::TempDir;

use super::*;
use crate::audit::{Snapshot, verify};

struct Room(TempDir);

impl Room {
    fn new(keys: &str) -> Room {
        let room = Room(tempfile::tempdir().unwrap());
        let text = format!(
            "[store]\nfolder = \"{0}/images\"\nkeys = \"{0}/keys\"\n[keys]\n{keys}\n[audit]\nfolder = \"{0}/audit\"\nseed = \
             \"{0}/audit.seed\"\n[volumes.data]\nsize = \"64M\"\nmount = \"{0}/data\"\n",
            room.0.path().display()
        );
        fs::write(room.file("volumes.toml"), text).unwrap();
        fs::create_dir(room.file("images")).unwrap();
        room
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn set(&self) -> Set {
        Set::load(&self.file("volumes.toml")).unwrap()
    }

    /// Copies of what the store has now.
    fn copy_of_keys(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(self.file("keys")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

fn data() -> KeyName {
    KeyName::new("data").unwrap()
}

fn key_error(result: Result<SetStore, VolumesError>) -> Error {
    match result {
        Err(VolumesError::KeyStore(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opened"),
    }
}

fn with_key(set: &Set) {
    let mut store = set.store().unwrap();
    store.add_key(&data(), KeyKind::Volume, uuid_of(7), Set::now()).unwrap();
    store.activate(&data(), Set::now()).unwrap();
    set.remember(&store).unwrap();
}

fn uuid_of(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte; 16])
}

#[test]
fn a_store_is_made_once_and_opens_again() {
    let room = Room::new("");
    let set = room.set();
    assert!(!set.has_store());
    assert!(matches!(key_error(set.store()), Error::NoStore { .. }));
    drop(set.create_store().unwrap());
    assert!(set.has_store());
    assert!(matches!(key_error(set.create_store()), Error::Exists { .. }));
    with_key(&set);
    assert_eq!(set.store().unwrap().key(&data()).unwrap().len(), 64);
    assert_eq!(set.metadata().unwrap().keys.len(), 1);
}

#[test]
fn the_policy_of_the_file_becomes_the_stores_and_is_recorded() {
    let room = Room::new("rotation-days = 90");
    drop(room.set().create_store().unwrap());
    let text = fs::read_to_string(room.file("volumes.toml")).unwrap();
    fs::write(room.file("volumes.toml"), text.replace("= 90", "= 30")).unwrap();
    assert_eq!(room.set().store().unwrap().metadata().policy.key_rotation_days, 30);
    let record = room.set().audit().unwrap().last_of("set", &room.file("volumes.toml").display().to_string());
    let record = record.unwrap().unwrap();
    assert_eq!(
        (record["details"]["old_value"].as_str(), record["details"]["new_value"].as_str()),
        (Some("90"), Some("30"))
    );
}

#[test]
fn key_files_that_others_can_read_are_refused_with_the_chmod() {
    let room = Room::new("");
    drop(room.set().create_store().unwrap());
    with_key(&room.set());
    for name in ["keys/master.key", "keys/key_metadata.json"] {
        fs::set_permissions(room.file(name), fs::Permissions::from_mode(0o640)).unwrap();
        let error = key_error(room.set().store()).to_string();
        assert!(error.contains("chmod 600") && error.contains(name), "{error}");
        fs::set_permissions(room.file(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::set_permissions(room.file("keys"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(key_error(room.set().store()).to_string().contains("chmod 700"));
}

#[test]
fn a_store_from_an_older_copy_is_found_and_opens_only_when_it_is_accepted() {
    let room = Room::new("");
    drop(room.set().create_store().unwrap());
    let copy = room.copy_of_keys();
    with_key(&room.set());
    copy.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
    assert!(matches!(key_error(room.set().store()), Error::OlderStore { .. }));
    let last = room.set().audit().unwrap().last_of("store-rolled-back", "key-store").unwrap().unwrap();
    assert_eq!((last["level"].as_str(), last["outcome"].as_str()), (Some("HIGH"), Some("denied")));
    drop(room.set().accept_store().unwrap());
    drop(room.set().store().unwrap());
}

#[test]
fn the_seed_of_the_log_is_sealed_and_verifies() {
    // A log that begins with the store, and one that was there before.
    for begins_before in [false, true] {
        let room = Room::new("");
        let set = room.set();
        if begins_before {
            set.record(&Event::new(Category::Config, "before", "x")).unwrap();
            assert!(room.file("audit.seed").exists());
        }
        drop(set.create_store().unwrap());
        assert!(!room.file("audit.seed").exists());
        set.record(&Event::new(Category::Config, "after", "x")).unwrap();
        let seeds = set.audit_seeds().unwrap();
        let report = verify(&Snapshot::read(&room.file("audit")).unwrap(), &seeds[0].1, &[]).unwrap();
        assert!(report.faults.is_empty() && seeds.len() == 1 && report.chain == seeds[0].0, "{report:?}");
    }
}

#[test]
fn a_wrong_master_secret_is_recorded() {
    let room = Room::new("");
    drop(room.set().create_store().unwrap());
    fs::write(room.file("keys/master.key"), [7; 64]).unwrap();
    assert!(matches!(key_error(room.set().store()), Error::WrongMaster));
    let last = room.set().audit().unwrap().last_of("unlock", "key-store").unwrap().unwrap();
    assert_eq!(last["outcome"], "failed");
}

#[test]
fn one_command_at_a_time() {
    let room = Room::new("");
    let held = room.set().lock().unwrap();
    let path = room.file("volumes.toml");
    assert!(matches!(SetLock::take(&path, Duration::ZERO), Err(VolumesError::SetBusy { .. })));
    drop(held);
    drop(SetLock::take(&path, Duration::ZERO).unwrap());
}

#[test]
fn a_master_change_cut_anywhere_leaves_a_store_that_opens() {
    let room = Room::new("");
    drop(room.set().create_store().unwrap());
    with_key(&room.set());
    let (master, next) = (room.file("keys/master.key"), room.file("keys/master.key.next"));
    let key = room.set().store().unwrap().key(&data()).unwrap();
    let opens = || assert!(room.set().store().unwrap().key(&data()).unwrap().ct_eq(key.expose()));
    // Cut while the next one is written: half of it, all of it.
    for half in [&[1; 20][..], &[1; 64]] {
        fs::write(&next, half).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
        opens();
        assert!(!next.exists());
    }
    let set = room.set();
    let old = fs::read(&master).unwrap();
    set.change_master(&mut set.store().unwrap(), Box::new(secret::LineSource::new())).unwrap();
    opens();
    let new = fs::read(&master).unwrap();
    assert!(!next.exists() && new != old);
    // Cut before the next one took its place.
    fs::rename(&master, &next).unwrap();
    fs::write(&master, &old).unwrap();
    fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).unwrap();
    opens();
    assert!(!next.exists() && fs::read(&master).unwrap() == new);
    fs::write(&master, old).unwrap();
    assert!(matches!(key_error(room.set().store()), Error::WrongMaster));
}

#[test]
fn a_passphrase_makes_and_opens_a_store() {
    struct Typed(&'static [u8]);
    impl KeyProvider for Typed {
        fn key_for(&mut self, _: &secret::KeyRequest<'_>) -> Result<Option<Secret>, secret::KeySourceError> {
            Ok(Some(Secret::copy_of(self.0)?))
        }
    }
    let room = Room::new("master = \"passphrase\"");
    let set = |words| room.set().asking(Box::new(Typed(words)));
    drop(set(b"correct horse").create_store().unwrap());
    assert!(room.file("keys/master.kdf").exists());
    drop(set(b"correct horse").store().unwrap());
    assert!(matches!(key_error(set(b"wrong").store()), Error::WrongMaster));
    assert!(matches!(key_error(room.set().store()), Error::NoMaster { .. }));
    let old = set(b"correct horse");
    let mut store = old.store().unwrap();
    old.change_master(&mut store, Box::new(Typed(b"battery"))).unwrap();
    drop(store);
    drop(set(b"battery").store().unwrap());
    assert!(matches!(key_error(set(b"correct horse").store()), Error::WrongMaster));
}
