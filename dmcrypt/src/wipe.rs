//! Wiping of what the data path leaves on the stack: tweaks, and the round keys that the `aes` crate spreads there.
//!
//! The AVX2 and AVX-512 code of `aes` copies all round keys into its own frame on every call and does not wipe them.
//! [`dead_stack`], called from the frame that called it, overwrites that region.

use zeroize::optimization_barrier;

use crate::lanes::Block;

/// Larger than the deepest frame below a sector cipher: 15 round keys of 64 bytes, one batch of 64 blocks, spills.
/// Without optimisations, every intermediate value of a kernel has a place of its own there.
const DEAD_STACK_BYTES: usize = if cfg!(large_frames) { 48 << 10 } else { 8192 };

/// Overwrites the blocks with zeros, for good.
#[inline]
pub(crate) fn blocks(blocks: &mut [Block]) {
    bytes(Block::slice_as_flattened_mut(blocks));
}

/// Overwrites the bytes with zeros, for good.
#[inline]
pub(crate) fn bytes(bytes: &mut [u8]) {
    bytes.fill(0);
    optimization_barrier(bytes);
}

/// Overwrites the stack below the caller's frame with zeros.
#[inline(never)]
#[allow(clippy::large_stack_arrays)] // the stack is what it is for
pub(crate) fn dead_stack() {
    let area = [0_u8; DEAD_STACK_BYTES];
    optimization_barrier(&area);
}
