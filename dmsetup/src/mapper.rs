//! Device-mapper itself: open it, make a mapping, find mappings.
//!
//! * A mapping is made in four steps: create (name and UUID), load the table, resume, see to `/dev/mapper/NAME`. When
//!   one fails the mapping is removed again: nothing half-made stays.
//! * The key is in this thread's keyring only around the load of the table; the table names it, so neither a table nor
//!   an ioctl buffer ever holds key bytes. The kernel is asked to wipe its copies of tables all the same.
//!
//! Source: `include/uapi/linux/dm-ioctl.h`, Documentation/admin-guide/device-mapper/dm-crypt.rst.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use block::Sectors;
use devicemapper::{DM, DevId, DeviceInfo, DmFlags, DmName, DmOptions, DmUuid};
use secret::Secret;

use crate::crypt_option::CryptOption;
use crate::crypt_table::CryptTarget;
use crate::dm_error::DmError;
use crate::dm_ioctl;
use crate::keyring::LogonKey;
use crate::mapping::{Mapping, MappingInfo};
use crate::name::{DevNo, Name, Uuid};
use crate::node;
use crate::udev::Cookie;

const CONTROL: &str = "/dev/mapper/control";
/// Where the kernel names its `misc` drivers.
const MISC: &str = "/proc/misc";

/// How to make a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Refuse writes. Needed where the device below is read-only.
    pub read_only: bool,
    /// Without them if the kernel does not know the options that only change speed; [`Mapping::dropped`] tells which.
    pub drop_unknown_performance_options: bool,
}

/// A target that device-mapper has, with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetVersion {
    /// Its name: `crypt`, `linear`, ...
    pub name: String,
    /// Major, minor, patch level.
    pub version: (u32, u32, u32),
}

/// An open device-mapper. Cheap to clone.
#[derive(Clone)]
pub struct Mapper {
    devices: Arc<Devices>,
}

/// Both ways to the control node: the crate's and ours.
struct Devices {
    crate_dm: DM,
    control: File,
}

impl std::fmt::Debug for Mapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mapper")
    }
}

