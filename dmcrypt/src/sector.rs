//! Sector sizes and the contract of a sector cipher.
//!
//! Invariant: IVs count 512-byte units whatever the sector size, as LUKS2 does (dm-crypt without `iv_large_sectors`).

use cipher::inout::InOutBuf;

use crate::CipherError;

/// Size of an encryption sector, the unit that gets one IV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 512 bytes.
    S512,
    /// 1024 bytes.
    S1024,
    /// 2048 bytes.
    S2048,
    /// 4096 bytes.
    S4096,
}

impl SectorSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::S512 => 512,
            Self::S1024 => 1024,
            Self::S2048 => 2048,
            Self::S4096 => 4096,
        }
    }

    /// The size in bytes, for indexing.
    pub(crate) const fn len_bytes(self) -> usize {
        self.bytes() as usize
    }

    /// How far the IV number moves from one sector to the next, in 512-byte units.
    pub(crate) const fn iv_step(self) -> u64 {
        (self.bytes() / 512) as u64
    }
}

impl TryFrom<u32> for SectorSize {
    type Error = CipherError;

    fn try_from(value: u32) -> Result<Self, CipherError> {
        match value {
            512 => Ok(Self::S512),
            1024 => Ok(Self::S1024),
            2048 => Ok(Self::S2048),
            4096 => Ok(Self::S4096),
            _ => Err(CipherError::SectorSize { value }),
        }
    }
}

/// Encrypts and decrypts runs of whole sectors; length-preserving and infallible.
///
/// `iv_sector` is the 512-byte number of the first sector, from the start of the segment (plus its IV offset). The
/// n-th sector of size s uses `iv_sector + n * s / 512`, wrapping at 2^64. Give a whole request to one call: the
/// tweaks of many sectors are computed together. Calls from many threads at once are fine.
///
/// # Panics
/// All four panic when the two lengths differ or are not a multiple of the sector size: a bug of the caller.
pub trait SectorCipher: Send + Sync {
    /// The sector size this cipher was built for.
    fn sector_size(&self) -> SectorSize;

    /// Encrypts the sectors of `src` into `dst`.
    fn encrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]);

    /// Decrypts the sectors of `src` into `dst`.
    fn decrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]);

    /// Encrypts the sectors of `buf` where they are.
    fn encrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]);

    /// Decrypts the sectors of `buf` where they are.
    fn decrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]);
}

/// Source and destination as one; panics when the lengths differ.
#[inline]
pub(crate) fn paired<'src, 'dst>(src: &'src [u8], dst: &'dst mut [u8]) -> InOutBuf<'src, 'dst, u8> {
    let (src_bytes, dst_bytes) = (src.len(), dst.len());
    let Ok(io) = InOutBuf::new(src, dst) else {
        unreachable!("source of {src_bytes} bytes, destination of {dst_bytes}");
    };
    io
}

/// Panics unless a run consists of whole sectors.
#[inline]
pub(crate) fn assert_whole(len_bytes: usize, sector_bytes: usize) {
    assert!(len_bytes.is_multiple_of(sector_bytes), "{len_bytes} bytes are not whole sectors of {sector_bytes}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_sizes_exist() {
        for value in [512, 1024, 2048, 4096] {
            assert_eq!(SectorSize::try_from(value).unwrap().bytes(), value);
        }
        for value in [0, 1, 256, 511, 513, 768, 3072, 8192, u32::MAX] {
            let error = SectorSize::try_from(value).unwrap_err();
            assert!(error.to_string().contains(&value.to_string()), "{error}");
        }
    }
}
