//! Refusing what is in use, and naming what a disk holds already.

use std::path::Path;

use block::signature::Signature;

use crate::failure::Failure;

/// Refuses what is mounted, attached to a loop device, used as swap, or open.
pub(crate) fn refuse(path: &Path) -> Result<(), Failure> {
    session::image::check_not_in_use(path).map_err(Failure::of_session)
}

/// "an ext4 file system at byte 1080" and so on; nothing if nothing is known there.
pub(crate) fn words(found: &[Signature]) -> Option<String> {
    if found.is_empty() {
        return None;
    }
    let each: Vec<String> = found.iter().map(|one| format!("{} (at byte {})", one.name, one.offset.0)).collect();
    Some(each.join(", "))
}
