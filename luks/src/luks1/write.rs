//! Writing the LUKS1 header in place, so that a crash never takes a keyslot away that was usable before and after.
//!
//! There is one copy, no sequence number and no checksum. What there is instead: a sector of 512 bytes is written whole or not
//! at all, and the header lies in two of them.
//!
//! ```text
//! sector 0    0 … 511   everything up to keyslot 5; of keyslot 6 its state, its iterations, the first 8 bytes of its salt
//! sector 1  512 … 591   of keyslot 6 the rest of its salt, its place, its stripes; keyslot 7
//! ```
//!
//! A change inside one sector is atomic: keyslots 0 to 5, keyslot 7, the UUID. Keyslot 6 is decided by its state, in sector 0:
//! to enable it, sector 1 is written and flushed first; to disable it, sector 0 first. In between it is disabled, with
//! half a salt that nobody reads. A change of keyslot 6 that leaves it enabled must keep what is behind the border
//! ([`salt_beginning`]); any other would tear and is refused as a bug of the caller.

use std::ops::Range;

use block::{BlockIo, ByteView, Bytes};

use crate::error::Error;
use crate::luks1::header::{HEADER_BYTES, Luks1Header, SALT_LEN, SLOT_BYTES, SLOT_SALTS_AT};
use crate::metadata::KeyslotId;

/// The border between the two sectors of the header.
const SECTOR: usize = 512;
/// The keyslot that lies on both sides of the border.
const TORN_SLOT: usize = 6;
/// How much of its salt stands before the border.
const TORN_SALT_BYTES: usize = 8;
const _: () = assert!(SLOT_SALTS_AT + TORN_SLOT * SLOT_BYTES + TORN_SALT_BYTES == SECTOR);

/// The part of the salt of keyslot `id` that a single write can replace together with its state: all of it but for keyslot 6.
pub(super) fn salt_beginning(id: KeyslotId, salt: &mut [u8; SALT_LEN]) -> &mut [u8] {
    if id.0 as usize == TORN_SLOT { &mut salt[..TORN_SALT_BYTES] } else { salt }
}

/// Replaces the header `old`, which stands on `disk`, by `new`. The caller holds the exclusive lock and has compared.
///
/// # Errors
/// [`Error::InvalidLuks1`] if `new` breaks a rule, before anything is written; errors of the disk, after which it is unknown
/// which of the two sectors are new.
pub(crate) fn replace<D: BlockIo + ?Sized>(disk: &D, old: &Luks1Header, new: &Luks1Header) -> Result<(), Error> {
    new.check().and_then(|()| new.check_device(disk.geometry().size)).map_err(Error::InvalidLuks1)?;
    let (before, after) = (old.to_bytes(), new.to_bytes());
    let (first, second) = (0..SECTOR, SECTOR..HEADER_BYTES);
    let stays_enabled = old.slots[TORN_SLOT].enabled && new.slots[TORN_SLOT].enabled;
    let changes = |part: &Range<usize>| before[part.clone()] != after[part.clone()];
    if stays_enabled && old.slots[TORN_SLOT] != new.slots[TORN_SLOT] && changes(&first) && changes(&second) {
        return Err(Error::KeyslotInUse { keyslot: KeyslotId(6) });
    }
    let order = if old.slots[TORN_SLOT].enabled { [first, second] } else { [second, first] };
    let view = ByteView::new(disk);
    for part in order {
        if changes(&part) {
            view.write(Bytes::from_len(part.start), &after[part], false)?;
            view.flush()?;
        }
    }
    Ok(())
}
