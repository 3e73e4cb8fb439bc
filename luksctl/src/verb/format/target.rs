//! What `format` writes on: looked at first, refused or confirmed, and only then made, grown or opened for writing. Files
//! that this run made go again unless formatting succeeds; an existing file that was grown gets its length back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::signature::Signature;
use block::{BlockError, BlockErrorKind, BlockIo as _, Bytes, Direct, FileDisk, Geometry, OpenMode, UseLock};
use luks::Error;

use super::layout::Plan;
use crate::args::Common;
use crate::args::target::TargetArgs;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::{confirm, image, occupied, output};

/// Block size of a file that does not exist yet.
const NEW_FILE_BLOCK_BYTES: u32 = 4096;
/// Where the kernel reads `st_blocks` in units of 512 bytes: a file without any holds nothing.
const NOTHING_ALLOCATED: u64 = 0;

/// What the person asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) size: Option<Bytes>,
    pub(super) sparse: bool,
    pub(super) force: bool,
}

/// One file or device, as it was found.
struct Target {
    path: PathBuf,
    /// Open for reading only; nothing if it does not exist.
    found: Option<FileDisk>,
    /// What it held when it was looked at.
    holds: Vec<Signature>,
}

/// Data and, where it lies apart, header.
pub(super) struct Targets {
    data: Target,
    header: Option<Target>,
    wanted: Wanted,
}

impl Targets {
    /// Looks at what is there; writes nothing.
    pub(super) fn look(args: &TargetArgs, wanted: Wanted) -> Result<Targets, Failure> {
        let data = Target::look(&args.image)?;
        let header = args.header.as_deref().map(Target::look).transpose()?;
        if let (Some(data), Some(header)) = (&data.found, header.as_ref().and_then(|header| header.found.as_ref()))
            && data.identity() == header.identity()
        {
            return Err(Failure::wrong("IMAGE and --header are the same file").with_hint("leave --header out"));
        }
        let shown = data.path.display();
        match (&data.found, wanted.size) {
            (None, None) => Err(Failure::device(format!("{shown}: does not exist"))
                .with_hint(format!("luksctl format {shown} --size 5G makes it"))),
            (Some(disk), Some(_)) if disk.is_block_device() => {
                Err(Failure::wrong(format!("{shown}: is a block device, its size is what it is"))
                    .with_hint("leave --size out"))
            }
            (Some(disk), Some(size)) if disk.geometry().size > size => Err(Failure::wrong(format!(
                "{shown}: is {}, larger than --size {size}; an existing file is never cut",
                disk.geometry().size
            ))
            .with_hint("leave --size out, or choose another name")),
            _ => Ok(Targets { data, header, wanted }),
        }
    }

    /// Asks `plan` with the geometries that header and data will have.
    pub(super) fn plan(&self, plan: impl FnOnce(&Geometry, &Geometry) -> Result<Plan, Error>) -> Result<Plan, Failure> {
        let mut data = self.data.geometry();
        data.size = self.wanted.size.map_or(data.size, |size| size.max(data.size));
        let header = self.header.as_ref().map_or(data, Target::geometry);
        plan(&header, &data).map_err(|error| Failure::of_luks(&self.data.path, error))
    }

    /// Refuses what is in use or holds something known, unless it is forced or confirmed. Without `ask` what stands in the
    /// way is only said.
    pub(super) fn refuse_or_confirm(&self, common: &Common, ask: bool) -> Result<(), Failure> {
        for target in std::iter::once(&self.data).chain(&self.header) {
            target.refuse_or_confirm(self.wanted.force, common, ask)?;
        }
        Ok(())
    }

    /// Makes or grows the files and opens them for writing, in use by nobody else.
    pub(super) fn make(self, plan: &Plan, interrupt: &Interrupt) -> Result<Made, Failure> {
        let mut undo = Undo { created: Vec::new(), grown: Vec::new(), interrupt: interrupt.clone(), armed: true };
        let data = Arc::new(self.data.make(self.wanted.size, self.wanted, &mut undo)?);
        let header = match self.header {
            None => Arc::clone(&data),
            Some(header) => {
                Arc::new(header.make(Some(plan.header_size()), Wanted { sparse: false, ..self.wanted }, &mut undo)?)
            }
        };
        let mut locks = vec![lock(&data)?];
        if !Arc::ptr_eq(&data, &header) {
            locks.push(lock(&header)?);
        }
        Ok(Made { header, data, undo, _locks: locks })
    }
}

impl Target {
    fn look(named: &Path) -> Result<Target, Failure> {
        let plain = !named.to_string_lossy().contains('=');
        if plain && matches!(named.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(Target { path: named.to_owned(), found: None, holds: Vec::new() });
        }
        let path = image::resolve(named)?;
        let disk = image::open_disk(&path, true)?;
        let holds = probe(&path, &disk)?;
        Ok(Target { path, found: Some(disk), holds })
    }

    fn geometry(&self) -> Geometry {
        match &self.found {
            Some(disk) => disk.geometry(),
            None => Geometry {
                size: Bytes(0),
                logical_block: 512,
                physical_block: NEW_FILE_BLOCK_BYTES,
                memory_alignment: 1,
                read_only: false,
            },
        }
    }

