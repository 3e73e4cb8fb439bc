//! Remove: a volume for good. What is destroyed is said before; the volume has to be down.
//!
//! The keyslots go first: after that no key opens the image, wherever copies of the key are. Cut anywhere, the same command does
//! the rest, because the entry in `volumes.toml` goes last.

use std::path::{Path, PathBuf};

use keystore::{KeyName, Timestamp};
use serde::Serialize;
use session::SystemEnv;

use super::{grow, open_status};
use crate::audit::{Category, Event, Level};
use crate::config::{Config, Place, VolumeSpec};
use crate::error::Trouble;
use crate::set::SetStore;
use crate::setup::Machine;
use crate::{Ledger, VolumesError, header_backup, image, mount_point};

/// What removing a volume destroys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemovePlan {
    /// The volume.
    pub name: String,
    /// The image, which is deleted, or the device, whose keyslots are destroyed.
    pub image: PathBuf,
    /// Whether the container is the one that the key store has a key for.
    pub ours: bool,
    /// Generations of its key in the key store.
    pub keys: usize,
    /// Header backups.
    pub header_backups: Vec<PathBuf>,
}

impl RemovePlan {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let image = match (self.ours, self.image.exists()) {
            (true, _) => format!("{} with all its data", self.image.display()),
            (false, true) => format!("not {}, which is not the container of this volume", self.image.display()),
            (false, false) => format!("no image, as {} is gone", self.image.display()),
        };
        format!(
            "this destroys for good: {image}, {} keys in the key store, {} header backups, and the entry in volumes.toml. \
             Backups of keys still hold its keys until they are pruned; copies of the image elsewhere still open with them.",
            self.keys,
            self.header_backups.len()
        )
    }
}

/// Works out what removing would destroy, and refuses while the volume is up.
///
/// # Errors
/// [`VolumesError::Refused`] while it is open.
pub fn remove_plan(
    config: &Config,
    volume: &VolumeSpec,
    store: &SetStore,
    machine: &Machine<'_>,
) -> Result<RemovePlan, VolumesError> {
    let path = volume.place.path();
    if open_status(&config.mapping(volume), machine)?.is_some() {
        let mend = format!("luksctl volume down {}", volume.name);
        return Err(VolumesError::refused(Trouble::Busy, &volume.name, "is up; nothing was changed", mend));
    }
    let is_there = path.symlink_metadata().is_ok();
    if is_there {
        session::image::check_not_in_use(path)?;
    }
    let record = store.metadata().keys.get(&KeyName::new(&volume.name)?);
    let found = if is_there { image::uuid(path)? } else { None };
    Ok(RemovePlan {
        name: volume.name.clone(),
        image: path.to_owned(),
        ours: found.is_some() && found == record.map(|record| record.volume),
        keys: record.map_or(0, |record| record.live().count()),
        header_backups: header_backup::list(config, &volume.name)?.into_iter().map(|(_, path)| path).collect(),
    })
}

/// Removes the volume as `plan` says. An image that is not the volume's is left alone.
///
/// # Errors
/// What failed; the same call does the rest.
pub fn remove(
    config_path: &Path,
    volume: &VolumeSpec,
    plan: &RemovePlan,
    store: &mut SetStore,
    ledger: &dyn Ledger,
    now: Timestamp,
) -> Result<(), VolumesError> {
    let event = Event::new(Category::Key, "remove volume", &volume.name).level(Level::Warning);
    ledger.record(&event.detail("image", plan.image.display()).detail("destroyed", plan.ours))?;
    if plan.ours {
        let mut container = image::container(&plan.image, false)?;
        container.erase(&SystemEnv.env()).map_err(image::of_luks(&plan.image))?;
        drop(container);
    }
    for backup in &plan.header_backups {
        header_backup::destroy(backup)?;
    }
    if plan.ours && matches!(volume.place, Place::Image { .. }) {
        std::fs::remove_file(&plan.image).map_err(VolumesError::io("remove", &plan.image))?;
    }
    let name = KeyName::new(&volume.name)?;
    if store.metadata().keys.contains_key(&name) {
        store.forget(&name, now)?;
    }
    if let Some(mount) = &volume.mount {
        mount_point::remove(mount)?;
    }
    grow::edit(config_path, |document| {
        if let Some(volumes) = document["volumes"].as_table_like_mut() {
            volumes.remove(&volume.name);
        }
    })
}
