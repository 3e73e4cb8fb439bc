//! Reading the LUKS1 header from a device. Never writes.

use block::{BlockIo, ByteView, Bytes};

use crate::error::Error;
use crate::limits::Limits;
use crate::luks1::header::{HEADER_BYTES, Luks1Header};
use crate::rule::{Rule, Violation};
use crate::store::{HeaderStore, LockMode};

/// Reads the header under the shared metadata lock and holds it against every rule.
///
/// # Errors
/// [`Error::NotLuks`], [`Error::Luks2`], [`Error::InvalidLuks1`], [`Error::Locked`] and errors of the disk.
pub fn load<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<Luks1Header, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    load_unlocked(store)
}

/// Reads the header; the caller holds the lock, or there is nothing to lock.
///
/// # Errors
/// As [`load`], but for those of the lock.
pub fn load_unlocked<D: BlockIo + ?Sized>(disk: &D) -> Result<Luks1Header, Error> {
    let header = Luks1Header::parse(&read_bytes(disk)?).map_err(not_luks1)?;
    header.check_device(disk.geometry().size).map_err(Error::InvalidLuks1)?;
    Ok(header)
}

/// The bytes that a header would take.
pub(super) fn read_bytes<D: BlockIo + ?Sized>(disk: &D) -> Result<[u8; HEADER_BYTES], Error> {
    let mut bytes = [0; HEADER_BYTES];
    let view = ByteView::new(disk);
    if view.size() < Bytes::from_len(HEADER_BYTES) {
        return Err(Error::NotLuks);
    }
    view.read(Bytes::ZERO, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn not_luks1(violation: Violation) -> Error {
    match violation.rule {
        Rule::Luks1Magic => Error::NotLuks,
        Rule::Luks1Version if violation.value == "2" => Error::Luks2,
        _ => Error::InvalidLuks1(violation),
    }
}
