//! IV generators: sector number N to a 16-byte block.
//!
//! | name | block |
//! |---|---|
//! | `plain` | LE32(N mod 2^32), zero fill |
//! | `plain64` | LE64(N), zero fill |
//! | `essiv:sha256` | the `plain64` block, encrypted by the data's cipher under SHA-256(whole volume key) |
//!
//! Source: Linux `dm-crypt.rst`, "IV generators"; C. Fruhwirth, "New Methods in Hard Disk Encryption" (ESSIV).

use cipher::consts::U16;
use cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::block_cipher::keyed;
use crate::lanes::{Block, Ecb};
use crate::spec::{EssivHash, Iv};
use crate::wipe;

/// A generator with what it needs, `E` the cipher of ESSIV; lives beside the round keys in locked memory.
// The large variant stays inline: a box would put its round keys outside the locked pages.
#[allow(clippy::large_enum_variant)]
pub(crate) enum IvGenerator<E> {
    Plain,
    Plain64,
    Essiv(E),
}

impl<E: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>> IvGenerator<E> {
    /// Call under `secret::scrubbed`: hash and key pass over the stack. `E` takes keys of 32 bytes.
    pub(crate) fn new(iv: Iv, key: &[u8]) -> Self {
        match iv {
            Iv::Plain => Self::Plain,
            Iv::Plain64 => Self::Plain64,
            Iv::Essiv(EssivHash::Sha256) => {
                let mut salt = Sha256::digest(key);
                let essiv = keyed(&salt);
                salt.as_mut_slice().zeroize();
                Self::Essiv(essiv)
            }
        }
    }

    /// For generators whose IV is the number itself: the bits of it that count. `None` for ESSIV.
    #[inline]
    pub(crate) fn number_mask(&self) -> Option<u64> {
        match self {
            Self::Plain => Some(u64::from(u32::MAX)),
            Self::Plain64 => Some(u64::MAX),
            Self::Essiv(_) => None,
        }
    }

    /// IVs of `first`, `first + step`, … (512-byte units, wrapping at 2^64).
    #[inline]
    pub(crate) fn fill(&self, first: u64, step: u64, ivs: &mut [[u8; 16]]) {
        numbers(first, step, self.number_mask().unwrap_or(u64::MAX), ivs);
        if let Self::Essiv(essiv) = self {
            encrypt(essiv, ivs);
            wipe::dead_stack();
        }
    }
}

/// Not inlined: the round keys that `aes` spreads over its frame would then lie in the caller's, out of reach of
/// `wipe::dead_stack`. Compiled for one processor, nothing else keeps the compiler from it.
#[inline(never)]
fn encrypt<E: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>>(essiv: &E, ivs: &mut [[u8; 16]]) {
    essiv.encrypt_with_backend(Ecb { blocks: Block::cast_slice_from_core_mut(ivs) });
}

/// `first`, `first + step`, …, wrapping at 2^64, only the bits in `mask`; little-endian, zero filled.
#[inline]
pub(crate) fn numbers(first: u64, step: u64, mask: u64, ivs: &mut [[u8; 16]]) {
    let mut number = first;
    for iv in ivs {
        *iv = u128::from(number & mask).to_le_bytes();
        number = number.wrapping_add(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes::Aes256Enc;

    const N: u64 = 0x01_0203_0405;

    fn iv_of(iv: Iv, key: &[u8], number: u64) -> [u8; 16] {
        let mut out = [[0; 16]];
        IvGenerator::<Aes256Enc>::new(iv, key).fill(number, 1, &mut out);
        out[0]
    }

    fn key() -> Vec<u8> {
        (0..32).collect()
    }

    #[test]
    fn vector_plain64() {
        assert_eq!(iv_of(Iv::Plain64, &key(), N), 0x01_0203_0405_u128.to_le_bytes());
    }

    #[test]
    fn vector_plain_drops_the_high_half() {
        assert_eq!(iv_of(Iv::Plain, &key(), N), 0x0203_0405_u128.to_le_bytes());
    }

    #[test]
    fn vector_essiv_sha256() {
        let iv = iv_of(Iv::Essiv(EssivHash::Sha256), &key(), N);
        assert_eq!(u128::from_be_bytes(iv), 0x770f_3dc4_cdc6_7b2e_7131_7f2d_56a1_83bd);
    }

    #[test]
    fn plain_wraps_inside_a_run_and_plain64_does_not() {
        let mut ivs = [[0; 16]; 3];
        IvGenerator::<Aes256Enc>::Plain.fill(0xffff_fff8, 8, &mut ivs);
        assert_eq!(ivs.map(u128::from_le_bytes), [0xffff_fff8, 0, 8]);
        IvGenerator::<Aes256Enc>::Plain64.fill(0xffff_fff8, 8, &mut ivs);
        assert_eq!(ivs.map(u128::from_le_bytes), [0xffff_fff8, 0x1_0000_0000, 0x1_0000_0008]);
        IvGenerator::<Aes256Enc>::Plain64.fill(u64::MAX, 1, &mut ivs);
        assert_eq!(ivs.map(u128::from_le_bytes), [u128::from(u64::MAX), 0, 1]);
    }
}
