//! Block-parallel passes over a block cipher: plain ECB, and ECB between two xors with a mask.
//!
//! The `aes` crate works on N blocks at a time (8 with AES-NI, 30 with AVX2, 64 with AVX-512) and gives closures a
//! backend inside its `target_feature` function, so that the code here is compiled for that instruction set too.
//! It encrypts a rest of fewer than N blocks one by one; a padded last batch is several times as fast, so the passes
//! here pad. The other ciphers' crates take one block at a time. All passes are `inline(always)`: outside of the backend's function they would lose its instructions.

use cipher::array::ArraySize;
use cipher::consts::U16;
use cipher::inout::InOutBuf;
use cipher::{Array, BlockCipherDecBackend, BlockCipherEncBackend, BlockCipherEncClosure, BlockSizeUser};

/// One block.
pub(crate) type Block = Array<u8, U16>;

/// Up to this many blocks at the end are cheaper one by one than as a padded batch.
const SINGLES: usize = 4;

/// A block cipher in one direction, `Count` blocks at a time.
pub(crate) trait Lanes {
    type Count: ArraySize;
    fn many(&self, blocks: &mut Array<Block, Self::Count>);
    fn one(&self, block: &mut Block);
}

/// Encryption.
pub(crate) struct Forward<'a, B>(pub(crate) &'a B);

impl<B: BlockCipherEncBackend<BlockSize = U16>> Lanes for Forward<'_, B> {
    type Count = B::ParBlocksSize;

    #[inline(always)]
    fn many(&self, blocks: &mut Array<Block, Self::Count>) {
        self.0.encrypt_par_blocks_inplace(blocks);
    }

    #[inline(always)]
    fn one(&self, block: &mut Block) {
        self.0.encrypt_block_inplace(block);
    }
}

/// Decryption.
pub(crate) struct Backward<'a, B>(pub(crate) &'a B);

impl<B: BlockCipherDecBackend<BlockSize = U16>> Lanes for Backward<'_, B> {
    type Count = B::ParBlocksSize;

    #[inline(always)]
    fn many(&self, blocks: &mut Array<Block, Self::Count>) {
        self.0.decrypt_par_blocks_inplace(blocks);
    }

    #[inline(always)]
    fn one(&self, block: &mut Block) {
        self.0.decrypt_block_inplace(block);
    }
}

/// ECB encryption of all blocks in place, as a closure for `encrypt_with_backend`.
pub(crate) struct Ecb<'a> {
    pub(crate) blocks: &'a mut [Block],
}

impl BlockSizeUser for Ecb<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Ecb<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        ecb(&Forward(backend), self.blocks);
    }
}

/// blocks\[i\] = E(blocks\[i\]).
#[inline(always)]
pub(crate) fn ecb<L: Lanes>(lanes: &L, blocks: &mut [Block]) {
    let (batches, rest) = Array::<Block, L::Count>::slice_as_chunks_mut(blocks);
    for batch in batches {
        lanes.many(batch);
    }
    if rest.len() <= SINGLES {
        for block in rest {
            lanes.one(block);
        }
        return;
    }
    let mut padded = Array::<Block, L::Count>::default();
    padded[..rest.len()].copy_from_slice(rest);
    lanes.many(&mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
}

/// out\[i\] = E(in\[i\] ^ mask\[i\]) ^ mask\[i\], the first xor only if `BOTH`. `mask` covers `io`.
///
/// With `BOTH` and the tweaks as mask this is XTS; without, and with the previous ciphertext as mask, it is CBC
/// decryption.
#[inline(always)]
pub(crate) fn masked<L: Lanes, const BOTH: bool>(lanes: &L, io: InOutBuf<'_, '_, Block>, mask: &[Block]) {
    let (batches, mut rest) = io.into_chunks::<L::Count>();
    let (batch_masks, rest_mask) = Array::<Block, L::Count>::slice_as_chunks(mask);
    for (mut batch, batch_mask) in batches.into_iter().zip(batch_masks) {
        let mut blocks = batch.get_in().clone();
        if BOTH {
            xor(&mut blocks, batch_mask);
        }
        lanes.many(&mut blocks);
        xor(&mut blocks, batch_mask);
        *batch.get_out() = blocks;
    }
    let count = rest.len();
    if count == 0 {
        return;
    }
    let mut blocks = Array::<Block, L::Count>::default();
    blocks[..count].copy_from_slice(rest.get_in());
    if BOTH {
        xor(&mut blocks[..count], rest_mask);
    }
    if count <= SINGLES {
        for block in &mut blocks[..count] {
            lanes.one(block);
        }
    } else {
        lanes.many(&mut blocks);
    }
    xor(&mut blocks[..count], rest_mask);
    rest.get_out().copy_from_slice(&blocks[..count]);
}

/// blocks\[i\] ^= mask\[i\].
#[inline(always)]
pub(crate) fn xor(blocks: &mut [Block], mask: &[Block]) {
    let bytes = Array::slice_as_flattened_mut(blocks);
    for (byte, mask) in bytes.iter_mut().zip(Array::slice_as_flattened(mask)) {
        *byte ^= mask;
    }
}
