//! The tweaks of 16 vectors of four blocks, as masks for the last AES round.
//!
//! Even vector 2k of a run holds T·x^(8k) … T·x^(8k+3), odd vector 2k + 1 holds x^4 times that. So two bases (k = 0)
//! yield all others by whole-byte shifts: base << 8k, plus what falls out at the top times x^7 + x^2 + x + 1. That
//! product is taken once per base and byte (two GFNI instructions: its low and its high byte); each vector then picks
//! the bytes it needs with one align, one shuffle and one three-way xor. A base serves 16 vectors, 2 KiB.

use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm512_alignr_epi8, _mm512_broadcast_i32x4, _mm512_gf2p8affine_epi64_epi8,
    _mm512_loadu_si512, _mm512_maskz_mov_epi64, _mm512_permutexvar_epi16, _mm512_set_epi64, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_epi32, _mm512_slli_epi64, _mm512_sllv_epi64,
    _mm512_srli_epi64, _mm512_srlv_epi64, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use super::super::schedule::Block;

/// Vectors in flight.
pub(super) const VECTORS: usize = 16;

/// What the last AES round xors: T ^ (last round key), for each block of a group.
pub(super) type Masks = [__m512i; VECTORS];

/// How the masks of the next group come about.
pub(super) mod next {
    /// A new sector of 1024 bytes or more.
    pub(in super::super) const SECTOR: u8 = 0;
    /// Two new sectors of 512 bytes.
    pub(in super::super) const PAIR: u8 = 1;
    /// The second half of what the present bases reach.
    pub(in super::super) const HALF: u8 = 2;
    /// The same sector, with new bases: x^128 times the present ones.
    pub(in super::super) const REBASE: u8 = 3;
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Four times the same block.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn broadcast(block: &Block) -> __m512i {
    // SAFETY: reads the 16 bytes; the instruction takes any alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// The base vectors of even and odd vectors, and the products of their bytes with x^7 + x^2 + x + 1.
pub(super) struct Bases {
    base: [__m512i; 2],
    low: [__m512i; 2],
    high: [__m512i; 2],
}

/// Products of the 32 five-bit polynomials with x^7 + x^2 + x.
static PRODUCTS: [u16; 32] = {
    let mut products = [0; 32];
    let mut carry = 0;
    while carry < 32 {
        products[carry as usize] = carry << 1 ^ carry << 2 ^ carry << 7;
        carry += 1;
    }
    products
};

/// The bit matrix that takes a byte to the low (or high) byte of its product with x^7 + x^2 + x + 1.
const fn product_matrix(high: bool) -> i64 {
    let taps = [0, 1, 2, 7];
    let mut matrix: u64 = 0;
    let mut bit = 0;
    while bit < 8 {
        let mut tap = 0;
        while tap < taps.len() {
            let position = if high { bit + 8 } else { bit };
            if position >= taps[tap] && position - taps[tap] < 8 {
                // Row 0 is the most significant byte.
                matrix |= 1 << (8 * (7 - bit) + position - taps[tap]);
            }
            tap += 1;
        }
        bit += 1;
    }
    matrix.cast_signed()
}

/// For k: the shuffle that brings the top k bytes of each block to its bytes 1 to k, with zeros elsewhere.
static TOP_BYTES: [[u8; 64]; 16] = {
    let mut shuffles = [[0x80; 64]; 16];
    let mut k = 1;
    while k < 16 {
        let mut at = 0;
        while at < 64 {
            let place = at % 16;
            if place >= 1 && place <= k {
                #[allow(clippy::cast_possible_truncation)] // below 16
                {
                    shuffles[k][at] = (15 - k + place) as u8;
                }
            }
            at += 1;
        }
        k += 1;
    }
    shuffles
};

/// The low and the high half of each block change places.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves_swapped(blocks: __m512i) -> __m512i {
    _mm512_shuffle_epi32::<0b0100_1110>(blocks)
}

/// Blocks shifted by up to five bits: `up` are their halves shifted up, `down` what went out of the other half each. What
/// went out at the top also comes back times x^7 + x^2 + x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted_bits(up: __m512i, down: __m512i) -> __m512i {
    // SAFETY: reads the table's 64 bytes; the instruction takes any alignment.
    let products = unsafe { _mm512_loadu_si512(PRODUCTS.as_ptr().cast()) };
    let carry = _mm512_maskz_mov_epi64(0b0101_0101, down);
    xor3(up, down, _mm512_permutexvar_epi16(carry, products))
}

/// T, T·x, T·x^2, T·x^3, of four times T.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn even_base(tweak: __m512i) -> __m512i {
    let up = _mm512_sllv_epi64(tweak, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let down = _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64);
    shifted_bits(up, _mm512_srlv_epi64(halves_swapped(tweak), down))
}

/// x^4 times the even base.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn odd_base(even: __m512i) -> __m512i {
    shifted_bits(_mm512_slli_epi64::<4>(even), _mm512_srli_epi64::<60>(halves_swapped(even)))
}

