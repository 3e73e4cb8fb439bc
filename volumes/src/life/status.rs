//! What a volume is doing, how old its key and its backups are, and what is wrong, if anything.

use std::path::{Path, PathBuf};

use keystore::{KeyName, Metadata, Timestamp};
use serde::Serialize;
use session::State;

use super::{active_generation, open_status};
use crate::config::{Config, VolumeSpec};
use crate::mount_point::{self, Standing};
use crate::setup::{Machine, newest_backup, recovery_since};
use crate::{VolumesError, header_backup, image};

const DAY_S: u64 = 86_400;

/// How well it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Green,
    /// It works, and something should be done.
    Yellow,
    /// It does not work, or will not open again.
    Red,
}

/// One volume of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its name as an open volume.
    pub mapping: String,
    /// The image or the device.
    pub image: PathBuf,
    /// Size of the image, in bytes.
    pub image_bytes: Option<u64>,
    /// `up`, `open` (not mounted), `down`, or what an open volume is doing.
    pub state: String,
    /// Where it is mounted.
    pub mounted: Option<PathBuf>,
    /// What serves it.
    pub backend: Option<String>,
    /// Bytes of its file system.
    pub size_bytes: Option<u64>,
    /// Bytes in use.
    pub used_bytes: Option<u64>,
    /// Age of the key in use, in days.
    pub key_age_days: Option<u64>,
    /// Generation of the key in use.
    pub key_generation: Option<u64>,
    /// Age of the newest backup of keys, in days.
    pub key_backup_age_days: Option<u64>,
    /// Whether there is a header backup for the key in use.
    pub header_backup: bool,
    /// How well it is.
    pub health: Health,
    /// What is wrong, and what to do.
    pub problems: Vec<String>,
}

/// What is found on the way.
struct Findings(Vec<(Health, String)>);

impl Findings {
    fn add(&mut self, health: Health, what: impl Into<String>) {
        self.0.push((health, what.into()));
    }
}

/// Looks at one volume. `store` is what the key store says; it need not be authenticated.
///
/// # Errors
/// What keeps it from looking at all; what is wrong with the volume is part of the answer.
pub fn status(
    config: &Config,
    volume: &VolumeSpec,
    store: Option<&Metadata>,
    machine: &Machine<'_>,
    now: Timestamp,
) -> Result<VolumeStatus, VolumesError> {
    let mapping = config.mapping(volume);
    let path = volume.place.path();
    let mut found = Findings(Vec::new());
    let open = open_status(&mapping, machine)?;
    let mounted = open.as_ref().and_then(|status| {
        let wanted = volume.mount.as_ref().filter(|mount| status.mount_points.contains(mount));
        wanted.or(status.mount_points.first()).cloned()
    });
    let state = match open.as_ref().map(|status| status.state) {
        None => "down".to_owned(),
        Some(State::Open) if mounted.is_some() || volume.mount.is_none() => "up".to_owned(),
        Some(State::Open) => "open".to_owned(),
        Some(state) => {
            found.add(Health::Red, format!("it is {state:?}: luksctl volume down {}", volume.name).to_lowercase());
            format!("{state:?}").to_lowercase()
        }
    };
    let (size_bytes, used_bytes) = mounted.as_deref().map_or((None, None), usage);
    keys(config, volume, store, now, &mut found);
    look_at_image(volume, store, &mut found);
    if let Some(mount) = volume.mount.as_deref() {
        look_at_mount_point(volume, mount, mounted.as_deref(), &mut found);
    }
    let backup = newest_backup(config).ok().flatten();
    if store.is_some_and(|store| recovery_since(store).is_none()) {
        found.add(Health::Yellow, "there is no recovery key: `luksctl volume setup` makes one");
    } else if backup.is_none() {
        found.add(Health::Yellow, "there is no backup of the keys: luksctl volume setup");
    }
    let generation = store.and_then(|store| active_generation(store, &volume.name));
    let has_backup = generation.is_some_and(|number| header_backup::path(config, &volume.name, number).is_file());
    if generation.is_some() && !has_backup {
        found.add(Health::Yellow, "there is no header backup for the key in use: luksctl volume setup");
    }
    Ok(VolumeStatus {
        name: volume.name.clone(),
        mapping,
        image: path.to_owned(),
        image_bytes: image_bytes(path),
        state,
        mounted,
        backend: open.and_then(|status| status.backend),
        size_bytes,
        used_bytes,
        key_age_days: key_since(volume, store).map(|since| age_days(since, now)),
        key_generation: generation,
        key_backup_age_days: backup.map(|time| age_days(time, now)),
        header_backup: has_backup,
        health: found.0.iter().map(|(health, _)| *health).max().unwrap_or(Health::Green),
        problems: found.0.into_iter().map(|(_, what)| what).collect(),
    })
}

