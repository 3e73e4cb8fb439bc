//! `setup`: from `volumes.toml` to mounted volumes, as a plan that is data: every step with whether it is there, missing, or in
//! the way. Applying does what is missing; applied again it does nothing, and cut anywhere the next run does the rest.
//!
//! What makes it safe to kill: a volume's key and UUID are in the key store, staged, before its image is begun; the image is
//! built under a name with that UUID and gets its own only when its file system is whole; then the key comes into use. So an
//! image under its name that the key store does not know is somebody else's, and is never touched.

mod build;
mod images;
mod outside;
mod perform;
mod recovery;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use keystore::Metadata;
use serde::Serialize;
use session::{RunDir, ServerCommand};

use crate::VolumesError;
use crate::config::{Config, VolumeSpec};
use crate::error::Trouble;
use crate::mount_point::{self, Standing};
use crate::{header_backup, life};

pub(crate) use build::{OneKey, open_request};
pub use outside::Outside;
pub use perform::{Performed, Performer, make_folders};
pub(crate) use recovery::{last_change, newest_backup, recovery_since};

/// Which parts of a setup are wanted; all of them by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Open and mount the volumes.
    pub mount: bool,
    /// Back the headers up.
    pub header_backup: bool,
    /// Make a recovery key, and with it the first backup of keys.
    pub recovery: bool,
}

impl Default for Parts {
    fn default() -> Parts {
        Parts { mount: true, header_backup: true, recovery: true }
    }
}

/// What a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A folder of the set.
    Folder,
    /// Room for the images.
    Space,
    /// The master key and the key store.
    KeyStore,
    /// An image with its key, its container and its file system.
    Volume,
    /// A copy of a header.
    HeaderBackup,
    /// The recovery key, proven.
    Recovery,
    /// A backup of all keys for the recovery key.
    KeyBackup,
    /// A mount point that nothing can write to while it is unused.
    MountPoint,
    /// An open and mounted volume.
    Up,
    /// Units of systemd.
    Units,
    /// The compose file.
    Compose,
    /// The file that describes the set.
    Config,
    /// A raw key, proven and sealed.
    Adopt,
    /// A raw key, destroyed.
    WipeRawKey,
}

impl Action {
    /// The word of the plan.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Action::Folder => "folder",
            Action::Space => "space",
            Action::KeyStore => "key store",
            Action::Volume => "volume",
            Action::HeaderBackup => "header backup",
            Action::Recovery => "recovery key",
            Action::KeyBackup => "key backup",
            Action::MountPoint => "mount point",
            Action::Up => "up",
            Action::Units => "units",
            Action::Compose => "compose file",
            Action::Config => "configuration",
            Action::Adopt => "adopt",
            Action::WipeRawKey => "wipe raw key",
        }
    }
}

/// How things stand about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standpoint {
    /// It is as it shall be.
    There,
    /// It is to be done.
    Missing,
    /// Something that is not ours to change keeps it from being done.
    InTheWay,
}

/// One step of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it makes.
    pub action: Action,
    /// The volume, or the folder.
    pub target: String,
    /// Whether it is there.
    pub state: Standpoint,
    /// What will be done, or what is in the way.
    pub note: String,
    /// What mends it, where something is in the way.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Step {
    pub(crate) fn new(action: Action, target: impl Into<String>, state: Standpoint, note: impl Into<String>) -> Step {
        Step { action, target: target.into(), state, note: note.into(), mend: String::new() }
    }

    /// Something that is to be done.
    #[must_use]
    pub fn missing(action: Action, target: impl Into<String>, note: impl Into<String>) -> Step {
        Step::new(action, target, Standpoint::Missing, note)
    }

    pub(crate) fn blocked(
        action: Action,
        target: impl Into<String>,
        note: impl Into<String>,
        mend: impl Into<String>,
    ) -> Step {
        Step { mend: mend.into(), ..Step::new(action, target, Standpoint::InTheWay, note) }
    }
}

/// Everything that setup would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which they are done.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|step| step.state == Standpoint::There)
    }

    /// Refuses if something is in the way, naming all of it.
    ///
    /// # Errors
    /// [`VolumesError::Refused`].
    pub fn check(&self) -> Result<(), VolumesError> {
        let blocked: Vec<&Step> = self.steps.iter().filter(|step| step.state == Standpoint::InTheWay).collect();
        let Some(first) = blocked.first() else { return Ok(()) };
        let others = blocked[1..].iter().map(|step| format!("; {} {}: {}", step.action.word(), step.target, step.note));
        let what = format!("{}{}", first.note, others.collect::<String>());
        let target = format!("{} {}", first.action.word(), first.target);
        Err(VolumesError::refused(Trouble::Busy, target, what, first.mend.clone()))
    }
}

