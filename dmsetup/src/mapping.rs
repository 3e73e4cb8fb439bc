//! One active mapping: what it is, its table, and every change of it.
//!
//! * A change of the table (resize, other flags) loads the new table beside the live one and swaps them in one short
//!   suspend; when that fails the live table goes on.
//! * A suspend that wipes the key leaves the mapping blocked until a resume brings the key again: the kernel refuses to
//!   go on without.
//! * A mapping that is mounted is never removed behind its user's back.
//!
//! Source: `include/uapi/linux/dm-ioctl.h`, Documentation/admin-guide/device-mapper/dm-crypt.rst.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::Sectors;
use devicemapper::{DevId, DeviceInfo, DmFlags, DmOptions};
use rustix::fs::{Mode, OFlags};
use secret::Secret;

use crate::crypt_option::CryptOption;
use crate::crypt_table::{CryptTable, CryptTarget};
use crate::dm_error::DmError;
use crate::dm_ioctl::{self, Query, RawTarget};
use crate::key_reference::KeyReference;
use crate::keyring::LogonKey;
use crate::mapper::{CreateOptions, Mapper, dm_name, number, system_error};
use crate::name::{DevNo, Name, Uuid};
use crate::node;
use crate::udev;

/// How long a removal waits for those that only look at the device (udev's rules, blkid).
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// What the kernel says about a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// Its name.
    pub name: Name,
    /// Its UUID, if it has one.
    pub uuid: Option<Uuid>,
    /// Its number; the node is `/dev/dm-MINOR`.
    pub device: DevNo,
    /// Descriptors and mappings that have it open.
    pub open_count: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Reads and writes block.
    pub suspended: bool,
    /// It has a table in use.
    pub live_table: bool,
    /// A table was loaded and not yet resumed.
    pub inactive_table: bool,
    /// It goes when its last user closes it.
    pub deferred_remove: bool,
}

impl MappingInfo {
    pub(crate) fn from_kernel(info: &DeviceInfo) -> Result<MappingInfo, DmError> {
        let flags = info.flags();
        Ok(MappingInfo {
            name: info.name().map(ToString::to_string).unwrap_or_default().parse()?,
            uuid: info.uuid().and_then(|uuid| uuid.to_string().parse().ok()),
            device: number(info.device()),
            open_count: u32::try_from(info.open_count()).unwrap_or(0),
            read_only: flags.contains(DmFlags::DM_READONLY),
            suspended: flags.contains(DmFlags::DM_SUSPEND),
            live_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
            inactive_table: flags.contains(DmFlags::DM_INACTIVE_PRESENT),
            deferred_remove: flags.contains(DmFlags::DM_DEFERRED_REMOVE),
        })
    }
}

/// How to suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspendOptions {
    /// Write out what is under way first (the normal case); without it what waits stays queued.
    pub flush: bool,
    /// Freeze the file system on it first (the normal case).
    pub lock_fs: bool,
    /// Wipe the key from the kernel.
    pub wipe_key: bool,
}

impl Default for SuspendOptions {
    fn default() -> SuspendOptions {
        SuspendOptions { flush: true, lock_fs: true, wipe_key: false }
    }
}

/// How a removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The mapping is gone.
    Removed,
    /// It is in use and goes when its last user closes it.
    Deferred,
}

/// One target of a mapping that need not be dm-crypt's. Its parameters stay with the kernel: they may hold a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRange {
    /// First sector.
    pub start: Sectors,
    /// Length.
    pub len: Sectors,
    /// Kind: `crypt`, `linear`, ...
    pub kind: String,
}

/// An active mapping.
#[derive(Clone, Debug)]
pub struct Mapping {
    mapper: Mapper,
    name: Name,
    uuid: Option<Uuid>,
    device: DevNo,
    dropped: Vec<CryptOption>,
}

