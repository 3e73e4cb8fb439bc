//! A backup of keys opens with gpg and tar alone, and with nothing but its recovery key.
#![allow(clippy::unwrap_used)]

use keystore::{Error, Folder, KeyKind, KeyName, Master, OldKey, Policy, RecoveryKey, Store, Timestamp, key_backup};
use secret::Secret;
use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use uuid::Uuid;

const DAY_S: u64 = 86_400;

fn now(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_733_054_400 + seconds)
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

/// A store with a volume's key and two generations of the backup key, and a folder for backups.
fn scene(parent: &Path) -> (Store<Folder>, Folder) {
    let master = Master::random().unwrap();
    let keys = Folder::create(&parent.join("keys"), Duration::ZERO).unwrap();
    let mut store = Store::create(keys, master, Policy::STANDARD, now(0)).unwrap();
    for (key, kind, volume) in [("data", KeyKind::Volume, 7), ("backup-encryption", KeyKind::Backup, 0)] {
        store.add_key(&name(key), kind, Uuid::from_bytes([volume; 16]), now(1)).unwrap();
        store.activate(&name(key), now(2)).unwrap();
    }
    store.replace_key(&name("backup-encryption"), None, OldKey::Keep, now(3)).unwrap();
    (store, Folder::create(&parent.join("key-backup"), Duration::ZERO).unwrap())
}

/// Debian's gpg with a home of its own and the passphrase on a descriptor.
fn gpg(parent: &Path, passphrase: &[u8], message: &Path) -> Output {
    let home = parent.join("gnupg");
    let _ = fs::DirBuilder::new().mode(0o700).create(&home);
    let mut child = Command::new("gpg")
        .args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt"])
        .arg(message)
        .env("GNUPGHOME", &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(passphrase).unwrap();
    let output = child.wait_with_output().unwrap();
    // The agent that gpg started for this home.
    let _ = Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &home).status();
    output
}

#[test]
fn gpg_and_tar_take_every_key_out_of_a_backup() {
    if Command::new("gpg").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED keystore gpg_and_tar_take_every_key_out_of_a_backup: no gpg");
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let (mut store, mut folder) = scene(parent.path());
    let recovery = RecoveryKey::random().unwrap();
    store.set_recovery_key(&recovery, now(4)).unwrap();
    let file = key_backup::write(&store, &mut folder, now(5)).unwrap();
    assert_eq!(file, "keys_20241201_120005.tar.gz.gpg");
    let path = folder.path().join(&file);

    let opened = gpg(parent.path(), recovery.text().expose(), &path);
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    let warned = String::from_utf8_lossy(&opened.stderr).into_owned();
    assert!(!warned.to_lowercase().contains("warning") || warned.contains("home"), "{warned}");
    let out = parent.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut tar = Command::new("tar").args(["-xzf", "-", "-C"]).arg(&out).stdin(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&opened.stdout).unwrap();
    assert!(tar.wait().unwrap().success());
    assert!(store.key(&name("data")).unwrap().ct_eq(&fs::read(out.join("data.key")).unwrap()));
    let backup = name("backup-encryption");
    assert!(store.key(&backup).unwrap().ct_eq(&fs::read(out.join("backup-encryption.key")).unwrap()));
    assert!(store.key_of(&backup, 1).unwrap().ct_eq(&fs::read(out.join("backup-encryption.key.1")).unwrap()));
    assert!(fs::read_to_string(out.join("README")).unwrap().contains("cryptsetup open --key-file"));
    assert!(out.join("key_metadata.json").exists() && !out.join("recovery.key").exists());

    let wrong = gpg(parent.path(), b"0000-0000", &path);
    assert!(!wrong.status.success() && wrong.stdout.is_empty());
}

#[test]
fn a_backup_needs_a_recovery_key_and_opens_with_that_one_alone() {
    let parent = tempfile::tempdir().unwrap();
    let (mut store, mut folder) = scene(parent.path());
    assert!(matches!(key_backup::write(&store, &mut folder, now(5)), Err(Error::NoKey { .. })));
    let (first, second) = (RecoveryKey::random().unwrap(), RecoveryKey::random().unwrap());
    store.set_recovery_key(&first, now(5)).unwrap();
    let old = key_backup::write(&store, &mut folder, now(6)).unwrap();
    store.set_recovery_key(&second, now(7)).unwrap();
    assert!(store.recovery_key().unwrap().unwrap().is(&second));
    let new = key_backup::write(&store, &mut folder, now(6)).unwrap();
    assert_eq!((old.as_str(), new.as_str()), ("keys_20241201_120006.tar.gz.gpg", "keys_20241201_120007.tar.gz.gpg"));
    for (file, right, wrong) in [(&old, &first, &second), (&new, &second, &first)] {
        let message = key_backup::read(&folder, file).unwrap();
        let files = key_backup::open(right, file, &message).unwrap();
        let data = files.iter().find(|(name, _)| name == "data.key").unwrap();
        assert!(data.1.ct_eq(store.key(&name("data")).unwrap().expose()));
        assert!(matches!(key_backup::open(wrong, file, &message), Err(Error::Backup { .. })));
    }
    let typed = Secret::copy_of(&second.text().expose().to_ascii_lowercase()).unwrap();
    assert!(RecoveryKey::parse(&typed).unwrap().is(&second));
}

#[test]
fn nothing_in_a_backup_or_its_folder_is_in_the_clear() {
    let parent = tempfile::tempdir().unwrap();
    let (mut store, mut folder) = scene(parent.path());
    let recovery = RecoveryKey::random().unwrap();
    store.set_recovery_key(&recovery, now(4)).unwrap();
    key_backup::write(&store, &mut folder, now(5)).unwrap();
    let secrets = [store.key(&name("data")).unwrap(), Secret::copy_of(recovery.text().expose()).unwrap()];
    for folder in ["keys", "key-backup"] {
        for entry in
            fs::read_dir(parent.path().join(folder)).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file())
        {
            let content = fs::read(entry.unwrap().path()).unwrap();
            for secret in &secrets {
                assert!(!content.windows(16).any(|window| window == &secret.expose()[..16]));
            }
        }
    }
}

#[test]
fn backups_go_after_their_time_and_the_newest_never() {
    let parent = tempfile::tempdir().unwrap();
    let (mut store, mut folder) = scene(parent.path());
    store.set_recovery_key(&RecoveryKey::random().unwrap(), now(4)).unwrap();
    fs::write(folder.path().join("keys_mine.tar.gz.gpg"), "not one of ours").unwrap();
    for day in [0, 100, 300] {
        key_backup::write(&store, &mut folder, now(day * DAY_S)).unwrap();
    }
    assert!(key_backup::prune(&mut folder, 365, now(365 * DAY_S)).unwrap().is_empty());
    let removed = key_backup::prune(&mut folder, 365, now(366 * DAY_S)).unwrap();
    assert_eq!(removed, ["keys_20241201_120000.tar.gz.gpg"]);
    assert_eq!(key_backup::prune(&mut folder, 1, now(9_000 * DAY_S)).unwrap().len(), 1);
    assert_eq!(key_backup::list(&folder).unwrap().len(), 1, "the newest stays");
    assert!(folder.path().join("keys_mine.tar.gz.gpg").exists());
}
