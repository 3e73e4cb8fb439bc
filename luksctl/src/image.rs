//! From `IMAGE` and `--header` to open files: names resolved, folders and missing files refused with the right words,
//! the use lock where plaintext is moved.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{BlockIo as _, Direct, FileDisk, OpenMode, UseLock};
use luks::{AnyContainer, AnyHeader, Container, Error, Limits, Policy, Version, load_any};

use crate::args::target::{LimitArgs, TargetArgs};
use crate::failure::Failure;
use crate::{occupied, terminal};

/// An open container on files or devices: header and data may lie apart.
pub(crate) type FileContainer = Container<Arc<FileDisk>, Arc<FileDisk>>;

/// The same of either version.
pub(crate) type AnyFileContainer = AnyContainer<Arc<FileDisk>, Arc<FileDisk>>;

/// What a verb will do with the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Header and data are only read.
    Read,
    /// The header is changed.
    ChangeHeader,
    /// Header and data are changed.
    ChangeData,
}

/// The files of one container.
pub(crate) struct Image {
    path: PathBuf,
    header: Arc<FileDisk>,
    data: Arc<FileDisk>,
    /// The version that was asked for.
    version: Option<Version>,
    /// The policy that was asked for.
    policy: Option<Policy>,
}

impl Image {
    /// Opens the files that `target` names; what somebody uses is not opened to change its data. `--policy` holds for every
    /// header that is read from them.
    pub(crate) fn open(target: &TargetArgs, access: Access) -> Result<Image, Failure> {
        let policy = target.policy()?;
        Ok(Image { policy, ..Image::open_unjudged(target, access)? })
    }

    /// The same for who judges the header by himself.
    pub(crate) fn open_unjudged(target: &TargetArgs, access: Access) -> Result<Image, Failure> {
        let path = resolve(&target.image)?;
        if access == Access::ChangeData {
            // Before the exclusive open, which would find itself.
            occupied::refuse(&path)?;
        }
        let read_only = access == Access::Read || only_header(target, access);
        let data = Arc::new(open_with(&path, read_only, access == Access::ChangeData)?);
        let header = match &target.header {
            None => Arc::clone(&data),
            Some(header) => Arc::new(open_disk(&resolve(header)?, access == Access::Read)?),
        };
        Ok(Image { path, header, data, version: target.version(), policy: None })
    }

    /// How the person knows the image.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the header.
    pub(crate) fn header(&self) -> &Arc<FileDisk> {
        &self.header
    }

    /// The file with the data; the same handle as the header's unless that is detached.
    pub(crate) fn data(&self) -> &Arc<FileDisk> {
        &self.data
    }

    /// Refuses a `file` of plaintext that is the image or its header under whatever name: copying would destroy both.
    pub(crate) fn refuse_itself(&self, file: &Path) -> Result<(), Failure> {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(found) = file.metadata() else { return Ok(()) };
        let number = (found.dev(), found.ino());
        if number != self.data.identity() && number != self.header.identity() {
            return Ok(());
        }
        Err(Failure::wrong(format!("{}: is the container itself, not a place for its plaintext", file.display()))
            .with_hint("name another file"))
    }

    /// Reads and checks the header of a LUKS2 container, for what LUKS1 does not have: `no` names it.
    pub(crate) fn load_luks2(&self, limits: &Limits, no: &'static str) -> Result<luks::Header, Failure> {
        self.demand(Version::Luks2)
            .and_then(|()| luks::load(&self.header, limits))
            .and_then(|header| self.policy.as_ref().map_or(Ok(()), |policy| policy.check(&header)).map(|()| header))
            .map_err(|error| Failure::of_luks(self.header.path(), only_luks2(error, no)))
    }

    /// Reads and checks the header, whichever version it is.
    pub(crate) fn load(&self, limits: &Limits) -> Result<AnyHeader, Failure> {
        self.look(limits).map_err(|error| Failure::of_luks(self.header.path(), error))
    }

    /// The same for who expects that it may be none. A policy that was asked for holds for a header that is only shown, too;
    /// without one every header may be looked at.
    pub(crate) fn look(&self, limits: &Limits) -> Result<AnyHeader, Error> {
        let header = load_any(&self.header, limits)?;
        self.accepts(&header)?;
        Ok(header)
    }

    /// Holds version and policy, as far as they were asked for, against a header of this container or for it.
    pub(crate) fn accepts(&self, header: &AnyHeader) -> Result<(), Error> {
        self.demand(header.version())?;
        self.policy.as_ref().map_or(Ok(()), |policy| policy.check_any(header))
    }

    /// The policy that holds for what unlocks or edits.
    fn policy(&self) -> Policy {
        self.policy.clone().unwrap_or_default()
    }