impl Mapping {
    pub(crate) fn new(mapper: Mapper, info: &MappingInfo, dropped: Vec<CryptOption>) -> Mapping {
        Mapping { mapper, name: info.name.clone(), uuid: info.uuid.clone(), device: info.device, dropped }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its UUID, if it has one.
    #[must_use]
    pub fn uuid(&self) -> Option<&Uuid> {
        self.uuid.as_ref()
    }

    /// Its number.
    #[must_use]
    pub fn devno(&self) -> DevNo {
        self.device
    }

    /// `/dev/mapper/NAME`.
    #[must_use]
    pub fn device_path(&self) -> PathBuf {
        self.name.path()
    }

    /// Sees to `/dev/mapper/NAME`, which is missing when whoever opened was killed before udev or they had made it.
    ///
    /// # Errors
    /// [`DmError::NodeInTheWay`], [`DmError::NoPermission`], [`DmError::Io`].
    pub fn ensure_node(&self) -> Result<(), DmError> {
        node::ensure(&self.name, self.device)
    }

    /// Performance options that the kernel did not know and that [`Mapper::create`] left away.
    #[must_use]
    pub fn dropped(&self) -> &[CryptOption] {
        &self.dropped
    }

    /// What the kernel says about it now.
    ///
    /// # Errors
    /// [`DmError::NotActive`], [`DmError::NoPermission`], [`DmError::Io`].
    pub fn info(&self) -> Result<MappingInfo, DmError> {
        self.mapper.info(&self.name)?.ok_or_else(|| DmError::NotActive { name: self.name.clone() })
    }

    /// Its table in use. A key that the table holds itself is counted, not kept.
    ///
    /// # Errors
    /// [`DmError::Foreign`] unless it is one `crypt` target; else as [`Mapping::info`], and [`DmError::BadTable`].
    pub fn table(&self) -> Result<CryptTable, DmError> {
        self.crypt_table(&self.raw(Query::Live)?)
    }

    /// The table that was loaded and not yet resumed, if there is one.
    ///
    /// # Errors
    /// As [`Mapping::table`].
    pub fn inactive_table(&self) -> Result<Option<CryptTable>, DmError> {
        if !self.info()?.inactive_table {
            return Ok(None);
        }
        self.crypt_table(&self.raw(Query::Inactive)?).map(Some)
    }

    /// Its targets, whatever they are.
    ///
    /// # Errors
    /// As [`Mapping::info`].
    pub fn targets(&self) -> Result<Vec<TargetRange>, DmError> {
        let raw = self.raw(Query::Status)?;
        Ok(raw
            .into_iter()
            .map(|target| TargetRange {
                start: Sectors(target.start_sectors),
                len: Sectors(target.len_sectors),
                kind: target.kind,
            })
            .collect())
    }

    /// The devices below it.
    ///
    /// # Errors
    /// As [`Mapping::info`].
    pub fn dependencies(&self) -> Result<Vec<DevNo>, DmError> {
        let found = self.mapper.dm().table_deps(&self.id()?, DmOptions::default()).map_err(system_error);
        Ok(found.map_err(self.failed("list the devices below"))?.into_iter().map(number).collect())
    }

    /// Whether what lies below is still there and large enough.
    ///
    /// # Errors
    /// [`DmError::BackingGone`], [`DmError::BackingShrank`]; else as [`Mapping::table`].
    pub fn check_backing(&self) -> Result<(), DmError> {
        let table = self.table()?;
        let Some(device) = table.target.device.number() else {
            return Ok(());
        };
        let gone = |how| DmError::BackingGone { name: self.name.clone(), device, how };
        let folder = device.sysfs();
        let Ok(size) = fs::read_to_string(folder.join("size")) else {
            return Err(gone("the kernel has no such device any more"));
        };
        if fs::read_to_string(folder.join("loop/backing_file"))
            .is_ok_and(|file| file.trim_end().ends_with(" (deleted)"))
        {
            return Err(gone("the image of the loop device was deleted; its bytes go when the mapping is closed"));
        }
        let size_sectors: u64 = size.trim().parse().map_err(|_| gone("its size cannot be read"))?;
        let needed_sectors = table.target.offset.0.saturating_add(table.len.0);
        if size_sectors < needed_sectors {
            return Err(DmError::BackingShrank { name: self.name.clone(), device, size_sectors, needed_sectors });
        }
        Ok(())
    }

    /// Puts a new table in the place of the live one: another length, other flags. I/O waits meanwhile, nothing is lost.
    ///
    /// # Errors
    /// [`DmError::Suspended`] if it is suspended; else [`DmError`] as [`Mapper::create`], the live table going on.
    pub fn reload(&self, sectors: Sectors, target: &CryptTarget, key: Option<&Secret>) -> Result<(), DmError> {
        let info = self.info()?;
        if info.suspended {
            return Err(DmError::Suspended { name: self.name.clone() });
        }
        // Growing or the same size leaves every block where it is: neither a frozen file system nor a flush is needed.
        let shrinks = info.live_table && self.table().map_or(true, |live| sectors.0 < live.len.0);
        let options = CreateOptions { read_only: info.read_only, drop_unknown_performance_options: false };
        self.mapper.load(&self.name, sectors, target, key, options)?;
        let swap = || {
            self.suspend_only(shrinks, shrinks)?;
            self.mapper.resume(&self.name, shrinks, shrinks)
        };
        swap().inspect_err(|_| {
            // Back to the live table; the first error is the one to tell.
            let _ = self.id().map(|id| self.mapper.dm().table_clear(&id));
            if self.info().is_ok_and(|info| info.suspended) {
                let _ = self.mapper.resume(&self.name, true, true);
            }
        })
    }

    /// Suspends it: reads and writes block until [`Mapping::resume`]. With `wipe_key` the key is gone from the kernel
    /// when this returns. A suspended mapping may be suspended again to wipe its key.
    ///
    /// # Errors
    /// As [`Mapping::info`]; when the wiping fails a mapping that this call suspended goes on.
    pub fn suspend(&self, options: SuspendOptions) -> Result<(), DmError> {
        let before = self.info()?;
        if !before.suspended {
            self.suspend_only(options.flush, options.lock_fs)?;
        }
        if !options.wipe_key {
            return Ok(());
        }
        self.message("key wipe", "wipe the key of").inspect_err(|_| {
            if !before.suspended {
                // The first error is the one to tell.
                let _ = self.mapper.resume(&self.name, true, true);
            }
        })
    }

    /// Goes on after [`Mapping::suspend`]. `key` brings back a wiped key: where the kernel finds it, and the key itself.
    ///
    /// # Errors
    /// [`DmError::NotSuspended`]; [`DmError::KeyNeeded`] when the key was wiped and none is given;
    /// [`DmError::KeyMismatch`] when its length is not that of the table; else as [`Mapping::info`]. After any of them
    /// it is suspended still.
    pub fn resume(&self, key: Option<(&KeyReference, &Secret)>) -> Result<(), DmError> {
        if !self.info()?.suspended {
            return Err(DmError::NotSuspended { name: self.name.clone() });
        }
        let live = self.table()?;
        if let Some((reference, key)) = key {
            if live.target.key.len_bytes() != reference.len_bytes() {
                return Err(DmError::KeyMismatch {
                    name: self.name.clone(),
                    expected_bytes: live.target.key.len_bytes(),
                    given_bytes: key.len(),
                });
            }
            let held = LogonKey::provide(&self.name, reference, Some(key))?;
            self.message(&format!("key set {reference}"), "give its key back to")?;
            drop(held);
        } else if matches!(live.target.key, KeyReference::Inline { zeros: true, .. }) {
            return Err(DmError::KeyNeeded { name: self.name.clone() });
        }
        self.mapper.resume(&self.name, true, true)?;
        self.ensure_node()
    }

    /// Removes it, waiting up to five seconds for programs that only look at it. With `deferred` one that is in use goes
    /// when its last user closes it.
    ///
    /// # Errors
    /// [`DmError::Busy`] (it is as it was), [`DmError::NotActive`], [`DmError::NoPermission`], [`DmError::Io`].
    pub fn remove(&self, deferred: bool) -> Result<Removal, DmError> {
        let until = Instant::now() + REMOVE_PATIENCE;
        loop {
            match self.mapper.remove(&self.name, deferred) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(self.failed("remove")(error)),
            }
            let busy = |how| Err(DmError::Busy { name: self.name.clone(), how });
            if self.is_claimed() {
                return busy("mounted, or part of another mapping");
            }
            if Instant::now() >= until {
                return busy("a program keeps it open");
            }
            sleep(REMOVE_PAUSE);
        }
        match self.mapper.info(&self.name)? {
            Some(info) if info.device == self.device && info.deferred_remove => {
                if !udev::is_running() {
                    // Nobody will be there to remove it later; whoever has the device open keeps it.
                    node::remove_early(&self.name, self.device)?;
                }
                Ok(Removal::Deferred)
            }
            _ => {
                // A deferred removal whose time came at once is carried out by another thread of the kernel.
                while self.is_being_removed() && Instant::now() < until {
                    sleep(REMOVE_PAUSE);
                }
                node::remove(&self.name, self.device)?;
                Ok(Removal::Removed)
            }
        }
    }

