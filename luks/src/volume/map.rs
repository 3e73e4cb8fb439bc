//! Segment map: which bytes of the volume lie where on the data device, and under which cipher.
//!
//! Entries are sorted, start at 0, leave no gap, and only the last may reach to the end of the device ("dynamic"). Every
//! border is a multiple of the map's block, the largest sector size in it, so that a request of whole blocks splits into whole sectors.
//!
//! IV rule (luks2-format §8.1): the sector number fed to the cipher counts 512-byte units from the start of the segment, plus
//! the segment's IV base, whatever the sector size is.

use std::sync::Arc;

use block::{Bytes, SECTOR_BYTES, Sectors};
use dmcrypt::SectorCipher;

use crate::error::Error;

/// How far an entry reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Exactly so many bytes.
    Fixed(Bytes),
    /// To the end of the data device, rounded down to whole blocks; grows with it.
    ToEnd,
}

/// Where the bytes of an entry lie.
#[derive(Clone)]
pub enum Target {
    /// As they are, from `device_offset` on.
    Linear {
        /// First byte on the data device.
        device_offset: Bytes,
    },
    /// Encrypted, from `device_offset` on.
    Crypt {
        /// First byte on the data device.
        device_offset: Bytes,
        /// IV sector number of the entry's first byte.
        iv_base: Sectors,
        /// Cipher with its key; wiped when the last map that holds it is dropped.
        cipher: Arc<dyn SectorCipher>,
    },
}

/// One run of bytes of the volume.
#[derive(Clone)]
pub struct MapEntry {
    /// First byte in the volume.
    pub start: Bytes,
    /// Length.
    pub len: Extent,
    /// Where it lies.
    pub target: Target,
}

impl MapEntry {
    fn device_offset(&self) -> Bytes {
        match &self.target {
            Target::Linear { device_offset } | Target::Crypt { device_offset, .. } => *device_offset,
        }
    }

    fn sector_bytes(&self) -> u64 {
        match &self.target {
            Target::Linear { .. } => SECTOR_BYTES,
            Target::Crypt { cipher, .. } => u64::from(cipher.sector_size().bytes()),
        }
    }

    /// Byte after the last, or `None` for an entry that reaches to the end of the device.
    fn end(&self) -> Option<u64> {
        match self.len {
            Extent::Fixed(len) => Some(self.start.0.saturating_add(len.0)),
            Extent::ToEnd => None,
        }
    }
}

/// The segments of a volume, checked.
#[derive(Clone)]
pub struct SegmentMap {
    entries: Vec<MapEntry>,
    shape: Shape,
}

/// What is left of a map when its ciphers are gone: enough to answer `geometry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    block_bytes: u64,
    /// End of the fixed part in the volume.
    fixed_end: u64,
    /// Device offset of the last entry if it reaches to the end of the device.
    dynamic_offset: Option<u64>,
}

impl Shape {
    /// Logical block of the volume in bytes.
    pub(super) fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// Size of the volume on a data device of `device` bytes.
    pub(super) fn size_on(self, device: Bytes) -> Bytes {
        let tail = self.dynamic_offset.map_or(0, |offset| device.0.saturating_sub(offset));
        Bytes(self.fixed_end.saturating_add(tail - tail % self.block_bytes))
    }
}

/// A part of a request that lies in one entry.
pub(super) struct Piece<'a> {
    /// Where it lies on the data device.
    pub(super) device_offset: Bytes,
    /// Its length.
    pub(super) len_bytes: u64,
    /// The cipher and the IV sector of the first byte; `None` for a linear entry.
    pub(super) crypt: Option<(&'a dyn SectorCipher, u64)>,
}

impl SegmentMap {
    /// Checks and takes `entries`, in the order of the volume. Not public: outside this crate a map comes from
    /// [`crate::container::Container::segment_map`], and so from a key that a digest accepted.
    ///
    /// # Errors
    /// [`Error::SegmentMap`] names what does not fit: no entry, a gap, an overlap, an entry behind one that reaches to
    /// the end, a border that is no multiple of the largest sector size, an address beyond 2^64.
    pub(crate) fn new(entries: Vec<MapEntry>) -> Result<SegmentMap, Error> {
        let block_bytes = entries.iter().map(MapEntry::sector_bytes).max();
        let (Some(block_bytes), Some(last)) = (block_bytes, entries.last()) else {
            return Err(wrong("no segment at all".into()));
        };
        let dynamic_offset = (last.len == Extent::ToEnd).then(|| last.device_offset().0);
        let mut expected = 0u64;
        for (number, entry) in entries.iter().enumerate() {
            check_entry(number, entry, expected, block_bytes)?;
            match entry.len {
                Extent::Fixed(len) => expected = entry.start.0 + len.0,
                Extent::ToEnd if number + 1 == entries.len() => {}
                Extent::ToEnd => {
                    return Err(wrong(format!("segment {number} reaches to the end, but is not the last")));
                }
            }
        }
        Ok(SegmentMap { shape: Shape { block_bytes, fixed_end: expected, dynamic_offset }, entries })
    }

