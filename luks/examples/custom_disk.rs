//! A container on a disk of one's own: `cargo run -p luks --example custom_disk`.
//!
//! [`Pieces`] keeps blocks of 512 bytes in a map and nothing for those that were never written: in a program of yours the blocks
//! may lie in a database, behind a network or in flash. What `luks` wants of it is in the documentation of [`BlockIo`]:
//! whole ranges or an error, nothing behind the end, and a flush that means it.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::{BlockError, BlockIo, Bytes, Geometry};
use luks::format::NewKdf;
use luks::{Container, Error, FormatParams, HeaderStore, KdfParams, Limits, LockMode, UnlockRequest};
use secret::Secret;

#[path = "support/surroundings.rs"]
mod surroundings;
use surroundings::Machine;

type Failure = Box<dyn std::error::Error>;

const BLOCK_BYTES: u32 = 512;
const BLOCK_LEN: usize = BLOCK_BYTES as usize;

/// A disk of blocks in a map.
pub(crate) struct Pieces {
    size: Bytes,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Pieces {
    /// An empty disk; `size` is a multiple of 512.
    pub(crate) fn new(size: Bytes) -> Pieces {
        Pieces { size, blocks: Mutex::new(BTreeMap::new()) }
    }

    /// How many blocks were written.
    pub(crate) fn count(&self) -> usize {
        self.blocks().len()
    }

    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of the blocks of a range that was checked.
fn numbers(offset: Bytes, len_bytes: u64) -> Range<u64> {
    let unit = u64::from(BLOCK_BYTES);
    offset.0 / unit..(offset.0 + len_bytes) / unit
}

impl BlockIo for Pieces {
    fn geometry(&self) -> Geometry {
        let (logical_block, physical_block) = (BLOCK_BYTES, BLOCK_BYTES);
        Geometry { size: self.size, logical_block, physical_block, memory_alignment: 1, read_only: false }
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.geometry().check("read", offset, buf.len() as u64)?;
        let blocks = self.blocks();
        for (number, buf) in numbers(offset, buf.len() as u64).zip(buf.chunks_mut(BLOCK_LEN)) {
            match blocks.get(&number) {
                Some(block) => buf.copy_from_slice(block),
                None => buf.fill(0),
            }
        }
        Ok(())
    }

    /// Memory is as durable at once as it will ever be: `fua` changes nothing.
    fn write_at(&self, offset: Bytes, buf: &[u8], _fua: bool) -> Result<(), BlockError> {
        self.geometry().check("write", offset, buf.len() as u64)?;
        let mut blocks = self.blocks();
        for (number, buf) in numbers(offset, buf.len() as u64).zip(buf.chunks(BLOCK_LEN)) {
            blocks.insert(number, buf.to_vec());
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.geometry().check("write zeroes", offset, len.0)?;
        let gone = numbers(offset, len.0);
        self.blocks().retain(|number, _| !gone.contains(number));
        Ok(())
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

impl HeaderStore for Pieces {
    type Guard = ();

    /// One process, one container: nobody else to keep away.
    fn lock(&self, _mode: LockMode, _wait: Duration) -> Result<(), Error> {
        Ok(())
    }
}

/// Makes a container on the disk, writes a block of plaintext and reads it back.
pub(crate) fn there_and_back(disk: &Pieces, plain: &[u8; BLOCK_LEN]) -> Result<Vec<u8>, Failure> {
    let machine = Machine::new();
    // A key of a machine: nothing to guess, so that guessing need not be slow.
    let key = Secret::fill_with(32, |bytes| machine.env().rng.fill(bytes).map_err(Error::from))?;
    let params = FormatParams { kdf: NewKdf::Given(KdfParams::minimal_for_random_key()), ..FormatParams::default() };
    luks::format::format(disk, disk, &machine.env(), &params, &key)?;

    let container = Container::open(disk, disk, Limits::default())?;
    let volume_key = container.unlock(&machine.env(), &UnlockRequest::default(), &key)?;
    let volume = container.into_volume(&volume_key, false)?;
    volume.write_at(Bytes(0), plain, false)?;
    volume.flush()?;
    let mut read = vec![0; BLOCK_LEN];
    volume.read_at(Bytes(0), &mut read)?;
    Ok(read)
}

#[allow(dead_code, reason = "the tests include this file and call the functions above")]
fn main() -> Result<(), Failure> {
    let disk = Pieces::new(Bytes(64 << 20));
    let read = there_and_back(&disk, &[0x5a; BLOCK_LEN])?;
    println!("{} bytes came back; the disk holds {} blocks", read.len(), disk.count());
    Ok(())
}
