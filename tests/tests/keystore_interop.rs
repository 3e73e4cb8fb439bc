//! The key store and the programs that come without us: cryptsetup confirms the slots after a rotation, and a backup of keys
//! opens every volume with gpg, tar and cryptsetup alone.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keystore::{
    BoxedError, Folder, KeyKind, KeyName, Master, OldKey, Outcome, Policy, RecoveryKey, Slots, Store, Timestamp,
    key_backup, rotate,
};
use promises::Rig;
use promises::rig::{run, run_with_input, succeed, words};
use promises::skip::needs_programs;
use secret::Secret;
use serde_json::Value;
use uuid::Uuid;

const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
const VOLUME: Uuid = Uuid::from_u128(0x1f0e_3dad_9990_4bb0_8cbd_0c9b_3c58_1234);

fn now(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_733_054_400 + seconds)
}

/// The keyslots of an image, in the hands of cryptsetup.
struct Cryptsetup {
    image: PathBuf,
    folder: PathBuf,
}

impl Cryptsetup {
    fn key_file(&self, name: &str, key: &Secret) -> PathBuf {
        let path = self.folder.join(name);
        let _ = fs::remove_file(&path);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, key.expose()).unwrap();
        path
    }

    fn format(&self, key: &Secret) {
        fs::File::create(&self.image).unwrap().set_len(17 << 20).unwrap();
        let uuid = VOLUME.to_string();
        let mut command = Command::new("cryptsetup");
        command.args(["luksFormat", "--batch-mode", "--type", "luks2", "--uuid", &uuid]).args(CHEAP);
        succeed(command.arg("--key-file").arg(self.key_file("first", key)).arg(&self.image));
    }

    /// The numbers of the keyslots that are in use.
    fn slots(&self) -> Vec<String> {
        let dump = succeed(Command::new("cryptsetup").args(["luksDump", "--dump-json-metadata"]).arg(&self.image));
        let metadata: Value = serde_json::from_slice(&dump.stdout).unwrap();
        metadata["keyslots"].as_object().unwrap().keys().cloned().collect()
    }
}

fn opens(image: &Path, key_file: &Path) -> bool {
    let mut command = Command::new("cryptsetup");
    run(command.args(["open", "--test-passphrase", "--key-file"]).arg(key_file).arg(image)).status.success()
}

impl Slots for Cryptsetup {
    fn opens(&mut self, key: &Secret) -> Result<bool, BoxedError> {
        Ok(opens(&self.image, &self.key_file("tested", key)))
    }

    fn add(&mut self, existing: &Secret, new: &Secret) -> Result<(), BoxedError> {
        let (existing, new) = (self.key_file("existing", existing), self.key_file("new", new));
        let mut command = Command::new("cryptsetup");
        command.args(["luksAddKey", "--batch-mode"]).args(CHEAP).arg("--key-file").arg(existing);
        succeed(command.arg(&self.image).arg(new));
        Ok(())
    }

    fn remove(&mut self, key: &Secret, _: &Secret) -> Result<(), BoxedError> {
        let key = self.key_file("removed", key);
        succeed(Command::new("cryptsetup").args(["luksRemoveKey", "--batch-mode"]).arg(&self.image).arg(key));
        Ok(())
    }
}

/// A store whose key `data` opens an image that cryptsetup made with it.
fn scene(rig: &Rig) -> (Store<Folder>, Cryptsetup, KeyName) {
    let folder = Folder::create(&rig.path("keys"), Duration::ZERO).unwrap();
    let mut store = Store::create(folder, Master::random().unwrap(), Policy::STANDARD, now(0)).unwrap();
    let data = KeyName::new("data").unwrap();
    store.add_key(&data, KeyKind::Volume, VOLUME, now(1)).unwrap();
    let slots = Cryptsetup { image: rig.path("data.img"), folder: rig.path(".") };
    slots.format(&store.key_of(&data, 1).unwrap());
    store.activate(&data, now(2)).unwrap();
    (store, slots, data)
}

#[test]
fn cryptsetup_confirms_the_slots_of_a_rotation() {
    if !needs_programs("keystore_interop rotation", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("keystore-rotation");
    let (mut store, mut slots, data) = scene(&rig);
    let old = store.key(&data).unwrap();
    let rotated = rotate(&mut store, &data, &mut slots, OldKey::Wipe, now(100)).unwrap();
    assert_eq!(rotated, Outcome::Rotated { from: 1, to: 2 });
    assert_eq!(slots.slots(), ["1"]);
    let new = store.key(&data).unwrap();
    assert!(slots.opens(&new).unwrap() && !slots.opens(&old).unwrap());
}

#[test]
fn gpg_tar_and_cryptsetup_alone_open_every_volume() {
    if !needs_programs("keystore_interop backup", &["cryptsetup", "gpg", "gpgconf", "tar"]) {
        return;
    }
    let rig = Rig::new("keystore-backup");
    let (mut store, mut slots, data) = scene(&rig);
    let recovery = RecoveryKey::random().unwrap();
    store.set_recovery_key(&recovery, now(3)).unwrap();
    rotate(&mut store, &data, &mut slots, OldKey::Keep, now(100)).unwrap();
    let mut backups = Folder::create(&rig.path("key-backup"), Duration::ZERO).unwrap();
    let file = key_backup::write(&store, &mut backups, now(101)).unwrap();

    let (home, out) = (rig.path("gnupg"), rig.path("out"));
    for folder in [&home, &out] {
        fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
    }
    let mut gpg = Command::new("gpg");
    gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt"]);
    let opened = run_with_input(gpg.arg(backups.path().join(&file)).env("GNUPGHOME", &home), recovery.text().expose());
    // The agent that gpg started for this home.
    run(Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &home));
    assert!(opened.status.success(), "{}", words(&opened));
    let unpacked = run_with_input(Command::new("tar").args(["-xzf", "-", "-C"]).arg(&out), &opened.stdout);
    assert!(unpacked.status.success(), "{}", words(&unpacked));
    assert!(opens(&slots.image, &out.join("data.key")), "the active key");
    assert!(!opens(&slots.image, &out.join("data.key.1")), "the old key opens older header backups only");
}