    /// Whether it is mounted or held exclusively by something else.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        let path = format!("/dev/dm-{}", self.device.minor);
        let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
        open.is_err_and(|errno| errno == rustix::io::Errno::BUSY)
    }

    /// Whether the block device is there still, under our name: its number may have been given out again.
    fn is_being_removed(&self) -> bool {
        let name = fs::read_to_string(self.device.sysfs().join("dm/name"));
        name.is_ok_and(|name| name.trim_end() == self.name.as_str()) && matches!(self.mapper.info(&self.name), Ok(None))
    }

    fn id(&self) -> Result<DevId<'_>, DmError> {
        Ok(DevId::Name(dm_name(&self.name)?))
    }

    /// For `map_err` of an ioctl on this mapping.
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> DmError {
        move |error| match error.raw_os_error() {
            Some(libc::ENXIO) => DmError::NotActive { name: self.name.clone() },
            _ => DmError::io(action, &self.name)(error),
        }
    }

    fn raw(&self, query: Query) -> Result<Vec<RawTarget>, DmError> {
        dm_ioctl::targets(self.mapper.control(), self.name.as_str(), query).map_err(self.failed("read the table of"))
    }

    fn crypt_table(&self, targets: &[RawTarget]) -> Result<CryptTable, DmError> {
        match targets {
            [target] if target.kind == "crypt" => Ok(CryptTable {
                start: Sectors(target.start_sectors),
                len: Sectors(target.len_sectors),
                target: target.text.parse()?,
            }),
            _ => {
                let kinds: Vec<&str> = targets.iter().map(|target| target.kind.as_str()).collect();
                let targets = if kinds.is_empty() { "no target".to_owned() } else { kinds.join(", ") };
                Err(DmError::Foreign { name: self.name.clone(), targets })
            }
        }
    }

    fn suspend_only(&self, flush: bool, lock_fs: bool) -> Result<(), DmError> {
        let mut flags = DmFlags::DM_SUSPEND;
        flags.set(DmFlags::DM_NOFLUSH, !flush);
        flags.set(DmFlags::DM_SKIP_LOCKFS, !lock_fs);
        let done = self.mapper.dm().device_suspend(&self.id()?, DmOptions::default().set_flags(flags));
        done.map(drop).map_err(system_error).map_err(self.failed("suspend"))
    }

    fn message(&self, text: &str, action: &'static str) -> Result<(), DmError> {
        let sent = self.mapper.dm().target_msg(&self.id()?, None, text);
        sent.map(drop).map_err(system_error).map_err(self.failed(action))
    }
}
