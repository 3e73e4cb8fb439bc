//! XTS with VAES on AVX2: eight vectors of two blocks in flight, each vector of tweaks x^2 times the one before.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi64, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_and_si256, _mm256_blend_epi32, _mm256_broadcastsi128_si256, _mm256_loadu_si256,
    _mm256_or_si256, _mm256_set_epi8, _mm256_set_epi32, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_shuffle_epi32,
    _mm256_slli_epi64, _mm256_srai_epi32, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use cipher::Array;
use cipher::consts::U256;
use cipher::inout::{InOut, InOutBuf};

use super::schedule::{Block, Schedule, opaque};
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

/// T and T·x of a sector's first two blocks.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn first(tweak: &Block) -> __m256i {
    let tweak = broadcast(tweak);
    let top_bits = _mm256_srai_epi32::<31>(_mm256_shuffle_epi32::<0b0001_0011>(tweak));
    let carries = _mm256_and_si256(top_bits, _mm256_set_epi32(0, 1, 0, 0x87, 0, 1, 0, 0x87));
    let doubled = _mm256_xor_si256(_mm256_add_epi64(tweak, tweak), carries);
    _mm256_blend_epi32::<0b1111_0000>(tweak, doubled)
}

/// T·x^2 for each block. The two bits c that leave a half become an index: the shuffle then looks up the low and the
/// high byte of c·(x^7 + x^2 + x + 1) for the low half, and c itself for the high half.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn following(tweaks: __m256i) -> __m256i {
    const Z: i8 = i8::MIN;
    let top_bits = _mm256_srli_epi64::<62>(tweaks);
    let places = _mm256_setr_epi8(
        8, 8, Z, Z, Z, Z, Z, Z, 0, Z, Z, Z, Z, Z, Z, Z, 8, 8, Z, Z, Z, Z, Z, Z, 0, Z, Z, Z, Z, Z, Z, Z,
    );
    let rows = _mm256_setr_epi8(
        0, 4, Z, Z, Z, Z, Z, Z, 8, Z, Z, Z, Z, Z, Z, Z, 0, 4, Z, Z, Z, Z, Z, Z, 8, Z, Z, Z, Z, Z, Z, Z,
    );
    let table = {
        const P: i8 = 0x87_u8.cast_signed();
        const Q: i8 = 0x89_u8.cast_signed();
        _mm256_set_epi8(
            0, 0, 0, 0, 3, 2, 1, 0, 1, 1, 0, 0, Q, 0x0e, P, 0, 0, 0, 0, 0, 3, 2, 1, 0, 1, 1, 0, 0, Q, 0x0e, P, 0,
        )
    };
    let index = _mm256_or_si256(_mm256_shuffle_epi8(top_bits, places), rows);
    _mm256_xor_si256(_mm256_slli_epi64::<2>(tweaks), _mm256_shuffle_epi8(table, index))
}

narrow_kernel!("avx2,vaes", Ymm, __m256i, ymm_reg, 32, U256);
