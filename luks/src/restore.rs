//! Restoring a header backup over what a device holds.
//!
//! [`plan`] works out what would change and refuses what cannot be right; it writes nothing. What is possible but should be
//! known is a [`Concern`]; some of them a caller must not pass over without being told to. [`restore`] then works under the
//! exclusive lock, checks again, keeps the present header aside ([`Recovery`]), and writes:
//!
//! 1. the areas of the backup's keyslots, flush;
//! 2. its secondary copy, flush; its primary, flush (the other way round where only the secondary is good now);
//! 3. everything else of the region, among it the areas of keyslots that the backup does not have, flush.
//!
//! A LUKS1 header has one copy: key material, flush; the header but for its first sector, flush; the first sector, flush.
//!
//! A LUKS2 reader takes the newer of two valid copies, so whichever of both headers is the newer, the device opens as the old one
//! until the switch and as the new one after it, each with its areas: restoring is atomic if no area of an old keyslot is
//! overwritten before it ([`RestorePlan::atomic`]). Where the areas of old and new keyslots share bytes that differ, a crash
//! leaves keyslots listed that do not open; the same restore again, of the backup or of the recovery file, mends that.
//!
//! Source: luks2-format §10.

mod compare;

use std::fmt;
use std::ops::Range;

use block::{BlockIo, Bytes};

use crate::any::AnyHeader;
use crate::backup::Backup;
use crate::error::Error;
use crate::header::{CopyState, Header};
use crate::limits::{KEYSLOTS_SIZE_UNIT, Limits};
use crate::metadata::keyslot::Keyslot;
use crate::replace::{Recovery, Replacement, keep_aside};
use crate::store::{HeaderStore, LockMode};

/// Where LUKS1 key material can start.
const LUKS1_AREAS: usize = 4096;
/// What a medium writes in one piece.
const SECTOR: usize = 512;

/// What the device holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A valid header.
    Header {
        /// Its version.
        version: u16,
        /// Its UUID.
        uuid: String,
    },
    /// The remains of a LUKS header.
    Broken,
    /// No LUKS header, but perhaps something else.
    Nothing {
        /// The first signature of another format that would be overwritten.
        foreign: Option<(&'static str, Bytes)>,
    },
}

/// Something about a restore that should be known before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Concern {
    /// There is no LUKS header on the device.
    NoHeader,
    /// Another format's signature lies where the header will be.
    Foreign {
        /// Which format.
        name: &'static str,
        /// Where.
        offset: Bytes,
    },
    /// There is a header on the device, but it is not valid.
    BrokenHeader,
    /// The backup is of a container with another UUID.
    OtherUuid {
        /// The device's.
        device: String,
        /// The backup's.
        backup: String,
    },
    /// The data is under another volume key than the backup's.
    OtherKey,
    /// Cipher, sector size or extent of the data differ.
    OtherSegments,
    /// The header on the device is newer.
    OlderSeqid {
        /// The device's sequence number.
        device: u64,
        /// The backup's.
        backup: u64,
    },
    /// Both are in re-encryption, at the same place.
    InReencryption,
    /// The backup is in re-encryption, and nothing says how far the device is.
    UnknownProgress,
}

