//! A container whose header nobody else uses, held while all of it is replaced: neither open nor mounted nor attached, and
//! locked against opening until dropped.

use std::sync::Arc;

use block::UseLock;

use crate::args::target::TargetArgs;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::occupied;

/// The files of a container, and the locks on them.
pub(crate) struct UnusedImage {
    image: Image,
    _locks: Vec<UseLock>,
}

impl UnusedImage {
    /// Opens what `target` names, unless somebody uses it. A detached header is held along with its data.
    pub(crate) fn open(target: &TargetArgs) -> Result<UnusedImage, Failure> {
        // Before the files are opened here, which would find themselves.
        occupied::refuse(&image::resolve(&target.image)?)?;
        if let Some(header) = &target.header {
            occupied::refuse(&image::resolve(header)?)?;
        }
        let image = Image::open(target, Access::ChangeHeader)?;
        let detached = !Arc::ptr_eq(image.header(), image.data());
        let mut locks = vec![lock(image.header(), false)?];
        if detached {
            // Open for reading only, which allows no exclusive lock.
            locks.push(lock(image.data(), true)?);
        }
        Ok(UnusedImage { image, _locks: locks })
    }

    /// The files.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }
}

fn lock(disk: &block::FileDisk, shared: bool) -> Result<UseLock, Failure> {
    disk.lock_use(shared).map_err(|error| {
        Failure::busy(format!("{error}; nothing was changed"))
            .with_hint("`luksctl list` shows what is open; close it first")
    })
}
