//! Small containers and failing stores for the tests of this crate. Key derivation is at its floor, and so is everything
//! that costs time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::fault::PowerCutDisk;
use block::{BlockError, BlockIo, Bytes, Geometry, MemDisk};
use secret::Secret;

use crate::edit::NewKeyslot;
use crate::env::fixed::FixedEnv;
use crate::error::Error;
use crate::format::{FormatParams, NewKdf, format};
use crate::kdf::KdfParams;
use crate::limits::Limits;
use crate::metadata::KeyslotId;
use crate::store::{HeaderStore, LockMode};
use crate::unlock::{Purpose, UnlockRequest};
use crate::{Container, VolumeKey};

/// Size of the sample container's device.
pub(crate) const SIZE: Bytes = Bytes(4 << 20);

pub(crate) fn secret(text: &str) -> Secret {
    Secret::copy_of(text.as_bytes()).expect("secret")
}

pub(crate) fn cheap() -> NewKeyslot {
    NewKeyslot::new(KdfParams::minimal_for_random_key())
}

/// Room for four keyslots of a 256-bit key; data from 1 MiB on.
pub(crate) fn params() -> FormatParams {
    FormatParams {
        kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
        key_size_bits: Some(256),
        keyslots_size: Some(Bytes(512 << 10)),
        ..FormatParams::default()
    }
}

pub(crate) fn fixed() -> FixedEnv {
    FixedEnv::new(42, 1)
}

/// A formatted device that the passphrase `first` opens.
pub(crate) fn formatted(params: &FormatParams) -> Arc<MemDisk> {
    let disk = Arc::new(MemDisk::new(SIZE));
    format(&disk, &disk, &fixed().env(), params, &secret("first")).expect("format");
    disk
}

pub(crate) fn open<H: HeaderStore + Clone>(disk: &H) -> Container<H, H> {
    Container::open(disk.clone(), disk.clone(), Limits::default()).expect("open")
}

pub(crate) fn try_open<H: HeaderStore, D: BlockIo>(
    container: &Container<H, D>,
    passphrase: &str,
) -> Result<VolumeKey, Error> {
    container.unlock(&fixed().env(), &UnlockRequest::default(), &secret(passphrase))
}

pub(crate) fn try_slot<H: HeaderStore, D: BlockIo>(
    container: &Container<H, D>,
    id: u32,
    passphrase: &str,
) -> Result<VolumeKey, Error> {
    let request = UnlockRequest { keyslot: Some(KeyslotId(id)), purpose: Purpose::AnyDigest };
    container.unlock(&fixed().env(), &request, &secret(passphrase))
}

pub(crate) fn slots<H: HeaderStore, D: BlockIo>(container: &Container<H, D>) -> Vec<u32> {
    container.header().metadata().keyslots.ids().map(|id| id.0).collect()
}

/// A power-cut disk that keeps what a cut after each write and each flush would leave, several ways.
pub(crate) struct Cutter {
    disk: PowerCutDisk,
    seed: u64,
    cuts: Mutex<Vec<MemDisk>>,
}

/// How many different outcomes of one cut are kept.
const OUTCOMES: u64 = 3;

impl Cutter {
    pub(crate) fn new(disk: &MemDisk, seed: u64) -> Cutter {
        Cutter { disk: PowerCutDisk::from_disk(disk), seed, cuts: Mutex::new(Vec::new()) }
    }

    /// Every state that the platter may have been in.
    pub(crate) fn cuts(&self) -> Vec<MemDisk> {
        std::mem::take(&mut self.cuts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn lie_about_flush(&self) {
        self.disk.lie_about_flush(true);
    }

    fn cut(&self) {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        for outcome in 0..OUTCOMES {
            let seed = self.seed.wrapping_add(cuts.len() as u64).wrapping_mul(OUTCOMES).wrapping_add(outcome);
            cuts.push(self.disk.cut(seed));
        }
    }
}

impl BlockIo for Cutter {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.disk.write_at(offset, buf, fua)?;
        self.cut();
        Ok(())
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.disk.write_zeroes(offset, len)?;
        self.cut();
        Ok(())
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.disk.discard(offset, len)?;
        self.cut();
        Ok(())
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()?;
        self.cut();
        Ok(())
    }
}

impl HeaderStore for Cutter {
    type Guard = ();

    fn lock(&self, _mode: LockMode, _wait: Duration) -> Result<(), Error> {
        Ok(())
    }
}
