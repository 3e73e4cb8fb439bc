//! The containers that measurements are made on: formatted with a key derivation that costs nothing, and a passphrase that is no
//! secret, as nothing but zeros and random bytes is ever in them. And headers of the same kind for data of others, which is only read.

use std::path::Path;

use anyhow::Result;
use block::{Bytes, Direct, FileDisk, OpenMode};
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::NewKdf;
use luks::{Container, FormatParams, Limits, UnlockRequest, Volume};
use secret::Secret;
use session::SystemEnv;

/// Where the data of a container with the usual areas begins.
pub(crate) const DATA_OFFSET: Bytes = Bytes(16 << 20);
/// Of an image that holds nothing but zeros or random bytes.
pub(crate) const PASSPHRASE: &[u8] = b"measured";

/// What the data of somebody else is encrypted with.
pub(crate) struct LikeThis<'a> {
    pub(crate) cipher: &'a str,
    pub(crate) key_size_bits: Option<u32>,
    pub(crate) sector_bytes: u32,
    pub(crate) data_offset: Bytes,
}

/// Makes the file `image`, which must not exist, with a volume of `size`. None of its data is written.
pub(crate) fn create(image: &Path, size: Bytes, sector_bytes: Option<u32>) -> Result<()> {
    FileDisk::create_new(image, &OpenMode::default())?;
    format(image, size, sector_bytes)
}

/// The same in a file that is there, and empty.
pub(crate) fn format(image: &Path, size: Bytes, sector_bytes: Option<u32>) -> Result<()> {
    let disk = FileDisk::open(image, &OpenMode::default())?;
    disk.set_len(Bytes(DATA_OFFSET.0 + size.0))?;
    let params = FormatParams { kdf: cheap(), sector_size: sector_bytes, ..FormatParams::default() };
    luks::format::format(&disk, &disk, &SystemEnv.env(), &params, &Secret::copy_of(PASSPHRASE)?)?;
    Ok(())
}

/// Makes the file `header`, which must not exist: a header for `data`, under a key of its own. Nothing of `data` is written.
pub(crate) fn format_detached(header: &Path, data: &FileDisk, like: &LikeThis<'_>) -> Result<()> {
    let store = FileDisk::create_new(header, &OpenMode::default())?;
    store.set_len(DATA_OFFSET)?;
    let params = FormatParams {
        kdf: cheap(),
        cipher: like.cipher.to_owned(),
        key_size_bits: like.key_size_bits,
        sector_size: Some(like.sector_bytes),
        data_offset: Some(like.data_offset),
        detached: true,
        ..FormatParams::default()
    };
    luks::format::format(&store, data, &SystemEnv.env(), &params, &Secret::copy_of(PASSPHRASE)?)?;
    Ok(())
}

fn cheap() -> NewKdf {
    let effort = Effort::Forced { iterations: 4 };
    let cheap = KdfCost { effort, memory_kib: Some(32), parallel: Some(1), ..KdfCost::default() };
    NewKdf::Calibrate(KdfChoice::Argon2id, cheap)
}

/// The volume of such an image. With a header of its own the image is somebody else's, and only read.
pub(crate) fn open(image: &Path, header: Option<&Path>, direct: Direct) -> Result<Volume<FileDisk>> {
    let read_only = header.is_some();
    let disk = FileDisk::open(image, &OpenMode { direct, read_only, ..OpenMode::default() })?;
    let store = match header {
        Some(header) => FileDisk::open(header, &OpenMode { read_only, ..OpenMode::default() })?,
        None => disk.clone(),
    };
    let container = Container::open(store, disk, Limits::default())?;
    let key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), &Secret::copy_of(PASSPHRASE)?)?;
    Ok(container.into_volume(&key, read_only)?)
}
