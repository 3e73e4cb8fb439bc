//! XTS with VAES on AVX-512: 16 vectors of four blocks in flight, 1 KiB at a time.
//!
//! `tweaks` has the arithmetic between the rounds.

mod tweaks;

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128, _mm512_aesenc_epi128,
    _mm512_aesenclast_epi128, _mm512_and_si512, _mm512_load_si512, _mm512_maskz_set1_epi64, _mm512_set_epi64,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
};

use std::mem::MaybeUninit;

use cipher::Array;
use cipher::consts::{U512, U1024};
use cipher::inout::{InOut, InOutBuf};

use super::prefetch::{PREFETCH_BYTES, prefetch};
use super::schedule::{Block, Quad, Schedule, opaque};
use super::xts::{Instructions, SPARE_TWEAKS};
use tweaks::{Bases, Masks, VECTORS, broadcast, load, next, prepare, xor3};

cpufeatures::new!(zmm, "aes", "avx2", "fma", "avx512f", "avx512bw", "gfni", "vaes");

/// Larger than the frames of `run`, `single` and `ecb`.
const STACK_BYTES: usize = 3584;

/// Witness of a machine with VAES, GFNI and AVX-512 (F, BW).
#[derive(Clone, Copy)]
pub(crate) struct Zmm(());

