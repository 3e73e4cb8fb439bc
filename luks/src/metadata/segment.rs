//! Segments: stretches of the data device and how they are encrypted. Format notes 5.

use block::{Bytes, Sectors};
use serde_json::Value;

use crate::json::{Fields, JsonMap, strings_of, u32_of, u64_of, u64_value};
use crate::metadata::{ObjectRules, append};
use crate::rule::{Rule, Violation};

pub(crate) const RULES: ObjectRules = ObjectRules { map: Rule::SegmentsObject, id: Rule::SegmentId };

/// Offsets and sizes of segments are multiples of this.
const UNIT: u64 = 512;

/// A segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// `crypt`, `linear`, `hw-opal`, `hw-opal-crypt`, or a type this crate does not know.
    pub type_name: String,
    /// Where it starts on the data device.
    pub offset: Bytes,
    /// How long it is.
    pub size: SegmentSize,
    /// How it is encrypted; present for `crypt` and `hw-opal-crypt`.
    pub crypt: Option<CryptSegment>,
    /// The locking range of a self-encrypting drive; present for `hw-opal` and `hw-opal-crypt`.
    pub opal: Option<OpalSegment>,
    /// Flags: `in-reencryption`, `backup-previous`, `backup-final`, `backup-moved-segment`, or unknown ones.
    pub flags: Vec<String>,
    /// Unknown members.
    pub extra: JsonMap,
}

/// The size of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentSize {
    /// To the end of the device.
    Dynamic,
    /// A fixed size.
    Fixed(Bytes),
}

/// How a segment is encrypted.
#[derive(Debug, Clone, PartialEq)]
pub struct CryptSegment {
    /// Added to the sector number before it becomes an IV, in 512-byte units. Honoured only in re-encryption.
    pub iv_tweak: Sectors,
    /// Cipher in dm-crypt's notation, not yet looked at.
    pub encryption: String,
    /// Encryption sector size in bytes: a multiple of 512, otherwise not yet looked at.
    pub sector_size: u32,
    /// Authenticated encryption, checked for form only.
    pub integrity: Option<Value>,
}

/// A locking range of an OPAL drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpalSegment {
    /// Number of the locking range.
    pub segment_number: u32,
    /// Size of the drive's part of the volume key, in bytes.
    pub key_size_bytes: u32,
    /// Size of the locking range.
    pub segment_size: Bytes,
}

impl CryptSegment {
    /// Whether nothing is encrypted: the kernel's `cipher_null`, in any spelling that dm-crypt takes.
    pub fn is_unencrypted(&self) -> bool {
        let cipher = match self.encryption.strip_prefix("capi:") {
            Some(template) => template.strip_prefix("ecb(").and_then(|rest| rest.split(')').next()),
            None => self.encryption.split('-').next(),
        };
        matches!(cipher, Some("cipher_null" | "null"))
    }
}

impl Segment {
    /// Whether this is a note about another state of the device, not a part of its present one.
    pub fn is_backup(&self) -> bool {
        self.flags.iter().any(|flag| flag.starts_with("backup-"))
    }

    /// Whether the segment has this flag.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|has| has == flag)
    }

    /// The members that every segment has. The others stay in `extra` until [`Segment::resolve`].
    pub(crate) fn parse(value: Value, path: String) -> Result<Segment, Violation> {
        let mut fields = Fields::open(Some(value), path, Rule::SegmentObject)?;
        let type_name = fields.name("type", Rule::SegmentType)?;
        let offset = fields.u64("offset", Rule::SegmentOffset)?;
        let size = fields.read("size", Rule::SegmentSize, |value| match value.as_str() {
            Some("dynamic") => Some(SegmentSize::Dynamic),
            _ => u64_of(value).map(|size| SegmentSize::Fixed(Bytes(size))),
        })?;
        if !offset.is_multiple_of(UNIT) {
            return Err(Violation::new(Rule::SegmentOffsetUnit, fields.path_of("offset"), offset));
        }
        match size {
            SegmentSize::Fixed(Bytes(0)) => {
                return Err(Violation::new(Rule::SegmentSizeZero, fields.path_of("size"), 0));
            }
            SegmentSize::Fixed(Bytes(size)) if !size.is_multiple_of(UNIT) => {
                return Err(Violation::new(Rule::SegmentSizeUnit, fields.path_of("size"), size));
            }
            SegmentSize::Fixed(_) | SegmentSize::Dynamic => {}
        }
        let flags = fields.read_if_present("flags", Rule::SegmentFlags, strings_of)?.unwrap_or_default();
        let offset = Bytes(offset);
        Ok(Segment { type_name, offset, size, crypt: None, opal: None, flags, extra: fields.rest() })
    }

    /// Take the members of a known type out of `extra`.
    pub(crate) fn resolve(&mut self, path: &str) -> Result<(), Violation> {
        let (crypt, opal) = match self.type_name.as_str() {
            "crypt" => (true, false),
            "hw-opal" => (false, true),
            "hw-opal-crypt" => (true, true),
            _ => return Ok(()),
        };
        let mut fields = Fields::resume(std::mem::take(&mut self.extra), path);
        if crypt {
            self.crypt = Some(CryptSegment::parse(&mut fields, self.size)?);
        }
        if opal {
            self.opal = Some(OpalSegment::parse(&mut fields, self.size)?);
        }
        self.extra = fields.rest();
        Ok(())
    }

    pub(crate) fn to_map(&self) -> JsonMap {
        let mut map = JsonMap::new();
        map.insert("type".into(), self.type_name.clone().into());
        map.insert("offset".into(), u64_value(self.offset.0));
        let size = match self.size {
            SegmentSize::Dynamic => Value::from("dynamic"),
            SegmentSize::Fixed(size) => u64_value(size.0),
        };
        map.insert("size".into(), size);
        if let Some(crypt) = &self.crypt {
            map.insert("iv_tweak".into(), u64_value(crypt.iv_tweak.0));
            map.insert("encryption".into(), crypt.encryption.clone().into());
            map.insert("sector_size".into(), crypt.sector_size.into());
            if let Some(integrity) = &crypt.integrity {
                map.insert("integrity".into(), integrity.clone());
            }
        }
        if let Some(opal) = &self.opal {
            map.insert("opal_segment_number".into(), opal.segment_number.into());
            map.insert("opal_key_size".into(), opal.key_size_bytes.into());
            map.insert("opal_segment_size".into(), u64_value(opal.segment_size.0));
        }
        if !self.flags.is_empty() {
            map.insert("flags".into(), self.flags.clone().into());
        }
        append(&mut map, &self.extra);
        map
    }
}

