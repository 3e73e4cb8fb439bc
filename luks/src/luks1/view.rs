//! A LUKS1 header in LUKS2's words: so that unlocking, digests, policies and reports need one code for both versions.
//!
//! | LUKS1 | here |
//! |---|---|
//! | an enabled keyslot | a keyslot of type `luks2` with its id: PBKDF2, AF and a raw area under the data's own cipher |
//! | the digest of 20 bytes | digest 0, of all keyslots and segment 0 |
//! | the payload | segment 0: `crypt`, dynamic, sectors of 512 bytes, IVs from 0 |
//! | everything before its last key material | `config`: no JSON area, a keyslots area that ends there |
//!
//! Disabled keyslots do not appear. The view is never written: LUKS2 asks for areas where LUKS1 has its header.

use block::{Bytes, Sectors};

use crate::json::{JsonMap, encode_base64};
use crate::luks1::header::{Luks1Header, Luks1Slot};
use crate::metadata::config::Config;
use crate::metadata::digest::Digest;
use crate::metadata::keyslot::{Af, Area, Kdf, Keyslot, KeyslotKind, Luks2Slot};
use crate::metadata::segment::{CryptSegment, Segment, SegmentSize};
use crate::metadata::{ById, DigestId, KeyslotId, Metadata, SegmentId};

/// The digest of the volume key.
pub(crate) const DIGEST: DigestId = DigestId(0);
/// The payload.
const SEGMENT: SegmentId = SegmentId(0);

impl Luks1Header {
    /// The header in LUKS2's words.
    pub fn metadata(&self) -> Metadata {
        let keyslots: ById<KeyslotId, Keyslot> =
            self.enabled().map(|(id, slot)| (KeyslotId(id), self.keyslot(slot))).collect();
        let digest = Digest {
            type_name: "pbkdf2".to_owned(),
            keyslots: keyslots.ids().collect(),
            segments: vec![SEGMENT],
            hash: Some(self.hash_spec.to_string()),
            iterations: Some(self.digest_iterations),
            salt: Some(encode_base64(&self.digest_salt)),
            digest: Some(encode_base64(&self.digest)),
            extra: JsonMap::new(),
        };
        let no_text = Config::new(Bytes::ZERO, Bytes::ZERO);
        let keyslots_size = self.keyslots_end().checked_sub(no_text.keyslots_offset()).unwrap_or_default();
        Metadata {
            keyslots,
            tokens: ById::new(),
            segments: ById::from_iter([(SEGMENT, self.segment())]),
            digests: ById::from_iter([(DIGEST, digest)]),
            config: Config { keyslots_size, ..no_text },
            extra: JsonMap::new(),
        }
    }

    /// The payload as a segment.
    pub fn segment(&self) -> Segment {
        Segment {
            type_name: "crypt".to_owned(),
            offset: self.payload_offset(),
            size: SegmentSize::Dynamic,
            crypt: Some(self.crypt_segment()),
            opal: None,
            flags: Vec::new(),
            extra: JsonMap::new(),
        }
    }

    /// The encryption of the payload.
    pub(crate) fn crypt_segment(&self) -> CryptSegment {
        CryptSegment { iv_tweak: Sectors(0), encryption: self.cipher(), sector_size: 512, integrity: None }
    }

    /// A keyslot, enabled or not yet, as LUKS2 would describe it.
    pub(crate) fn keyslot(&self, slot: &Luks1Slot) -> Keyslot {
        let hash = self.hash_spec.to_string();
        let kdf = Kdf::Pbkdf2 { hash: hash.clone(), iterations: slot.iterations, salt: encode_base64(&slot.salt) };
        Keyslot {
            kind: KeyslotKind::Luks2(Luks2Slot { af: Af { hash, stripes: slot.stripes, extra: JsonMap::new() }, kdf }),
            type_name: "luks2".to_owned(),
            key_size_bytes: self.key_bytes,
            priority: None,
            area: Area {
                type_name: "raw".to_owned(),
                offset: self.material_offset(slot),
                size: self.material_size(),
                encryption: Some(self.cipher()),
                key_size_bytes: Some(self.key_bytes),
                extra: JsonMap::new(),
            },
            extra: JsonMap::new(),
        }
    }
}
