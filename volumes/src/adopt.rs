//! `adopt`: takes over a set that the guide's scripts made: raw key files beside cryptsetup's images. Every key is proven by
//! unlocking its image, then sealed; nothing is formatted, and a raw key goes only on request, after the sealed one opened the
//! image.
//!
//! Cut anywhere, the raw keys open the images as before, and the next run goes on: a key that is sealed already counts.

mod describe;
mod ext4_root;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use keystore::{KeyKind, KeyName, KeyState, Metadata, Timestamp};
use rustix::fs::RenameFlags;
use secret::{KeyFile, Secret};
use uuid::Uuid;

use crate::audit::{Category, Event, Level};
use crate::config::{Config, VolumeSpec};
use crate::error::Trouble;
use crate::set::{Set, SetStore};
use crate::setup::{Action, Plan, Standpoint, Step};
use crate::{VolumesError, image, life};

pub use describe::{Layout, describe};

/// Longest raw key file: what cryptsetup takes.
const RAW_KEY_BYTES_MAX: u64 = 64 << 10;
/// Longest metadata of somebody else that is looked at.
const METADATA_BYTES_MAX: u64 = 1 << 20;
/// What a metadata file that is not ours is called afterwards.
const ASIDE: &str = "key_metadata.json.before-adopt";

/// The raw key of a volume, where the guide's scripts put it.
fn raw_key_path(config: &Config, volume: &VolumeSpec) -> PathBuf {
    config.store.keys.join(format!("{}.key", volume.name))
}

/// The raw key in a file that nobody else can read; none if there is no file, or a sealed one.
fn raw_key(path: &Path) -> Result<Option<Secret>, VolumesError> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumesError::io("look at", path)(error)),
    };
    let shown = path.display().to_string();
    let refused = |what: String, mend: String| Err(VolumesError::refused(Trouble::Wrong, &shown, what, mend));
    if !found.is_file() {
        return refused("is no regular file".to_owned(), format!("ls -l {shown}"));
    }
    if found.mode() & 0o077 != 0 {
        let what = format!("has mode {:04o}, so others can read the key", found.mode() & 0o7777);
        return refused(what, format!("chmod 600 {shown}"));
    }
    if found.len() == 0 || found.len() > RAW_KEY_BYTES_MAX {
        let what = format!("has {} bytes; a key file has 1 to {RAW_KEY_BYTES_MAX}", found.len());
        return refused(what, format!("ls -l {shown}"));
    }
    let key = KeyFile::whole(path).read()?;
    Ok((!key.expose().starts_with(keystore::sealed::MAGIC)).then_some(key))
}

/// The UUID of a LUKS2 image that `key` opens.
fn proven(volume: &str, path: &Path, key: &Secret, key_file: &Path) -> Result<Uuid, VolumesError> {
    let refused = |what: String, mend: String| VolumesError::refused(Trouble::Wrong, volume, what, mend);
    let shown = path.display();
    let header = image::header(path)?;
    let header =
        header.ok_or_else(|| refused(format!("{shown} is no LUKS container"), format!("luksctl check {shown}")))?;
    if header.version() != luks::Version::Luks2 {
        return Err(refused(format!("{shown} is LUKS1"), format!("luksctl convert {shown} --type luks2")));
    }
    if !image::opens(path, key)? {
        let what = format!("the key in {} does not open {shown}", key_file.display());
        return Err(refused(what, "is it another volume's key file?".to_owned()));
    }
    let id = Uuid::parse_str(&header.uuid()).ok();
    id.ok_or_else(|| refused(format!("{shown} has no valid UUID"), format!("luksctl uuid {shown}")))
}

