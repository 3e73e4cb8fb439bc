//! A disk of ours as a file, through our own FUSE: what a test's image lies on when the medium below has to lose its power
//! or fail.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block::{BlockIo, Bytes, MemDisk};
use export::fuse::{FuseExport, FuseOptions, serve};

/// Pieces in which [`in_memory`] looks for something else than zeros.
const PIECE_BYTES: usize = 64 << 10;
/// Name of the file.
const FILE_NAME: &str = "disk.img";

/// A disk served as a file.
pub struct Served {
    export: FuseExport,
    /// The file.
    pub file: PathBuf,
}

impl Served {
    /// Serves `disk` in `folder`, which is made if it is not there.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn new<B: BlockIo + 'static>(disk: Arc<B>, folder: &Path) -> Served {
        std::fs::create_dir_all(folder).unwrap();
        let options = FuseOptions { file_name: FILE_NAME.into(), threads: 4, ..FuseOptions::default() };
        let export = serve(disk, folder, &options).unwrap();
        let file = export.file_path().to_owned();
        Served { export, file }
    }

    /// Unmounts it.
    ///
    /// # Panics
    /// If somebody still uses it.
    pub fn end(self) {
        self.export.unmount_within(Duration::from_secs(20)).unwrap();
    }
}

/// The content of a file as a disk in memory; zeros take no room.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn in_memory(image: &Path) -> MemDisk {
    let bytes = std::fs::read(image).unwrap();
    let disk = MemDisk::new(Bytes(bytes.len() as u64));
    for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            disk.write_at(Bytes((number * PIECE_BYTES) as u64), piece, false).unwrap();
        }
    }
    disk
}

/// Writes a disk in memory to a file, to be looked at later.
///
/// # Errors
/// What the file says.
///
/// # Panics
/// If the disk cannot be read.
pub fn save(disk: &MemDisk, file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let size = disk.geometry().size.0;
    let out = std::fs::File::create(file)?;
    out.set_len(size)?;
    let mut piece = vec![0; PIECE_BYTES];
    for at in (0..size).step_by(PIECE_BYTES) {
        let len = usize::try_from(size - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        disk.read_at(Bytes(at), &mut piece[..len]).unwrap();
        if piece[..len].iter().any(|byte| *byte != 0) {
            out.write_all_at(&piece[..len], at)?;
        }
    }
    Ok(())
}
