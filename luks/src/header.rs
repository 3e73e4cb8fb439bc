//! The header: both copies read, reconciled and held against every rule.
//!
//! Source: format notes 1.4 and 1.5. Reading never writes: where cryptsetup would rewrite a broken copy at once, this
//! reader says so in [`Health`] and leaves it to [`crate::repair`].
//!
//! Assumptions about the medium: a sector of 512 bytes is written whole or not at all; anything else may be torn, which
//! the checksum finds. The newer of two valid copies wins: a crash between the two writes leaves the primary newer.

use std::fmt;

use block::{BlockErrorKind, BlockIo, Bytes};

use crate::binary::{BinaryHeader, Position};
use crate::copy::{FirstLook, Flaw, HeaderCopy};
use crate::error::Error;
use crate::json::{self, JsonMap};
use crate::limits::{BINARY_HEADER_USED, Limits, METADATA_SIZES};
use crate::metadata::{Metadata, keyslot};
use crate::rule::{Rule, Violation};
use crate::store::{HeaderStore, LockMode};

/// What is known of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyState {
    /// Valid and current.
    Ok,
    /// Its checksum holds, but it is not the one in use.
    Obsolete {
        /// Why not.
        reason: String,
    },
    /// It breaks a rule.
    Bad {
        /// Which one.
        reason: Violation,
    },
    /// It cannot be read.
    Unreadable {
        /// What the disk said.
        kind: BlockErrorKind,
        /// In words.
        message: String,
    },
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyState::Ok => f.write_str("ok"),
            CopyState::Obsolete { reason } => write!(f, "stale ({reason})"),
            CopyState::Bad { reason } => write!(f, "broken ({reason})"),
            CopyState::Unreadable { message, .. } => write!(f, "unreadable ({message})"),
        }
    }
}

/// How well the two copies are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The copy at offset 0.
    pub primary: CopyState,
    /// The copy behind it.
    pub secondary: CopyState,
    /// JSON members that were ignored so that the metadata keeps the rules: `keyslots.0.kdf.time`.
    pub ignored_members: Vec<String>,
}

impl Health {
    /// Whether there is nothing to mend.
    pub fn is_healthy(&self) -> bool {
        self.primary == CopyState::Ok && self.secondary == CopyState::Ok && self.ignored_members.is_empty()
    }

    /// The state of one copy.
    pub fn of(&self, position: Position) -> &CopyState {
        match position {
            Position::Primary => &self.primary,
            Position::Secondary => &self.secondary,
        }
    }

