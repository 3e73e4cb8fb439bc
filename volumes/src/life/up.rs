//! Up: opens volumes with the keys of the store and mounts them. What a dead server left is cleared first; what is up stays.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use keystore::KeyName;
use nix::unistd::{Group, User};
use serde::Serialize;
use session::{CloseOptions, MountOptions, SessionError, State, Status};

use super::open_status;
use crate::audit::{Category, Event, Outcome};
use crate::config::{Account, Owner, VolumeSpec};
use crate::error::Trouble;
use crate::mount_point::{self, Standing};
use crate::set::{Set, SetStore};
use crate::setup::Machine;
use crate::{Ledger, VolumesError, image, setup};

/// How volumes are taken up.
#[derive(Clone, Copy)]
pub struct Up<'a> {
    /// The set.
    pub set: &'a Set,
    /// Where they are opened.
    pub machine: Machine<'a>,
    /// Whether they are mounted, too.
    pub mount: bool,
}

/// A volume that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpReport {
    /// Its name.
    pub name: String,
    /// Its name as an open volume.
    pub mapping: String,
    /// The disk.
    pub device: Option<PathBuf>,
    /// What serves it.
    pub backend: Option<String>,
    /// Where it is mounted.
    pub mounted: Option<PathBuf>,
    /// Whether something had to be done.
    pub changed: bool,
}