    fn refuse_or_confirm(&self, force: bool, common: &Common, ask: bool) -> Result<(), Failure> {
        let Some(disk) = &self.found else { return Ok(()) };
        occupied::refuse(&self.path)?;
        let shown = self.path.display();
        let holds = occupied::words(&self.holds);
        if !ask {
            if let Some(words) = holds.filter(|_| !force) {
                output::words(&format!("luksctl: warning: {shown} holds {words}; formatting it needs --force"));
            }
            return Ok(());
        }
        let can_ask = !common.batch_mode && confirm::can_ask();
        match holds {
            Some(words) if !force && can_ask => {
                confirm::typed_yes(&format!("{shown} holds {words}. Formatting destroys it for good."))
            }
            Some(words) if !force => Err(Failure::wrong(format!("{shown}: holds {words}; nothing was changed"))
                .with_hint("if it may be destroyed, add --force")),
            _ if can_ask && !force && !self.is_empty() => {
                confirm::typed_yes(&format!("what {shown} holds ({}) will be lost for good.", disk.geometry().size))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is a file in which nothing was ever written.
    fn is_empty(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(&self.path).is_ok_and(|found| found.is_file() && found.blocks() == NOTHING_ALLOCATED)
    }

    /// Opens for writing what was looked at. A person typed a passphrase in between, which is time enough for another file
    /// to stand there, or another content in it, than the one that may be destroyed.
    fn open_again(&self, found: &FileDisk, mode: &OpenMode, force: bool) -> Result<FileDisk, Failure> {
        occupied::refuse(&self.path)?;
        let disk = FileDisk::open(&self.path, mode).map_err(|error| Failure::of_block_open(&self.path, &error))?;
        let same = (disk.identity(), disk.rdev()) == (found.identity(), found.rdev());
        if !same || (!force && probe(&self.path, &disk)? != self.holds) {
            return Err(Failure::busy(format!(
                "{}: changed in the meantime; nothing was written",
                self.path.display()
            ))
            .with_hint("run the same command again to look at what is there now"));
        }
        Ok(disk)
    }

    /// Opens it for writing, at least `size` long.
    fn make(self, size: Option<Bytes>, wanted: Wanted, undo: &mut Undo) -> Result<FileDisk, Failure> {
        let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: true };
        let failed = |error: BlockError| Failure::of_block_open(&self.path, &error);
        let disk = match &self.found {
            Some(found) => self.open_again(found, &mode, wanted.force)?,
            None => {
                undo.interrupt.remove_on_signal(&self.path);
                let disk = FileDisk::create_new(&self.path, &mode).map_err(failed)?;
                undo.created.push(self.path.clone());
                disk
            }
        };
        let length = disk.geometry().size;
        let Some(size) = size.filter(|size| !disk.is_block_device() && *size > length) else { return Ok(disk) };
        if self.found.is_some() {
            undo.grown.push((disk.clone(), length));
        }
        let resized = if wanted.sparse { disk.set_len(size) } else { disk.preallocate(size) };
        match resized {
            Ok(()) => Ok(disk),
            Err(error) if error.kind == BlockErrorKind::Unsupported => {
                Err(Failure::of_block(&self.path, &error)
                    .with_hint("this file system cannot reserve space: add --sparse"))
            }
            Err(error) => Err(Failure::of_block(&self.path, &error)),
        }
    }
}

/// The files, ready to be formatted.
pub(super) struct Made {
    header: Arc<FileDisk>,
    data: Arc<FileDisk>,
    undo: Undo,
    _locks: Vec<UseLock>,
}

impl Made {
    /// Where the header goes.
    pub(super) fn header(&self) -> &Arc<FileDisk> {
        &self.header
    }

    /// Where the data goes.
    pub(super) fn data(&self) -> &Arc<FileDisk> {
        &self.data
    }

    /// Formatting succeeded: new files stay, durable under their names.
    pub(super) fn keep(mut self) -> Result<(), Failure> {
        for path in &self.undo.created {
            let disk = if self.data.path() == path { &self.data } else { &self.header };
            disk.sync_name().map_err(|error| Failure::of_block(path, &error))?;
            self.undo.interrupt.keep(path);
        }
        self.undo.armed = false;
        Ok(())
    }
}

/// What to take back if formatting fails.
struct Undo {
    created: Vec<PathBuf>,
    grown: Vec<(FileDisk, Bytes)>,
    interrupt: Interrupt,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for path in &self.created {
            self.interrupt.keep(path);
            if let Err(error) = std::fs::remove_file(path) {
                log::warn!("could not remove {}: {error}", path.display());
            }
        }
        for (disk, length) in &self.grown {
            if let Err(error) = disk.set_len(*length) {
                log::warn!("could not give {} its length back: {error}", disk.path().display());
            }
        }
    }
}

fn probe(path: &Path, disk: &FileDisk) -> Result<Vec<Signature>, Failure> {
    block::signature::probe(disk).map_err(|error| Failure::of_block(path, &error))
}

fn lock(disk: &FileDisk) -> Result<UseLock, Failure> {
    disk.lock_use(false).map_err(|error| {
        Failure::busy(format!("{error}; nothing was changed"))
            .with_hint("`luksctl list` shows what is open; close it first")
    })
}
