//! The master secret of a set's store: its source, as the configuration names it, and a change of it.
//!
//! While a file or a passphrase changes there are two: the new one lies beside the old one (`FILE.next`, `master.kdf.next`)
//! until the store hangs on it. The store says which of the two is right; [`Set::store`] finishes what was cut off.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use keystore::master::{
    Argon2Cost, MasterCommand, MasterCredential, MasterFile, MasterKeyring, MasterPassphrase, MasterSource as _,
    PASSPHRASE_FILE, PassphraseSalt,
};
use keystore::{Files as _, Folder, Master, Metadata, files::replace};
use secret::{KeyProvider, KeyRequest, KeySourceError, Secret};

use super::{STORE_TARGET, Set, SetStore};
use crate::VolumesError;
use crate::approval::{self, Operation};
use crate::audit::{Category, Event};
use crate::config::MasterSource;

/// How long a command may take to print the master secret.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// What deriving the master secret from a passphrase costs.
#[cfg(not(test))]
const PASSPHRASE_COST: Argon2Cost = Argon2Cost::DEFAULT;
/// As little as can be: tests derive often.
#[cfg(test)]
const PASSPHRASE_COST: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
/// Longest line of `master.kdf`.
const SALT_BYTES_MAX: usize = 512;
/// A file that is overwritten has at most so many bytes: the most that a master secret has.
const ZEROED_BYTES_MAX: usize = 8 << 10;
/// What stands behind the name of what comes next.
const NEXT: &str = ".next";

type Source = Box<dyn keystore::master::MasterSource>;

/// The person to ask, shared by the sources of one command.
struct Asked(Rc<RefCell<Box<dyn KeyProvider>>>);

impl KeyProvider for Asked {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        self.0.borrow_mut().key_for(request)
    }
}

/// Nobody to ask.
struct Nobody;

impl KeyProvider for Nobody {
    fn key_for(&mut self, _: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        Ok(None)
    }
}

fn next_of(path: &Path) -> PathBuf {
    let mut next = path.as_os_str().to_owned();
    next.push(NEXT);
    next.into()
}

/// One place where the master secret may be.
pub(super) struct Candidate {
    source: Source,
    /// Whether it is the place of the next one, while the master secret changes.
    pub(super) is_next: bool,
}

impl Set {
    fn provider(&self) -> Box<dyn KeyProvider> {
        match &self.asked {
            Some(asked) => Box::new(Asked(Rc::clone(asked))),
            None => Box::new(Nobody),
        }
    }

    /// Where the master secret may be found: the configured source, and the next one where a change was cut off.
    fn candidates(&self, folder: &Folder) -> Result<Vec<Candidate>, VolumesError> {
        let now = |source: Source| Candidate { source, is_next: false };
        Ok(match &self.config.keys.master {
            MasterSource::File(path) => {
                let next = next_of(path);
                let mut candidates = vec![now(Box::new(MasterFile::new(path)))];
                if next.symlink_metadata().is_ok() {
                    candidates.push(Candidate { source: Box::new(MasterFile::new(next)), is_next: true });
                }
                candidates
            }
            MasterSource::Passphrase => {
                let Some(salt) = read_salt(folder, PASSPHRASE_FILE)? else {
                    let what = format!("{PASSPHRASE_FILE}, which has the salt of the passphrase");
                    return Err(keystore::Error::NoMaster { what }.into());
                };
                let mut candidates = vec![now(Box::new(MasterPassphrase::new(self.provider(), salt)))];
                // Half of a line is none.
                if let Ok(Some(salt)) = read_salt(folder, &format!("{PASSPHRASE_FILE}{NEXT}")) {
                    let source = Box::new(MasterPassphrase::new(self.provider(), salt));
                    candidates.push(Candidate { source, is_next: true });
                }
                candidates
            }
            MasterSource::Credential(name) => vec![now(Box::new(MasterCredential::new(name.as_str())))],
            MasterSource::Keyring(description) => vec![now(Box::new(MasterKeyring::new(description.as_str())))],
            MasterSource::Command(words) => {
                let (program, arguments) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
                vec![now(Box::new(MasterCommand::new(program, arguments.to_vec(), COMMAND_PATIENCE)))]
            }
        })
    }

    /// The master secret that the store in `folder` hangs on, and whether it is the next one.
    pub(super) fn master_of(&self, folder: &Folder) -> Result<(Master, bool), VolumesError> {
        let metadata = Metadata::read(folder)?;
        let mut refused = None;
        for mut candidate in self.candidates(folder)? {
            match candidate.source.fetch() {
                Ok(master) if master.id(metadata.store)? == metadata.master_id => {
                    return Ok((master, candidate.is_next));
                }
                Err(error) if !candidate.is_next => refused = Some(error),
                _ => {}
            }
        }
        Err(refused.unwrap_or(keystore::Error::WrongMaster).into())
    }