/// `plus` ^ `base`·x^(8·K), from the base and its products.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted<const K: usize>(base: __m512i, low: __m512i, high: __m512i, plus: __m512i) -> __m512i {
    macro_rules! aligned {
        ($($k:literal)*) => {
            match K {
                $($k => _mm512_alignr_epi8::<{ 16 - $k }>(base, low),)*
                _ => return _mm512_xor_si512(base, plus),
            }
        };
    }
    let body = aligned!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    xor3(body, _mm512_shuffle_epi8(high, load(&TOP_BYTES[K])), plus)
}

#[inline]
#[target_feature(enable = "avx512f,gfni")]
fn products(base: __m512i) -> (__m512i, __m512i) {
    const LOW: i64 = product_matrix(false);
    const HIGH: i64 = product_matrix(true);
    let low = _mm512_gf2p8affine_epi64_epi8::<0>(base, _mm512_set1_epi64(LOW));
    let high = _mm512_gf2p8affine_epi64_epi8::<0>(base, _mm512_set1_epi64(HIGH));
    (low, high)
}

impl Bases {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn zero() -> Bases {
        let zero = [_mm512_setzero_si512(); 2];
        Bases { base: zero, low: zero, high: zero }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn start<const ODD: usize>(&mut self, tweak: __m512i) {
        self.base[ODD] = if ODD == 0 { even_base(tweak) } else { odd_base(self.base[0]) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,gfni")]
    pub(super) fn multiply<const ODD: usize>(&mut self) {
        (self.low[ODD], self.high[ODD]) = products(self.base[ODD]);
    }

    /// base := base · x^128.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn advance<const ODD: usize>(&mut self) {
        let zero = _mm512_setzero_si512();
        let far = shifted::<15>(self.base[ODD], self.low[ODD], self.high[ODD], zero);
        let (low, high) = products(far);
        self.base[ODD] = shifted::<1>(far, low, high, zero);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn mask<const K: usize, const ODD: usize>(&self, last_key: __m512i) -> __m512i {
        shifted::<K>(self.base[ODD], self.low[ODD], self.high[ODD], last_key)
    }
}

/// One of the 24 steps in which the masks of the next group are computed: the bases, then a vector each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(super) fn prepare<const NEXT: u8, const STEP: usize>(
    bases: &mut Bases,
    tweaks: &[Block; 2],
    masks: &mut Masks,
    last_key: __m512i,
) {
    use next::{HALF, PAIR, REBASE, SECTOR};
    macro_rules! masks {
        ($($step:literal: $vector:literal = $k:literal $odd:literal,)*) => {
            match STEP {
                $($step => masks[$vector] = bases.mask::<$k, $odd>(last_key),)*
                _ => {}
            }
        };
    }
    match (NEXT, STEP) {
        (SECTOR | PAIR, 0) => bases.start::<0>(broadcast(&tweaks[0])),
        (SECTOR | PAIR, 1) => bases.start::<1>(broadcast(&tweaks[0])),
        (PAIR, 12) => bases.start::<0>(broadcast(&tweaks[1])),
        (PAIR, 13) => bases.start::<1>(broadcast(&tweaks[1])),
        (REBASE, 0) => bases.advance::<0>(),
        (REBASE, 1) => bases.advance::<1>(),
        (SECTOR | PAIR | REBASE, 2) | (PAIR, 14) => bases.multiply::<0>(),
        (SECTOR | PAIR | REBASE, 3) | (PAIR, 15) => bases.multiply::<1>(),
        (PAIR, _) => masks! {
            4: 0 = 0 0, 5: 1 = 0 1, 6: 2 = 1 0, 7: 3 = 1 1, 8: 4 = 2 0, 9: 5 = 2 1, 10: 6 = 3 0, 11: 7 = 3 1,
            16: 8 = 0 0, 17: 9 = 0 1, 18: 10 = 1 0, 19: 11 = 1 1, 20: 12 = 2 0, 21: 13 = 2 1, 22: 14 = 3 0, 23: 15 = 3 1,
        },
        (HALF, _) => masks! {
            4: 0 = 8 0, 5: 1 = 8 1, 6: 2 = 9 0, 7: 3 = 9 1, 8: 4 = 10 0, 9: 5 = 10 1, 10: 6 = 11 0, 11: 7 = 11 1,
            12: 8 = 12 0, 13: 9 = 12 1, 14: 10 = 13 0, 15: 11 = 13 1, 16: 12 = 14 0, 17: 13 = 14 1, 18: 14 = 15 0, 19: 15 = 15 1,
        },
        (_, _) => masks! {
            4: 0 = 0 0, 5: 1 = 0 1, 6: 2 = 1 0, 7: 3 = 1 1, 8: 4 = 2 0, 9: 5 = 2 1, 10: 6 = 3 0, 11: 7 = 3 1,
            12: 8 = 4 0, 13: 9 = 4 1, 14: 10 = 5 0, 15: 11 = 5 1, 16: 12 = 6 0, 17: 13 = 6 1, 18: 14 = 7 0, 19: 15 = 7 1,
        },
    }
}
