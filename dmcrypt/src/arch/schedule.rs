//! AES key expansion (FIPS 197, 5.2) with AESKEYGENASSIST; round keys are wiped on drop.

use std::arch::x86_64::{
    __m128i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_set1_epi32,
    _mm_storeu_si128,
};
use std::mem::MaybeUninit;
use std::slice;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// One AES block, one round key, one tweak.
pub(crate) type Block = [u8; 16];

/// Round keys of AES-256; AES-128 has 11.
const MAX_ROUND_KEYS: usize = 15;

/// Four blocks: a vector of the widest kernel, where its loads and stores like it to be.
#[repr(C, align(64))]
#[derive(Clone, Copy, Zeroize)]
pub(crate) struct Quad([Block; 4]);

impl Quad {
    pub(super) const ZERO: Quad = Quad([[0; 16]; 4]);

    /// One of four that are alike.
    #[inline]
    pub(super) fn block(&self) -> &Block {
        &self.0[0]
    }

    /// The same memory, block by block.
    ///
    /// # Safety
    /// All of `quads` have been written.
    #[inline]
    pub(super) unsafe fn blocks(quads: &mut [MaybeUninit<Quad>]) -> &mut [Block] {
        const { assert!(size_of::<Quad>() == 4 * size_of::<Block>()) };
        // SAFETY: a `Quad` is four blocks and nothing else, all of them have values, and what is returned borrows them.
        unsafe { slice::from_raw_parts_mut(quads.as_mut_ptr().cast(), 4 * quads.len()) }
    }
}

/// The round keys of one key in one direction, in the order in which the rounds use them. Four times each: to spread a
/// block over a wide register takes a slot that the rounds compete for.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Schedule {
    keys: [Quad; MAX_ROUND_KEYS],
    rounds: usize,
}

impl Schedule {
    /// For encryption. `key` has 16 or 32 bytes; the caller made sure.
    #[target_feature(enable = "aes")]
    pub(super) fn encrypting(key: &[u8]) -> Schedule {
        let key_words = key.len() / 4;
        let rounds = key_words + 6;
        let mut expanded = [[0; 16]; MAX_ROUND_KEYS];
        let bytes = expanded.as_flattened_mut();
        bytes[..key.len()].copy_from_slice(key);
        let mut round_constant = 1;
        for word in key_words..4 * (rounds + 1) {
            let mut next = word_at(bytes, word - 1);
            if word.is_multiple_of(key_words) {
                next = substituted(next.rotate_right(8)) ^ round_constant;
                // Ten steps at most: 1, 2, 4 … 0x80, 0x1b, 0x36.
                round_constant = if round_constant == 0x80 { 0x1b } else { round_constant << 1 };
            } else if key_words == 8 && word % 8 == 4 {
                next = substituted(next);
            }
            next ^= word_at(bytes, word - key_words);
            bytes[4 * word..][..4].copy_from_slice(&next.to_le_bytes());
        }
        let schedule = Schedule { keys: expanded.map(|key| Quad([key; 4])), rounds };
        expanded.zeroize();
        schedule
    }

    /// For decryption by the equivalent inverse cipher (FIPS 197, 5.3.5).
    #[target_feature(enable = "aes")]
    pub(super) fn decrypting(key: &[u8]) -> Schedule {
        let mut schedule = Schedule::encrypting(key);
        let rounds = schedule.rounds;
        schedule.keys[..=rounds].reverse();
        for key in &mut schedule.keys[1..rounds] {
            let mut mixed = *key.block();
            store(&mut mixed, _mm_aesimc_si128(load(key.block())));
            *key = Quad([mixed; 4]);
        }
        schedule
    }

    /// 10 for AES-128, 14 for AES-256.
    pub(super) fn rounds(&self) -> usize {
        self.rounds
    }

    /// All keys; those after [`Schedule::rounds`] are zero.
    pub(super) fn keys(&self) -> &[Quad; MAX_ROUND_KEYS] {
        &self.keys
    }
}

/// The little-endian word number `index`.
fn word_at(bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[4 * index..][..4]);
    u32::from_le_bytes(word)
}

/// SubWord: the S-box on each byte.
#[target_feature(enable = "aes")]
fn substituted(word: u32) -> u32 {
    let all = _mm_set1_epi32(word.cast_signed());
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(all)).cast_unsigned()
}

#[target_feature(enable = "aes")]
fn load(block: &Block) -> __m128i {
    // SAFETY: reads the 16 bytes of `block`; the instruction takes any alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

#[target_feature(enable = "aes")]
fn store(block: &mut Block, value: __m128i) {
    // SAFETY: writes the 16 bytes of `block`; the instruction takes any alignment.
    unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), value) }
}

/// The same reference, but the compiler no longer knows that it is: what is read through it is read again each time
/// instead of being kept in registers, or on the stack when those run out.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)] // the point is that nothing happens to it
pub(super) fn opaque<T>(reference: &T) -> &T {
    let mut pointer: *const T = reference;
    // SAFETY: no instruction is executed, so `pointer` still is `reference`, with its lifetime.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(nomem, nostack, preserves_flags));
        &*pointer
    }
}