    /// The entries, in the order of the volume.
    pub fn entries(&self) -> &[MapEntry] {
        &self.entries
    }

    /// Logical block of a volume with this map, in bytes: the largest sector size in it.
    pub fn block_bytes(&self) -> u64 {
        self.shape.block_bytes
    }

    /// Size of a volume with this map on a data device of `device` bytes.
    pub fn size_on(&self, device: Bytes) -> Bytes {
        self.shape.size_on(device)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The first piece of a request for `len_bytes` at `offset`. `None` if `offset` is behind the last entry.
    pub(super) fn piece(&self, offset: u64, len_bytes: u64) -> Option<Piece<'_>> {
        let after = self.entries.partition_point(|entry| entry.start.0 <= offset);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let room = entry.end().map_or(u64::MAX, |end| end.saturating_sub(offset));
        if room == 0 {
            return None;
        }
        let inside = offset - entry.start.0;
        let crypt = match &entry.target {
            Target::Linear { .. } => None,
            Target::Crypt { iv_base, cipher, .. } => {
                Some((cipher.as_ref(), iv_base.0.wrapping_add(inside / SECTOR_BYTES)))
            }
        };
        let device_offset = Bytes(entry.device_offset().0.checked_add(inside)?);
        Some(Piece { device_offset, len_bytes: len_bytes.min(room), crypt })
    }
}

fn check_entry(number: usize, entry: &MapEntry, expected: u64, block_bytes: u64) -> Result<(), Error> {
    if entry.start.0 != expected {
        return Err(wrong(format!("segment {number} starts at byte {}, expected {expected}", entry.start.0)));
    }
    if !entry.start.0.is_multiple_of(block_bytes) {
        return Err(wrong(format!("segment {number} starts at byte {}, no multiple of {block_bytes}", entry.start.0)));
    }
    let Extent::Fixed(len) = entry.len else { return Ok(()) };
    if len.0 == 0 || !len.0.is_multiple_of(block_bytes) {
        return Err(wrong(format!("segment {number} is {} bytes long, no multiple of {block_bytes}", len.0)));
    }
    let ends_fit = entry.start.0.checked_add(len.0).is_some() && entry.device_offset().0.checked_add(len.0).is_some();
    if !ends_fit {
        return Err(wrong(format!("segment {number} of {} bytes ends behind byte 2^64", len.0)));
    }
    Ok(())
}

fn wrong(what: String) -> Error {
    Error::SegmentMap { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(start: u64, len: Extent, device_offset: u64) -> MapEntry {
        MapEntry { start: Bytes(start), len, target: Target::Linear { device_offset: Bytes(device_offset) } }
    }

    fn refused(entries: Vec<MapEntry>) -> String {
        SegmentMap::new(entries).err().expect("refused").to_string()
    }

    #[test]
    fn a_map_without_order_is_refused() {
        let fixed = |len| Extent::Fixed(Bytes(len));
        assert!(refused(Vec::new()).contains("no segment"));
        assert!(refused(vec![linear(512, fixed(512), 0)]).contains("expected 0"));
        assert!(refused(vec![linear(0, fixed(512), 0), linear(1024, fixed(512), 0)]).contains("expected 512"));
        assert!(refused(vec![linear(0, Extent::ToEnd, 0), linear(0, fixed(512), 0)]).contains("not the last"));
        assert!(refused(vec![linear(0, fixed(100), 0)]).contains("100 bytes"));
        assert!(refused(vec![linear(0, fixed(0), 0)]).contains("0 bytes"));
        assert!(refused(vec![linear(0, fixed(1024), u64::MAX - 511)]).contains("2^64"));
    }

    #[test]
    fn a_request_is_cut_at_the_border() {
        let map =
            SegmentMap::new(vec![linear(0, Extent::Fixed(Bytes(1024)), 8192), linear(1024, Extent::ToEnd, 65536)])
                .expect("map");
        let first = map.piece(512, 2048).expect("piece");
        assert_eq!((first.device_offset.0, first.len_bytes), (8704, 512));
        let second = map.piece(1024, 1536).expect("piece");
        assert_eq!((second.device_offset.0, second.len_bytes), (65536, 1536));
        assert_eq!(map.size_on(Bytes(65536 + 1000)).0, 1024 + 512);
        assert_eq!(map.size_on(Bytes(100)).0, 1024);
        assert!(map.piece(u64::MAX, 1).is_none());
    }
}