    /// The master secret of a store that is about to be made.
    pub(super) fn new_master(&self, folder: &mut Folder) -> Result<Master, VolumesError> {
        match &self.config.keys.master {
            MasterSource::File(path) => match MasterFile::new(path).fetch() {
                Err(keystore::Error::NoMaster { .. }) => Ok(MasterFile::new(path).create()?),
                fetched => Ok(fetched?),
            },
            MasterSource::Passphrase => {
                let salt = match read_salt(folder, PASSPHRASE_FILE)? {
                    Some(salt) => salt,
                    None => PassphraseSalt::random(PASSPHRASE_COST)?,
                };
                let master = MasterPassphrase::new(self.provider(), salt.clone()).fetch()?;
                replace(folder, PASSPHRASE_FILE, salt.to_text().as_bytes())?;
                Ok(master)
            }
            _ => {
                let first = self.candidates(folder)?.into_iter().next();
                Ok(first.ok_or(keystore::Error::WrongMaster)?.source.fetch()?)
            }
        }
    }

    /// Gives the store a new master secret. A file gets 64 new random bytes, a passphrase is asked of `provider`; for every
    /// other source `provider` has the bytes that the person gives the source.
    ///
    /// # Errors
    /// [`VolumesError::Unapproved`], [`VolumesError::KeyStore`]; the store opens with the old or the new one at every moment.
    pub fn change_master(&self, store: &mut SetStore, mut provider: Box<dyn KeyProvider>) -> Result<(), VolumesError> {
        approval::demand(self, Operation::RotateMaster, "")?;
        let now = store.metadata().trusted(Set::now());
        let master = match &self.config.keys.master {
            MasterSource::File(path) => MasterFile::new(next_of(path)).create()?,
            MasterSource::Passphrase => {
                let salt = PassphraseSalt::random(PASSPHRASE_COST)?;
                let master = MasterPassphrase::new(provider, salt.clone()).fetch()?;
                let path = self.config.store.keys.join(format!("{PASSPHRASE_FILE}{NEXT}"));
                write_new(&path, salt.to_text().as_bytes()).map_err(VolumesError::io("write", path))?;
                master
            }
            _ => {
                let purpose = secret::Purpose::NewPassphrase;
                let new = provider.key_for(&KeyRequest { volume: "the key store", purpose, attempt: 1 })?;
                let what = "what was given for the new one";
                Master::new(new.ok_or_else(|| keystore::Error::NoMaster { what: what.to_owned() })?, what)?
            }
        };
        store.change_master(master, now)?;
        self.record(&Event::new(Category::Key, "rotate-master", STORE_TARGET).detail("epoch", store.metadata().epoch))?;
        self.remember(store)?;
        self.settle_master(true)
    }

    /// Puts the next source in the place of the old one if the store hangs on it, or removes it.
    pub(super) fn settle_master(&self, is_next: bool) -> Result<(), VolumesError> {
        let path = match &self.config.keys.master {
            MasterSource::File(path) => path.clone(),
            MasterSource::Passphrase => self.config.store.keys.join(PASSPHRASE_FILE),
            _ => return Ok(()),
        };
        let next = next_of(&path);
        if next.symlink_metadata().is_err() {
            return Ok(());
        }
        if is_next {
            take_place(&next, &path).map_err(VolumesError::io("replace", path))
        } else {
            destroy(&next).map_err(VolumesError::io("destroy", next))
        }
    }
}

fn read_salt(folder: &Folder, name: &str) -> Result<Option<PassphraseSalt>, keystore::Error> {
    let Some(content) = folder.read(name, SALT_BYTES_MAX)? else { return Ok(None) };
    PassphraseSalt::from_text(&String::from_utf8_lossy(&content)).map(Some)
}

fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A new file of mode 0600, durably.
fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    sync_folder_of(path)
}

fn zero(mut file: &File) -> std::io::Result<()> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    file.write_all(&vec![0; len.min(ZEROED_BYTES_MAX)])?;
    file.sync_all()
}

/// Zeros over a small file, then removes it, both durably.
pub(super) fn destroy(path: &Path) -> std::io::Result<()> {
    zero(&File::options().write(true).open(path)?)?;
    std::fs::remove_file(path)?;
    sync_folder_of(path)
}

/// Gives `next` the name `path`; the content that had it is overwritten.
fn take_place(next: &Path, path: &Path) -> std::io::Result<()> {
    let old = File::options().write(true).open(path);
    std::fs::rename(next, path)?;
    sync_folder_of(path)?;
    match old {
        Ok(old) => zero(&old),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
