//! XTS over runs of sectors (IEEE 1619-2018, there with AES).
//!
//! C_j = E_K1(P_j ^ T_j) ^ T_j, T_j = E_K2(IV) · x^j. The key is K1 ‖ K2. Sectors are whole blocks, so ciphertext
//! stealing never occurs. The tweaks of up to 64 sectors are encrypted in one pass: at 512 bytes a sector that is
//! worth a factor of two.

use cipher::consts::U16;
use cipher::inout::InOutBuf;
use cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure, BlockSizeUser,
};
use secret::Locked;

use crate::block_cipher::{BlockCipher, keyed};
use crate::iv::IvGenerator;
use crate::lanes::{Backward, Block, Ecb, Forward, Lanes, masked};
use crate::sector::{assert_whole, paired};
use crate::{CipherError, CipherSpec, SectorCipher, SectorSize, tweak, wipe};

/// Sectors whose tweaks are encrypted together.
const BATCH_SECTORS: usize = 64;

/// Blocks whose tweaks are expanded together: 4 KiB of data, so that data and tweaks stay in the first cache.
const GROUP_BLOCKS: usize = 256;

/// Round keys of both halves and of the IV generator.
struct Keys<C: BlockCipher> {
    data: C,
    tweak: C,
    iv: IvGenerator<C::Essiv>,
}

/// An XTS sector cipher over the block cipher `C`.
pub(crate) struct Xts<C: BlockCipher> {
    keys: Locked<Keys<C>>,
    sector_size: SectorSize,
}

impl<C: BlockCipher> Xts<C> {
    /// `key` is K1 ‖ K2, twice a size that `C` takes.
    pub(crate) fn new(spec: &CipherSpec, key: &[u8], sector_size: SectorSize) -> Result<Self, CipherError> {
        let (data, tweak) = key.split_at(key.len() / 2);
        let keys =
            Locked::new_with(|| Keys { data: keyed(data), tweak: keyed(tweak), iv: IvGenerator::new(spec.iv(), key) })?;
        Ok(Self { keys, sector_size })
    }

    /// Runs over all sectors of `io` in one direction.
    #[inline(always)]
    fn run<const ENCRYPT: bool>(&self, iv_sector: u64, mut io: InOutBuf<'_, '_, u8>) {
        let sector_bytes = self.sector_size.len_bytes();
        assert_whole(io.len(), sector_bytes);
        let step = self.sector_size.iv_step();
        let mut bases = [Block::default(); BATCH_SECTORS];
        let mut tweaks = [Block::default(); GROUP_BLOCKS];
        let mut number = iv_sector;
        while !io.is_empty() {
            let len_bytes = io.len().min(BATCH_SECTORS * sector_bytes);
            let (batch, rest) = io.split_at(len_bytes);
            io = rest;
            let bases = &mut bases[..len_bytes / sector_bytes];
            self.keys.iv.fill(number, step, Block::cast_slice_to_core_mut(bases));
            number = number.wrapping_add(step * bases.len() as u64);
            self.keys.tweak.encrypt_with_backend(Ecb { blocks: bases });
            let (io, _none) = batch.into_chunks::<U16>();
            let pass = Pass { io, bases, tweaks: &mut tweaks, sector_blocks: sector_bytes / 16 };
            if ENCRYPT {
                self.keys.data.encrypt_with_backend(pass);
            } else {
                self.keys.data.decrypt_with_backend(pass);
            }
        }
        wipe::blocks(&mut bases);
        wipe::blocks(&mut tweaks);
        wipe::dead_stack();
    }
}

/// One batch of sectors with their encrypted IVs, for the data key's backend.
struct Pass<'io, 'out, 'a> {
    io: InOutBuf<'io, 'out, Block>,
    bases: &'a [Block],
    tweaks: &'a mut [Block; GROUP_BLOCKS],
    sector_blocks: usize,
}

impl Pass<'_, '_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: &L) {
        let mut io = self.io;
        for bases in self.bases.chunks(GROUP_BLOCKS / self.sector_blocks) {
            let tweaks = &mut self.tweaks[..bases.len() * self.sector_blocks];
            for (base, tweaks) in bases.iter().zip(tweaks.chunks_exact_mut(self.sector_blocks)) {
                tweak::expand(base, tweaks);
            }
            let (group, rest) = io.split_at(tweaks.len());
            io = rest;
            masked::<L, true>(lanes, group, tweaks);
        }
    }
}

impl BlockSizeUser for Pass<'_, '_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Pass<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(&Forward(backend));
    }
}

impl BlockCipherDecClosure for Pass<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(&Backward(backend));
    }
}

impl<C: BlockCipher> SectorCipher for Xts<C> {
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