    /// What the user should do next, if anything.
    pub fn advice(&self) -> Option<String> {
        let mut words = Vec::new();
        for position in [Position::Primary, Position::Secondary] {
            let state = match self.of(position) {
                CopyState::Ok => continue,
                CopyState::Obsolete { .. } => "stale",
                CopyState::Bad { .. } => "broken",
                CopyState::Unreadable { .. } => "unreadable",
            };
            words.push(format!("{position} copy {state}: run `luksctl repair`"));
        }
        if !self.ignored_members.is_empty() {
            words.push(format!("ignored leftover members: {}", self.ignored_members.join(", ")));
        }
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// What the first 512 bytes of both copies were when they were read: what an update must find unchanged.
pub(crate) type Seen = [Option<[u8; BINARY_HEADER_USED]>; 2];

/// A valid header.
#[derive(Debug, Clone)]
pub struct Header {
    pub(crate) binary: BinaryHeader,
    pub(crate) metadata: Metadata,
    pub(crate) health: Health,
    /// Salts of primary and secondary, where known.
    pub(crate) salts: [Option<[u8; crate::binary::SALT_LEN]>; 2],
    pub(crate) seen: Seen,
    /// The JSON area as it stands on disk.
    pub(crate) json_area: Vec<u8>,
    pub(crate) poisoned: bool,
}

impl Header {
    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The metadata, to be edited and then committed.
    pub(crate) fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// The binary header of the copy in use.
    pub fn binary(&self) -> &BinaryHeader {
        &self.binary
    }

    /// Which copy is in use.
    pub fn position(&self) -> Position {
        self.binary.position
    }

    /// The UUID; bytes that are no UTF-8 are replaced.
    pub fn uuid(&self) -> String {
        String::from_utf8_lossy(&self.binary.uuid).into_owned()
    }

    /// The label; empty if there is none.
    pub fn label(&self) -> String {
        String::from_utf8_lossy(&self.binary.label).into_owned()
    }

    /// The subsystem; empty if there is none.
    pub fn subsystem(&self) -> String {
        String::from_utf8_lossy(&self.binary.subsystem).into_owned()
    }

    /// Number of this state of the metadata; cryptsetup calls it epoch.
    pub fn seqid(&self) -> u64 {
        self.binary.seqid
    }

    /// Size of one metadata copy: binary header and JSON area.
    pub fn metadata_size(&self) -> Bytes {
        self.binary.hdr_size
    }

    /// How well the two copies are.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The JSON area of the copy in use, as it stands on disk.
    pub fn json_area(&self) -> &[u8] {
        &self.json_area
    }

    /// Whether both are the same state of the same container, whichever copy each was read from. A restore takes the sequence
    /// number back, so that two states can have the same: number and UUID alone do not tell.
    pub(crate) fn says_the_same(&self, other: &Header) -> bool {
        let said = |header: &Header| {
            let binary = header.binary.clone();
            (binary.seqid, binary.hdr_size, binary.uuid, binary.label, binary.subsystem)
        };
        said(self) == said(other) && self.json_area == other.json_area
    }
}

/// Read the header under the shared metadata lock. Reads the header bytes and nothing else; never writes.
///
/// # Errors
/// [`Error::NotLuks`], [`Error::Luks1`], [`Error::NoValidCopy`], [`Error::Invalid`] for a device that is too small,
/// [`Error::Locked`] and errors of the disk.
pub fn load<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<Header, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    load_unlocked(store, limits)
}

/// Read the header; the caller holds the lock, or there is nothing to lock.
///
/// # Errors
/// As [`load`], but for those of the lock.
pub fn load_unlocked<D: BlockIo + ?Sized>(disk: &D, limits: &Limits) -> Result<Header, Error> {
    let primary = Reading::at(disk, limits, Position::Primary, Bytes(0));
    let secondary = read_secondary(disk, limits, &primary);
    if primary.version_1 {
        return Err(Error::Luks1);
    }
    if !primary.has_magic() && !secondary.has_magic() {
        return Err(match primary.outcome {
            Err(Flaw::Unreadable(error)) => Error::Block(error),
            _ => Error::NotLuks,
        });
    }
    let header = reconcile(primary, secondary)?;
    check_device_size(disk, &header)?;
    Ok(header)
}

/// What was found at the place of one copy.
struct Reading {
    position: Position,
    offset: Bytes,
    first: Option<[u8; BINARY_HEADER_USED]>,
    /// The copy's size, if its binary header makes sense.
    hdr_size: Option<Bytes>,
    version_1: bool,
    outcome: Result<Judged, Flaw>,
}

/// A copy whose checksum holds, and what its JSON says.
struct Judged {
    copy: HeaderCopy,
    metadata: Result<(Metadata, Vec<String>), Violation>,
}

impl Reading {
    fn at<D: BlockIo + ?Sized>(disk: &D, limits: &Limits, position: Position, offset: Bytes) -> Reading {
        let look = match FirstLook::read(disk, position, offset) {
            Ok(look) => look,
            Err(flaw) => {
                let (first, hdr_size) = (None, None);
                return Reading { position, offset, first, hdr_size, version_1: false, outcome: Err(flaw) };
            }
        };
        let first = look.used();
        let outcome = look.complete(disk, limits).map(|copy| Judged { metadata: judge(&copy), copy });
        Reading {
            position,
            offset,
            version_1: first[..8] == *b"LUKS\xba\xbe\x00\x01",
            first: Some(first),
            hdr_size: look.fields().ok().map(|fields| fields.hdr_size),
            outcome,
        }
    }

    fn has_magic(&self) -> bool {
        self.first.is_some_and(|first| first.starts_with(&self.position.magic()))
    }

    fn is_valid(&self) -> bool {
        matches!(&self.outcome, Ok(Judged { metadata: Ok(_), .. }))
    }