    /// A LUKS2 container, for what LUKS1 does not have: `no` names it. Says on stderr when the header is damaged but usable.
    pub(crate) fn luks2(&self, limits: &Limits, no: &'static str) -> Result<FileContainer, Failure> {
        let opened = self
            .demand(Version::Luks2)
            .and_then(|()| Container::open(Arc::clone(&self.header), Arc::clone(&self.data), limits.clone()));
        let container = opened.map_err(|error| Failure::of_luks(self.header.path(), only_luks2(error, no)))?;
        advise(self.header.path(), container.header().health().advice());
        advise(self.header.path(), container.header().metadata().caution());
        let container = container.with_policy(self.policy());
        // Said before a passphrase is asked for, and held again by every unlock and edit.
        container.check_policy().map_err(|error| Failure::of_luks(self.header.path(), error))?;
        Ok(container)
    }

    /// The container of either version; says on stderr when the header is damaged but usable.
    pub(crate) fn container(&self, limits: &Limits) -> Result<AnyFileContainer, Failure> {
        let opened = AnyContainer::open(Arc::clone(&self.header), Arc::clone(&self.data), limits.clone());
        let container = opened
            .and_then(|container| self.demand(container.version()).map(|()| container))
            .map_err(|error| Failure::of_luks(self.header.path(), error))?;
        advise(self.header.path(), container.advice());
        advise(self.header.path(), container.metadata().caution());
        let container = container.with_policy(self.policy());
        container.check_policy().map_err(|error| Failure::of_luks(self.header.path(), error))?;
        Ok(container)
    }

    /// Refuses the version that was found if another one was asked for.
    pub(crate) fn demand(&self, found: Version) -> Result<(), Error> {
        match (self.version, found) {
            (Some(Version::Luks1), Version::Luks2) => Err(Error::Luks2),
            (Some(Version::Luks2), Version::Luks1) => Err(Error::Luks1),
            _ => Ok(()),
        }
    }

    /// Takes the use lock on the data: exclusive for writing, shared for reading. An open volume holds it.
    pub(crate) fn lock_use(&self, shared: bool) -> Result<UseLock, Failure> {
        self.data.lock_use(shared).map_err(|error| {
            Failure::busy(error.to_string()).with_hint("`luksctl list` shows what is open; close it first")
        })
    }
}

/// Says on stderr what is wrong with a usable header, and what to do.
pub(crate) fn advise(path: &Path, advice: Option<String>) {
    if let Some(advice) = advice {
        let words = format!("luksctl: warning: {}: {advice}", path.display());
        crate::output::words(&terminal::plain(&words));
    }
}

/// Names what LUKS1 lacks, where a LUKS1 header was found.
fn only_luks2(error: Error, no: &'static str) -> Error {
    match error {
        Error::Luks1 => Error::Luks1Has { no },
        other => other,
    }
}

/// The library's bounds with what the person moved.
pub(crate) fn limits(args: &LimitArgs) -> Limits {
    let mut limits = Limits::default();
    if let Some(memory) = args.max_kdf_memory {
        limits.kdf_memory_kib = u32::try_from(memory.get() / 1024).unwrap_or(u32::MAX);
    }
    if let Some(time) = args.max_kdf_time {
        limits.kdf_time = time;
    }
    if let Some(iterations) = args.max_kdf_iterations {
        limits.kdf_iterations = iterations;
    }
    limits
}

/// The path behind `UUID=…`, `LABEL=…` or a plain path; must exist and be no folder.
pub(crate) fn resolve(named: &Path) -> Result<PathBuf, Failure> {
    let path = session::image::resolve(named).map_err(Failure::of_session)?;
    let found = std::fs::metadata(&path).map_err(|error| Failure::from_open(&path, &error))?;
    if found.is_dir() {
        return Err(Failure::device(format!("{}: is a folder, not an image", path.display()))
            .with_hint("name the image file in it, or a block device"));
    }
    Ok(path)
}

/// With a detached header, changing the header leaves the data alone.
fn only_header(target: &TargetArgs, access: Access) -> bool {
    access == Access::ChangeHeader && target.header.is_some()
}

/// Opens one file or device, which others may use as well.
pub(crate) fn open_disk(path: &Path, read_only: bool) -> Result<FileDisk, Failure> {
    open_with(path, read_only, false)
}

/// Opens one file or device; `exclusive` refuses a block device that is mounted or held by another.
///
/// A block device that others may use as well is read and written past its page cache. What is written through the file behind a
/// loop device does not reach pages that the device has cached, and these stay for as long as anybody holds the device open
/// (docs/crash-safety.md has the experiment). A header that is compared with them would seem unchanged, and a keyslot that another
/// program had just added would be overwritten.
fn open_with(path: &Path, read_only: bool, exclusive: bool) -> Result<FileDisk, Failure> {
    use std::os::unix::fs::FileTypeExt as _;
    let device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let direct = if device && !exclusive { Direct::IfPossible } else { Direct::Never };
    let mode = OpenMode { read_only, direct, exclusive };
    let disk = FileDisk::open(path, &mode).map_err(|error| Failure::of_block_open(path, &error))?;
    log::info!("{}: {}", path.display(), disk.geometry().size);
    Ok(disk)
}
