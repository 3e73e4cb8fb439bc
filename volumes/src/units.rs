//! The set as systemd units: what opens it at boot, mounts it, closes it at shutdown and turns its keys, as files.
//!
//! * `APP-volumes-open.service` opens every volume and mounts none; each `.mount` unit is made by PID 1 out of the device's
//!   stable link in `/run/luksctl`; `APP-volumes.service` is there when all of it is. A drop-in makes `docker.service` wait for
//!   the mounts. A weekly timer turns the keys that fall due.
//! * Nothing that the configuration holds can end a line or a word of a unit: see `word`.
//! * Every file begins with [`mark`]; a file without it is somebody else's and stays as it is.
//!
//! Source: systemd.unit(5), systemd.service(5), systemd.mount(5), systemd.timer(5), systemd.exec(5), systemd-escape(1).

mod hardening;
mod install;
mod text;
mod word;

use std::path::{Path, PathBuf};

use crate::config::{Config, FileSystem, MasterSource, VolumeSpec};
use crate::{Trouble, VolumesError};

pub use install::{Installed, Put, install, installed, put};

/// Where the system's administrator keeps units.
pub const UNIT_FOLDER: &str = "/etc/systemd/system";
/// Where an encrypted credential is looked for.
const ENCRYPTED_CREDENTIALS: &str = "/etc/credstore.encrypted";
/// Where a plain one is.
const PLAIN_CREDENTIALS: &str = "/etc/credstore";

/// Longest name of a unit.
const UNIT_NAME_MAX: usize = 255;

/// A file of the unit folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFile {
    /// Its path in the folder.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// What the units name beside the set itself.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// The program that opens volumes and turns keys.
    pub program: &'a Path,
    /// The set's file.
    pub config: &'a Path,
    /// Whether the master key's credential is encrypted; the folders of credentials are asked where nobody says.
    pub encrypted_credential: Option<bool>,
}

/// Names of the units of a set.
pub(crate) struct Names<'a> {
    application: &'a str,
}

impl Names<'_> {
    fn volumes(&self) -> String {
        format!("{}-volumes.service", self.application)
    }

    fn open(&self) -> String {
        format!("{}-volumes-open.service", self.application)
    }

    fn rotation(&self, kind: &str) -> String {
        format!("{}-key-rotation.{kind}", self.application)
    }
}

/// The first line of each file of the application `application`.
#[must_use]
pub fn mark(application: &str) -> String {
    format!("# Written by `luksctl volume units` for {application}: change volumes.toml and run it again.\n")
}

/// The unit that mounts the file system at `mount`.
#[must_use]
pub fn mount_unit(mount: &Path) -> String {
    format!("{}.mount", word::escaped_path(mount))
}

/// The unit that is there when all volumes are mounted.
#[must_use]
pub fn main_unit(config: &Config) -> String {
    Names { application: &config.store.application }.volumes()
}

/// The timer that turns keys.
#[must_use]
pub fn timer_unit(config: &Config) -> String {
    Names { application: &config.store.application }.rotation("timer")
}

/// Every unit of the set.
///
/// # Errors
/// [`VolumesError::Refused`] for what no unit can do: a master key that a person types, a path that a unit cannot hold.
pub fn units(config: &Config, around: &Around<'_>) -> Result<Vec<UnitFile>, VolumesError> {
    let names = Names { application: &config.store.application };
    check(config, around)?;
    let mounted = mounted(config);
    let file = |path: String, text: String| UnitFile { path: path.into(), text: mark(names.application) + &text };
    let credential = credential(config, around);
    let mut files = vec![
        file(names.volumes(), text::volumes(config, &names, &mounted)),
        file(names.open(), text::open(config, &names, around, credential.as_deref())),
        file(names.rotation("service"), text::rotation(config, around, credential.as_deref())),
        file(names.rotation("timer"), text::timer(config)),
    ];
    files.extend(
        mounted.iter().map(|(volume, mount)| file(mount_unit(mount), text::mount(config, &names, volume, mount))),
    );
    if !mounted.is_empty() {
        let drop_in = format!("docker.service.d/50-{}-volumes.conf", names.application);
        files.push(file(drop_in, text::docker(&mounted)));
    }
    Ok(files)
}

/// The volumes with a mount point, and it.
pub(crate) fn mounted(config: &Config) -> Vec<(&VolumeSpec, &Path)> {
    let with = config.volumes.iter().filter(|volume| volume.file_system != FileSystem::None);
    with.filter_map(|volume| Some((volume, volume.mount.as_deref()?))).collect()
}

fn check(config: &Config, around: &Around<'_>) -> Result<(), VolumesError> {
    let refused =
        |target: String, what: &str, mend: &str| Err(VolumesError::refused(Trouble::Wrong, target, what, mend));
    let shorter = "give it another path in volumes.toml";
    let store = &config.store;
    let mut paths = vec![around.program, around.config, &store.folder, &store.keys, &store.key_backup];
    paths.extend([config.audit.folder.as_path(), &config.audit.seed]);
    paths.extend(
        config.volumes.iter().flat_map(|volume| [Some(volume.place.path()), volume.mount.as_deref()]).flatten(),
    );
    if let Some(path) = paths.into_iter().find(|path| !word::fits(path)) {
        return refused(path.display().to_string(), "a unit cannot name this path", shorter);
    }
    if let Some((_, mount)) = mounted(config).iter().find(|(_, mount)| mount_unit(mount).len() > UNIT_NAME_MAX) {
        return refused(mount.display().to_string(), "is too long for the name of a unit", shorter);
    }
    match &config.keys.master {
        MasterSource::Passphrase => refused(
            "keys.master = \"passphrase\"".to_owned(),
            "nobody is there to type it when the system starts",
            "systemd-creds encrypt, and keys.master = { credential = NAME }",
        ),
        MasterSource::Credential(name) if !word::is_credential(name) => refused(
            format!("keys.master = {name:?}"),
            "cannot name a credential in a unit",
            "take letters, digits and . _ -",
        ),
        _ => Ok(()),
    }
}

/// The line that hands the master key to a service.
fn credential(config: &Config, around: &Around<'_>) -> Option<String> {
    let MasterSource::Credential(name) = &config.keys.master else { return None };
    let is_encrypted = around.encrypted_credential.unwrap_or_else(|| {
        // The encrypted one wins, and is what should be there when neither is yet.
        Path::new(ENCRYPTED_CREDENTIALS).join(name).exists() || !Path::new(PLAIN_CREDENTIALS).join(name).exists()
    });
    Some(if is_encrypted {
        format!("LoadCredentialEncrypted={name}:{ENCRYPTED_CREDENTIALS}/{name}")
    } else {
        format!("LoadCredential={name}:{PLAIN_CREDENTIALS}/{name}")
    })
}

#[cfg(test)]
mod tests;
