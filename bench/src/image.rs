//! The containers that measurements are made on: formatted with a key derivation that costs nothing, and a passphrase that is no
//! secret, as nothing but zeros and random bytes is ever in them.

use std::path::Path;

use anyhow::Result;
use block::{Bytes, FileDisk, OpenMode};
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::NewKdf;
use luks::{Container, FormatParams, Limits, UnlockRequest, Volume};
use secret::Secret;
use session::SystemEnv;

/// Where the data of a container with the usual areas begins.
pub(crate) const DATA_OFFSET: Bytes = Bytes(16 << 20);
/// Of an image that holds nothing but zeros or random bytes.
pub(crate) const PASSPHRASE: &[u8] = b"measured";

/// Makes the file `image`, which must not exist, with a volume of `size`. None of its data is written.
pub(crate) fn create(image: &Path, size: Bytes, sector_bytes: Option<u32>) -> Result<()> {
    FileDisk::create_new(image, &OpenMode::default())?;
    format(image, size, sector_bytes)
}

/// The same in a file that is there, and empty.
pub(crate) fn format(image: &Path, size: Bytes, sector_bytes: Option<u32>) -> Result<()> {
    let disk = FileDisk::open(image, &OpenMode::default())?;
    disk.set_len(Bytes(DATA_OFFSET.0 + size.0))?;
    let effort = Effort::Forced { iterations: 4 };
    let cheap = KdfCost { effort, memory_kib: Some(32), parallel: Some(1), ..KdfCost::default() };
    let kdf = NewKdf::Calibrate(KdfChoice::Argon2id, cheap);
    let params = FormatParams { kdf, sector_size: sector_bytes, ..FormatParams::default() };
    luks::format::format(&disk, &disk, &SystemEnv.env(), &params, &Secret::copy_of(PASSPHRASE)?)?;
    Ok(())
}

/// The volume of such an image.
pub(crate) fn unlocked(disk: FileDisk) -> Result<Volume<FileDisk>> {
    let container = Container::open(disk.clone(), disk, Limits::default())?;
    let key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), &Secret::copy_of(PASSPHRASE)?)?;
    Ok(container.into_volume(&key, false)?)
}
