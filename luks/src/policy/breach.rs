//! What a header has and a policy does not accept: the rule, where, the value, what would be accepted.

use std::fmt;

use crate::metadata::{DigestId, KeyslotId, SegmentId};

/// Most breaches that are listed of one header, and most that one message spells out.
pub(super) const LISTED_MAX: usize = 256;
const SPELLED_OUT: usize = 8;
/// Longest piece of a value that a breach carries.
const VALUE_CHARS: usize = 80;

macro_rules! policy_rules {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal; )*) => {
        /// A rule of a policy.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum PolicyRule { $( $(#[$doc])* $variant, )* }

        impl PolicyRule {
            /// Every rule.
            pub const ALL: &'static [PolicyRule] = &[ $( PolicyRule::$variant, )* ];

            /// The rule's name in kebab case.
            pub fn name(self) -> &'static str {
                match self { $( PolicyRule::$variant => $name, )* }
            }
        }
    };
}

policy_rules! {
    /// The version of LUKS.
    Version = "version";
    /// Data or keys are not encrypted at all.
    NullCipher = "null-cipher";
    /// The cipher of a segment.
    Cipher = "cipher";
    /// The cipher of a keyslot area.
    KeyslotCipher = "keyslot-cipher";
    /// The size of the volume key.
    KeySize = "key-size";
    /// The size of a keyslot area's key.
    KeyslotKeySize = "keyslot-key-size";
    /// The type of a keyslot.
    KeyslotType = "keyslot-type";
    /// The key derivation function.
    KdfType = "kdf-type";
    /// A key derivation is too cheap.
    KdfFloor = "kdf-floor";
    /// A key derivation demands too much.
    KdfCeiling = "kdf-ceiling";
    /// A hash.
    Hash = "hash";
    /// A mandatory requirement.
    Requirement = "requirement";
    /// The type of a segment.
    SegmentType = "segment-type";
    /// A re-encryption is under way, or pretends to be.
    Reencryption = "reencryption";
    /// Another UUID than the pinned one.
    PinnedUuid = "pinned-uuid";
    /// Another volume key's digest than the pinned one.
    PinnedVolumeKey = "pinned-volume-key";
    /// Other segments than the pinned ones.
    PinnedSegments = "pinned-segments";
    /// An older header than the pinned one.
    PinnedEpoch = "pinned-epoch";
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// The header as a whole.
    Header,
    /// A keyslot.
    Keyslot(KeyslotId),
    /// A segment.
    Segment(SegmentId),
    /// A digest.
    Digest(DigestId),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::Keyslot(id) => write!(f, "keyslot {id}"),
            Place::Segment(id) => write!(f, "segment {id}"),
            Place::Digest(id) => write!(f, "digest {id}"),
        }
    }
}

/// One thing that a policy does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The rule.
    pub rule: PolicyRule,
    /// Where.
    pub place: Place,
    /// The value there, cut after 80 characters.
    pub value: String,
    /// What would be accepted.
    pub allowed: String,
}

impl Breach {
    pub(super) fn new(rule: PolicyRule, place: Place, value: impl fmt::Display, allowed: impl fmt::Display) -> Breach {
        let value = value.to_string();
        let value = match value.char_indices().nth(VALUE_CHARS) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Breach { rule, place, value, allowed: allowed.to_string() }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is {}; allowed: {}", self.place, self.rule, self.value, self.allowed)
    }
}

/// The breaches in one line, the first ones spelled out.
pub(crate) fn list(breaches: &[Breach]) -> String {
    let mut words: Vec<String> = breaches.iter().take(SPELLED_OUT).map(Breach::to_string).collect();
    if let Some(more) = breaches.len().checked_sub(SPELLED_OUT).filter(|more| *more > 0) {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
}
