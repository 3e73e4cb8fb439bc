//! What a run measures: a test file of its own, or an image that is there and is only read.

use std::path::Path;

use anyhow::{Result, ensure};
use block::Bytes;

use super::existing::ExistingImage;
use super::options::{Args, USUAL_SIZE_BYTES};
use super::target::TestFile;
use crate::image::DATA_OFFSET;

/// What is to be measured, before anything is made.
pub(super) struct Plan {
    existing: Option<ExistingImage>,
    pub(super) size: Bytes,
    pub(super) sector_bytes: u32,
}

/// The bytes. Dropping a test file removes it.
pub(super) enum Data {
    Made(TestFile),
    There(ExistingImage),
}

impl Plan {
    /// What the options ask for.
    pub(super) fn of(args: &Args) -> Result<Plan> {
        let Some(image) = ExistingImage::find(&args.target)? else {
            let size = Bytes(args.size.unwrap_or(USUAL_SIZE_BYTES));
            return Ok(Plan { existing: None, size, sector_bytes: args.sector_bytes()? });
        };
        ensure!(args.sector_size.is_none(), "--sector-size is for test files; {} has its own", args.target.display());
        let (size, sector_bytes) = (Bytes(image.size(args.size, USUAL_SIZE_BYTES)?), image.sector_bytes());
        Ok(Plan { existing: Some(image), size, sector_bytes })
    }

    /// Whether jobs may write.
    pub(super) fn may_write(&self) -> bool {
        self.existing.is_none()
    }

    /// Makes the test file, empty, or takes what is there.
    pub(super) fn take(self, target: &Path) -> Result<Data> {
        match self.existing {
            Some(image) => Ok(Data::There(image)),
            None => TestFile::make(target, self.size.0).map(Data::Made),
        }
    }
}

impl Data {
    pub(super) fn path(&self) -> &Path {
        match self {
            Data::Made(file) => file.path(),
            Data::There(image) => image.path(),
        }
    }

    /// Where the data begins.
    pub(super) fn offset(&self) -> Bytes {
        match self {
            Data::Made(_) => DATA_OFFSET,
            Data::There(image) => image.data_offset(),
        }
    }

    /// The header for data that is another's.
    pub(super) fn header(&self) -> Option<&Path> {
        match self {
            Data::Made(_) => None,
            Data::There(image) => Some(image.header()),
        }
    }
}
