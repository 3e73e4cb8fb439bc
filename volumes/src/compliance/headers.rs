//! Cipher, key size and hashes as the headers on the disks have them, which need not be what `volumes.toml` says today.

use luks::metadata::keyslot::{Kdf, KeyslotKind};

use super::{Gathering, Sources, Verdict};
use crate::image;

/// What PCI DSS sets are encrypted with, as the guide has it.
const CIPHER: &str = "aes-xts-plain64";
const KEY_BITS: u32 = 512;
const HASH: &str = "sha512";

/// Holds every header of the set against the guide's cipher, key size and hash.
pub(super) fn ciphers(sources: &Sources<'_>) -> Gathering {
    let mut found = Gathering::new("cipher", format!("every volume {CIPHER} with {KEY_BITS} bits and {HASH}"));
    for volume in &sources.config.volumes {
        let (name, path) = (&volume.name, volume.place.path());
        let header = match image::header(path) {
            Ok(Some(header)) => header,
            Ok(None) => {
                found.add(Verdict::NotMet, format!("{name}: {} is no LUKS container", path.display()));
                continue;
            }
            Err(error) => {
                found.add(Verdict::Unknown, format!("{name}: {error}"));
                continue;
            }
        };
        let metadata = header.metadata();
        for (_, segment) in metadata.segments.sorted() {
            match &segment.crypt {
                Some(crypt) => {
                    found.hold(crypt.encryption == CIPHER, format!("{name}: header: cipher {}", crypt.encryption))
                }
                None => found.add(Verdict::NotMet, format!("{name}: header: a segment of type {}", segment.type_name)),
            }
        }
        for (id, slot) in metadata.keyslots.sorted() {
            let bits = slot.key_size_bytes.saturating_mul(8);
            let hash = slot_hash(&slot.kind);
            let is_good = bits == KEY_BITS && hash.iter().all(|hash| hash.eq_ignore_ascii_case(HASH));
            found.hold(is_good, format!("{name}: header: keyslot {id}: {bits} bits, {}", hash.join(", ")));
        }
        for (id, digest) in metadata.digests.sorted() {
            let hash = digest.hash.as_deref().unwrap_or("no hash");
            found.hold(hash.eq_ignore_ascii_case(HASH), format!("{name}: header: digest {id}: {hash}"));
        }
    }
    found
}

/// The hashes that a keyslot uses.
fn slot_hash(kind: &KeyslotKind) -> Vec<&str> {
    match kind {
        KeyslotKind::Luks2(slot) => {
            let mut hashes = vec![slot.af.hash.as_str()];
            if let Kdf::Pbkdf2 { hash, .. } = &slot.kdf {
                hashes.push(hash);
            }
            hashes
        }
        KeyslotKind::Other => vec!["of an unknown kind"],
    }
}