/// Where open volumes are registered, and how their servers are started.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The registry.
    pub run: &'a RunDir,
    /// The server.
    pub server: &'a ServerCommand,
}

/// Works out what is missing. Nothing is changed. `store` is what the key store says, if there is one.
///
/// # Errors
/// What keeps it from looking.
pub fn plan(
    config: &Config,
    parts: &Parts,
    store: Option<&Metadata>,
    machine: &Machine<'_>,
) -> Result<Plan, VolumesError> {
    let mut steps = folders(config)?;
    steps.push(match store {
        Some(_) => Step::new(Action::KeyStore, shown(&config.store.keys), Standpoint::There, ""),
        None => {
            let note = "a master key if there is none, and an empty store";
            Step::new(Action::KeyStore, shown(&config.store.keys), Standpoint::Missing, note)
        }
    });
    let images = config.volumes.iter().map(|volume| images::step(volume, store));
    let images: Vec<Step> = images.collect::<Result<_, _>>()?;
    steps.extend(images::space(config, &images, store)?);
    let new_volumes = images.iter().any(|step| step.state == Standpoint::Missing);
    steps.extend(images);
    if parts.header_backup {
        for volume in &config.volumes {
            steps.push(header_backup_step(config, volume, store));
        }
    }
    if parts.recovery && config.keys.recovery {
        steps.extend(recovery::steps(config, store, new_volumes)?);
    }
    for volume in &config.volumes {
        let Some(mount) = &volume.mount else { continue };
        steps.push(mount_point_step(&volume.name, mount)?);
    }
    if parts.mount {
        for volume in &config.volumes {
            steps.push(up_step(config, volume, machine)?);
        }
    }
    Ok(Plan { steps })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn folders(config: &Config) -> Result<Vec<Step>, VolumesError> {
    let store = &config.store;
    let mut steps = Vec::new();
    for path in [&store.folder, &store.keys, &store.key_backup] {
        let step = match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Step::new(Action::Folder, shown(path), Standpoint::Missing, "mode 0700")
            }
            Err(error) => return Err(VolumesError::io("look at", path)(error)),
            Ok(found) if !found.is_dir() => {
                Step::blocked(Action::Folder, shown(path), "is no folder", format!("ls -ld {}", shown(path)))
            }
            Ok(found) if ![rustix::process::geteuid().as_raw(), 0].contains(&found.uid()) => {
                let note = format!("belongs to user {}", found.uid());
                Step::blocked(Action::Folder, shown(path), note, format!("chown it: ls -ld {}", shown(path)))
            }
            Ok(found) if found.mode() & 0o077 != 0 => {
                let note = format!("has mode {:04o}, so others can look into it", found.mode() & 0o7777);
                Step::blocked(Action::Folder, shown(path), note, format!("chmod 700 {}", shown(path)))
            }
            Ok(_) => Step::new(Action::Folder, shown(path), Standpoint::There, ""),
        };
        steps.push(step);
    }
    Ok(steps)
}

fn header_backup_step(config: &Config, volume: &VolumeSpec, store: Option<&Metadata>) -> Step {
    let active = store.and_then(|store| life::active_generation(store, &volume.name)).unwrap_or(1);
    let path = header_backup::path(config, &volume.name, active);
    let state = if path.is_file() { Standpoint::There } else { Standpoint::Missing };
    Step::new(Action::HeaderBackup, &volume.name, state, shown(&path))
}

fn mount_point_step(name: &str, path: &Path) -> Result<Step, VolumesError> {
    Ok(match mount_point::standing(path)? {
        Standing::Protected | Standing::Mounted => Step::new(Action::MountPoint, name, Standpoint::There, shown(path)),
        Standing::Missing | Standing::Open => {
            let note = format!("{}, empty and closed to everybody while unused", shown(path));
            Step::new(Action::MountPoint, name, Standpoint::Missing, note)
        }
        Standing::Used | Standing::NoFolder => {
            let note = format!("{} is no empty folder; what is in it would be hidden", shown(path));
            Step::blocked(Action::MountPoint, name, note, format!("ls -la {}; move it away", shown(path)))
        }
    })
}

fn up_step(config: &Config, volume: &VolumeSpec, machine: &Machine<'_>) -> Result<Step, VolumesError> {
    let mapping = config.mapping(volume);
    let note = match &volume.mount {
        Some(mount) => format!("{mapping} on {}", shown(mount)),
        None => format!("{mapping}, without a file system"),
    };
    let state = if life::is_up(volume, &mapping, machine)? { Standpoint::There } else { Standpoint::Missing };
    Ok(Step::new(Action::Up, &volume.name, state, note))
}
