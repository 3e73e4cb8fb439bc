//! [`VolumeKey`]: a key that a digest accepted. Nothing else can build one, so nothing can be encrypted under a key that
//! does not belong to the container.

use secret::Secret;

use crate::digest_check::UsableDigest;
use crate::error::Error;
use crate::header::Header;
use crate::limits::Limits;
use crate::metadata::{DigestId, KeyslotId, Metadata};
use crate::unlock::{Purpose, default_segment};

/// The proof that `key` belongs to the segments of a digest.
pub struct VolumeKey {
    digest: DigestId,
    keyslot: Option<KeyslotId>,
    key: Secret,
}

impl VolumeKey {
    /// The digest that accepted the key.
    pub fn digest(&self) -> DigestId {
        self.digest
    }

    /// The keyslot that the key came out of; `None` when the key itself was presented.
    pub fn keyslot(&self) -> Option<KeyslotId> {
        self.keyslot
    }

    /// The key's bytes. What is copied from here is no longer looked after.
    pub fn expose(&self) -> &[u8] {
        self.key.expose()
    }

    /// The key in its locked memory.
    pub fn secret(&self) -> &Secret {
        &self.key
    }

    /// Length of the key in bytes.
    pub fn len_bytes(&self) -> usize {
        self.key.len()
    }

    /// Holds `key` against a digest: `None` when it is another key. The only constructor.
    pub(crate) fn judged(
        id: DigestId,
        digest: &UsableDigest,
        keyslot: Option<KeyslotId>,
        key: Secret,
    ) -> Option<VolumeKey> {
        digest.accepts(&key).then_some(VolumeKey { digest: id, keyslot, key })
    }
}

impl std::fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeKey {{ digest: {}, keyslot: {:?}, .. }}", self.digest, self.keyslot)
    }
}

/// Accepts a key that was presented as such, not through a keyslot.
///
/// # Errors
/// [`Error::KeyRefused`] when it is another key or has the wrong length; [`Error::DigestMissing`] and what makes the
/// digest unusable.
pub fn verify_volume_key(header: &Header, limits: &Limits, digest: DigestId, key: Secret) -> Result<VolumeKey, Error> {
    verify(header.metadata(), limits, digest, key)
}

/// Accepts a key that was presented as such if any digest does: one of the segment or the container that `purpose` names.
///
/// # Errors
/// [`Error::KeyUnknown`] when none does. What makes a digest unusable is an error only where no other accepts the key.
pub fn recognise_volume_key(
    header: &Header,
    limits: &Limits,
    purpose: Purpose,
    key: &Secret,
) -> Result<VolumeKey, Error> {
    let metadata = header.metadata();
    let segment = match purpose {
        Purpose::DefaultSegment => Some(default_segment(metadata)),
        Purpose::Segment(id) => Some(id),
        Purpose::AnyDigest => None,
    };
    let fitting =
        metadata.digests.iter().filter(|(_, digest)| segment.is_none_or(|segment| digest.segments.contains(&segment)));
    let mut failed = Error::KeyUnknown;
    for (id, _) in fitting {
        match verify(metadata, limits, id, Secret::copy_of(key.expose())?) {
            Ok(key) => return Ok(key),
            Err(Error::KeyRefused { .. }) => {}
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// As [`verify_volume_key`], for metadata that is not on disk yet.
pub(crate) fn verify(metadata: &Metadata, limits: &Limits, id: DigestId, key: Secret) -> Result<VolumeKey, Error> {
    let digest = metadata.digests.get(id).ok_or(Error::DigestMissing { digest: id })?;
    // A key with zeros behind it has the same digest; its length tells.
    if !key_sizes(metadata, id).is_none_or(|sizes| sizes.contains(&key.len())) {
        return Err(Error::KeyRefused { digest: id });
    }
    let usable = UsableDigest::of(id, digest, limits)?;
    VolumeKey::judged(id, &usable, None, key).ok_or(Error::KeyRefused { digest: id })
}

/// The lengths that a key of this digest may have: those of its keyslots, else those of its segments' ciphers; `None`
/// when neither says.
fn key_sizes(metadata: &Metadata, id: DigestId) -> Option<Vec<usize>> {
    let digest = metadata.digests.get(id)?;
    let keyslots = digest.keyslots.iter().filter_map(|keyslot| metadata.keyslots.get(*keyslot));
    let sizes: Vec<usize> =
        keyslots.filter(|keyslot| keyslot.luks2().is_some()).map(|keyslot| keyslot.key_size_bytes as usize).collect();
    if !sizes.is_empty() {
        return Some(sizes);
    }
    let segments = digest.segments.iter().filter_map(|segment| metadata.segments.get(*segment));
    let crypt = segments.filter_map(|segment| segment.crypt.as_ref()).find(|crypt| crypt.integrity.is_none())?;
    let spec = dmcrypt::CipherSpec::parse(&crypt.encryption).ok()?;
    Some(spec.key_sizes().to_vec())
}
