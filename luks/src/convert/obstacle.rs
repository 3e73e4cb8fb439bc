//! What stands in the way of a conversion, one variant each.

use block::Bytes;

use crate::metadata::KeyslotId;
use crate::rule::Violation;

/// Why a header cannot be converted. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertObstacle {
    /// It is that already.
    #[error("it is LUKS version {version} already")]
    SameVersion {
        /// The version.
        version: u16,
    },
    /// The data is not encrypted.
    #[error("its cipher is {cipher}, which encrypts nothing")]
    NullCipher {
        /// The cipher.
        cipher: String,
    },
    /// LUKSMETA keeps data behind the LUKS1 keyslots.
    #[error("LUKSMETA keeps data at byte {}, where LUKS2 keyslots would lie", offset.0)]
    Luksmeta {
        /// Where.
        offset: Bytes,
    },
    /// The longer header would reach into the data.
    #[error("header and keyslots would need {} bytes, there are {} before the data", needed.0, available.0)]
    NoRoom {
        /// What they need.
        needed: Bytes,
        /// What there is.
        available: Bytes,
    },
    /// The new header would break a rule.
    #[error("the new header would not be valid: {0}")]
    Invalid(Violation),
    /// The metadata copies are not of the size that fits between.
    #[error("its metadata copies have {} bytes, only 16384 can be converted", size.0)]
    MetadataSize {
        /// Their size.
        size: Bytes,
    },
    /// A requirement, which LUKS1 does not know.
    #[error("it requires {names}, which LUKS1 cannot say")]
    Requirements {
        /// Their names.
        names: String,
    },
    /// Tokens, which LUKS1 does not know.
    #[error("it has {count} tokens, which LUKS1 does not know: remove them first")]
    Tokens {
        /// How many.
        count: usize,
    },
    /// The data is not one plain encrypted segment to the end of the device.
    #[error("its data is not what LUKS1 can say: {what}")]
    Segment {
        /// What.
        what: String,
    },
    /// The digest is not one that LUKS1 has.
    #[error("its digest is not what LUKS1 can say: {what}")]
    Digest {
        /// What.
        what: String,
    },
    /// A keyslot is not one that LUKS1 has.
    #[error("keyslot {keyslot} is not what LUKS1 can say: {what}")]
    Keyslot {
        /// Which one.
        keyslot: KeyslotId,
        /// What.
        what: String,
    },
}