impl Zmm {
    /// `None` where an instruction is missing or the operating system does not keep the registers.
    pub(crate) fn detect() -> Option<Zmm> {
        // To the compiler AVX-512 includes AVX2, FMA and F16C. `cpufeatures` does not ask for the last; the standard library
        // does, and it asks how far CPUID's leaves go before it reads the seventh.
        (zmm::get() && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("avx512f")).then_some(Zmm(()))
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

    fn encrypted_numbers(self, schedule: &Schedule, first: u64, step: u64, mask: u64, tweaks: &mut [Block]) {
        // SAFETY: `self` is a witness of these instructions.
        unsafe {
            if schedule.rounds() == 14 {
                encrypted_numbers::<true>(schedule, first, step, mask, tweaks);
            } else {
                encrypted_numbers::<false>(schedule, first, step, mask, tweaks);
            }
        }
    }

    fn single<const ENCRYPT: bool>(
        self,
        schedule: &Schedule,
        tweak_schedule: &Schedule,
        iv: &Block,
        io: InOutBuf<'_, '_, u8>,
    ) {
        for io in io.into_chunks::<U512>().0 {
            // SAFETY: `self` is a witness of these instructions.
            unsafe {
                if schedule.rounds() == 14 {
                    single::<ENCRYPT, true>(schedule, tweak_schedule, iv, io);
                } else {
                    single::<ENCRYPT, false>(schedule, tweak_schedule, iv, io);
                }
            }
        }
    }

    fn cleared(self, quads: &mut [MaybeUninit<Quad>]) -> &mut [Block] {
        // SAFETY: `self` is a witness of these instructions.
        unsafe { cleared(quads) }
    }

    fn wipe_stack(self) {
        // SAFETY: `self` is a witness of these instructions.
        unsafe { wipe_stack() }
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
fn store(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: writes the 64 bytes; the instruction takes any alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
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

/// All four blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn whole(quad: &Quad) -> __m512i {
    // SAFETY: reads the 64 bytes, which are aligned to as many.
    unsafe { _mm512_load_si512(std::ptr::from_ref(quad).cast()) }
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

/// What every group of a run needs.
struct Pass<'a> {
    keys: &'a [Quad; 15],
    /// Copies of the last round key, and of first ^ last.
    last_key: __m512i,
    whitening: __m512i,
}

impl Pass<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new<const LONG: bool>(schedule: &Schedule) -> Pass<'_> {
        let keys = schedule.keys();
        let last_key = whole(&keys[if LONG { 14 } else { 10 }]);
        Pass { keys, last_key, whitening: _mm512_xor_si512(last_key, whole(&keys[0])) }
    }

    /// One group of 1 KiB under `masks`, while `following` becomes the masks of the next. Not inlined: what the compiler
    /// keeps on the stack then is little, and `wipe_stack` reaches it.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,gfni,vaes")]
    fn group<const ENCRYPT: bool, const LONG: bool, const NEXT: u8>(
        &self,
        bases: &mut Bases,
        tweaks: &[Block; 2],
        masks: &Masks,
        following: &mut Masks,
        mut io: InOut<'_, '_, Array<u8, U1024>>,
    ) {
        let keys = opaque(self.keys);
        let ahead = io.get_in().as_ptr().wrapping_add(PREFETCH_BYTES);
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
                let key = whole(&keys[$number]);
                if $number <= 8 {
                    prefetch(ahead.wrapping_add(128 * ($number - 1)));
                    prefetch(ahead.wrapping_add(128 * ($number - 1) + 64));
                }
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
        // Read once more rather than kept since the whitening, for which there are no registers.
        let masks = opaque(masks);
        let target = io.get_out().as_mut_slice().as_chunks_mut::<64>().0;
        for i in 0..VECTORS / 2 {
            store(&mut target[i], last_round::<ENCRYPT>(front[i], masks[i]));
        }
        for i in 0..VECTORS / 2 {
            store(&mut target[i + VECTORS / 2], last_round::<ENCRYPT>(back[i], masks[i + VECTORS / 2]));
        }
    }

    /// One sector of 512 bytes, on its own.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni,vaes")]
    fn single<const ENCRYPT: bool, const LONG: bool>(&self, tweak: __m512i, mut io: InOut<'_, '_, Array<u8, U512>>) {
        let keys = opaque(self.keys);
        let mut bases = Bases::zero();
        bases.start::<0>(tweak);
        bases.start::<1>(tweak);
        bases.multiply::<0>();
        bases.multiply::<1>();
        let masks = [
            bases.mask::<0, 0>(self.last_key),
            bases.mask::<0, 1>(self.last_key),
            bases.mask::<1, 0>(self.last_key),
            bases.mask::<1, 1>(self.last_key),
            bases.mask::<2, 0>(self.last_key),
            bases.mask::<2, 1>(self.last_key),
            bases.mask::<3, 0>(self.last_key),
            bases.mask::<3, 1>(self.last_key),
        ];
        let source = io.get_in().as_slice().as_chunks::<64>().0;
        let mut states = [self.whitening; VECTORS / 2];
        for i in 0..VECTORS / 2 {
            states[i] = xor3(load(&source[i]), masks[i], self.whitening);
        }
        for key in &keys[1..if LONG { 14 } else { 10 }] {
            let key = whole(key);
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

/// One sector of 512 bytes, whose IV is still to be encrypted: nothing but registers.
#[target_feature(enable = "avx512f,avx512bw,gfni,vaes")]
fn single<const ENCRYPT: bool, const LONG: bool>(
    schedule: &Schedule,
    tweak_schedule: &Schedule,
    iv: &Block,
    io: InOut<'_, '_, Array<u8, U512>>,
) {
    let [tweak] = encrypted::<1, LONG>(tweak_schedule, [broadcast(iv)]);
    Pass::new::<LONG>(schedule).single::<ENCRYPT, LONG>(tweak, io);
}

/// With vector stores: `memset` takes as long for the tweaks of 64 KiB as the rounds of a sector.
#[target_feature(enable = "avx512f")]
fn cleared(quads: &mut [MaybeUninit<Quad>]) -> &mut [Block] {
    for quad in &mut *quads {
        // SAFETY: a valid place of 64 bytes, aligned to as many.
        unsafe { quad.as_mut_ptr().cast::<__m512i>().write_volatile(_mm512_setzero_si512()) };
    }
    // SAFETY: each has just been written, and zeros are a value of this type.
    unsafe { Quad::blocks(quads) }
}

/// Overwrites what `run`, with two sets of masks and the bases, and `ecb` have used of the stack.
#[inline(never)]
#[target_feature(enable = "avx512f")]
fn wipe_stack() {
    let mut area = [const { MaybeUninit::<__m512i>::uninit() }; STACK_BYTES / 64];
    for vector in &mut area {
        // SAFETY: a valid, aligned place of this type.
        unsafe { vector.as_mut_ptr().write_volatile(_mm512_setzero_si512()) };
    }
}

/// All sectors of `io` under their encrypted IVs. `tweaks` has two blocks more than there are sectors.
#[target_feature(enable = "avx512f,avx512bw,gfni,vaes")]
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
            pass.single::<ENCRYPT, LONG>(broadcast(&tweaks[tweaks.len() - SPARE_TWEAKS - 1]), io);
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
    for vector in blocks.as_flattened_mut().as_chunks_mut::<64>().0 {
        let [state] = encrypted::<1, LONG>(schedule, [load(vector)]);
        store(vector, state);
    }
}

/// tweaks\[i\] = AES((first + i·step) & mask). The number of tweaks is a multiple of four.
#[target_feature(enable = "avx512f,vaes")]
fn encrypted_numbers<const LONG: bool>(schedule: &Schedule, first: u64, step: u64, mask: u64, tweaks: &mut [Block]) {
    let at = |block: u64| first.wrapping_add(step.wrapping_mul(block)).cast_signed();
    let mut number = _mm512_set_epi64(0, at(3), 0, at(2), 0, at(1), 0, at(0));
    let mask = _mm512_maskz_set1_epi64(0b0101_0101, mask.cast_signed());
    let advance = _mm512_set1_epi64(step.wrapping_mul(4).cast_signed());
    let (groups, rest) = tweaks.as_flattened_mut().as_chunks_mut::<64>().0.as_chunks_mut::<8>();
    for group in groups {
        let mut numbers = [number; 8];
        for place in &mut numbers {
            *place = _mm512_and_si512(number, mask);
            number = _mm512_add_epi64(number, advance);
        }
        for (place, tweaks) in group.iter_mut().zip(encrypted::<8, LONG>(schedule, numbers)) {
            store(place, tweaks);
        }
    }
    for place in rest {
        let [tweaks] = encrypted::<1, LONG>(schedule, [_mm512_and_si512(number, mask)]);
        store(place, tweaks);
        number = _mm512_add_epi64(number, advance);
    }
}

#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn encrypted<const N: usize, const LONG: bool>(schedule: &Schedule, mut states: [__m512i; N]) -> [__m512i; N] {
    let keys = opaque(schedule.keys());
    let rounds = if LONG { 14 } else { 10 };
    let whitening = whole(&keys[0]);
    for state in &mut states {
        *state = _mm512_xor_si512(*state, whitening);
    }
    for key in &keys[1..rounds] {
        let key = whole(key);
        for state in &mut states {
            *state = _mm512_aesenc_epi128(*state, key);
        }
    }
    let last_key = whole(&keys[rounds]);
    states.map(|state| _mm512_aesenclast_epi128(state, last_key))
}
