//! XTS with VAES on AVX2: eight vectors of two blocks in flight.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm_setr_epi8, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256, _mm256_bslli_epi128, _mm256_loadu_si256, _mm256_setr_epi32,
    _mm256_setr_epi64x, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_slli_epi32,
    _mm256_sllv_epi64, _mm256_srli_epi32, _mm256_srlv_epi32, _mm256_srlv_epi64, _mm256_storeu_si256,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_xor_si256,
};

use std::mem::MaybeUninit;

use cipher::Array;
use cipher::consts::U256;
use cipher::inout::{InOut, InOutBuf};

use super::prefetch::{PREFETCH_BYTES, prefetch};
use super::schedule::{Block, Quad, Schedule, opaque};
use super::xts::Instructions;

cpufeatures::new!(aes_and_avx2, "aes", "avx2");

/// Witness of a machine with VAES and AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Ymm(());

impl Ymm {
    /// `None` where an instruction is missing or the operating system does not keep the registers.
    pub(crate) fn detect() -> Option<Ymm> {
        // `cpufeatures` asks for the 512-bit registers too before it reports VAES; processors with VAES on 256 bits
        // alone exist, so the standard library answers that part.
        (aes_and_avx2::get() && is_x86_feature_detected!("vaes")).then_some(Ymm(()))
    }
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: reads the 32 bytes; the instruction takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn store(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: writes the 32 bytes; the instruction takes any alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}

/// Twice the same block.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn broadcast(block: &Block) -> __m256i {
    // SAFETY: reads the 16 bytes; the instruction takes any alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn xor(a: __m256i, b: __m256i) -> __m256i {
    _mm256_xor_si256(a, b)
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn round<const ENCRYPT: bool>(state: __m256i, key: __m256i) -> __m256i {
    if ENCRYPT { _mm256_aesenc_epi128(state, key) } else { _mm256_aesdec_epi128(state, key) }
}

#[inline]
#[target_feature(enable = "avx2,vaes")]
fn last_round<const ENCRYPT: bool>(state: __m256i, key: __m256i) -> __m256i {
    if ENCRYPT { _mm256_aesenclast_epi128(state, key) } else { _mm256_aesdeclast_epi128(state, key) }
}

/// What the next group's tweaks come from.
///
/// Base j (0 to 3) holds T·x^(2j) and T·x^(2j+1); a group's eight vectors are the bases and the bases · x^8, the next
/// group's bases are these · x^16. What leaves a base at the top in such a step is at most 16 bits; its product with
/// x^7 + x^2 + x + 1 is computed for all four bases at once, as one vector of 32-bit numbers.
struct Tweaks {
    bases: [__m256i; 4],
    /// Products for a step by x^8, one number for each base and block.
    near: __m256i,
    /// Products for a step by x^16; in the last group of a sector what [`Tweaks::fresh`] needs.
    far: __m256i,
}

/// carry · (x^7 + x^2 + x) in each 32-bit number.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn product(carry: __m256i) -> __m256i {
    let low = xor(_mm256_slli_epi32::<1>(carry), _mm256_slli_epi32::<2>(carry));
    xor(low, _mm256_slli_epi32::<7>(carry))
}

/// The 32-bit number J of each half, in the low bytes of that half.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn number<const J: usize>(numbers: __m256i) -> __m256i {
    const Z: i8 = i8::MIN;
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // at most 12
    let at = 4 * J as i8;
    let places =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(at, at + 1, at + 2, at + 3, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z));
    _mm256_shuffle_epi8(numbers, places)
}

impl Tweaks {
    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn first(sector: &Block) -> Tweaks {
        let zero = _mm256_setzero_si256();
        let mut tweaks = Tweaks { bases: [zero; 4], near: zero, far: Self::fresh_products(sector) };
        tweaks.fresh::<0>(sector);
        tweaks.fresh::<1>(sector);
        tweaks.fresh::<2>(sector);
        tweaks.fresh::<3>(sector);
        tweaks
    }

    /// Products for steps by x^0 to x^7: the even ones in the low half, the odd ones in the high half.
    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn fresh_products(sector: &Block) -> __m256i {
        let top = _mm256_shuffle_epi32::<0b1111_1111>(broadcast(sector));
        product(_mm256_srlv_epi32(top, _mm256_setr_epi32(32, 30, 28, 26, 31, 29, 27, 25)))
    }

    /// Base J of a new sector; `far` holds its products.
    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn fresh<const J: usize>(&mut self, sector: &Block) {
        let tweak = broadcast(sector);
        let halves_swapped = _mm256_shuffle_epi32::<0b0100_1110>(tweak);
        #[allow(clippy::cast_possible_wrap)] // at most 7
        let (even, odd) = (2 * J as i64, 2 * J as i64 + 1);
        let up = _mm256_sllv_epi64(tweak, _mm256_setr_epi64x(even, even, odd, odd));
        let down = _mm256_setr_epi64x(64 - even, 64 - even, 64 - odd, 64 - odd);
        let shifted = xor(up, _mm256_srlv_epi64(halves_swapped, down));
        self.bases[J] = xor(shifted, number::<J>(self.far));
    }

    /// What leaves the bases at the top, one 32-bit number for each base and block.
    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn tops(&self) -> __m256i {
        let [a, b, c, d] = self.bases;
        _mm256_unpackhi_epi64(_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d))
    }

    /// Masks J and 4 + J, and the base of the group after.
    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn advance<const J: usize, const FRESH: bool>(&mut self, sector: &Block, masks: &mut Masks, last_key: &Block) {
        let base = self.bases[J];
        masks[J] = xor(base, broadcast(last_key));
        let nearer = xor(_mm256_bslli_epi128::<1>(base), number::<J>(self.near));
        masks[4 + J] = xor(nearer, broadcast(last_key));
        if FRESH {
            self.fresh::<J>(sector);
        } else {
            self.bases[J] = xor(_mm256_bslli_epi128::<2>(base), number::<J>(self.far));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes")]
    fn prepare<const STEP: usize, const FRESH: bool>(&mut self, sector: &Block, masks: &mut Masks, last_key: &Block) {
        match STEP {
            1 => {
                self.far = self.tops();
                self.near = _mm256_srli_epi32::<24>(self.far);
            }
            2 => self.near = xor(self.near, product(self.near)),
            3 if FRESH => self.far = Self::fresh_products(sector),
            3 => {
                let carry = _mm256_srli_epi32::<16>(self.far);
                self.far = xor(carry, product(carry));
            }
            4 => self.advance::<0, FRESH>(sector, masks, last_key),
            5 => self.advance::<1, FRESH>(sector, masks, last_key),
            6 => self.advance::<2, FRESH>(sector, masks, last_key),
            7 => self.advance::<3, FRESH>(sector, masks, last_key),
            _ => {}
        }
    }
}

narrow_kernel!("avx2,vaes", Ymm, __m256i, ymm_reg, 32, U256, 1536);