impl Mapper {
    /// Opens `/dev/mapper/control`, which loads the module where modules can be loaded.
    ///
    /// # Errors
    /// [`DmError::NoDeviceMapper`], [`DmError::NoPermission`].
    pub fn open() -> Result<Mapper, DmError> {
        let control =
            File::options().read(true).write(true).open(CONTROL).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR) => DmError::NoDeviceMapper,
                _ => DmError::io("open", CONTROL)(error),
            })?;
        let crate_dm = DM::new().map_err(|error| DmError::io("open", CONTROL)(system_error(error)))?;
        let mapper = Mapper { devices: Arc::new(Devices { crate_dm, control }) };
        mapper.version()?;
        Ok(mapper)
    }

    /// Version of the kernel's interface.
    ///
    /// # Errors
    /// [`DmError::NoPermission`], [`DmError::Io`].
    pub fn version(&self) -> Result<(u32, u32, u32), DmError> {
        self.dm().version().map_err(|error| DmError::io("ask the version of", "device-mapper")(system_error(error)))
    }

    /// The targets that are loaded. `crypt` may be absent and still be loaded on demand.
    ///
    /// # Errors
    /// As [`Mapper::version`].
    pub fn targets(&self) -> Result<Vec<TargetVersion>, DmError> {
        let versions = self.dm().list_versions();
        let versions =
            versions.map_err(|error| DmError::io("list the targets of", "device-mapper")(system_error(error)))?;
        Ok(versions
            .into_iter()
            .map(|(name, major, minor, patch)| TargetVersion { name, version: (major, minor, patch) })
            .collect())
    }

    /// Makes the mapping `name` of `sectors` 512-byte sectors: `/dev/mapper/NAME` is there when this returns.
    ///
    /// `key` is the volume key that `target.key` refers to. `None` for a cipher without key, or when somebody else
    /// keeps the key in a keyring of this thread, process or session.
    ///
    /// # Errors
    /// [`DmError`]; after any of them there is no mapping `name` of ours.
    pub fn create(
        &self,
        name: &Name,
        uuid: &Uuid,
        sectors: Sectors,
        target: &CryptTarget,
        key: Option<&Secret>,
        options: CreateOptions,
    ) -> Result<Mapping, DmError> {
        // The kernel maps a read-only device for writing and lets every write fail later.
        if !options.read_only && target.device.is_read_only() {
            return Err(DmError::BackingReadOnly { device: target.device.to_string() });
        }
        self.create_empty(name, uuid, options)?;
        let finish = || {
            let dropped = self.load(name, sectors, target, key, options)?;
            self.resume(name, true, true)?;
            let info = self.info(name)?.ok_or_else(|| DmError::NotActive { name: name.clone() })?;
            node::ensure(name, info.device)?;
            Ok(Mapping::new(self.clone(), &info, dropped))
        };
        finish().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.remove(name, false);
        })
    }

    /// The mapping `name`, whoever made it.
    ///
    /// # Errors
    /// [`DmError::NotActive`], [`DmError::NoPermission`], [`DmError::Io`].
    pub fn mapping(&self, name: &Name) -> Result<Mapping, DmError> {
        let info = self.info(name)?.ok_or_else(|| DmError::NotActive { name: name.clone() })?;
        Ok(Mapping::new(self.clone(), &info, Vec::new()))
    }

    /// Removes what an opening of this name and UUID left when its process was killed: a mapping that never had a table
    /// in use. Whether there was one. The caller makes sure that nobody is opening that name just now.
    ///
    /// # Errors
    /// [`DmError::Busy`], [`DmError::NoPermission`], [`DmError::Io`].
    pub fn remove_unfinished(&self, name: &Name, uuid: &Uuid) -> Result<bool, DmError> {
        match self.info(name)? {
            Some(info) if !info.live_table && info.uuid.as_ref() == Some(uuid) => {
                Mapping::new(self.clone(), &info, Vec::new()).remove(false).map(|_| true)
            }
            _ => Ok(false),
        }
    }

    /// Every mapping, by name. One that goes meanwhile, or whose name no tool could address, is left out.
    ///
    /// # Errors
    /// [`DmError::NoPermission`], [`DmError::Io`].
    pub fn list(&self) -> Result<Vec<MappingInfo>, DmError> {
        let names = dm_ioctl::names(self.control()).map_err(DmError::io("list the mappings of", "device-mapper"))?;
        let mut found = Vec::new();
        for name in names {
            if let Some(name) = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<Name>().ok())
                && let Some(info) = self.info(&name)?
            {
                found.push(info);
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// The mappings of the LUKS volume with this header UUID, with dashes or without.
    ///
    /// # Errors
    /// As [`Mapper::list`].
    pub fn find_volume(&self, uuid: &str) -> Result<Vec<MappingInfo>, DmError> {
        let mut found = self.list()?;
        found.retain(|info| info.uuid.as_ref().is_some_and(|own| own.is_volume(uuid)));
        Ok(found)
    }

    pub(crate) fn dm(&self) -> &DM {
        &self.devices.crate_dm
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.devices.control.as_fd()
    }

    /// `None` when no such mapping is active.
    pub(crate) fn info(&self, name: &Name) -> Result<Option<MappingInfo>, DmError> {
        match self.dm().device_info(&DevId::Name(dm_name(name)?)).map_err(system_error) {
            Ok(info) => MappingInfo::from_kernel(&info).map(Some),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(DmError::io("ask for", name)(error)),
        }
    }

    /// The number and state of the mapping of that name, suspended and without a table.
    fn create_empty(&self, name: &Name, uuid: &Uuid, options: CreateOptions) -> Result<DeviceInfo, DmError> {
        let uuid_text = DmUuid::new(uuid.as_str()).map_err(|_| bad_name(uuid.as_str()))?;
        let flags = if options.read_only { DmFlags::DM_READONLY } else { DmFlags::empty() };
        let made = self.dm().device_create(dm_name(name)?, Some(uuid_text), DmOptions::default().set_flags(flags));
        made.map_err(|error| {
            let error = system_error(error);
            if error.raw_os_error() != Some(libc::EBUSY) {
                return DmError::io("create", name)(error);
            }
            match self.list() {
                Ok(all) if all.iter().any(|info| info.name == *name) => DmError::NameInUse { name: name.clone() },
                Ok(all) => match all.into_iter().find(|info| info.uuid.as_ref() == Some(uuid)) {
                    Some(info) => DmError::UuidInUse { uuid: uuid.clone(), holder: info.name.to_string() },
                    None => DmError::NameInUse { name: name.clone() },
                },
                Err(_) => DmError::NameInUse { name: name.clone() },
            }
        })
    }

    /// Loads a table beside the live one. The options that the kernel did not know and that were left away.
    pub(crate) fn load(
        &self,
        name: &Name,
        sectors: Sectors,
        target: &CryptTarget,
        key: Option<&Secret>,
        options: CreateOptions,
    ) -> Result<Vec<CryptOption>, DmError> {
        target.check()?;
        let held = LogonKey::provide(name, &target.key, key)?;
        let flags = if options.read_only { DmFlags::DM_READONLY } else { DmFlags::empty() } | DmFlags::DM_SECURE_DATA;
        let id = DevId::Name(dm_name(name)?);
        let load = |target: &CryptTarget| {
            let table = [(0, sectors.0, "crypt".to_owned(), target.to_string())];
            self.dm().table_load(&id, &table, DmOptions::default().set_flags(flags)).map_err(system_error)
        };
        let Err(error) = load(target) else {
            return Ok(Vec::new());
        };
        if error.raw_os_error() == Some(libc::EINVAL) && options.drop_unknown_performance_options {
            let (dropped, kept) = target.options.iter().cloned().partition::<Vec<_>, _>(CryptOption::is_performance);
            if !dropped.is_empty() && load(&CryptTarget { options: kept, ..target.clone() }).is_ok() {
                return Ok(dropped);
            }
        }
        drop(held);
        Err(self.refused(name, target, error))
    }

    /// What a refused table means.
    fn refused(&self, name: &Name, target: &CryptTarget, source: io::Error) -> DmError {
        let device = || target.device.to_string();
        match source.raw_os_error() {
            Some(libc::EBUSY) => DmError::BackingBusy { device: device() },
            Some(libc::EACCES | libc::EROFS) => DmError::BackingReadOnly { device: device() },
            Some(libc::ENOENT) => DmError::NoCipher { cipher: target.cipher.clone() },
            Some(libc::EINVAL) if self.targets().is_ok_and(|all| all.iter().all(|target| target.name != "crypt")) => {
                DmError::NoCryptTarget
            }
            _ => DmError::TableRefused {
                name: name.clone(),
                cipher: target.cipher.clone(),
                options: target.options.clone(),
                source,
            },
        }
    }

    /// Resumes with the table loaded last, and waits for udev.
    pub(crate) fn resume(&self, name: &Name, flush: bool, lock_fs: bool) -> Result<(), DmError> {
        let cookie = Cookie::begin();
        let event_number = cookie.as_ref().map_or(0, Cookie::event_number);
        let result = dm_ioctl::resume(self.control(), name.as_str(), flush, lock_fs, event_number);
        if let Some(cookie) = cookie {
            cookie.settle(*result.as_ref().unwrap_or(&false));
        }
        result.map(drop).map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => DmError::NotActive { name: name.clone() },
            // What dm-crypt answers when its key was wiped.
            Some(libc::EAGAIN) => DmError::KeyNeeded { name: name.clone() },
            _ => DmError::io("resume", name)(error),
        })
    }

    /// One try to remove a mapping, and the wait for udev. The kernel's own error.
    pub(crate) fn remove(&self, name: &Name, deferred: bool) -> io::Result<()> {
        let cookie = Cookie::begin();
        let event_number = cookie.as_ref().map_or(0, Cookie::event_number);
        let result = dm_ioctl::remove(self.control(), name.as_str(), deferred, event_number);
        if let Some(cookie) = cookie {
            cookie.settle(*result.as_ref().unwrap_or(&false));
        }
        result.map(drop)
    }
}

/// Whether this kernel has device-mapper, told without any right: its control node, or its line among the drivers.
#[must_use]
pub fn has_device_mapper() -> bool {
    let listed = || std::fs::read_to_string(MISC).is_ok_and(|all| all.lines().any(|l| l.ends_with(" device-mapper")));
    Path::new(CONTROL).exists() || listed()
}

fn bad_name(name: &str) -> DmError {
    DmError::BadName { name: name.to_owned(), reason: "device-mapper cannot carry it" }
}

pub(crate) fn dm_name(name: &Name) -> Result<&DmName, DmError> {
    DmName::new(name.as_str()).map_err(|_| bad_name(name.as_str()))
}

/// The number of a mapping as the crate gives it.
pub(crate) fn number(device: devicemapper::Device) -> DevNo {
    DevNo { major: device.major, minor: device.minor }
}

/// The system's error in the crate's.
pub(crate) fn system_error(error: devicemapper::DmError) -> io::Error {
    match error {
        devicemapper::DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => {
            io::Error::from_raw_os_error(*errno as i32)
        }
        other => io::Error::other(other.to_string()),
    }
}
