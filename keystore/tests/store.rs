//! A store in a real folder: what it refuses, what it notices, and that no key ever lies in it in the clear.
#![allow(clippy::unwrap_used)]

use keystore::master::{MasterFile, MasterSource};
use keystore::{Error, Folder, Head, KeyKind, KeyName, Master, Metadata, OldKey, Policy, Store, Timestamp};
use secret::Secret;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

const DAY_S: u64 = 86_400;

fn now(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_733_054_400 + seconds)
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn master() -> Master {
    Master::new(Secret::copy_of(&[0x5a; 32]).unwrap(), "a test").unwrap()
}

struct Scene {
    _parent: tempfile::TempDir,
    path: PathBuf,
}

impl Scene {
    /// A store with keys `data` and `logs`, and value `TOKEN`.
    fn new() -> Scene {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("keys");
        let scene = Scene { _parent: parent, path };
        let folder = Folder::create(&scene.path, Duration::ZERO).unwrap();
        let mut store = Store::create(folder, master(), Policy::STANDARD, now(0)).unwrap();
        for (key, volume) in [("data", 7), ("logs", 8)] {
            store.add_key(&name(key), KeyKind::Volume, Uuid::from_bytes([volume; 16]), now(1)).unwrap();
            store.activate(&name(key), now(2)).unwrap();
        }
        store.set_value(&name("TOKEN"), &Secret::copy_of(b"the value of a token").unwrap(), now(3)).unwrap();
        scene
    }

    fn folder(&self) -> Folder {
        Folder::open(&self.path, Duration::ZERO).unwrap()
    }

    fn open(&self) -> Result<Store<Folder>, Error> {
        Store::open(self.folder(), master())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.file("key_metadata.json")).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(self.file("key_metadata.json"), text.replacen(from, to, 1)).unwrap();
    }
}

fn copy_of(from: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(copy_of(&path)) } else { files.push((path.clone(), fs::read(&path).unwrap())) }
    }
    files
}