impl CryptSegment {
    fn parse(fields: &mut Fields, size: SegmentSize) -> Result<CryptSegment, Violation> {
        let iv_tweak = Sectors(fields.u64("iv_tweak", Rule::SegmentIvTweak)?);
        let encryption = fields.name("encryption", Rule::SegmentEncryption)?;
        let sector_size = fields.read("sector_size", Rule::SegmentSectorSize, |value| {
            u32_of(value).filter(|&size| size != 0 && u64::from(size).is_multiple_of(UNIT))
        })?;
        if let SegmentSize::Fixed(Bytes(size)) = size
            && !size.is_multiple_of(u64::from(sector_size))
        {
            return Err(Violation::new(Rule::SegmentWholeSectors, fields.path_of("size"), size));
        }
        let integrity = fields.take("integrity");
        if let Some(integrity) = &integrity {
            check_integrity(integrity.clone(), fields.path_of("integrity"))?;
        }
        Ok(CryptSegment { iv_tweak, encryption, sector_size, integrity })
    }
}

fn check_integrity(value: Value, path: String) -> Result<(), Violation> {
    let mut fields = Fields::open(Some(value), path, Rule::IntegrityObject)?;
    fields.name("type", Rule::IntegrityType)?;
    fields.name("journal_encryption", Rule::IntegrityJournalEncryption)?;
    fields.name("journal_integrity", Rule::IntegrityJournalIntegrity)?;
    if fields.get("key_size").is_some() {
        fields.integer("key_size", Rule::IntegrityKeySize)?;
    }
    Ok(())
}

impl OpalSegment {
    fn parse(fields: &mut Fields, size: SegmentSize) -> Result<OpalSegment, Violation> {
        let SegmentSize::Fixed(size) = size else {
            return Err(Violation::new(Rule::OpalSizeFixed, fields.path_of("size"), "dynamic"));
        };
        let segment_number = fields.u32("opal_segment_number", Rule::OpalSegmentNumber)?;
        let key_size_bytes = fields.u32("opal_key_size", Rule::OpalKeySize)?;
        let segment_size = Bytes(fields.u64("opal_segment_size", Rule::OpalSegmentSize)?);
        if size > segment_size {
            return Err(Violation::new(Rule::OpalSegmentFits, fields.path_of("size"), size.0));
        }
        Ok(OpalSegment { segment_number, key_size_bytes, segment_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_null_cipher_encrypts_nothing() {
        let unencrypted = |encryption: &str| {
            let (encryption, iv_tweak) = (encryption.to_owned(), Sectors(0));
            CryptSegment { iv_tweak, encryption, sector_size: 512, integrity: None }.is_unencrypted()
        };
        for encryption in
            ["cipher_null-ecb", "cipher_null", "null", "cipher_null-ecb-plain", "capi:ecb(cipher_null)-null"]
        {
            assert!(unencrypted(encryption), "{encryption}");
        }
        for encryption in
            ["aes-xts-plain64", "nullify-cbc", "aes-cbc-null", "capi:xts(aes)-plain64", "capi:ecb(aes)-null", ""]
        {
            assert!(!unencrypted(encryption), "{encryption}");
        }
    }
}
