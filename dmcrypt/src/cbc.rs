//! CBC over runs of sectors (NIST SP 800-38A, 6.2), one IV per sector.
//!
//! Encryption C_j = E_K(P_j ^ C_{j-1}) is a chain within a sector, so up to 64 sectors are encrypted side by side.
//! Decryption P_j = D_K(C_j) ^ C_{j-1} has no chain; C_{-1} is the sector's IV in both.

use cipher::consts::U16;
use cipher::inout::InOutBuf;
use cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure, BlockSizeUser,
};
use secret::Locked;

use crate::block_cipher::{BlockCipher, keyed};
use crate::iv::IvGenerator;
use crate::lanes::{Backward, Block, Forward, ecb, masked, xor};
use crate::sector::{assert_whole, paired};
use crate::{CipherError, CipherSpec, SectorCipher, SectorSize, wipe};

/// Sectors encrypted side by side.
const BATCH_SECTORS: usize = 64;

/// Blocks decrypted at a time; their predecessors are set aside first, since in place they get overwritten.
const GROUP_BLOCKS: usize = 256;

/// Round keys of the cipher and of the IV generator.
struct Keys<C: BlockCipher> {
    data: C,
    iv: IvGenerator<C::Essiv>,
}

/// A CBC sector cipher over the block cipher `C`.
pub(crate) struct Cbc<C: BlockCipher> {
    keys: Locked<Keys<C>>,
    sector_size: SectorSize,
}

impl<C: BlockCipher> Cbc<C> {
    /// `key` has a size that `C` takes.
    pub(crate) fn new(spec: &CipherSpec, key: &[u8], sector_size: SectorSize) -> Result<Self, CipherError> {
        let keys = Locked::new_with(|| Keys { data: keyed(key), iv: IvGenerator::new(spec.iv(), key) })?;
        Ok(Self { keys, sector_size })
    }

    /// Runs over all sectors of `io` in one direction.
    #[inline(always)]
    fn run<const ENCRYPT: bool>(&self, iv_sector: u64, mut io: InOutBuf<'_, '_, u8>) {
        let sector_bytes = self.sector_size.len_bytes();
        assert_whole(io.len(), sector_bytes);
        let step = self.sector_size.iv_step();
        let mut ivs = [Block::default(); BATCH_SECTORS];
        let mut before = [Block::default(); GROUP_BLOCKS];
        let mut number = iv_sector;
        while !io.is_empty() {
            let len_bytes = io.len().min(BATCH_SECTORS * sector_bytes);
            let (batch, rest) = io.split_at(len_bytes);
            io = rest;
            let ivs = &mut ivs[..len_bytes / sector_bytes];
            self.keys.iv.fill(number, step, Block::cast_slice_to_core_mut(ivs));
            number = number.wrapping_add(step * ivs.len() as u64);
            let (io, _none) = batch.into_chunks::<U16>();
            let pass = Pass { io, ivs, before: &mut before, sector_blocks: sector_bytes / 16 };
            if ENCRYPT {
                self.keys.data.encrypt_with_backend(pass);
            } else {
                self.keys.data.decrypt_with_backend(pass);
            }
        }
        wipe::blocks(&mut ivs);
        if !ENCRYPT {
            wipe::blocks(&mut before);
        }
        wipe::dead_stack();
    }
}

/// One batch of sectors with their IVs.
struct Pass<'io, 'out, 'a> {
    io: InOutBuf<'io, 'out, Block>,
    ivs: &'a mut [Block],
    // Not in the closure: its frame is what `wipe::dead_stack` has to cover.
    before: &'a mut [Block; GROUP_BLOCKS],
    sector_blocks: usize,
}

impl BlockSizeUser for Pass<'_, '_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Pass<'_, '_, '_> {
    /// `ivs` holds the last ciphertext block of each sector: block j of all sectors, then j + 1.
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &B) {
        let lanes = Forward(backend);
        for j in 0..self.sector_blocks {
            for (sector, chain) in self.ivs.iter_mut().enumerate() {
                let plain = &self.io.get_in()[sector * self.sector_blocks + j];
                xor(std::slice::from_mut(chain), std::slice::from_ref(plain));
            }
            ecb(&lanes, self.ivs);
            for (sector, chain) in self.ivs.iter().enumerate() {
                self.io.get_out()[sector * self.sector_blocks + j] = *chain;
            }
        }
    }
}

impl BlockCipherDecClosure for Pass<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        let lanes = Backward(backend);
        let mut io = self.io;
        for ivs in self.ivs.chunks(GROUP_BLOCKS / self.sector_blocks) {
            let before = &mut self.before[..ivs.len() * self.sector_blocks];
            let (group, rest) = io.split_at(before.len());
            io = rest;
            let (_iv, followers) = before.split_at_mut(1);
            followers.copy_from_slice(&group.get_in()[..followers.len()]);
            for (first, iv) in before.iter_mut().step_by(self.sector_blocks).zip(ivs) {
                *first = *iv;
            }
            masked::<_, false>(&lanes, group, before);
        }
    }
}

impl<C: BlockCipher> SectorCipher for Cbc<C> {
    fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    fn encrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]) {
        self.run::<true>(iv_sector, paired(src, dst));
    }

    fn decrypt(&self, iv_sector: u64, src: &[u8], dst: &mut [u8]) {
        self.run::<false>(iv_sector, paired(src, dst));
    }

    fn encrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]) {
        self.run::<true>(iv_sector, buf.into());
    }

    fn decrypt_in_place(&self, iv_sector: u64, buf: &mut [u8]) {
        self.run::<false>(iv_sector, buf.into());
    }
}
