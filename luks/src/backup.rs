//! A header backup: the bytes from the start of the device to the end of the keyslots area, as cryptsetup writes them.
//!
//! ```text
//! LUKS2   0 ┬ primary copy ┬ secondary copy ┬ keyslots area ┬ 2 × metadata size + keyslots size
//! LUKS1   0 ┬ header, 4096 ┬ eight key material areas ┬ end of the last one, not the payload offset
//! ```
//!
//! The length is rounded up to a page, which for both versions it nearly always is already. Invariants: a [`Backup`] holds
//! a header that keeps every rule, and all bytes that its keyslots need; reading one from a device writes nothing to it.
//! No checksum covers the keyslot areas, in neither version: a flipped byte in one of them cannot be found.
//! Source: luks2-format §10, and what cryptsetup 2.6.1 does (docs/format-notes.md).

use std::fmt;

use block::{BlockIo, Bytes, MemDisk};

use crate::any::AnyHeader;
use crate::error::Error;
use crate::header::{CopyState, load_unlocked};
use crate::limits::{KEYSLOTS_SIZE_MAX, Limits, METADATA_SIZE_MAX};
use crate::luks1;
use crate::rule::{Rule, Violation};
use crate::store::{HeaderStore, LockMode};

/// Backups are this many bytes or a multiple of them, as on x86.
const PAGE: Bytes = Bytes(4096);
/// Pages of other machines, up to which their backups are rounded.
const PAGES: [Bytes; 3] = [PAGE, Bytes(16 << 10), Bytes(64 << 10)];
/// The longest file that can be a backup.
pub const BACKUP_SIZE_MAX: Bytes = Bytes(2 * METADATA_SIZE_MAX.0 + KEYSLOTS_SIZE_MAX.0 + PAGES[2].0);

/// A header and its keyslot areas, byte for byte.
pub struct Backup {
    bytes: Vec<u8>,
    header: AnyHeader,
}

/// Why a file is no backup that could be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupFlaw {
    /// It is longer than any header.
    #[error("{size} are more than a header can have")]
    TooLong {
        /// Its length.
        size: Bytes,
    },
    /// It is cut short, or more than a header.
    #[error("it is {} bytes long, its header says {}", size.0, expected.0)]
    Length {
        /// Its length.
        size: Bytes,
        /// How long it should be.
        expected: Bytes,
    },
    /// It is cut short.
    #[error("it is cut short: {violation}")]
    Short {
        /// What it should hold.
        violation: Violation,
    },
    /// One of its header copies is not valid.
    #[error("its {which} header copy is {state}")]
    Copy {
        /// Which copy.
        which: &'static str,
        /// What is wrong with it.
        state: String,
    },
}

impl AnyHeader {
    /// Reads the header of either version; the caller holds the lock, or there is nothing to lock.
    pub(crate) fn load_unlocked<D: BlockIo + ?Sized>(disk: &D, limits: &Limits) -> Result<AnyHeader, Error> {
        match load_unlocked(disk, limits) {
            Ok(header) => Ok(AnyHeader::Luks2(Box::new(header))),
            Err(Error::Luks1) => Ok(AnyHeader::Luks1(Box::new(luks1::load_unlocked(disk)?))),
            Err(error) => Err(error),
        }
    }

    /// What the header and its keyslots take from the start of the device.
    pub fn region(&self) -> Bytes {
        match self {
            AnyHeader::Luks1(header) => header.keyslots_end(),
            AnyHeader::Luks2(header) => header.metadata().config.keyslots_end(),
        }
    }

    /// Where the data starts on its device; 0 with a detached header.
    pub fn data_offset(&self) -> Bytes {
        match self {
            AnyHeader::Luks1(header) => header.payload_offset(),
            AnyHeader::Luks2(header) => {
                let segments = header.metadata().segments.iter().filter(|(_, segment)| !segment.is_backup());
                segments.map(|(_, segment)| segment.offset).min().unwrap_or_default()
            }
        }
    }

    /// How long its backup is.
    pub fn backup_size(&self) -> Bytes {
        self.region().round_up(PAGE).unwrap_or(self.region())
    }
}

impl Backup {
    /// Reads header and keyslots of `store` under the shared lock. Works whatever the header requires and in re-encryption;
    /// one damaged copy is kept as it is, see [`AnyHeader::advice`].
    ///
    /// # Errors
    /// Those of [`crate::load`]; [`BackupFlaw::TooLong`] for a LUKS1 header with key material that far away.
    pub fn read<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<Backup, Error> {
        let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
        Backup::read_unlocked(store, limits)
    }

    /// As [`Backup::read`]; the caller holds the lock.
    pub(crate) fn read_unlocked<D: BlockIo + ?Sized>(disk: &D, limits: &Limits) -> Result<Backup, Error> {
        let header = AnyHeader::load_unlocked(disk, limits)?;
        let size = header.backup_size();
        if size > BACKUP_SIZE_MAX {
            // A LUKS1 header can place key material up to 2 TiB away.
            return Err(BackupFlaw::TooLong { size }.into());
        }
        let bytes = read_region(disk, size)?;
        Ok(Backup { bytes, header })
    }

    /// Takes the content of a backup file, ours or cryptsetup's. Both copies of a LUKS2 header must be valid: what is
    /// restored is written as it stands here.
    ///
    /// # Errors
    /// [`Error::Backup`], and those of [`crate::load`].
    pub fn parse(bytes: Vec<u8>, limits: &Limits) -> Result<Backup, Error> {
        let size = Bytes::from_len(bytes.len());
        if size > BACKUP_SIZE_MAX {
            return Err(BackupFlaw::TooLong { size }.into());
        }
        let header = match AnyHeader::load_unlocked(&MemDisk::from_bytes(&bytes), limits) {
            Ok(header) => header,
            Err(Error::Invalid(violation) | Error::InvalidLuks1(violation))
                if matches!(violation.rule, Rule::DeviceSize | Rule::Luks1DeviceSize) =>
            {
                return Err(BackupFlaw::Short { violation }.into());
            }
            Err(error) => return Err(error),
        };
        let region = header.region();
        let allowed = PAGES.map(|page| region.round_up(page));
        if !allowed.contains(&Some(size)) {
            return Err(BackupFlaw::Length { size, expected: header.backup_size() }.into());
        }
        if let AnyHeader::Luks2(header) = &header {
            let health = header.health();
            for (which, state) in [("primary", &health.primary), ("secondary", &health.secondary)] {
                if *state != CopyState::Ok {
                    return Err(BackupFlaw::Copy { which, state: state.to_string() }.into());
                }
            }
        }
        Ok(Backup { bytes, header })
    }

    /// The content of the backup file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The header in it.
    pub fn header(&self) -> &AnyHeader {
        &self.header
    }

    /// What a restore writes: all of it, unless rounding made it reach into the data.
    pub(crate) fn region_bytes(&self) -> &[u8] {
        let end = match self.header.data_offset() {
            Bytes::ZERO => self.header.backup_size(),
            data => self.header.backup_size().min(data),
        };
        &self.bytes[..end.to_usize().unwrap_or(self.bytes.len()).min(self.bytes.len())]
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup").field("len_bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// The first `len` bytes of a disk, or all of it where it is shorter.
pub(crate) fn read_region<D: BlockIo + ?Sized>(disk: &D, len: Bytes) -> Result<Vec<u8>, Error> {
    let len = len.min(disk.geometry().size).min(BACKUP_SIZE_MAX);
    let mut bytes = vec![0; len.to_usize().unwrap_or(0)];
    disk.read_at(Bytes::ZERO, &mut bytes)?;
    Ok(bytes)
}
