//! What `format` takes away before it writes: the magic of old headers, signatures, whatever stood in the header area.

use block::{BlockIo, Bytes, signature};

use crate::area::fill_random;
use crate::binary::Position;
use crate::env::Env;
use crate::error::Error;
use crate::format::FormatPlan;
use crate::limits::{BINARY_HEADER, KEYSLOTS_SIZE_MAX, METADATA_SIZE_MAX, METADATA_SIZES};

/// Bytes of zeroes written in one go.
const CHUNK_BYTES: usize = 1 << 20;
/// Most of the space before the data that is zeroed: two copies and a keyslots area of the largest size.
const ZEROED_MAX: Bytes = Bytes(2 * METADATA_SIZE_MAX.0 + KEYSLOTS_SIZE_MAX.0);

/// Makes every old LUKS header unrecognisable, for good: the primary, and a secondary at each of the nine places.
pub(crate) fn old_magic<S: BlockIo>(store: &S) -> Result<(), Error> {
    let size = store.geometry().size;
    let zeroes = vec![0u8; BINARY_HEADER];
    let mut start = vec![0u8; BINARY_HEADER];
    for offset in METADATA_SIZES {
        if offset.checked_add(Bytes(BINARY_HEADER as u64)).is_none_or(|end| end > size) {
            break;
        }
        store.read_at(offset, &mut start)?;
        if start.starts_with(&Position::Secondary.magic()) {
            store.write_at(offset, &zeroes, false)?;
        }
    }
    store.write_at(Bytes(0), &zeroes, false)?;
    store.flush()?;
    Ok(())
}

/// Zeroes what is before the data, fills the keyslots area with random bytes, and takes known signatures behind it away.
/// With a detached header `store` is the header's device, and nothing behind the header is touched. The flush is the caller's.
pub(super) fn header_area<S: BlockIo>(store: &S, env: &Env<'_>, plan: &FormatPlan) -> Result<(), Error> {
    let keyslots = Bytes(2 * plan.metadata_size.0);
    let end = plan.header_size();
    if plan.detached {
        return areas(store, env, keyslots, end, end);
    }
    foreign_signatures(store, end)?;
    areas(store, env, keyslots, end, plan.data_offset)
}

/// Zeroes everything before `keyslots`, fills from there to `end` with random bytes, and zeroes on up to `data`. The flush is
/// the caller's.
pub(crate) fn areas<S: BlockIo>(
    store: &S,
    env: &Env<'_>,
    keyslots: Bytes,
    end: Bytes,
    data: Bytes,
) -> Result<(), Error> {
    zero(store, Bytes(0), keyslots)?;
    fill_random(store, env, keyslots, Bytes(end.0.saturating_sub(keyslots.0)))?;
    zero(store, end, data.min(ZEROED_MAX).max(end))?;
    Ok(())
}

/// Zeroes the block of each known signature from `start` on, as wipefs would: a partition table's or an array's second
/// copy at the end of the device would outlive the format.
pub(crate) fn foreign_signatures<S: BlockIo>(store: &S, start: Bytes) -> Result<(), Error> {
    let geometry = store.geometry();
    let block = Bytes(u64::from(geometry.logical_block));
    let zeroes = vec![0u8; geometry.logical_block as usize];
    for found in signature::probe(store)? {
        let at = found.offset.round_down(block);
        if at >= start && at.checked_add(block).is_some_and(|end| end <= geometry.size) {
            store.write_at(at, &zeroes, false)?;
        }
    }
    Ok(())
}

fn zero<S: BlockIo>(store: &S, start: Bytes, end: Bytes) -> Result<(), Error> {
    let zeroes = vec![0u8; CHUNK_BYTES];
    let mut at = start;
    while let Some(left) = end.checked_sub(at).and_then(Bytes::to_usize).filter(|left| *left > 0) {
        let part = &zeroes[..left.min(CHUNK_BYTES)];
        store.write_at(at, part, false)?;
        at = Bytes(at.0 + part.len() as u64);
    }
    Ok(())
}
