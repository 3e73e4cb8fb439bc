//! Pins: what makes a header that of one very container, and of no earlier state.
//!
//! Formula of a fingerprint: SHA-256 over each part's length as a little-endian u64 and its bytes. The parts of a digest are type,
//! hash, iterations, salt and digest as the header spells them; those of the segments, by rising id: id, type, offset, size,
//! cipher, sector size, IV tweak and flags. Keyslots are no part: adding a passphrase changes no fingerprint.

use std::fmt;
use std::str::FromStr;

use crate::any::AnyHeader;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::header::Header;
use crate::hex::hex;
use crate::metadata::digest::Digest;
use crate::metadata::segment::{Segment, SegmentSize};
use crate::metadata::{Metadata, SegmentId};

const PREFIX: &str = "sha256:";
const LEN_BYTES: usize = 32;

/// SHA-256 of a part of the header. Prints as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; LEN_BYTES]);

impl Fingerprint {
    pub(crate) fn of_parts(parts: &[&[u8]]) -> Fingerprint {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_le_bytes()).collect();
        let all: Vec<&[u8]> = lengths.iter().zip(parts).flat_map(|(len, part)| [&len[..], part]).collect();
        let mut sum = [0; LEN_BYTES];
        HashAlg::Sha256.digest(&all, &mut sum);
        Fingerprint(sum)
    }

    /// Of the object that accepts a volume key: who makes another key cannot make this digest.
    pub fn of_digest(digest: &Digest) -> Fingerprint {
        let iterations = digest.iterations.map(|iterations| iterations.to_string()).unwrap_or_default();
        let text = |text: &'_ Option<String>| text.clone().unwrap_or_default();
        let (hash, salt, value) = (text(&digest.hash), text(&digest.salt), text(&digest.digest));
        let parts = [&digest.type_name, &hash, &iterations, &salt, &value];
        Fingerprint::of_parts(&parts.map(|part| part.as_bytes()))
    }

    /// Of where the data lies and how it is encrypted.
    pub fn of_segments(metadata: &Metadata) -> Fingerprint {
        let mut segments: Vec<(SegmentId, &Segment)> = metadata.segments.iter().collect();
        segments.sort_by_key(|(id, _)| *id);
        let mut parts = Vec::new();
        for (id, segment) in segments {
            let size = match segment.size {
                SegmentSize::Dynamic => "dynamic".to_owned(),
                SegmentSize::Fixed(size) => size.0.to_string(),
            };
            parts.extend([id.to_string(), segment.type_name.clone(), segment.offset.0.to_string(), size]);
            if let Some(crypt) = &segment.crypt {
                let (sector, tweak) = (crypt.sector_size.to_string(), crypt.iv_tweak.0.to_string());
                parts.extend([crypt.encryption.clone(), sector, tweak]);
                parts.extend(crypt.integrity.iter().map(ToString::to_string));
            }
            parts.push(segment.flags.join(","));
        }
        let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
        Fingerprint::of_parts(&parts)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// # Errors
    /// [`Error::Parameter`] for anything but `sha256:` and 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Fingerprint, Error> {
        let refused = || Error::Parameter {
            parameter: "fingerprint",
            value: text.chars().take(80).collect(),
            allowed: format!("`{PREFIX}` and {} hexadecimal digits", 2 * LEN_BYTES),
        };
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == 2 * LEN_BYTES && digits.is_ascii());
        let digits = digits.ok_or_else(refused)?;
        let mut bytes = [0; LEN_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair =
                digits.get(2 * at..2 * at + 2).filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(refused)?;
        }
        Ok(Fingerprint(bytes))
    }
}

/// What ties a policy to one container. What is `None` or empty is not pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pins {
    /// The UUID.
    pub uuid: Option<String>,
    /// The lowest epoch (sequence number): a header below it is an old one put back. LUKS1 has none and is refused.
    pub epoch: Option<u64>,
    /// The digests that a segment's key may have; during a re-encryption there are two.
    pub volume_keys: Vec<Fingerprint>,
    /// Place, size and cipher of all segments.
    pub segments: Option<Fingerprint>,
}

impl Pins {
    /// All pins of a header as it is now.
    pub fn of(header: &Header) -> Pins {
        Pins::of_parts(header.uuid(), Some(header.seqid()), header.metadata())
    }

    /// The same for either version; LUKS1 has no epoch.
    pub fn of_any(header: &AnyHeader) -> Pins {
        match header {
            AnyHeader::Luks1(header) => Pins::of_parts(header.uuid.to_string(), None, &header.metadata()),
            AnyHeader::Luks2(header) => Pins::of(header),
        }
    }

    fn of_parts(uuid: String, epoch: Option<u64>, metadata: &Metadata) -> Pins {
        let bound = metadata.digests.iter().filter(|(_, digest)| !digest.segments.is_empty());
        Pins {
            uuid: Some(uuid),
            epoch,
            volume_keys: bound.map(|(_, digest)| Fingerprint::of_digest(digest)).collect(),
            segments: Some(Fingerprint::of_segments(metadata)),
        }
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        *self == Pins::default()
    }

    /// The same with another UUID pinned.
    #[must_use]
    pub fn with_uuid(self, uuid: impl Into<String>) -> Pins {
        Pins { uuid: Some(uuid.into()), ..self }
    }

    /// The same with another lowest epoch.
    #[must_use]
    pub fn with_epoch(self, epoch: u64) -> Pins {
        Pins { epoch: Some(epoch), ..self }
    }

    /// The same with these digests.
    #[must_use]
    pub fn with_volume_keys(self, volume_keys: Vec<Fingerprint>) -> Pins {
        Pins { volume_keys, ..self }
    }

    /// The same with these segments.
    #[must_use]
    pub fn with_segments(self, segments: Fingerprint) -> Pins {
        Pins { segments: Some(segments), ..self }
    }
}