fn age_days(since: Timestamp, now: Timestamp) -> u64 {
    now.seconds().saturating_sub(since.seconds()) / DAY_S
}

fn key_since(volume: &VolumeSpec, store: Option<&Metadata>) -> Option<Timestamp> {
    let record = store?.keys.get(&KeyName::new(&volume.name).ok()?)?;
    record.active()?.activated
}

fn keys(config: &Config, volume: &VolumeSpec, store: Option<&Metadata>, now: Timestamp, found: &mut Findings) {
    let Some(since) = key_since(volume, store) else {
        return found.add(Health::Red, "it has no key in use: luksctl volume setup");
    };
    if since.plus_days(config.keys.rotation_days) <= now {
        let days = age_days(since, now);
        found.add(Health::Yellow, format!("its key is {days} days old: luksctl key rotate {}", volume.name));
    }
    let record = KeyName::new(&volume.name).ok().and_then(|name| store?.keys.get(&name));
    if record.is_some_and(|record| record.rotation.is_some()) {
        found.add(Health::Yellow, "a rotation of its key was cut off; `luksctl volume up` settles it");
    }
}

fn image_bytes(path: &Path) -> Option<u64> {
    use block::BlockIo as _;
    image::disk(path, true).ok().map(|disk| disk.geometry().size.0)
}

fn look_at_image(volume: &VolumeSpec, store: Option<&Metadata>, found: &mut Findings) {
    let path = volume.place.path();
    let wanted = KeyName::new(&volume.name).ok().and_then(|name| store?.keys.get(&name)).map(|record| record.volume);
    if path.symlink_metadata().is_err() {
        return found.add(Health::Red, format!("{} is not there: luksctl volume setup", path.display()));
    }
    match image::uuid(path) {
        Err(error) => found.add(Health::Red, error.to_string()),
        Ok(None) => found.add(Health::Red, format!("{} is no LUKS container", path.display())),
        Ok(id) if wanted.is_some() && id != wanted => {
            found.add(Health::Red, format!("{} was replaced: its key is for another container", path.display()));
        }
        Ok(_) => {}
    }
    if let Ok(Some(header)) = image::header(path)
        && let Some(advice) = header.advice()
    {
        found.add(Health::Yellow, format!("its header: {advice}: luksctl repair {}", path.display()));
    }
}

fn look_at_mount_point(volume: &VolumeSpec, mount: &Path, mounted: Option<&Path>, found: &mut Findings) {
    let shown = mount.display();
    if mounted == Some(mount) {
        return;
    }
    match mount_point::standing(mount) {
        Ok(Standing::Protected) => {}
        Ok(Standing::Open) => found.add(Health::Yellow, format!("{shown} can be written to while it is not mounted")),
        Ok(Standing::Missing) => found.add(Health::Yellow, format!("{shown} is not there: luksctl volume setup")),
        Ok(Standing::Used | Standing::NoFolder) => {
            found.add(Health::Red, format!("{shown} holds something that is not encrypted: ls -la {shown}"));
        }
        Ok(Standing::Mounted) => {
            found.add(Health::Red, format!("something else than {} is mounted on {shown}", volume.name));
        }
        Err(error) => found.add(Health::Yellow, error.to_string()),
    }
}

/// Size of a file system, and how much of it is in use.
fn usage(mount: &Path) -> (Option<u64>, Option<u64>) {
    let Ok(found) = rustix::fs::statvfs(mount) else { return (None, None) };
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    (Some(bytes(found.f_blocks)), Some(bytes(found.f_blocks.saturating_sub(found.f_bfree))))
}
