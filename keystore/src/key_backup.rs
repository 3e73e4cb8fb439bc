//! Backups of all keys for the recovery key: `keys_TIME.tar.gz.gpg`, which gpg, tar and cryptsetup alone open.
//!
//! Inside: each generation that is not wiped as a raw key file, `key_metadata.json`, and a README with the commands. The
//! recovery key is kept in the store, sealed like any other, so that each change of a key can write a backup without a
//! person; the store's master secret opens all the keys anyway.
//!
//! Invariants: plaintext is in locked memory only; a backup has its name only when it is whole and was opened again; the
//! newest is never removed; the text of a backup's time is its name, not the time of the file.

use crate::files::{Files, folder_of, replace};
use crate::limits::BACKUP_BYTES_MAX;
use crate::metadata::METADATA_FILE;
use crate::tarball::{Entry, entries, tarball};
use crate::{Error, KeyKind, KeyName, KeyState, OldKey, RecoveryKey, Store, Timestamp, openpgp};
use secret::Secret;

const PREFIX: &str = "keys_";
const SUFFIX: &str = ".tar.gz.gpg";
/// Under which name the store keeps the recovery key.
const RECOVERY: &str = "recovery";
/// Overhead of tar, gzip and OpenPGP.
const MESSAGE_BYTES_MAX: usize = BACKUP_BYTES_MAX + (64 << 10);
/// Backups with the same second.
const SAME_SECOND_MAX: u64 = 60;

const README: &str = "\
Keys of encrypted volumes. Without any program of ours:

  gpg --decrypt keys_TIME.tar.gz.gpg | tar -xzf - -C FOLDER      (the passphrase is the recovery key, with hyphens)
  cryptsetup open --key-file FOLDER/NAME.key IMAGE NAME

FOLDER should be on a tmpfs, and not the folder of the key store. NAME.key opens the volume as it is;
NAME.key.N opened it before or opens older backups of its header. key_metadata.json says which is which.
backup-encryption.key is the key that backups of data are encrypted with.
";

fn recovery_name() -> Result<KeyName, Error> {
    KeyName::new(RECOVERY)
}

impl<F: Files> Store<F> {
    /// Keeps `key` as the recovery key from now on, sealed; the one before stays, as older backups need it.
    ///
    /// # Errors
    /// As [`Store::add_key`] and [`Store::replace_key`].
    pub fn set_recovery_key(&mut self, key: &RecoveryKey, now: Timestamp) -> Result<(), Error> {
        let name = recovery_name()?;
        self.add_empty(&name, KeyKind::Recovery, now)?;
        self.replace_key(&name, Some(key.text()), OldKey::Keep, now)
    }

    /// The recovery key that backups are written for; `None` if there is none.
    ///
    /// # Errors
    /// As [`Store::key`].
    pub fn recovery_key(&self) -> Result<Option<RecoveryKey>, Error> {
        let name = recovery_name()?;
        let is_there = self.metadata().keys.get(&name).is_some_and(|record| record.active().is_some());
        if is_there { RecoveryKey::parse(&self.key(&name)?).map(Some) } else { Ok(None) }
    }

    /// Every key as its raw key file, in a tar archive.
    fn archive(&self, now: Timestamp) -> Result<Secret, Error> {
        let mut keys = Vec::new();
        for (name, record) in self.metadata().keys.iter().filter(|(_, record)| record.kind != KeyKind::Recovery) {
            for generation in record.live() {
                let is_active = generation.state == KeyState::Active;
                let number = if is_active { String::new() } else { format!(".{}", generation.number) };
                match self.key_if_there(name, generation.number)? {
                    Some(key) => keys.push((format!("{name}.key{number}"), key)),
                    // Staged, and not made yet.
                    None if generation.state == KeyState::Staged => {}
                    None => return Err(Error::Missing { file: format!("{name}.key{number}") }),
                }
            }
        }
        let metadata = self.files().read(METADATA_FILE, crate::limits::METADATA_BYTES_MAX)?.unwrap_or_default();
        let mut entries = vec![
            Entry { name: "README".to_owned(), content: README.as_bytes() },
            Entry { name: METADATA_FILE.to_owned(), content: &metadata },
        ];
        entries.extend(keys.iter().map(|(name, key)| Entry { name: name.clone(), content: key.expose() }));
        tarball(&entries, now)
    }
}