impl Concern {
    /// Whether this looks so much like a mistake that it needs more than a plain consent.
    pub fn is_grave(&self) -> bool {
        match self {
            Concern::NoHeader | Concern::BrokenHeader | Concern::OlderSeqid { .. } | Concern::InReencryption => false,
            Concern::Foreign { .. }
            | Concern::OtherUuid { .. }
            | Concern::OtherKey
            | Concern::OtherSegments
            | Concern::UnknownProgress => true,
        }
    }
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Concern::NoHeader => write!(f, "the device has no LUKS header"),
            Concern::Foreign { name, offset } => write!(f, "the device holds {name} (at byte {})", offset.0),
            Concern::BrokenHeader => write!(f, "the device's own header is damaged beyond use"),
            Concern::OtherUuid { device, backup } => {
                write!(f, "the backup is of another container: its UUID is {backup}, the device's is {device}")
            }
            Concern::OtherKey => write!(f, "the backup is for another volume key: the data would not open with it"),
            Concern::OtherSegments => write!(f, "the backup describes the data differently: cipher, sectors or extent"),
            Concern::OlderSeqid { device, backup } => write!(
                f,
                "the backup is older: its epoch is {backup}, the device's {device}; passphrases changed, added or removed \
                 since then become what they were"
            ),
            Concern::InReencryption => write!(f, "a re-encryption is under way, at the same place in both"),
            Concern::UnknownProgress => {
                write!(f, "the backup is in re-encryption, and nothing says how far the device is: data may be lost")
            }
        }
    }
}

/// Why a backup cannot be restored on this device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreObstacle {
    /// The versions differ.
    #[error("the backup is LUKS version {backup}, the device {device}")]
    Version {
        /// The device's.
        device: u16,
        /// The backup's.
        backup: u16,
    },
    /// The data starts elsewhere.
    #[error("data starts at byte {} in the backup, at byte {} on the device", backup.0, device.0)]
    DataOffset {
        /// On the device.
        device: Bytes,
        /// In the backup.
        backup: Bytes,
    },
    /// Header and keyslots have another size.
    #[error("header and keyslots take {} bytes in the backup, {} on the device", backup.0, device.0)]
    Region {
        /// On the device.
        device: Bytes,
        /// In the backup.
        backup: Bytes,
    },
    /// The backup requires what is not known or not supported.
    #[error("the backup requires {names}, which is not supported here")]
    Requirements {
        /// Their names.
        names: String,
    },
    /// Backup and device stand at different places of a re-encryption.
    #[error("backup and device stand at different places of a re-encryption: data would be lost")]
    Progress,
}

/// What a restore would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// What the device holds.
    pub found: Found,
    /// How many bytes from its start on are replaced.
    pub region: Bytes,
    /// What should be known before.
    pub concerns: Vec<Concern>,
    /// Whether a crash at any moment leaves the old header or the new one, each with all its keyslots. If not, the recovery
    /// file is what mends it.
    pub atomic: bool,
    /// Whether the copies are written primary first.
    primary_first: bool,
}

impl RestorePlan {
    /// Whether one of the concerns is grave.
    pub fn is_grave(&self) -> bool {
        self.concerns.iter().any(Concern::is_grave)
    }
}

/// What restoring `backup` would do. Reads under the shared lock, writes nothing.
///
/// # Errors
/// [`Error::Restore`] names what does not fit, [`Error::DeviceTooSmall`], errors of the disk.
pub fn plan<S: HeaderStore + ?Sized>(store: &S, backup: &Backup, limits: &Limits) -> Result<RestorePlan, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    let replacement = Replacement::of(store, backup.region_bytes())?;
    plan_unlocked(store, backup, limits, replacement.now())
}

/// Restores `backup` as `plan` says, which must still be true.
///
/// # Errors
/// Those of [`plan`]; [`Error::PlanChanged`] if the device is not what it was; [`Error::Recovery`] if the present header
/// cannot be kept aside: nothing was written up to there. Errors of the disk and [`Error::ReadBack`]: part of it may be.
pub fn restore<S: HeaderStore + ?Sized>(
    store: &S,
    backup: &Backup,
    plan: &RestorePlan,
    limits: &Limits,
    recovery: &mut dyn Recovery,
) -> Result<(), Error> {
    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    let new = backup.region_bytes();
    let mut replacement = Replacement::of(store, new)?;
    if plan_unlocked(store, backup, limits, replacement.now())? != *plan {
        return Err(Error::PlanChanged);
    }
    keep_aside(store, backup.header().backup_size(), recovery)?;
    match backup.header() {
        AnyHeader::Luks2(header) => {
            let copy = header.metadata_size().to_usize().unwrap_or(new.len());
            let copies = [0..copy, copy..2 * copy];
            let [first, second] = if plan.primary_first { copies } else { [copies[1].clone(), copies[0].clone()] };
            replacement.put_all(area_ranges(header))?;
            replacement.put(first)?;
            replacement.put(second)?;
        }
        AnyHeader::Luks1(_) => {
            // The first sector says what the device is, so it comes last. The header is longer than that.
            replacement.put(LUKS1_AREAS..new.len())?;
            replacement.put(SECTOR..LUKS1_AREAS)?;
        }
    }
    replacement.put(0..new.len())?;
    replacement.check()?;
    AnyHeader::load_unlocked(store, limits).map(drop)
}

