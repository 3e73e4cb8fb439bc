//! XTS with VAES on AVX-512: 16 vectors of four blocks in flight, 1 KiB at a time.
//!
//! Tweaks. Even vector 2k of a run holds T·x^(8k) … T·x^(8k+3), odd vector 2k + 1 holds x^4 times that. So two bases
//! (k = 0) yield all others by whole-byte shifts: base << 8k, plus what falls out at the top times x^7 + x^2 + x + 1.
//! That product is taken once per base and byte (two GFNI instructions: its low and its high byte); each vector then
//! picks the bytes it needs with one align, one shuffle and one three-way xor. A base serves 16 vectors, 2 KiB.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128, _mm512_aesenc_epi128,
    _mm512_aesenclast_epi128, _mm512_alignr_epi8, _mm512_broadcast_i32x4, _mm512_gf2p8affine_epi64_epi8,
    _mm512_loadu_si512, _mm512_maskz_srli_epi64, _mm512_maskz_srlv_epi64, _mm512_permutexvar_epi16, _mm512_set_epi64,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_shldi_epi64, _mm512_shldv_epi64, _mm512_shuffle_epi8,
    _mm512_shuffle_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use cipher::Array;
use cipher::consts::{U512, U1024};
use cipher::inout::{InOut, InOutBuf};

use super::schedule::{Block, Schedule, opaque};
use super::xts::Instructions;

cpufeatures::new!(zmm, "aes", "avx512f", "avx512bw", "avx512vbmi2", "gfni", "vaes");

/// Vectors in flight.
const VECTORS: usize = 16;

/// What the last AES round xors: T ^ (last round key), for each block of a group.
type Masks = [__m512i; VECTORS];

/// How the masks of the next group come about.
mod next {
    /// A new sector of 1024 bytes or more.
    pub(super) const SECTOR: u8 = 0;
    /// Two new sectors of 512 bytes.
    pub(super) const PAIR: u8 = 1;
    /// The second half of what the present bases reach.
    pub(super) const HALF: u8 = 2;
    /// The same sector, with new bases: x^128 times the present ones.
    pub(super) const REBASE: u8 = 3;
}

/// Witness of a machine with VAES, GFNI and AVX-512 (F, BW, VBMI2).
#[derive(Clone, Copy)]
pub(crate) struct Zmm(());

impl Zmm {
    /// `None` where an instruction is missing or the operating system does not keep the registers.
    pub(crate) fn detect() -> Option<Zmm> {
        zmm::get().then_some(Zmm(()))
    }
}

impl Instructions for Zmm {
    fn schedules(self, data: &[u8], tweak: &[u8]) -> [Schedule; 3] {
        // SAFETY: `self` is a witness of these instructions.
        unsafe { [Schedule::encrypting(data), Schedule::decrypting(data), Schedule::encrypting(tweak)] }
    }

    fn ecb(self, schedule: &Schedule, blocks: &mut [Block]) {
        // SAFETY: `self` is a witness of these instructions.
        unsafe { if schedule.rounds() == 14 { ecb::<true>(schedule, blocks) } else { ecb::<false>(schedule, blocks) } }
    }