impl Up<'_> {
    /// Takes one volume up.
    ///
    /// # Errors
    /// [`VolumesError::Refused`] for an image that is gone or was replaced, and for a mount point that is missing or not empty,
    /// before anything is opened; [`VolumesError::Session`]. A key that opens nothing is recorded.
    pub fn volume(&self, volume: &VolumeSpec, store: &mut SetStore) -> Result<UpReport, VolumesError> {
        let mapping = self.set.config().mapping(volume);
        let open = self.without_the_dead(&mapping)?;
        let is_open = open.as_ref().is_some_and(|status| status.state == State::Open);
        let mounted =
            open.as_ref().is_some_and(|status| volume.mount.as_ref().is_some_and(|m| status.mount_points.contains(m)));
        let to_mount = volume.mount.as_deref().filter(|_| self.mount && !(is_open && mounted));
        if let Some(mount) = to_mount {
            check_mount_point(volume, mount)?;
        }
        if !is_open {
            self.open(volume, &mapping, store)?;
        }
        if let Some(mount) = to_mount {
            self.mount(&mapping, mount, !is_open)?;
        }
        let mut changed = !is_open || to_mount.is_some();
        if let Some(mount) = volume.mount.as_deref().filter(|_| self.mount) {
            changed |= describe_root(volume, mount)?;
        }
        let status = session::status(self.machine.run, &mapping)?;
        let mounted = volume.mount.clone().filter(|mount| status.mount_points.contains(mount));
        Ok(UpReport {
            name: volume.name.clone(),
            mapping,
            device: status.device,
            backend: status.backend,
            mounted,
            changed,
        })
    }

    /// What is open under the name; what a dead server left of it is taken away first.
    fn without_the_dead(&self, mapping: &str) -> Result<Option<Status>, VolumesError> {
        let open = open_status(mapping, &self.machine)?;
        let Some(dead) = open.as_ref().filter(|status| status.state == State::Dead) else { return Ok(open) };
        for point in dead.mount_points.iter().rev() {
            session::umount(self.machine.run, point)?;
        }
        match session::close(self.machine.run, mapping, &CloseOptions::default()) {
            Ok(_) | Err(SessionError::NotOpen { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, volume: &VolumeSpec, mapping: &str, store: &SetStore) -> Result<(), VolumesError> {
        let path = volume.place.path();
        check_image(volume, store)?;
        let key = store.key(&KeyName::new(&volume.name)?)?;
        self.set.record(&Event::new(Category::Access, "open", &volume.name).detail("image", path.display()))?;
        let request = setup::open_request(volume, path, mapping);
        match session::open(self.machine.run, &request, &mut setup::OneKey(Some(key)), self.machine.server) {
            Ok(_) => Ok(()),
            Err(error) => {
                if is_key_refused(&error) {
                    Ledger::unlock_failed(self.set, &volume.name, &error.to_string())?;
                } else {
                    let failed = Event::new(Category::Access, "open", &volume.name).ended(Outcome::Failed);
                    self.set.record(&failed.detail("reason", &error))?;
                }
                Err(error.into())
            }
        }
    }

    fn mount(&self, mapping: &str, mount: &Path, close_on_failure: bool) -> Result<(), VolumesError> {
        let mounted = session::mount(self.machine.run, mapping, mount, &MountOptions::default());
        if let Err(error) = mounted {
            if close_on_failure && let Err(other) = session::close(self.machine.run, mapping, &CloseOptions::default())
            {
                log::warn!("{mapping} stays open: {other}");
            }
            return Err(error.into());
        }
        Ok(())
    }
}

fn is_key_refused(error: &SessionError) -> bool {
    match error {
        SessionError::NoKey { .. } => true,
        SessionError::Refused(failure) => failure.kind == session::FailureKind::NoKey,
        _ => false,
    }
}

/// Refuses an image that is gone, and one that is not the container that the key is for.
pub(crate) fn check_image(volume: &VolumeSpec, store: &SetStore) -> Result<(), VolumesError> {
    let path = volume.place.path();
    let name = &volume.name;
    let refused = |trouble, what: String, mend: String| Err(VolumesError::refused(trouble, name, what, mend));
    let record = store.metadata().keys.get(&KeyName::new(name)?);
    let Some(record) = record.filter(|record| record.active().is_some()) else {
        return refused(Trouble::Missing, "has no key in use yet".to_owned(), "luksctl volume setup".to_owned());
    };
    if path.symlink_metadata().is_err() {
        return refused(Trouble::Missing, format!("{} is gone", path.display()), format!("ls -l {}", path.display()));
    }
    let found = image::uuid(path)?;
    if found != Some(record.volume) {
        let found = found.map_or_else(|| "no LUKS container".to_owned(), |id| format!("container {id}"));
        let what = format!("{} is {found}, but the key is for {}: it was replaced", path.display(), record.volume);
        return refused(Trouble::Wrong, what, format!("luksctl dump {}; put the right image back", path.display()));
    }
    Ok(())
}

fn check_mount_point(volume: &VolumeSpec, mount: &Path) -> Result<(), VolumesError> {
    let shown = mount.display();
    match mount_point::standing(mount)? {
        Standing::Protected => Ok(()),
        Standing::Open => mount_point::protect(mount),
        Standing::Missing => {
            let what = format!("the mount point {shown} is not there");
            Err(VolumesError::refused(Trouble::Missing, &volume.name, what, "luksctl volume setup"))
        }
        Standing::Used | Standing::NoFolder => Err(mount_point::in_the_way(mount)),
        Standing::Mounted => {
            let what = format!("something else is mounted on {shown}");
            Err(VolumesError::refused(Trouble::Busy, &volume.name, what, format!("findmnt {shown}")))
        }
    }
}

/// The numbers of an owner.
fn numbers(volume: &VolumeSpec, owner: &Owner) -> Result<(u32, u32), VolumesError> {
    let unknown =
        |what: String| VolumesError::refused(Trouble::Wrong, &volume.name, what, "getent passwd; getent group");
    let user = match &owner.user {
        Account::Id(id) => {
            User::from_uid((*id).into()).ok().flatten().map_or((*id, *id), |user| (*id, user.gid.as_raw()))
        }
        Account::Name(name) => {
            let user = User::from_name(name).ok().flatten();
            let user = user.ok_or_else(|| unknown(format!("its owner, user {name}, is not known here")))?;
            (user.uid.as_raw(), user.gid.as_raw())
        }
    };
    let group = match &owner.group {
        None => user.1,
        Some(Account::Id(id)) => *id,
        Some(Account::Name(name)) => {
            let group = Group::from_name(name).ok().flatten();
            group.ok_or_else(|| unknown(format!("its owner, group {name}, is not known here")))?.gid.as_raw()
        }
    };
    Ok((user.0, group))
}

/// Whether the root of the mounted file system has the owner and the mode of the description.
pub(crate) fn root_is_as_described(volume: &VolumeSpec, mount: &Path) -> Result<bool, VolumesError> {
    let (user, group) = numbers(volume, &volume.owner)?;
    let found = mount.metadata().map_err(VolumesError::io("look at", mount))?;
    Ok((found.uid(), found.gid(), found.mode() & 0o7777) == (user, group, volume.mode.0))
}

/// Gives it to them; whether that changed something. What an ordinary user may not give away stays his.
fn describe_root(volume: &VolumeSpec, mount: &Path) -> Result<bool, VolumesError> {
    if root_is_as_described(volume, mount)? {
        return Ok(false);
    }
    let (user, group) = numbers(volume, &volume.owner)?;
    let failed = VolumesError::io("set owner and mode of", mount);
    let given = std::os::unix::fs::chown(mount, Some(user), Some(group))
        .and_then(|()| std::fs::set_permissions(mount, std::fs::Permissions::from_mode(volume.mode.0)));
    match given {
        Err(error) if !rustix::process::geteuid().is_root() => {
            log::warn!("{} keeps its owner and mode: {error}", mount.display());
            Ok(false)
        }
        Err(error) => Err(failed(error)),
        Ok(()) => Ok(true),
    }
}