#[test]
fn a_store_opens_again_with_its_master_and_with_no_other() {
    let scene = Scene::new();
    let store = scene.open().unwrap();
    let (data, logs) = (store.key(&name("data")).unwrap(), store.key(&name("logs")).unwrap());
    assert!(data.len() == 64 && !data.ct_eq(logs.expose()));
    assert!(store.value(&name("TOKEN")).unwrap().ct_eq(b"the value of a token"));
    drop(store);
    let other = Master::random().unwrap();
    assert!(matches!(Store::open(scene.folder(), other), Err(Error::WrongMaster)));
    let again = Store::create(scene.folder(), master(), Policy::STANDARD, now(9));
    assert!(matches!(again, Err(Error::Exists { .. })));
    let empty = tempfile::tempdir().unwrap();
    fs::set_permissions(empty.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let none = Store::open(Folder::open(empty.path(), Duration::ZERO).unwrap(), master());
    assert!(matches!(none, Err(Error::NoStore { .. })));
}

#[test]
fn of_several_sources_the_one_that_fits_opens_the_store() {
    let scene = Scene::new();
    let source = |name: &str| -> Box<dyn MasterSource> { Box::new(MasterFile::new(scene.file(name))) };
    MasterFile::new(scene.file("master.key")).write(&master()).unwrap();
    let next = MasterFile::new(scene.file("master.key.next")).create().unwrap();
    let open = |names: &[&str]| {
        let mut sources: Vec<_> = names.iter().map(|name| source(name)).collect();
        Store::open_by(scene.folder(), &mut sources)
    };
    open(&["missing", "master.key.next", "master.key"]).unwrap().change_master(next, now(5)).unwrap();
    open(&["master.key", "master.key.next"]).unwrap().key(&name("data")).unwrap();
    assert!(matches!(open(&["master.key"]), Err(Error::WrongMaster)));
    assert!(matches!(open(&["missing"]), Err(Error::NoMaster { .. })));
}

#[test]
fn opening_writes_nothing() {
    let scene = Scene::new();
    fs::write(scene.file("data.key.2.new"), "left by a cut").unwrap();
    let before = copy_of(&scene.path);
    drop(scene.open().unwrap());
    assert_eq!(copy_of(&scene.path), before);
}

#[test]
fn swapped_edited_older_foreign_missing_and_readable_files_are_told_apart() {
    let scene = Scene::new();
    let (data, logs) = (scene.file("data.key"), scene.file("logs.key"));
    let (of_data, of_logs) = (fs::read(&data).unwrap(), fs::read(&logs).unwrap());
    let error = || scene.open().unwrap().key(&name("data")).unwrap_err();
    fs::write(&data, &of_logs).unwrap();
    assert!(matches!(error(), Error::Swapped { field: "name", .. }));
    let mut edited = of_data.clone();
    edited[140] ^= 1;
    fs::write(&data, &edited).unwrap();
    assert!(matches!(error(), Error::Changed { .. }));
    fs::write(&data, [7; 64]).unwrap();
    assert!(matches!(error(), Error::NotSealed { .. }));
    fs::remove_file(&data).unwrap();
    assert!(matches!(error(), Error::Missing { .. }));
    fs::write(&data, &of_data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(error().to_string().contains("chmod 600"));
    fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).unwrap();

    let mut store = scene.open().unwrap();
    let kind = KeyKind::Backup;
    let backup = name("backup-encryption");
    store.add_key(&backup, kind, Uuid::nil(), now(5)).unwrap();
    store.activate(&backup, now(5)).unwrap();
    let file = scene.file("backup-encryption.key");
    let first = fs::read(&file).unwrap();
    store.replace_key(&backup, None, OldKey::Wipe, now(6)).unwrap();
    fs::write(&file, &first).unwrap();
    assert!(matches!(store.key(&backup), Err(Error::OtherGeneration { found: 1, wanted: 2, .. })));
    let failed: Vec<String> =
        store.verify().into_iter().filter(|it| it.result.is_err()).map(|it| it.name.to_string()).collect();
    assert_eq!(failed, ["backup-encryption"]);
    assert_eq!(store.strays().unwrap(), ["backup-encryption.key"]);
}

#[test]
fn an_older_value_put_back_is_noticed() {
    let scene = Scene::new();
    let file = scene.file("secrets/TOKEN.sealed");
    let first = fs::read(&file).unwrap();
    let mut store = scene.open().unwrap();
    let token = name("TOKEN");
    store.set_value(&token, &Secret::copy_of(b"second").unwrap(), now(5)).unwrap();
    assert!(store.value(&token).unwrap().ct_eq(b"second"));
    fs::write(&file, first).unwrap();
    assert!(matches!(store.value(&token), Err(Error::OtherGeneration { found: 1, wanted: 2, .. })));
    let large = Secret::zeroed((64 << 10) + 1).unwrap();
    assert!(matches!(store.set_value(&token, &large, now(6)), Err(Error::TooLarge { .. })));
    store.remove_value(&token, now(7)).unwrap();
    assert!(matches!(store.value(&token), Err(Error::NoKey { .. })));
    assert!(!file.exists());
}

#[test]
fn hand_edited_metadata_names_the_field() {
    for (from, to, expected) in [
        ("\"epoch\": ", "\"epoch\": -", "epoch must be a whole number"),
        ("\"version\": 1", "\"version\": 2", "version is not 1"),
        ("\"state\": \"active\"", "\"state\": \"busy\"", "keys.data.generations[0].state must be one of staged"),
        ("\"state\": \"active\"", "\"state\": \"staged\"", "keys.data.generations[0].state does not fit"),
        ("\"generation\": 1,", "\"generation\": 0,", "keys.data.generations[0].generation is not above"),
        ("\"created\": \"2024", "\"created\": \"2024-", "keys.data.generations[0].created must be a time"),
        ("\"kind\": \"volume\"", "\"kind\": 3", "keys.data.kind must be text"),
        ("\"data\": {", "\"../data\": {", "keys has a bad name"),
        ("\"bytes_written\": \"0\"", "\"bytes_written\": \"-1\"", "keys.data.bytes_written must be a whole number"),
        ("\"key_rotation_days\": 90", "\"key_rotation_days\": 0", "key_rotation_days is 0; it must be 1 to"),
        ("\"policy\"", "\"polic\"", "policy is missing"),
        ("\"mac\"", "\"mic\"", "mac is missing"),
        (
            "\"kind\": \"volume\",",
            "\"kind\": \"volume\", \"rotation\": {\"from\": 1, \"to\": 2, \"step\": \"proven\", \"old_key\": \"wipe\"},",
            "keys.data.rotation.to names no generation",
        ),
        ("{", "[", "is no JSON"),
    ] {
        let scene = Scene::new();
        scene.edit(from, to);
        let error = scene.open().map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn metadata_changed_with_sense_is_noticed_too_and_white_space_is_no_change() {
    let scene = Scene::new();
    scene.edit("\"key_rotation_days\": 90", "\"key_rotation_days\": 900");
    assert!(matches!(scene.open(), Err(Error::MetadataChanged)));
    let scene = Scene::new();
    scene.edit("\"policy\":", "\"later\": [1], \"policy\":");
    assert!(matches!(scene.open(), Err(Error::MetadataChanged)));
    let scene = Scene::new();
    scene.edit("\"policy\":", "\n\n\t\"policy\"  :");
    scene.open().unwrap();
    assert_eq!(Metadata::read(&scene.folder()).unwrap().keys.len(), 2);
    fs::write(scene.file("key_metadata.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(matches!(scene.open(), Err(Error::TooLarge { .. })));
}

#[test]
fn an_older_copy_of_the_whole_store_is_noticed_by_its_head() {
    let scene = Scene::new();
    let older = copy_of(&scene.path);
    let mut store = scene.open().unwrap();
    let before = store.head();
    store.check_against(&before).unwrap();
    store.add_written(&name("data"), 1, now(10)).unwrap();
    let head: Head = store.head().to_string().parse().unwrap();
    assert_eq!(head, store.head());
    store.check_against(&before).unwrap();
    drop(store);
    for (path, content) in older {
        fs::write(path, content).unwrap();
    }
    let mut store = scene.open().unwrap();
    assert!(matches!(store.check_against(&head), Err(Error::OlderStore { .. })));
    store.add_written(&name("data"), 2, now(11)).unwrap();
    assert!(matches!(store.check_against(&head), Err(Error::ForkedStore { .. })), "the same epoch, another way");
    let other = Head { store: Uuid::nil(), ..head };
    assert!(matches!(store.check_against(&other), Err(Error::OtherStore { .. })));
    for nonsense in ["", "a:b:c", &format!("{}:1", head.store)] {
        assert!(nonsense.parse::<Head>().is_err());
    }
}

#[test]
fn an_older_metadata_does_not_make_newer_keys_go() {
    let scene = Scene::new();
    let older = fs::read(scene.file("key_metadata.json")).unwrap();
    let mut store = scene.open().unwrap();
    store.add_key(&name("later"), KeyKind::Volume, Uuid::from_bytes([9; 16]), now(5)).unwrap();
    store.activate(&name("later"), now(6)).unwrap();
    drop(store);
    fs::write(scene.file("key_metadata.json"), older).unwrap();
    let mut store = scene.open().unwrap();
    let before = fs::read(scene.file("later.key")).unwrap();
    store.set_policy(Policy::PCI_DSS, now(7)).unwrap();
    assert_eq!(store.strays().unwrap(), ["later.key"]);
    let error = store.add_key(&name("later"), KeyKind::Volume, Uuid::from_bytes([9; 16]), now(8)).unwrap_err();
    assert!(error.to_string().contains("older copy"), "{error}");
    assert_eq!(fs::read(scene.file("later.key")).unwrap(), before);
}

#[test]
fn keys_fall_due_by_policy_and_a_clock_set_back_is_reported() {
    let scene = Scene::new();
    let mut store = scene.open().unwrap();
    let due = |store: &Store<Folder>, days: u64, horizon| store.metadata().due_within(now(days * DAY_S), horizon);
    assert!(due(&store, 80, 7).keys.is_empty());
    let soon = due(&store, 84, 7);
    assert_eq!(
        soon.keys.iter().map(|key| (key.name.as_str(), key.overdue)).collect::<Vec<_>>(),
        [("data", false), ("logs", false)]
    );
    assert!(due(&store, 91, 0).keys.iter().all(|key| key.overdue));
    store.set_policy(Policy::PCI_DSS, now(31 * DAY_S)).unwrap();
    let set_back = due(&store, 0, 0);
    assert_eq!(set_back.clock_back_s, Some(31 * DAY_S), "reported");
    assert_eq!(set_back.keys.len(), 2, "and not trusted");
    store.add_written(&name("data"), 1, now(0)).unwrap();
    assert_eq!(store.metadata().updated, now(31 * DAY_S));
}

#[test]
fn written_bytes_count_towards_the_limit_of_ieee_1619() {
    let scene = Scene::new();
    let mut store = scene.open().unwrap();
    store.add_written(&name("data"), u64::MAX, now(5)).unwrap();
    store.add_written(&name("data"), u64::MAX, now(5)).unwrap();
    drop(store);
    let mut store = scene.open().unwrap();
    let record = &store.metadata().keys[&name("data")];
    assert_eq!((record.written_bytes, record.writable_bytes()), (2 * u128::from(u64::MAX), 0));
    store.volume_key_changed(&name("data"), now(6)).unwrap();
    assert_eq!(store.metadata().keys[&name("data")].writable_bytes(), 1 << 48);
}

#[test]
fn an_imported_key_keeps_its_bytes_and_the_raw_file_of_the_guide_stays() {
    let scene = Scene::new();
    let raw: Vec<u8> = (0..=255).collect();
    fs::write(scene.file("config.key"), &raw).unwrap();
    fs::set_permissions(scene.file("config.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut store = scene.open().unwrap();
    let (config, volume) = (name("config"), Uuid::from_bytes([3; 16]));
    let key = Secret::copy_of(&raw).unwrap();
    store.import_key(&config, volume, &key, now(5)).unwrap();
    store.import_key(&config, volume, &key, now(5)).unwrap();
    let other = Secret::copy_of(b"another").unwrap();
    assert!(matches!(store.import_key(&config, volume, &other, now(5)), Err(Error::State { .. })));
    let empty = Secret::zeroed(0).unwrap();
    assert!(store.import_key(&name("none"), volume, &empty, now(5)).is_err());
    assert!(!store.metadata().keys.contains_key(&name("none")));
    store.activate(&config, now(6)).unwrap();
    assert!(store.key(&config).unwrap().ct_eq(&raw));
    assert_eq!(fs::read(scene.file("config.key")).unwrap(), raw);
    // When the raw file is gone, the sealed one takes its name with the next change.
    drop(store);
    fs::remove_file(scene.file("config.key")).unwrap();
    scene.open().unwrap().set_policy(Policy::SOX, now(7)).unwrap();
    assert!(scene.open().unwrap().key(&config).unwrap().ct_eq(&raw));
    assert!(scene.file("config.key").exists() && !scene.file("config.key.1").exists());
}

#[test]
fn no_key_and_no_value_lies_in_the_folder_in_the_clear() {
    let scene = Scene::new();
    let mut store = scene.open().unwrap();
    let mut secrets = vec![store.key(&name("data")).unwrap(), store.key(&name("logs")).unwrap()];
    secrets.push(store.value(&name("TOKEN")).unwrap());
    store.change_master(Master::random().unwrap(), now(10)).unwrap();
    secrets.push(Secret::copy_of(&[0x5a; 16]).unwrap());
    drop(store);
    for (path, content) in copy_of(&scene.path) {
        for secret in &secrets {
            let part = &secret.expose()[..16];
            assert!(!content.windows(16).any(|window| window == part), "{}", path.display());
        }
    }
}
