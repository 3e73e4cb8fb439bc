//! XTS with AES-NI and AVX's three-operand forms: eight blocks in flight, each tweak doubled from the one before.

use std::arch::x86_64::{
    __m128i, _mm_add_epi64, _mm_aesdec_si128, _mm_aesdeclast_si128, _mm_aesenc_si128, _mm_aesenclast_si128,
    _mm_and_si128, _mm_loadu_si128, _mm_set_epi32, _mm_shuffle_epi32, _mm_srai_epi32, _mm_storeu_si128, _mm_xor_si128,
};

use std::mem::MaybeUninit;

use cipher::Array;
use cipher::consts::U128;
use cipher::inout::{InOut, InOutBuf};

use super::prefetch::{PREFETCH_BYTES, prefetch};
use super::schedule::{Block, Quad, Schedule, opaque};
use super::xts::Instructions;

cpufeatures::new!(aes_and_avx, "aes", "avx");

/// Witness of a machine with AES-NI and AVX.
#[derive(Clone, Copy)]
pub(crate) struct Xmm(());

impl Xmm {
    /// `None` where an instruction is missing or the operating system does not keep the registers.
    pub(crate) fn detect() -> Option<Xmm> {
        aes_and_avx::get().then_some(Xmm(()))
    }
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn load(block: &Block) -> __m128i {
    // SAFETY: reads the 16 bytes; the instruction takes any alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn store(block: &mut Block, value: __m128i) {
    // SAFETY: writes the 16 bytes; the instruction takes any alignment.
    unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn broadcast(block: &Block) -> __m128i {
    load(block)
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn xor(a: __m128i, b: __m128i) -> __m128i {
    _mm_xor_si128(a, b)
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn round<const ENCRYPT: bool>(state: __m128i, key: __m128i) -> __m128i {
    if ENCRYPT { _mm_aesenc_si128(state, key) } else { _mm_aesdec_si128(state, key) }
}

#[inline]
#[target_feature(enable = "aes,avx")]
fn last_round<const ENCRYPT: bool>(state: __m128i, key: __m128i) -> __m128i {
    if ENCRYPT { _mm_aesenclast_si128(state, key) } else { _mm_aesdeclast_si128(state, key) }
}

/// T·x: both halves are doubled; the bit that leaves the low half goes to the high one as 1, the bit that leaves the
/// high half to the low one as x^7 + x^2 + x + 1.
#[inline]
#[target_feature(enable = "aes,avx")]
fn doubled(tweak: __m128i) -> __m128i {
    let top_bits = _mm_srai_epi32::<31>(_mm_shuffle_epi32::<0b0001_0011>(tweak));
    let carries = _mm_and_si128(top_bits, _mm_set_epi32(0, 1, 0, 0x87));
    _mm_xor_si128(_mm_add_epi64(tweak, tweak), carries)
}

/// T of the next block.
struct Tweaks(__m128i);

impl Tweaks {
    #[inline]
    #[target_feature(enable = "aes,avx")]
    fn first(sector: &Block) -> Tweaks {
        Tweaks(load(sector))
    }

    #[inline]
    #[target_feature(enable = "aes,avx")]
    fn prepare<const STEP: usize, const FRESH: bool>(&mut self, sector: &Block, masks: &mut Masks, last_key: &Block) {
        if STEP <= VECTORS {
            masks[STEP - 1] = xor(self.0, load(last_key));
            self.0 = doubled(self.0);
        } else if FRESH {
            self.0 = load(sector);
        }
    }
}

narrow_kernel!("aes,avx", Xmm, __m128i, xmm_reg, 16, U128, 640);
