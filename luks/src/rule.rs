//! The rules of the format, one variant each, and what breaking one looks like.
//!
//! Source: `docs/format-notes.md` and the LUKS2 specification. Each rule's name is also the name of the test vectors
//! that break it; a test holds that every rule has one.

use std::fmt;

/// Longest piece of an offending value that a [`Violation`] carries.
const VALUE_CHARS: usize = 80;

macro_rules! rules {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal in $section:literal; )*) => {
        /// A rule of the LUKS2 format, or of LUKS1.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule { $( $(#[$doc])* $variant, )* }

        impl Rule {
            /// Every rule, in the order in which a header is checked.
            pub const ALL: &'static [Rule] = &[ $( Rule::$variant, )* ];

            /// The rule's name in kebab case.
            pub fn name(self) -> &'static str {
                match self { $( Rule::$variant => $name, )* }
            }

            /// The section of the format notes that states the rule.
            pub fn section(self) -> &'static str {
                match self { $( Rule::$variant => $section, )* }
            }
        }
    };
}

rules! {
    /// The copy starts with its magic.
    Magic = "magic" in "1.1";
    /// The version is 2.
    Version = "version" in "1.1";
    /// The offset field names the place where the copy stands.
    HdrOffset = "hdr-offset" in "1.2";
    /// The copy's size lies between 16 KiB and 4 MiB.
    HdrSize = "hdr-size" in "1.2";
    /// The secondary copy stands right after a primary of the same size.
    SecondaryOffset = "secondary-offset" in "1.2";
    /// The copy fits on the device.
    CopySize = "copy-size" in "1.2";
    /// The checksum algorithm is a known hash.
    CsumAlg = "csum-alg" in "1.3";
    /// The checksum holds.
    Csum = "csum" in "1.3";
    /// The first byte of the JSON area is `{`.
    JsonStart = "json-start" in "2.1";
    /// At least one NUL ends the JSON text.
    JsonEnd = "json-end" in "2.1";
    /// Nothing but NUL follows the JSON text.
    JsonTail = "json-tail" in "2.1";
    /// Objects and arrays nest at most 32 deep.
    JsonDepth = "json-depth" in "2.1";
    /// The text is one JSON object.
    JsonSyntax = "json-syntax" in "2.1";
    /// `config` is an object.
    ConfigObject = "config-object" in "2.5.1";
    /// `requirements` is an object.
    RequirementsObject = "requirements-object" in "2.5.1";
    /// `mandatory` is an array of strings.
    RequirementsMandatory = "requirements-mandatory" in "2.5.1";
    /// At most one requirement names an online re-encryption.
    RequirementsOneReencrypt = "requirements-one-reencrypt" in "2.5.1";
    /// `tokens` is an object.
    TokensObject = "tokens-object" in "2.5.2";
    /// A token's id is a number.
    TokenId = "token-id" in "2.5.2";
    /// A token is an object.
    TokenObject = "token-object" in "2.5.2";
    /// A token has a type.
    TokenType = "token-type" in "2.5.2";
    /// A token's `keyslots` is an array of strings.
    TokenKeyslots = "token-keyslots" in "2.5.2";
    /// A token names keyslots that exist.
    TokenKeyslotExists = "token-keyslot-exists" in "2.5.2";
    /// `digests` is an object.
    DigestsObject = "digests-object" in "2.5.3";
    /// A digest's id is a number.
    DigestId = "digest-id" in "2.5.3";
    /// A digest is an object.
    DigestObject = "digest-object" in "2.5.3";
    /// A digest has a type.
    DigestType = "digest-type" in "2.5.3";
    /// A digest's `keyslots` is an array of strings.
    DigestKeyslots = "digest-keyslots" in "2.5.3";
    /// A digest names keyslots that exist.
    DigestKeyslotExists = "digest-keyslot-exists" in "2.5.3";
    /// A digest's `segments` is an array of strings.
    DigestSegments = "digest-segments" in "2.5.3";
    /// A digest names segments that exist.
    DigestSegmentExists = "digest-segment-exists" in "2.5.3";
    /// `segments` is an object.
    SegmentsObject = "segments-object" in "2.5.4";
    /// There is at least one segment.
    SegmentsNone = "segments-none" in "2.5.4";
    /// A segment's id is a number.
    SegmentId = "segment-id" in "2.5.4";
    /// A segment is an object.
    SegmentObject = "segment-object" in "2.5.4";
    /// A segment has a type.
    SegmentType = "segment-type" in "2.5.4";
    /// A segment's offset is a decimal string.
    SegmentOffset = "segment-offset" in "2.5.4";
    /// A segment's size is a decimal string or `dynamic`.
    SegmentSize = "segment-size" in "2.5.4";
    /// A segment's offset is a multiple of 512.
    SegmentOffsetUnit = "segment-offset-unit" in "2.5.4";
    /// A segment's size is a multiple of 512.
    SegmentSizeUnit = "segment-size-unit" in "2.5.4";
    /// A segment's size is not zero.
    SegmentSizeZero = "segment-size-zero" in "2.5.4";
    /// A segment's flags are an array of strings.
    SegmentFlags = "segment-flags" in "2.5.4";
    /// Segment 0 is no backup.
    SegmentFirstRegular = "segment-first-regular" in "2.5.4";
    /// Segment ids run from 0 without a gap.
    SegmentIdsContiguous = "segment-ids-contiguous" in "2.5.4";
    /// Backup segments have the last ids.
    SegmentBackupsLast = "segment-backups-last" in "2.5.4";
    /// Only the last regular segment is dynamic.
    SegmentDynamicLast = "segment-dynamic-last" in "2.5.4";
    /// Regular segments do not overlap.
    SegmentOverlap = "segment-overlap" in "2.5.4";
    /// A crypt segment's IV tweak is a decimal string.
    SegmentIvTweak = "segment-iv-tweak" in "2.5.4";
    /// A crypt segment names its cipher.
    SegmentEncryption = "segment-encryption" in "2.5.4";
    /// A crypt segment's sector size is a multiple of 512.
    SegmentSectorSize = "segment-sector-size" in "2.5.4";
    /// A crypt segment of fixed size is a whole number of its sectors.
    SegmentWholeSectors = "segment-whole-sectors" in "2.5.4";
    /// A crypt segment belongs to a digest.
    SegmentInDigest = "segment-in-digest" in "2.5.4";
    /// `integrity` is an object.
    IntegrityObject = "integrity-object" in "2.5.4";
    /// `integrity` has a type.
    IntegrityType = "integrity-type" in "2.5.4";
    /// `integrity` has a journal encryption.
    IntegrityJournalEncryption = "integrity-journal-encryption" in "2.5.4";
    /// `integrity` has a journal integrity.
    IntegrityJournalIntegrity = "integrity-journal-integrity" in "2.5.4";
    /// The key size of `integrity` is a number.
    IntegrityKeySize = "integrity-key-size" in "2.5.4";
    /// An OPAL segment has a fixed size.
    OpalSizeFixed = "opal-size-fixed" in "2.5.4";
    /// An OPAL segment names its locking range.
    OpalSegmentNumber = "opal-segment-number" in "2.5.4";
    /// An OPAL segment has a key size.
    OpalKeySize = "opal-key-size" in "2.5.4";
    /// An OPAL segment has the size of its locking range.
    OpalSegmentSize = "opal-segment-size" in "2.5.4";
    /// An OPAL segment fits in its locking range.
    OpalSegmentFits = "opal-segment-fits" in "2.5.4";
    /// A re-encryption has a segment `backup-final`.
    ReencryptBackupFinal = "reencrypt-backup-final" in "2.5.5";
    /// A re-encryption has a segment `backup-previous`.
    ReencryptBackupPrevious = "reencrypt-backup-previous" in "2.5.5";
    /// The segment in re-encryption looks like `backup-final`.
    ReencryptHotSegment = "reencrypt-hot-segment" in "2.5.5";
    /// Other segments look like `backup-final` or `backup-previous`.
    ReencryptOtherSegment = "reencrypt-other-segment" in "2.5.5";
    /// `keyslots` is an object.
    KeyslotsObject = "keyslots-object" in "2.5.6";
    /// A keyslot's id is a number.
    KeyslotId = "keyslot-id" in "2.5.6";
    /// A keyslot is an object.
    KeyslotObject = "keyslot-object" in "2.5.6";
    /// A keyslot has a type.
    KeyslotType = "keyslot-type" in "2.5.6";
    /// A keyslot's key size is a number of 32 bits.
    KeyslotKeySize = "keyslot-key-size" in "2.5.6";
    /// A keyslot has an area.
    KeyslotArea = "keyslot-area" in "2.5.6";
    /// An area has a type.
    AreaType = "area-type" in "2.5.6";
    /// An area's offset is a decimal string.
    AreaOffset = "area-offset" in "2.5.6";
    /// An area's size is a decimal string.
    AreaSize = "area-size" in "2.5.6";
    /// `json_size` is one of the nine allowed sizes.
    ConfigJsonSize = "config-json-size" in "2.5.7";
    /// `keyslots_size` is a decimal string.
    ConfigKeyslotsSize = "config-keyslots-size" in "2.5.7";
    /// `keyslots_size` is a multiple of 4096.
    ConfigKeyslotsUnit = "config-keyslots-unit" in "2.5.7";
    /// `keyslots_size` is at most 128 MiB.
    ConfigKeyslotsMax = "config-keyslots-max" in "2.5.7";
    /// Data starts after the keyslots area.
    ConfigDataOffset = "config-data-offset" in "2.5.7";
    /// `flags` is an array of strings.
    ConfigFlags = "config-flags" in "2.5.7";
    /// An area starts after both metadata copies.
    AreaAfterMetadata = "area-after-metadata" in "2.5.8";
    /// An area is not empty.
    AreaNotEmpty = "area-not-empty" in "2.5.8";
    /// An area ends inside the keyslots area.
    AreaInside = "area-inside" in "2.5.8";
    /// Areas do not overlap.
    AreaOverlap = "area-overlap" in "2.5.8";
    /// `json_size` matches the binary header.
    JsonSizeMatches = "json-size-matches" in "2.5.9";
    /// The metadata fits in the JSON area.
    JsonFits = "json-fits" in "2.5.9";
    /// A keyslot of type `luks2` has a `kdf`.
    KdfObject = "kdf-object" in "2.6";
    /// `kdf` has a type.
    KdfType = "kdf-type" in "2.6";
    /// `kdf` has a salt.
    KdfSalt = "kdf-salt" in "2.6";
    /// `kdf` has exactly the members of its type.
    KdfMembers = "kdf-members" in "2.6";
    /// The members of `kdf` are numbers and strings as its type asks.
    KdfValues = "kdf-values" in "2.6";
    /// A keyslot of type `luks2` has an `af`.
    AfObject = "af-object" in "2.6";
    /// The anti-forensic splitter is `luks1`.
    AfType = "af-type" in "2.6";
    /// `af` has a hash.
    AfHash = "af-hash" in "2.6";
    /// `af` has a number of stripes.
    AfStripes = "af-stripes" in "2.6";
    /// The area of a keyslot of type `luks2` is `raw`.
    AreaRaw = "area-raw" in "2.6";
    /// A raw area names its cipher.
    AreaEncryption = "area-encryption" in "2.6";
    /// A raw area has a key size.
    AreaKeySize = "area-key-size" in "2.6";
    /// A keyslot of type `luks2` belongs to exactly one digest.
    KeyslotOneDigest = "keyslot-one-digest" in "2.6";
    /// The re-encryption keyslot's key size is 1.
    ReencryptKeySize = "reencrypt-key-size" in "3.8";
    /// The re-encryption mode is known.
    ReencryptMode = "reencrypt-mode" in "3.8";
    /// The re-encryption direction is known.
    ReencryptDirection = "reencrypt-direction" in "3.8";
    /// Checksum resilience names its hash.
    ReencryptAreaHash = "reencrypt-area-hash" in "3.8";
    /// Checksum resilience has a sector size: a power of two, at least 512.
    ReencryptAreaSectorSize = "reencrypt-area-sector-size" in "3.8";
    /// Data-shift resilience has a shift: a multiple of 512, not zero.
    ReencryptAreaShift = "reencrypt-area-shift" in "3.8";
    /// At most one keyslot is of type `reencrypt`.
    ReencryptOneKeyslot = "reencrypt-one-keyslot" in "2.5.10";
    /// A re-encryption keyslot needs its requirement.
    ReencryptNeedsRequirement = "reencrypt-needs-requirement" in "2.5.10";
    /// A re-encryption requirement needs its keyslot.
    ReencryptNeedsKeyslot = "reencrypt-needs-keyslot" in "2.5.10";
    /// The device holds both copies and the keyslots area.
    DeviceSize = "device-size" in "1.2";
    /// A LUKS1 header starts with its magic.
    Luks1Magic = "luks1-magic" in "10";
    /// The version of a LUKS1 header is 1.
    Luks1Version = "luks1-version" in "10";
    /// A keyslot is enabled or disabled.
    Luks1SlotState = "luks1-slot-state" in "10";
    /// The volume key has 1 to 512 bytes.
    Luks1KeyBytes = "luks1-key-bytes" in "10";
    /// A keyslot has 4000 stripes.
    Luks1SlotStripes = "luks1-slot-stripes" in "10";
    /// Key material lies behind the header.
    Luks1SlotOffset = "luks1-slot-offset" in "10";
    /// Key material of two keyslots does not overlap.
    Luks1SlotOverlap = "luks1-slot-overlap" in "10";
    /// Key material ends before the data.
    Luks1SlotBeforePayload = "luks1-slot-before-payload" in "10";
    /// The device holds header and keyslots.
    Luks1DeviceSize = "luks1-device-size" in "10";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule that a header breaks: which, where, with what value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The broken rule.
    pub rule: Rule,
    /// The object that breaks it, as a path: `keyslots.3.kdf`. Empty for the header as a whole.
    pub object: String,
    /// The offending value, cut after 80 characters.
    pub value: String,
}

impl Violation {
    /// A violation of `rule` by `value` at `object`.
    pub fn new(rule: Rule, object: impl Into<String>, value: impl fmt::Display) -> Violation {
        let value = value.to_string();
        let value = match value.char_indices().nth(VALUE_CHARS) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Violation { rule, object: object.into(), value }
    }

    /// A violation of `rule` by something that is not there.
    pub(crate) fn missing(rule: Rule, object: impl Into<String>) -> Violation {
        Violation::new(rule, object, "missing")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = if self.object.is_empty() { "header" } else { &self.object };
        write!(f, "{object} breaks rule {} (section {}): {}", self.rule, self.rule.section(), self.value)
    }
}

impl std::error::Error for Violation {}