    fn checksum_holds(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// The secondary stands where a good primary says. Otherwise it is looked for at the nine places where it may stand,
/// the one that the broken primary names first; the first valid copy is taken, or else the likeliest broken one.
fn read_secondary<D: BlockIo + ?Sized>(disk: &D, limits: &Limits, primary: &Reading) -> Reading {
    let named = primary.hdr_size;
    let mut best: Option<Reading> = None;
    if let Some(size) = named {
        let reading = Reading::at(disk, limits, Position::Secondary, size);
        if reading.is_valid() || primary.checksum_holds() {
            return reading;
        }
        best = Some(reading);
    }
    for offset in METADATA_SIZES.into_iter().filter(|size| Some(*size) != named) {
        let reading = Reading::at(disk, limits, Position::Secondary, offset);
        if reading.is_valid() {
            return reading;
        }
        let rank = |reading: &Reading| (reading.checksum_holds(), reading.has_magic());
        if best.as_ref().is_none_or(|best| rank(&reading) > rank(best)) {
            best = Some(reading);
        }
    }
    best.unwrap_or_else(|| Reading::at(disk, limits, Position::Secondary, METADATA_SIZES[0]))
}

/// Parse and validate the JSON of a copy. If a rule is broken, one repair is tried in memory and the rules are checked
/// again (format notes 2.7); the second value says what it dropped.
fn judge(copy: &HeaderCopy) -> Result<(Metadata, Vec<String>), Violation> {
    let size = copy.binary().hdr_size;
    let text = copy.json_text()?;
    let root: JsonMap = json::parse_object(text)?;
    let spelled = |mut metadata: Metadata| {
        metadata.keep_spelling(text);
        metadata
    };
    match Metadata::from_map(root.clone(), size) {
        Ok(metadata) => Ok((spelled(metadata), Vec::new())),
        Err(violation) => {
            let mut mended = root;
            let dropped = keyslot::drop_foreign_kdf_members(&mut mended);
            if dropped.is_empty() {
                return Err(violation);
            }
            Ok((spelled(Metadata::from_map(mended, size)?), dropped))
        }
    }
}

/// Choose between the two copies: the newer valid one; the primary if both are equally new.
fn reconcile(primary: Reading, secondary: Reading) -> Result<Header, Error> {
    let seen = [primary.first, secondary.first];
    let (mut primary_state, mut secondary_state) = (state_of(&primary), state_of(&secondary));
    let salts = [&primary, &secondary].map(|reading| reading.outcome.as_ref().ok().map(|good| good.copy.binary().salt));
    let mut take_secondary = false;
    match (valid(&primary), valid(&secondary)) {
        (Some(one), Some(two)) => {
            let (first, second) = (one.binary().seqid, two.binary().seqid);
            let older = |old: u64, new: u64| CopyState::Obsolete { reason: format!("at {old}, the other at {new}") };
            if first < second {
                take_secondary = true;
                primary_state = older(first, second);
            } else if second < first {
                secondary_state = older(second, first);
            } else if !one.says_the_same(two) {
                let reason = format!("differs from the primary with the same sequence number {first}");
                secondary_state = CopyState::Obsolete { reason };
            }
        }
        (None, Some(_)) => take_secondary = true,
        (Some(_), None) => {}
        (None, None) => {
            let health = Health { primary: primary_state, secondary: secondary_state, ignored_members: Vec::new() };
            return Err(Error::NoValidCopy { health: Box::new(health) });
        }
    }
    let taken = if take_secondary { secondary } else { primary };
    let Ok(Judged { copy, metadata: Ok((metadata, ignored_members)) }) = taken.outcome else {
        // Only a valid reading is taken.
        return Err(Error::NotLuks);
    };
    let health = Health { primary: primary_state, secondary: secondary_state, ignored_members };
    let (binary, json_area) = copy.into_parts();
    Ok(Header { binary, metadata, health, salts, seen, json_area, poisoned: false })
}

fn valid(reading: &Reading) -> Option<&HeaderCopy> {
    reading.outcome.as_ref().ok().filter(|good| good.metadata.is_ok()).map(|good| &good.copy)
}

fn state_of(reading: &Reading) -> CopyState {
    match &reading.outcome {
        Ok(Judged { metadata: Ok(_), .. }) => CopyState::Ok,
        Ok(Judged { metadata: Err(violation), .. }) => CopyState::Bad { reason: violation.clone() },
        Err(Flaw::Broken(violation)) => CopyState::Bad { reason: violation.clone() },
        Err(Flaw::Unreadable(error)) => {
            let message = format!("copy at {}: {error}", reading.offset);
            CopyState::Unreadable { kind: error.kind, message }
        }
    }
}

/// The device holds both copies and the keyslots area.
fn check_device_size<D: BlockIo + ?Sized>(disk: &D, header: &Header) -> Result<(), Violation> {
    let (size, needed) = (disk.geometry().size, header.metadata.config.keyslots_end());
    if size >= needed {
        return Ok(());
    }
    let value = format_args!("{} bytes, header and keyslots need {}", size.0, needed.0);
    Err(Violation::new(Rule::DeviceSize, "", value))
}

#[cfg(test)]
mod tests;
