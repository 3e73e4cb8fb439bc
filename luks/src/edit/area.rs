//! Keyslot areas: where a new one goes.
//!
//! First fit (luks2-format §3.3): the keyslots area from its start, existing areas sorted by offset, the first gap that holds
//! the new one at a multiple of 4096 bytes. Size of an area: key size × 4000 stripes, rounded up to 4096.

use block::Bytes;

use crate::af::STRIPES;
use crate::error::Error;
use crate::limits::KEYSLOTS_SIZE_UNIT;
use crate::metadata::Metadata;

/// Size of the area that holds a key of `key_len_bytes`; `None` beyond 2^64.
pub(crate) fn size_for(key_len_bytes: usize) -> Option<Bytes> {
    Bytes::from_len(key_len_bytes).checked_mul(STRIPES as u64)?.round_up(KEYSLOTS_SIZE_UNIT)
}

/// Offset of the first gap in the keyslots area that holds `size`.
///
/// # Errors
/// [`Error::NoFreeArea`] with the largest gap there is.
pub(crate) fn allocate(metadata: &Metadata, size: Bytes) -> Result<Bytes, Error> {
    let end = metadata.config.keyslots_end();
    let mut taken: Vec<(u64, u64)> =
        metadata.keyslots.iter().map(|(_, keyslot)| (keyslot.area.offset.0, keyslot.area.size.0)).collect();
    taken.sort_unstable();
    taken.push((end.0, 0));
    let mut start = metadata.config.keyslots_offset();
    let mut largest = Bytes(0);
    for (offset, len) in taken {
        let gap = Bytes(offset.min(end.0).saturating_sub(start.0));
        if gap >= size {
            return Ok(start);
        }
        largest = largest.max(gap);
        let behind = Bytes(offset.saturating_add(len)).round_up(KEYSLOTS_SIZE_UNIT).unwrap_or(end);
        start = start.max(behind);
    }
    Err(Error::NoFreeArea { needed: size, largest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JsonMap;
    use crate::metadata::config::Config;
    use crate::metadata::keyslot::{Area, Keyslot, KeyslotKind};
    use crate::metadata::{ById, KeyslotId};

    const KIB: u64 = 1024;

    fn metadata(areas: &[(u64, u64)]) -> Metadata {
        let keyslots = areas.iter().enumerate().map(|(id, (offset, size))| {
            let area = Area {
                type_name: "raw".into(),
                offset: Bytes(*offset),
                size: Bytes(*size),
                encryption: None,
                key_size_bytes: None,
                extra: JsonMap::new(),
            };
            let keyslot = Keyslot {
                kind: KeyslotKind::Other,
                type_name: "foreign".into(),
                key_size_bytes: 32,
                priority: None,
                area,
                extra: JsonMap::new(),
            };
            (KeyslotId(u32::try_from(id).expect("few")), keyslot)
        });
        Metadata {
            keyslots: keyslots.collect(),
            tokens: ById::new(),
            segments: ById::new(),
            digests: ById::new(),
            config: Config::new(Bytes(16 * KIB), Bytes(512 * KIB)),
            extra: JsonMap::new(),
        }
    }

    #[test]
    fn sizes_are_those_of_cryptsetup() {
        for (key, size) in [(64, 258_048), (32, 131_072), (24, 98_304), (16, 65_536)] {
            assert_eq!(size_for(key), Some(Bytes(size)));
        }
        assert_eq!(size_for(usize::MAX), None);
    }

    #[test]
    fn the_first_gap_that_fits_is_taken() {
        let start = 32 * KIB;
        let at = |areas: &[(u64, u64)], size: u64| allocate(&metadata(areas), Bytes(size));
        assert_eq!(at(&[], 256 * KIB).expect("free"), Bytes(start));
        // Out of order, with a hole of 64 KiB at 96 KiB, another foreign area at an odd place.
        let areas = [(160 * KIB, 64 * KIB), (start, 64 * KIB), (224 * KIB + 512, 700)];
        assert_eq!(at(&areas, 64 * KIB).expect("the hole"), Bytes(96 * KIB));
        assert_eq!(at(&areas, 64 * KIB + 1).expect("behind"), Bytes(228 * KIB));
        let error = at(&areas, 512 * KIB).expect_err("too large");
        assert!(
            matches!(error, Error::NoFreeArea { largest: Bytes(largest), .. } if largest == (544 - 228) * KIB),
            "{error}"
        );
        assert!(at(&[(start, 512 * KIB)], 4096).is_err());
        assert!(at(&[(start, u64::MAX)], 4096).is_err());
    }
}
