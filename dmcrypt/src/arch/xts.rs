//! XTS-AES over runs of sectors on a kernel of our own: IVs, batches, wiping. Infallible, no allocation.

use std::mem::MaybeUninit;

use aes::Aes256Enc;
use cipher::inout::InOutBuf;
use secret::Locked;
use zeroize::optimization_barrier;

use super::schedule::{Block, Quad, Schedule};
use crate::iv::{IvGenerator, numbers};
use crate::sector::{assert_whole, paired};
use crate::{CipherError, CipherSpec, SectorCipher, SectorSize, wipe};

/// Sectors whose IVs are encrypted together.
const BATCH_SECTORS: usize = 128;
/// The same for short calls, which would spend more on wiping than on work.
const SHORT_SECTORS: usize = 8;
/// The same for 128 KiB of the largest sectors.
const MEDIUM_SECTORS: usize = 32;
/// Tweaks that a kernel may look at behind the last sector's.
pub(super) const SPARE_TWEAKS: usize = 2;

/// AES in one instruction set. A value is a witness that the machine has it.
pub(crate) trait Instructions: Copy + Send + Sync {
    /// Round keys: data key to encrypt, data key to decrypt, tweak key. Both keys have 16 or 32 bytes.
    fn schedules(self, data: &[u8], tweak: &[u8]) -> [Schedule; 3];

    /// blocks\[i\] = AES(blocks\[i\]). The number of blocks is a multiple of four.
    fn ecb(self, schedule: &Schedule, blocks: &mut [Block]);

    /// tweaks\[i\] = AES((first + i·step) & mask), a number per block. The number of blocks is a multiple of four.
    fn encrypted_numbers(self, schedule: &Schedule, first: u64, step: u64, mask: u64, tweaks: &mut [Block]) {
        numbers(first, step, mask, tweaks);
        self.ecb(schedule, tweaks);
    }

    /// XTS over one sector of 512 bytes, whose IV is not encrypted yet.
    fn single<const ENCRYPT: bool>(
        self,
        schedule: &Schedule,
        tweak_schedule: &Schedule,
        iv: &Block,
        io: InOutBuf<'_, '_, u8>,
    ) {
        let mut tweaks = [*iv, [0; 16], [0; 16], [0; 16]];
        self.ecb(tweak_schedule, &mut tweaks);
        self.run::<ENCRYPT>(schedule, &tweaks[..1 + SPARE_TWEAKS], 512, io);
        wipe::bytes(tweaks.as_flattened_mut());
    }

    /// XTS over all sectors of `io`. `tweaks` are the sectors' encrypted IVs and [`SPARE_TWEAKS`] more blocks.
    fn run<const ENCRYPT: bool>(
        self,
        schedule: &Schedule,
        tweaks: &[Block],
        sector_bytes: usize,
        io: InOutBuf<'_, '_, u8>,
    );

    /// Overwrites all of `quads` with zeros, for good.
    fn cleared(self, quads: &mut [MaybeUninit<Quad>]) -> &mut [Block] {
        for quad in &mut *quads {
            quad.write(Quad::ZERO);
        }
        optimization_barrier(quads);
        // SAFETY: each has just been written.
        unsafe { Quad::blocks(quads) }
    }

    /// Overwrites the stack below the caller's frame, as far as the other functions have used it. With vector stores:
    /// `memset` would take as long as a sector.
    fn wipe_stack(self);
}

/// Round keys of both halves and of the IV generator.
struct Keys {
    schedules: [Schedule; 3],
    iv: IvGenerator<Aes256Enc>,
}

/// An XTS sector cipher with the instructions `I`.
pub(crate) struct Xts<I> {
    instructions: I,
    keys: Locked<Keys>,
    sector_size: SectorSize,
}

impl<I: Instructions> Xts<I> {
    /// `key` is K1 ‖ K2, each of 16 or 32 bytes.
    pub(crate) fn new(
        instructions: I,
        spec: &CipherSpec,
        key: &[u8],
        sector_size: SectorSize,
    ) -> Result<Self, CipherError> {
        if ![32, 64].contains(&key.len()) {
            return Err(spec.wrong_key_size(key));
        }
        let (data, tweak) = key.split_at(key.len() / 2);
        let keys = Locked::new_with(|| Keys {
            schedules: instructions.schedules(data, tweak),
            iv: IvGenerator::new(spec.iv(), key),
        })?;
        Ok(Self { instructions, keys, sector_size })
    }

    fn run<const ENCRYPT: bool>(&self, iv_sector: u64, io: InOutBuf<'_, '_, u8>) {
        let sector_bytes = self.sector_size.len_bytes();
        assert_whole(io.len(), sector_bytes);
        if io.len() == 512 {
            let mut iv = [[0; 16]];
            self.keys.iv.fill(iv_sector, 1, &mut iv);
            let [encrypting, decrypting, tweak] = &self.keys.schedules;
            let data = if ENCRYPT { encrypting } else { decrypting };
            self.instructions.single::<ENCRYPT>(data, tweak, &iv[0], io);
            wipe::bytes(&mut iv[0]);
            self.wipe_stack();
        } else if io.len() <= SHORT_SECTORS * sector_bytes {
            self.batches::<ENCRYPT, { SHORT_SECTORS / 4 + 1 }>(iv_sector, io);
        } else if io.len() <= MEDIUM_SECTORS * sector_bytes {
            self.batches::<ENCRYPT, { MEDIUM_SECTORS / 4 + 1 }>(iv_sector, io);
        } else {
            self.batches::<ENCRYPT, { BATCH_SECTORS / 4 + 1 }>(iv_sector, io);
        }
    }

    fn wipe_stack(&self) {
        self.instructions.wipe_stack();
        // The frames of such builds are larger than the instructions' own wiping takes them for.
        if cfg!(any(debug_assertions, large_frames)) {
            wipe::dead_stack();
        }
    }

    /// `QUADS` have the tweaks of a batch, one for each sector, and in the last one the spare ones.
    fn batches<const ENCRYPT: bool, const QUADS: usize>(&self, iv_sector: u64, mut io: InOutBuf<'_, '_, u8>) {
        const { assert!(SPARE_TWEAKS <= 4) };
        let sector_bytes = self.sector_size.len_bytes();
        let step = self.sector_size.iv_step();
        let [encrypting, decrypting, tweak] = &self.keys.schedules;
        let data = if ENCRYPT { encrypting } else { decrypting };
        let mut quads = [const { MaybeUninit::uninit() }; QUADS];
        let tweaks = self.instructions.cleared(&mut quads);
        let mut number = iv_sector;
        while !io.is_empty() {
            let len_bytes = io.len().min(4 * (QUADS - 1) * sector_bytes);
            let (batch, rest) = io.split_at(len_bytes);
            io = rest;
            let sectors = batch.len() / sector_bytes;
            let whole = &mut tweaks[..sectors.next_multiple_of(4)];
            match self.keys.iv.number_mask() {
                Some(mask) => self.instructions.encrypted_numbers(tweak, number, step, mask, whole),
                None => {
                    self.keys.iv.fill(number, step, &mut whole[..sectors]);
                    self.instructions.ecb(tweak, whole);
                }
            }
            number = number.wrapping_add(step * sectors as u64);
            self.instructions.run::<ENCRYPT>(data, &tweaks[..sectors + SPARE_TWEAKS], sector_bytes, batch);
        }
        self.instructions.cleared(&mut quads);
        self.wipe_stack();
    }
}

impl<I: Instructions> SectorCipher for Xts<I> {
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