/// What is to be done, and what is in the way. Every key that is not sealed yet is proven here.
///
/// # Errors
/// What keeps it from looking.
pub fn plan(
    config: &Config,
    names: &[String],
    store: Option<&Metadata>,
    wipe_raw_keys: bool,
) -> Result<Plan, VolumesError> {
    let mut steps = Vec::new();
    let keys = config.store.keys.display().to_string();
    let state = if store.is_some() { Standpoint::There } else { Standpoint::Missing };
    steps.push(Step::new(Action::KeyStore, keys, state, "beside the raw keys"));
    for volume in life::chosen(config, names)? {
        steps.push(adopt_step(config, volume, store));
        let path = raw_key_path(config, volume);
        if wipe_raw_keys && raw_key(&path).is_ok_and(|key| key.is_some()) {
            let note = format!("{}: zeros over it, then removed", path.display());
            steps.push(Step::new(Action::WipeRawKey, &volume.name, Standpoint::Missing, note));
        }
    }
    Ok(Plan { steps })
}

fn adopt_step(config: &Config, volume: &VolumeSpec, store: Option<&Metadata>) -> Step {
    let path = raw_key_path(config, volume);
    let place = volume.place.path();
    let note = format!("{} opens {}", path.display(), place.display());
    let blocked = |error: &VolumesError| {
        let mend = match error {
            VolumesError::Refused { mend, .. } => mend.clone(),
            _ => format!("ls -l {}", path.display()),
        };
        Step::blocked(Action::Adopt, &volume.name, error.to_string(), mend)
    };
    let record = KeyName::new(&volume.name).ok().and_then(|name| store?.keys.get(&name));
    if let Some(record) = record.filter(|record| record.active().is_some()) {
        return match image::uuid(place) {
            Ok(Some(id)) if id == record.volume => {
                Step::new(Action::Adopt, &volume.name, Standpoint::There, place.display().to_string())
            }
            Ok(_) => {
                let what = format!("{} is not the container that the key store has the key for", place.display());
                Step::blocked(Action::Adopt, &volume.name, what, format!("luksctl dump {}", place.display()))
            }
            Err(error) => blocked(&error),
        };
    }
    let found = raw_key(&path).and_then(|key| match key {
        Some(key) => proven(&volume.name, place, &key, &path).map(Some),
        None => Ok(None),
    });
    match found {
        Ok(Some(_)) => Step::new(Action::Adopt, &volume.name, Standpoint::Missing, note),
        Ok(None) => {
            let what = format!("there is no raw key {}", path.display());
            Step::blocked(Action::Adopt, &volume.name, what, "luksctl volume setup makes new volumes")
        }
        Err(error) => blocked(&error),
    }
}

/// Performs a step of [`plan`] that is missing.
///
/// # Errors
/// What kept it from being done; the raw keys and the images are as they were.
pub fn perform(set: &Set, store: &mut SetStore, step: &Step, now: Timestamp) -> Result<(), VolumesError> {
    if step.state != Standpoint::Missing || !matches!(step.action, Action::Adopt | Action::WipeRawKey) {
        return Ok(());
    }
    let chosen = life::chosen(set.config(), std::slice::from_ref(&step.target))?;
    let Some(volume) = chosen.first() else { return Ok(()) };
    let path = raw_key_path(set.config(), volume);
    let Some(key) = raw_key(&path)? else { return Ok(()) };
    match step.action {
        Action::Adopt => seal(set, store, volume, &key, &path, now)?,
        _ => wipe(set, store, volume, &key, &path)?,
    }
    set.remember(store)
}

fn seal(
    set: &Set,
    store: &mut SetStore,
    volume: &VolumeSpec,
    key: &Secret,
    path: &Path,
    now: Timestamp,
) -> Result<(), VolumesError> {
    let name = KeyName::new(&volume.name)?;
    let id = proven(&volume.name, volume.place.path(), key, path)?;
    let record = store.metadata().keys.get(&name);
    if record.is_some_and(|record| record.active().is_some() && record.volume == id) {
        return Ok(());
    }
    let event = Event::new(Category::Key, "adopt", &volume.name).detail("uuid", id);
    set.record(&event.detail("key_file", path.display()))?;
    store.import_key(&name, id, key, now)?;
    // What was sealed, not what was read, has to open the image before it counts.
    let staged = store.metadata().keys.get(&name).and_then(|record| record.in_state(KeyState::Staged));
    let number = staged.map_or(1, |staged| staged.number);
    let sealed = store.key_of(&name, number)?;
    proven(&volume.name, volume.place.path(), &sealed, path)?;
    Ok(store.activate(&name, now)?)
}