fn plan_unlocked<D: BlockIo + ?Sized>(
    disk: &D,
    backup: &Backup,
    limits: &Limits,
    now: &[u8],
) -> Result<RestorePlan, Error> {
    let region = Bytes::from_len(now.len());
    let present = match AnyHeader::load_unlocked(disk, limits) {
        Ok(header) => Ok(header),
        Err(Error::NotLuks) => Err(Found::Nothing { foreign: foreign(disk, region)? }),
        Err(Error::NoValidCopy { .. } | Error::Invalid(_) | Error::InvalidLuks1(_)) => Err(Found::Broken),
        Err(error) => return Err(error),
    };
    let concerns = compare::concerns(present.as_ref(), backup.header())?;
    let atomic = present.as_ref().is_ok_and(|present| is_atomic(present, backup, now));
    let primary_first = match &present {
        Ok(AnyHeader::Luks2(present)) => present.health().primary != CopyState::Ok,
        _ => false,
    };
    let found = match present {
        Ok(header) => Found::Header { version: header.version().number(), uuid: header.uuid() },
        Err(found) => found,
    };
    Ok(RestorePlan { found, region, concerns, atomic, primary_first })
}

/// The first signature of another format inside the region.
fn foreign<D: BlockIo + ?Sized>(disk: &D, region: Bytes) -> Result<Option<(&'static str, Bytes)>, Error> {
    let found = block::signature::probe(&disk)?;
    let inside = found.into_iter().find(|one| one.offset < region && !one.name.starts_with("LUKS"));
    Ok(inside.map(|one| (one.name, one.offset)))
}

/// No byte that an old keyslot needs changes before the new header stands.
fn is_atomic(present: &AnyHeader, backup: &Backup, now: &[u8]) -> bool {
    match (present, backup.header()) {
        (AnyHeader::Luks2(old), AnyHeader::Luks2(new)) => {
            let new_bytes = backup.region_bytes();
            let unchanged = |range: Range<usize>| now.get(range.clone()) == new_bytes.get(range);
            let new_ranges = area_ranges(new);
            let shared = area_ranges(old).into_iter().flat_map(|one| {
                let meets = move |other: &Range<usize>| one.start.max(other.start)..one.end.min(other.end);
                new_ranges.iter().map(meets).collect::<Vec<_>>()
            });
            old.metadata_size() == new.metadata_size() && shared.filter(|range| !range.is_empty()).all(unchanged)
        }
        _ => false,
    }
}

/// Where the areas of a header's keyslots lie, in whole blocks of 4096 bytes.
fn area_ranges(header: &Header) -> Vec<Range<usize>> {
    let unit = KEYSLOTS_SIZE_UNIT.0;
    let range = |keyslot: &Keyslot| {
        let end = keyslot.area.offset.0.saturating_add(keyslot.area.size.0);
        let (start, end) = (keyslot.area.offset.0 / unit * unit, end.div_ceil(unit).saturating_mul(unit));
        Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    };
    header.metadata().keyslots.iter().filter_map(|(_, keyslot)| range(keyslot)).collect()
}

#[cfg(test)]
mod tests;