    fn run<const ENCRYPT: bool>(
        self,
        schedule: &Schedule,
        tweaks: &[Block],
        sector_bytes: usize,
        io: InOutBuf<'_, '_, u8>,
    ) {
        // SAFETY: `self` is a witness of these instructions.
        unsafe {
            if schedule.rounds() == 14 {
                run::<ENCRYPT, true>(schedule, tweaks, sector_bytes, io);
            } else {
                run::<ENCRYPT, false>(schedule, tweaks, sector_bytes, io);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: writes the 64 bytes; the instruction takes any alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

/// Four times the same block.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(block: &Block) -> __m512i {
    // SAFETY: reads the 16 bytes; the instruction takes any alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn round<const ENCRYPT: bool>(state: __m512i, key: __m512i) -> __m512i {
    if ENCRYPT { _mm512_aesenc_epi128(state, key) } else { _mm512_aesdec_epi128(state, key) }
}

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn last_round<const ENCRYPT: bool>(state: __m512i, key: __m512i) -> __m512i {
    if ENCRYPT { _mm512_aesenclast_epi128(state, key) } else { _mm512_aesdeclast_epi128(state, key) }
}

/// Eight states pass through: what follows in the source cannot move above, what precedes cannot move below.
macro_rules! pin {
    ($s:expr) => {
        // SAFETY: no instruction is executed.
        unsafe {
            asm!(
                "/* {0} {1} {2} {3} {4} {5} {6} {7} */",
                inout(zmm_reg) $s[0], inout(zmm_reg) $s[1], inout(zmm_reg) $s[2], inout(zmm_reg) $s[3],
                inout(zmm_reg) $s[4], inout(zmm_reg) $s[5], inout(zmm_reg) $s[6], inout(zmm_reg) $s[7],
                options(pure, nomem, nostack, preserves_flags)
            );
        }
    };
}

/// The base vectors of even and odd vectors, and the products of their bytes with x^7 + x^2 + x + 1.
struct Bases {
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

/// Adds what left the low bits: `shifted` ^ `carry` · (x^7 + x^2 + x) in each block; the shift that made `shifted` has
/// brought in `carry` itself. `carry` has at most five bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn reduced(shifted: __m512i, carry: __m512i) -> __m512i {
    // SAFETY: reads the table's 64 bytes; the instruction takes any alignment.
    let products = unsafe { _mm512_loadu_si512(PRODUCTS.as_ptr().cast()) };
    _mm512_xor_si512(shifted, _mm512_permutexvar_epi16(carry, products))
}

/// T, T·x, T·x^2, T·x^3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn even_base(tweak: &Block) -> __m512i {
    let tweak = broadcast(tweak);
    let halves_swapped = _mm512_shuffle_epi32::<0b0100_1110>(tweak);
    let shifted = _mm512_shldv_epi64(tweak, halves_swapped, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
    let down = _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64);
    reduced(shifted, _mm512_maskz_srlv_epi64(0b0101_0101, halves_swapped, down))
}

/// x^4 times the even base.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn odd_base(even: __m512i) -> __m512i {
    let halves_swapped = _mm512_shuffle_epi32::<0b0100_1110>(even);
    let shifted = _mm512_shldi_epi64::<4>(even, halves_swapped);
    reduced(shifted, _mm512_maskz_srli_epi64::<60>(0b0101_0101, halves_swapped))
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
    fn zero() -> Bases {
        let zero = [_mm512_setzero_si512(); 2];
        Bases { base: zero, low: zero, high: zero }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    fn start<const ODD: usize>(&mut self, tweak: &Block) {
        self.base[ODD] = if ODD == 0 { even_base(tweak) } else { odd_base(self.base[0]) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,gfni")]
    fn multiply<const ODD: usize>(&mut self) {
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
    fn mask<const K: usize, const ODD: usize>(&self, last_key: __m512i) -> __m512i {
        shifted::<K>(self.base[ODD], self.low[ODD], self.high[ODD], last_key)
    }
}

/// One of the 24 steps in which the masks of the next group are computed: the bases, then a vector each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,gfni")]
fn prepare<const NEXT: u8, const STEP: usize>(
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
        (SECTOR | PAIR, 0) => bases.start::<0>(&tweaks[0]),
        (SECTOR | PAIR, 1) => bases.start::<1>(&tweaks[0]),
        (PAIR, 12) => bases.start::<0>(&tweaks[1]),
        (PAIR, 13) => bases.start::<1>(&tweaks[1]),
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

/// What every group of a run needs.
struct Pass<'a> {
    keys: &'a [Block; 15],
    /// Copies of the last round key, and of first ^ last.
    last_key: __m512i,
    whitening: __m512i,
}

impl Pass<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new<const LONG: bool>(schedule: &Schedule) -> Pass<'_> {
        let keys = schedule.keys();
        let last_key = broadcast(&keys[if LONG { 14 } else { 10 }]);
        Pass { keys, last_key, whitening: _mm512_xor_si512(last_key, broadcast(&keys[0])) }
    }

    /// One group of 1 KiB under `masks`, while `following` becomes the masks of the next.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,gfni,vaes")]
    fn group<const ENCRYPT: bool, const LONG: bool, const NEXT: u8>(
        &self,
        bases: &mut Bases,
        tweaks: &[Block; 2],
        masks: &Masks,
        following: &mut Masks,
        mut io: InOut<'_, '_, Array<u8, U1024>>,
    ) {
        let keys = opaque(self.keys);
        let source = io.get_in().as_slice().as_chunks::<64>().0;
        let mut front = [self.whitening; VECTORS / 2];
        let mut back = [self.whitening; VECTORS / 2];
        for i in 0..VECTORS / 2 {
            front[i] = xor3(load(&source[i]), masks[i], self.whitening);
        }
        for i in 0..VECTORS / 2 {
            back[i] = xor3(load(&source[i + VECTORS / 2]), masks[i + VECTORS / 2], self.whitening);
        }
        macro_rules! prepare {
            ($step:expr) => {
                prepare::<NEXT, { $step }>(bases, tweaks, following, self.last_key)
            };
        }
        macro_rules! rounds {
            ($($number:literal)*) => {$(
                let key = broadcast(&keys[$number]);
                for state in &mut front {
                    *state = round::<ENCRYPT>(*state, key);
                }
                pin!(front);
                if LONG { prepare!(2 * $number - 2) } else { prepare!(3 * $number - 3) }
                for state in &mut back {
                    *state = round::<ENCRYPT>(*state, key);
                }
                pin!(back);
                if LONG {
                    prepare!(2 * $number - 1);
                } else {
                    prepare!(3 * $number - 2);
                    prepare!(3 * $number - 1);
                }
            )*};
        }
        rounds!(1 2 3 4 5 6 7 8 9);
        if LONG {
            rounds!(10 11 12 13);
        }
        let target = io.get_out().as_mut_slice().as_chunks_mut::<64>().0;
        for i in 0..VECTORS / 2 {
            store(&mut target[i], last_round::<ENCRYPT>(front[i], masks[i]));
        }
        for i in 0..VECTORS / 2 {
            store(&mut target[i + VECTORS / 2], last_round::<ENCRYPT>(back[i], masks[i + VECTORS / 2]));
        }
    }

    /// A last sector of 512 bytes that has no partner.
    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    fn single<const ENCRYPT: bool, const LONG: bool>(&self, masks: &Masks, mut io: InOut<'_, '_, Array<u8, U512>>) {
        let keys = opaque(self.keys);
        let source = io.get_in().as_slice().as_chunks::<64>().0;
        let mut states = [self.whitening; VECTORS / 2];
        for i in 0..VECTORS / 2 {
            states[i] = xor3(load(&source[i]), masks[i], self.whitening);
        }
        for key in &keys[1..if LONG { 14 } else { 10 }] {
            let key = broadcast(key);
            for state in &mut states {
                *state = round::<ENCRYPT>(*state, key);
            }
            pin!(states);
        }
        let target = io.get_out().as_mut_slice().as_chunks_mut::<64>().0;
        for i in 0..VECTORS / 2 {
            store(&mut target[i], last_round::<ENCRYPT>(states[i], masks[i]));
        }
    }
}

/// All sectors of `io` under their encrypted IVs. `tweaks` has two blocks more than there are sectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,gfni,vaes")]
fn run<const ENCRYPT: bool, const LONG: bool>(
    schedule: &Schedule,
    tweaks: &[Block],
    sector_bytes: usize,
    io: InOutBuf<'_, '_, u8>,
) {
    let pass = Pass::new::<LONG>(schedule);
    let mut bases = Bases::zero();
    let mut masks = [[_mm512_setzero_si512(); VECTORS]; 2];
    let [present, following] = &mut masks;
    let (mut present, mut following) = (present, following);
    let pair_at = |sector: usize| -> &[Block; 2] { tweaks[sector..].first_chunk().unwrap_or(&[[0; 16]; 2]) };
    macro_rules! prepare_all {
        ($next:expr, $($step:literal)*) => {
            $(prepare::<{ $next }, $step>(&mut bases, pair_at(0), present, pass.last_key);)*
        };
    }
    macro_rules! group {
        ($next:expr, $sector:expr, $io:expr) => {{
            pass.group::<ENCRYPT, LONG, { $next }>(&mut bases, pair_at($sector), present, following, $io);
            std::mem::swap(&mut present, &mut following);
        }};
    }
    let (groups, tail) = io.into_chunks::<U1024>();
    if sector_bytes == 512 {
        prepare_all!(next::PAIR, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
        for (index, io) in groups.into_iter().enumerate() {
            group!(next::PAIR, 2 * index + 2, io);
        }
        for io in tail.into_chunks::<U512>().0 {
            pass.single::<ENCRYPT, LONG>(present, io);
        }
        return;
    }
    prepare_all!(next::SECTOR, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
    let groups_per_sector = sector_bytes / 1024;
    for (index, io) in groups.into_iter().enumerate() {
        let following_index = index + 1;
        if following_index.is_multiple_of(groups_per_sector) {
            group!(next::SECTOR, following_index / groups_per_sector, io);
        } else if following_index % 2 == 1 {
            group!(next::HALF, 0, io);
        } else {
            group!(next::REBASE, 0, io);
        }
    }
}

/// blocks\[i\] = AES(blocks\[i\]). The number of blocks is a multiple of four.
#[target_feature(enable = "avx512f,vaes")]
fn ecb<const LONG: bool>(schedule: &Schedule, blocks: &mut [Block]) {
    let vectors = blocks.as_flattened_mut().as_chunks_mut::<64>().0;
    let (groups, rest) = vectors.as_chunks_mut::<8>();
    for group in groups {
        ecb_group::<8, LONG>(schedule, group);
    }
    for vector in rest {
        ecb_group::<1, LONG>(schedule, std::array::from_mut(vector));
    }
}

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn ecb_group<const N: usize, const LONG: bool>(schedule: &Schedule, vectors: &mut [[u8; 64]; N]) {
    let keys = opaque(schedule.keys());
    let mut states = [broadcast(&keys[0]); N];
    for (state, bytes) in states.iter_mut().zip(&*vectors) {
        *state = _mm512_xor_si512(*state, load(bytes));
    }
    let rounds = if LONG { 14 } else { 10 };
    for key in &keys[1..rounds] {
        let key = broadcast(key);
        for state in &mut states {
            *state = _mm512_aesenc_epi128(*state, key);
        }
    }
    let last_key = broadcast(&keys[rounds]);
    for (state, bytes) in states.iter().zip(vectors) {
        store(bytes, _mm512_aesenclast_epi128(*state, last_key));
    }
}