/// Destroys a raw key whose bytes are sealed in the store and open the image from there.
fn wipe(set: &Set, store: &SetStore, volume: &VolumeSpec, key: &Secret, path: &Path) -> Result<(), VolumesError> {
    let sealed = store.key(&KeyName::new(&volume.name)?)?;
    proven(&volume.name, volume.place.path(), &sealed, path)?;
    let record = store.metadata().keys.get(&KeyName::new(&volume.name)?);
    let is_ours = record.is_some_and(|record| record.kind == KeyKind::Volume);
    if !is_ours || (!sealed.ct_eq(key.expose()) && image::opens(volume.place.path(), key)?) {
        let what = format!("{} is not the key that is sealed, and opens the image, too; it stays", path.display());
        return Err(VolumesError::refused(Trouble::Wrong, &volume.name, what, "luksctl keyslot list"));
    }
    set.record(&Event::new(Category::Key, "wipe raw key", &volume.name).level(Level::Warning))?;
    let wiped = (|| {
        let mut file = File::options().write(true).open(path)?;
        let len = file.metadata()?.len();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), len), &mut file)?;
        file.flush()?;
        file.sync_all()?;
        std::fs::remove_file(path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    wiped.map_err(VolumesError::io("destroy", path))
}

/// Puts a `key_metadata.json` aside that some script wrote: it has neither our store's UUID nor an authentication code.
/// Whether there was one.
///
/// # Errors
/// [`VolumesError::Io`]; [`VolumesError::Refused`] if one was put aside before and is still there.
pub fn put_metadata_aside(config: &Config) -> Result<bool, VolumesError> {
    let path = config.store.keys.join(keystore::metadata::METADATA_FILE);
    if !is_foreign_metadata(config)? {
        return Ok(false);
    }
    let aside = config.store.keys.join(ASIDE);
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, &path, cwd, &aside, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => {
            let what = "an earlier one was put aside already";
            let mend = format!("move {} away", aside.display());
            Err(VolumesError::refused(Trouble::Busy, path.display().to_string(), what, mend))
        }
        renamed => {
            renamed.map_err(|errno| VolumesError::io("put aside", &path)(errno.into()))?;
            let synced = File::open(&config.store.keys).and_then(|folder| folder.sync_all());
            synced.map_err(VolumesError::io("sync", &config.store.keys)).map(|()| true)
        }
    }
}

/// Whether there is a `key_metadata.json` that this program did not write.
///
/// # Errors
/// [`VolumesError::Io`].
pub fn is_foreign_metadata(config: &Config) -> Result<bool, VolumesError> {
    let path = config.store.keys.join(keystore::metadata::METADATA_FILE);
    let mut text = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        opened => {
            let file = opened.map_err(VolumesError::io("read", &path))?;
            std::io::Read::read_to_end(&mut std::io::Read::take(file, METADATA_BYTES_MAX), &mut text)
                .map_err(VolumesError::io("read", &path))?;
        }
    }
    let value: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    Ok(value.is_none_or(|value| value.get("store").is_none() || value.get("mac").is_none()))
}

/// Writes the description of a set whose file is not there yet: whole or not at all, durable.
///
/// # Errors
/// [`VolumesError::Io`]; a file that appeared meanwhile stays.
pub fn write_config(path: &Path, text: &str) -> Result<(), VolumesError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(VolumesError::io("make", folder))?;
    let mut part = path.as_os_str().to_owned();
    part.push(".adopt");
    let part = PathBuf::from(part);
    let written = (|| {
        // What a killed run left, or a link that somebody put there: the name goes, not what it leads to.
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &part, cwd, path, RenameFlags::NOREPLACE)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(VolumesError::io("write", path))
}