/// Writes a backup of all keys of `store` into `folder`, opens it again, and gives it its name, which is returned.
///
/// # Errors
/// [`Error::NoKey`] without a recovery key, what [`Store::key_of`] refuses, [`Error::Backup`] if what was written does not
/// open, and as [`Files`].
pub fn write<F: Files>(store: &Store<F>, folder: &mut dyn Files, now: Timestamp) -> Result<String, Error> {
    let recovery = store.recovery_key()?.ok_or_else(|| Error::NoKey { name: RECOVERY.to_owned() })?;
    // Two changes in one second: the later one bears the next.
    let taken: Vec<Timestamp> = list(folder)?.into_iter().map(|(time, _)| time).collect();
    let seconds = (0..SAME_SECOND_MAX).map(|later| Timestamp::from_seconds(now.seconds() + later));
    let time = seconds.into_iter().find(|time| !taken.contains(time)).unwrap_or(now);
    let stem = format!("{PREFIX}{}", time.stamp());
    let archive = store.archive(time)?;
    let message = openpgp::seal(recovery.text(), &format!("{stem}.tar.gz"), &archive, time)?;
    let file = format!("{stem}{SUFFIX}");
    let opened = openpgp::open(recovery.text(), &message)?;
    if !opened.is_some_and(|opened| opened.ct_eq(archive.expose())) {
        return Err(Error::Backup { file, problem: "what was encrypted does not open again" });
    }
    replace(folder, &file, &message)?;
    if folder.read(&file, MESSAGE_BYTES_MAX)?.as_deref() != Some(&message[..]) {
        return Err(Error::Backup { file, problem: "what was written does not read back" });
    }
    Ok(file)
}

/// The backups in `folder` with their times, the oldest first.
///
/// # Errors
/// As [`Files::list`].
pub fn list(folder: &dyn Files) -> Result<Vec<(Timestamp, String)>, Error> {
    let time = |name: &str| Timestamp::from_stamp(name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?);
    let names = folder.list("")?.into_iter();
    let mut found: Vec<(Timestamp, String)> = names.filter_map(|name| Some((time(&name)?, name))).collect();
    found.sort();
    Ok(found)
}

/// Removes the backups that are older than `retention_days`, but never the newest; their names.
///
/// # Errors
/// As [`Files`].
pub fn prune(folder: &mut dyn Files, retention_days: u32, now: Timestamp) -> Result<Vec<String>, Error> {
    let mut backups = list(folder)?;
    backups.pop();
    backups.retain(|(time, _)| time.plus_days(retention_days) < now);
    let mut removed = Vec::new();
    for (_, name) in backups {
        folder.remove(&name)?;
        folder.sync_folder(folder_of(&name))?;
        removed.push(name);
    }
    Ok(removed)
}

/// The files in backup `file`, whose content is `message`: for the proof that the recovery key opens the volumes.
///
/// # Errors
/// [`Error::Backup`] if the recovery key does not open it, or it is damaged.
pub fn open(recovery: &RecoveryKey, file: &str, message: &[u8]) -> Result<Vec<(String, Secret)>, Error> {
    let refused = |problem| Error::Backup { file: file.to_owned(), problem };
    let archive = openpgp::open(recovery.text(), message)?;
    let archive = archive.ok_or_else(|| refused("the recovery key does not open it, or it is damaged"))?;
    entries(&archive)?.ok_or_else(|| refused("it does not hold the archive that is written here"))
}

/// Reads the backup `file` in `folder`, for [`open`].
///
/// # Errors
/// [`Error::Missing`], and as [`Files::read`].
pub fn read(folder: &dyn Files, file: &str) -> Result<Vec<u8>, Error> {
    folder.read(file, MESSAGE_BYTES_MAX)?.ok_or_else(|| Error::Missing { file: file.to_owned() })
}
