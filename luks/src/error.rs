//! The one error of this crate. Messages say what went wrong, where, and with which value; never a secret.

use std::time::Duration;

use block::{BlockError, Bytes};
use secret::SecretError;

use crate::backup::BackupFlaw;
use crate::convert::ConvertObstacle;
use crate::header::Health;
use crate::restore::RestoreObstacle;
use crate::rule::Violation;

/// What can go wrong with a LUKS2 container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk failed.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Memory for a secret could not be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The surroundings failed: no random bytes.
    #[error(transparent)]
    Env(#[from] crate::env::EnvError),
    /// Someone else holds the metadata lock.
    #[error("the metadata lock of {device} is held by another process (waited {waited:?})")]
    Locked {
        /// The device or file.
        device: String,
        /// How long this process waited.
        waited: Duration,
    },
    /// The metadata lock cannot be taken at all.
    #[error("cannot lock the metadata of {device}: {reason}")]
    Lock {
        /// The device or file.
        device: String,
        /// What the system said.
        reason: String,
    },
    /// No copy of the header begins as LUKS does.
    #[error("not a LUKS device: no LUKS header at its start, no second copy behind it")]
    NotLuks,
    /// The header is LUKS version 1.
    #[error("the header is LUKS version 1, not 2")]
    Luks1,
    /// The header is LUKS version 2, where version 1 was asked for.
    #[error("the header is LUKS version 2, not 1")]
    Luks2,
    /// There is a header, but no copy of it is valid.
    #[error("no valid LUKS2 header: primary copy: {}; secondary copy: {}", health.primary, health.secondary)]
    NoValidCopy {
        /// What is wrong with each copy.
        health: Box<Health>,
    },
    /// Metadata that breaks a rule was about to be used or written.
    #[error("invalid LUKS2 metadata: {0}")]
    Invalid(Violation),
    /// A policy does not accept the header; no key was derived, nothing was written.
    #[error("the policy {policy} refuses this header: {}", crate::policy::list(breaches))]
    Policy {
        /// The policy's name.
        policy: String,
        /// Everything that it does not accept.
        breaches: Vec<crate::policy::Breach>,
    },
    /// A LUKS1 header that breaks a rule was read or about to be written.
    #[error("invalid LUKS1 header: {0}")]
    InvalidLuks1(Violation),
    /// What was read of the header when the change was planned is not what is read now: somebody changed it, or a copy that
    /// could not be read can be.
    #[error("the header on disk changed since it was read; nothing was written")]
    ChangedSinceRead,
    /// The header on disk changed since it was read.
    #[error("the header on disk changed since it was read (it was at sequence number {seqid}); nothing was written")]
    ConcurrentUpdate {
        /// The sequence number that was read.
        seqid: u64,
    },
    /// The header was changed so often that its sequence number has no successor.
    #[error(
        "the header's sequence number {} is the highest there is: it cannot be changed any more; nothing was written",
        u64::MAX
    )]
    SeqidExhausted,
    /// A write of this header failed half-way; the copy in memory is not to be trusted.
    #[error("an earlier write of this header failed; reopen the container before changing it")]
    Poisoned,
    /// The place of a broken copy carries another format's signature.
    #[error(
        "ambiguous signature: the place of the broken {position} copy holds {signature} at {offset}; nothing written"
    )]
    AmbiguousSignature {
        /// Which copy is broken.
        position: crate::copy::Position,
        /// The other format.
        signature: &'static str,
        /// Where its signature stands.
        offset: Bytes,
    },
    /// A hash that this crate does not know.
    #[error("hash {name:?} is not known")]
    UnknownHash {
        /// Its name in the metadata, cut to 80 characters.
        name: String,
    },
    /// A key derivation function that this crate does not know.
    #[error("key derivation function {type_name:?} is not known")]
    UnknownKdf {
        /// Its name in the metadata.
        type_name: String,
    },
    /// A key derivation's cost is out of bounds; no work was done.
    #[error("key derivation: {parameter} is {value}, allowed are {min} to {max}")]
    KdfLimit {
        /// Which cost.
        parameter: &'static str,
        /// What was demanded.
        value: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// A key derivation needs more memory than can be had; none was taken.
    #[error("key derivation needs {needed} of memory, {available} is available")]
    Memory {
        /// What it needs.
        needed: Bytes,
        /// What this process can take now.
        available: Bytes,
    },
    /// A cost that only Argon2 has was given for PBKDF2.
    #[error("PBKDF2 takes no {parameter}")]
    KdfParameter {
        /// Which cost.
        parameter: &'static str,
    },
    /// The machine's speed could not be measured.
    #[error("cannot measure the speed of {what} on this machine; force its cost instead")]
    Calibration {
        /// Which function.
        what: &'static str,
    },
    /// Argon2 refused its parameters.
    #[error("Argon2: {reason}")]
    Argon2 {
        /// Why.
        reason: argon2::Error,
    },
    /// No threads for Argon2's lanes.
    #[error("cannot start {count} threads: {reason}")]
    Threads {
        /// How many were needed.
        count: u32,
        /// What the system said.
        reason: String,
    },
    /// A salt that is not base64 of 32 bytes.
    #[error("the salt is not base64 of 32 bytes{}", match len_bytes { Some(len) => format!(" but of {len}"), None => String::new() })]
    Salt {
        /// Its length, if it is base64.
        len_bytes: Option<usize>,
    },
    /// Split key material that is too short for its key.
    #[error("{len_bytes} bytes are too few for 4000 stripes of {key_len_bytes} bytes")]
    StripesShort {
        /// Length of the key.
        key_len_bytes: usize,
        /// Length of the material.
        len_bytes: usize,
    },
    /// A keyslot is not one that a passphrase opens.
    #[error("keyslot type {type_name:?} is not opened by a passphrase")]
    KeyslotType {
        /// Its type.
        type_name: String,
    },
    /// A keyslot's area cannot be used.
    #[error("keyslot area at {offset} of {size}: {problem}")]
    KeyslotArea {
        /// Where the area starts.
        offset: Bytes,
        /// Its declared size.
        size: Bytes,
        /// What is wrong.
        problem: &'static str,
    },
    /// A cipher cannot be used.
    #[error(transparent)]
    Cipher(#[from] dmcrypt::CipherError),
    /// A key of the wrong length.
    #[error("a key of {got_bytes} bytes where {expected_bytes} are needed")]
    KeySize {
        /// The length needed.
        expected_bytes: usize,
        /// The length given.
        got_bytes: usize,
    },
    /// A digest cannot judge any key.
    #[error("digest{}: {problem}", match digest { Some(id) => format!(" {id}"), None => String::new() })]
    DigestUnusable {
        /// Which one; `None` for one that was about to be made.
        digest: Option<crate::metadata::DigestId>,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no such digest.
    #[error("there is no digest {digest}")]
    DigestMissing {
        /// The id asked for.
        digest: crate::metadata::DigestId,
    },
    /// A key is not the one that the digest stands for.
    #[error("the key does not match digest {digest}")]
    KeyRefused {
        /// The digest.
        digest: crate::metadata::DigestId,
    },
    /// There is no such keyslot.
    #[error("No usable keyslot is available: there is no keyslot {keyslot}")]
    KeyslotMissing {
        /// The id asked for.
        keyslot: crate::metadata::KeyslotId,
    },
    /// The keyslot asked for holds the key of something else.
    #[error("keyslot {keyslot} does not hold a key for this segment")]
    KeyslotUnbound {
        /// The id asked for.
        keyslot: crate::metadata::KeyslotId,
    },
    /// The passphrase opens none of the keyslots that were tried: it is wrong.
    #[error("No key available with this passphrase.{}", crate::unlock::list_broken(broken))]
    NoKey {
        /// Keyslots that were tried to the end.
        tried: Vec<crate::metadata::KeyslotId>,
        /// Keyslots that could not be tried.
        broken: Vec<crate::unlock::Broken>,
    },
    /// Not one keyslot could be tried, so nothing is known of the passphrase.
    #[error("No usable keyslot is available.{}", crate::unlock::list_broken(broken))]
    NoUsableKeyslot {
        /// Keyslots that could not be tried.
        broken: Vec<crate::unlock::Broken>,
    },
    /// A keyslot that was just written does not give the key back.
    #[error("keyslot {keyslot} was written but does not give its key back: the device lost or changed the write")]
    NotProven {
        /// The keyslot.
        keyslot: crate::metadata::KeyslotId,
    },
    /// Segments that make no volume.
    #[error("the segments make no volume: {what}")]
    SegmentMap {
        /// What does not fit.
        what: String,
    },
    /// A segment that this crate cannot use.
    #[error("segment {segment}: {what} are not supported")]
    UnsupportedSegment {
        /// The segment.
        segment: crate::metadata::SegmentId,
        /// What it is.
        what: String,
    },
    /// A segment that does not fit its device.
    #[error("segment {segment}: {what}")]
    SegmentGeometry {
        /// The segment.
        segment: crate::metadata::SegmentId,
        /// What does not fit.
        what: String,
    },
    /// The key opens something else.
    #[error("the key of digest {digest} does not open segment {segment}")]
    KeyNotForSegment {
        /// The digest that accepted the key.
        digest: crate::metadata::DigestId,
        /// The segment.
        segment: crate::metadata::SegmentId,
    },
    /// The header requires what this crate does not know.
    #[error("the header requires features that are not known here: {names}; only a newer program may use or change it")]
    UnmetRequirements {
        /// Their names.
        names: String,
    },
    /// The header requires what this crate knows but does not implement.
    #[error("the header requires {name}, which is not supported here")]
    UnsupportedRequirement {
        /// Its name.
        name: String,
    },
    /// A re-encryption is under way.
    #[error(
        "a re-encryption is under way ({requirement}): finish it first with `cryptsetup repair` and `cryptsetup reencrypt`"
    )]
    InReencryption {
        /// The requirement that says so.
        requirement: String,
    },
    /// A keyslot id that cannot be.
    #[error("keyslot {keyslot} cannot be: ids are 0 to 31")]
    KeyslotRange {
        /// The id asked for.
        keyslot: crate::metadata::KeyslotId,
    },
    /// A keyslot id that is taken.
    #[error("keyslot {keyslot} is in use")]
    KeyslotInUse {
        /// The id asked for.
        keyslot: crate::metadata::KeyslotId,
    },
    /// All keyslot ids are taken.
    #[error("all {max} keyslots are in use")]
    NoFreeKeyslot {
        /// How many there can be.
        max: u32,
    },
    /// The keyslots area is full.
    #[error("no room for a new keyslot: its area needs {needed}, the largest gap in the keyslots area is {largest}")]
    NoFreeArea {
        /// What the new area needs.
        needed: Bytes,
        /// The largest gap.
        largest: Bytes,
    },
    /// The JSON area is full.
    #[error("no room in the metadata: the text needs {needed}, the area has {available}")]
    JsonFull {
        /// What the text needs.
        needed: Bytes,
        /// Size of the JSON area.
        available: Bytes,
    },
    /// A keyslot id that LUKS1 cannot have.
    #[error("keyslot {keyslot} cannot be: LUKS1 has keyslots 0 to 7")]
    Luks1KeyslotRange {
        /// The id asked for.
        keyslot: crate::metadata::KeyslotId,
    },
    /// Something that LUKS1 does not have.
    #[error("LUKS1 has no {no}")]
    Luks1Has {
        /// What.
        no: &'static str,
    },
    /// The last keyslot that opens the data was about to go.
    #[error("keyslot {keyslot} is the last one that opens the data: without it the data is lost for good")]
    LastKeyslot {
        /// The keyslot.
        keyslot: crate::metadata::KeyslotId,
    },
    /// A text that is no token, or a token that its type does not allow.
    #[error("not a token: {problem}")]
    TokenInvalid {
        /// What is wrong.
        problem: String,
    },
    /// There is no such token.
    #[error("there is no token {token}")]
    TokenMissing {
        /// The id asked for.
        token: crate::metadata::TokenId,
    },
    /// A token id that cannot be.
    #[error("token {token} cannot be: ids are 0 to 31")]
    TokenRange {
        /// The id asked for.
        token: crate::metadata::TokenId,
    },
    /// A token id that is taken.
    #[error("token {token} is in use")]
    TokenInUse {
        /// The id asked for.
        token: crate::metadata::TokenId,
    },
    /// All token ids are taken.
    #[error("all {max} tokens are in use")]
    NoFreeToken {
        /// How many there can be.
        max: u32,
    },
    /// A keyslot was to be taken from a token that does not list it.
    #[error("token {token} is not assigned to keyslot {keyslot}")]
    TokenUnassigned {
        /// The token.
        token: crate::metadata::TokenId,
        /// The keyslot.
        keyslot: crate::metadata::KeyslotId,
    },
    /// All digest ids are taken.
    #[error("all {max} digests are in use: a key of its own needs one")]
    NoFreeDigest {
        /// How many there can be.
        max: u32,
    },
    /// A key that no digest accepts.
    #[error("Volume key does not match the volume.")]
    KeyUnknown,
    /// A parameter of a new container, or a text for its header, cannot be.
    #[error("{parameter} cannot be {value}: it must be {allowed}")]
    Parameter {
        /// Which one.
        parameter: &'static str,
        /// What was asked for.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A file is no header backup that could be restored.
    #[error("the header backup cannot be used: {0}")]
    Backup(#[from] BackupFlaw),
    /// A header backup does not fit the device.
    #[error("this header backup cannot be restored here: {0}; nothing was written")]
    Restore(#[from] RestoreObstacle),
    /// A header cannot be converted to the other version.
    #[error("this header cannot be converted: {0}; nothing was written")]
    Convert(#[from] ConvertObstacle),
    /// The device changed after its owner was told what would be done to it.
    #[error("the device is not what it was when this was planned; nothing was written")]
    PlanChanged,
    /// The present header could not be kept aside.
    #[error("the present header could not be kept aside: {reason}; nothing was written")]
    Recovery {
        /// Why not.
        reason: String,
    },
    /// What was written is not what is read.
    #[error("what was written does not read back at byte {}: the device lost or changed the write", offset.0)]
    ReadBack {
        /// The first byte that differs.
        offset: Bytes,
    },
    /// A device is too small for what shall be put on it.
    #[error("the {device} is too small: {size}, at least {needed} are needed")]
    DeviceTooSmall {
        /// Which device.
        device: &'static str,
        /// How long it is.
        size: Bytes,
        /// How long it must be.
        needed: Bytes,
    },
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Error {
        Error::Invalid(violation)
    }
}
