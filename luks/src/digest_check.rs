//! Digests: the one place where a candidate key is accepted or refused, and where a digest for a new key is made.
//!
//! `digest = PBKDF2-HMAC-hash(key, salt, iterations)`, compared in constant time. HMAC pads its key with zeros, so the
//! digest alone cannot tell a key from the same key with zeros behind it: whoever asks checks the length too
//! (see [`verify_volume_key`](crate::volume_key::verify_volume_key)).
//! Source: luks2-format §4.

use secret::{Secret, scrubbed};
use subtle::ConstantTimeEq;

use crate::calibrate::{self, PBKDF2_DIGEST_TARGET_MS};
use crate::env::Env;
use crate::error::Error;
use crate::hash::{HashAlg, MAX_DIGEST_BYTES};
use crate::json::{JsonMap, decode_base64, encode_base64};
use crate::kdf::{self, PBKDF2_ITERATIONS_MIN};
use crate::limits::Limits;
use crate::metadata::DigestId;
use crate::metadata::digest::Digest;

/// Shortest digest, the SHA-1 length that LUKS1 left behind; allowed with every hash.
const DIGEST_BYTES_MIN: usize = 20;

/// A `pbkdf2` digest whose members are present, well formed and within the caller's limits.
pub(crate) struct UsableDigest {
    hash: HashAlg,
    iterations: u32,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

impl UsableDigest {
    /// Checks the members that the loader leaves unchecked.
    ///
    /// # Errors
    /// [`Error::DigestUnusable`], [`Error::Salt`], [`Error::UnknownHash`], [`Error::KdfLimit`].
    pub(crate) fn of(id: DigestId, digest: &Digest, limits: &Limits) -> Result<UsableDigest, Error> {
        let unusable = |problem: &'static str| Error::DigestUnusable { digest: Some(id), problem };
        if digest.type_name != "pbkdf2" {
            return Err(unusable("its type is not pbkdf2"));
        }
        let hash = HashAlg::parse(digest.hash.as_deref().ok_or_else(|| unusable("no hash"))?)?;
        let iterations = digest.iterations.ok_or_else(|| unusable("no iterations"))?;
        kdf::pbkdf2::check(limits, iterations)?;
        let salt = kdf::decode_salt(digest.salt.as_deref().ok_or_else(|| unusable("no salt"))?)?;
        let digest = digest.digest.as_deref().and_then(decode_base64).ok_or_else(|| unusable("no base64 digest"))?;
        let length_fits = digest.len() == DIGEST_BYTES_MIN || digest.len() == hash.digest_len_bytes();
        if !length_fits || !(DIGEST_BYTES_MIN..=MAX_DIGEST_BYTES).contains(&digest.len()) {
            return Err(unusable("its length is neither 20 bytes nor that of its hash"));
        }
        Ok(UsableDigest { hash, iterations, salt, digest })
    }

    /// Whether this is the digest of `key`.
    pub(crate) fn accepts(&self, key: &Secret) -> bool {
        scrubbed(|| {
            let mut computed = [0; MAX_DIGEST_BYTES];
            let computed = &mut computed[..self.digest.len()];
            self.hash.pbkdf2(key.expose(), &self.salt, self.iterations, computed);
            bool::from((*computed).ct_eq(&self.digest))
        })
    }
}

/// How slow a new digest is to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestCost {
    /// About 125 ms on this machine, never below 1000 iterations.
    Measured,
    /// 1000 iterations, for forced costs and for tests: the key behind it is random, guessing it is hopeless anyway.
    Minimal,
}

impl DigestCost {
    /// As slow as a keyslot's derivation, which was measured or not.
    pub(crate) fn like(measured: bool) -> DigestCost {
        if measured { DigestCost::Measured } else { DigestCost::Minimal }
    }

    /// PBKDF2 iterations for a digest of `len_bytes`.
    pub(crate) fn iterations(self, env: &Env<'_>, hash: HashAlg, len_bytes: usize) -> Result<u32, Error> {
        match self {
            DigestCost::Measured => calibrate::pbkdf2_iterations(env, hash, len_bytes, PBKDF2_DIGEST_TARGET_MS),
            DigestCost::Minimal => Ok(PBKDF2_ITERATIONS_MIN),
        }
    }
}

/// A digest of `key` with a fresh salt, tied to no keyslot and no segment yet.
///
/// # Errors
/// [`Error::DigestUnusable`] for a hash shorter than 20 bytes, [`Error::Env`], [`Error::Calibration`].
pub fn make_digest(env: &Env<'_>, cost: DigestCost, hash: HashAlg, key: &Secret) -> Result<Digest, Error> {
    let len_bytes = hash.digest_len_bytes();
    if len_bytes < DIGEST_BYTES_MIN {
        return Err(Error::DigestUnusable { digest: None, problem: "its hash is shorter than 20 bytes" });
    }
    let iterations = cost.iterations(env, hash, len_bytes)?;
    let salt = kdf::fresh_salt(env)?;
    let raw_salt = kdf::decode_salt(&salt)?;
    let mut digest = [0; MAX_DIGEST_BYTES];
    let digest = &mut digest[..len_bytes];
    scrubbed(|| hash.pbkdf2(key.expose(), &raw_salt, iterations, digest));
    Ok(Digest {
        type_name: "pbkdf2".to_owned(),
        keyslots: Vec::new(),
        segments: Vec::new(),
        hash: Some(hash.name().to_owned()),
        iterations: Some(iterations),
        salt: Some(salt),
        digest: Some(encode_base64(digest)),
        extra: JsonMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;

    fn usable(digest: &Digest) -> Result<UsableDigest, Error> {
        UsableDigest::of(DigestId(0), digest, &Limits::default())
    }

    #[test]
    fn a_new_digest_accepts_its_key_and_no_other() {
        let fixed = FixedEnv::new(3, 1);
        let key = Secret::copy_of(&[7; 64]).unwrap();
        let mut other = Secret::copy_of(&[7; 64]).unwrap();
        other.expose_mut()[63] ^= 1;
        for hash in HashAlg::all().filter(|hash| hash.digest_len_bytes() >= 20) {
            let digest = make_digest(&fixed.env(), DigestCost::Minimal, hash, &key).unwrap();
            assert_eq!(digest.iterations, Some(1000));
            let usable = usable(&digest).unwrap();
            assert!(usable.accepts(&key), "{}", hash.name());
            assert!(!usable.accepts(&other), "{}", hash.name());
        }
        let short = make_digest(&fixed.env(), DigestCost::Minimal, HashAlg::Blake2s128, &key);
        assert!(matches!(short, Err(Error::DigestUnusable { .. })));
    }

    #[test]
    fn the_length_is_20_bytes_or_that_of_the_hash() {
        let fixed = FixedEnv::new(3, 1);
        let key = Secret::copy_of(&[7; 64]).unwrap();
        let whole = make_digest(&fixed.env(), DigestCost::Minimal, HashAlg::Sha256, &key).unwrap();
        let bytes = decode_base64(whole.digest.as_deref().unwrap()).unwrap();
        let cut = |len: usize| {
            let mut bytes = bytes.clone();
            bytes.resize(len, 0);
            Digest { digest: Some(encode_base64(&bytes)), ..whole.clone() }
        };
        assert!(usable(&cut(20)).unwrap().accepts(&key), "LUKS1 heritage");
        for len in [0, 16, 19, 21, 31, 33, 64, 65] {
            assert!(matches!(usable(&cut(len)), Err(Error::DigestUnusable { .. })), "{len}");
        }
    }

    #[test]
    fn missing_and_hostile_members_are_named() {
        let fixed = FixedEnv::new(3, 1);
        let key = Secret::copy_of(&[7; 64]).unwrap();
        let good = make_digest(&fixed.env(), DigestCost::Minimal, HashAlg::Sha256, &key).unwrap();
        let limits = Limits { kdf_iterations: 1 << 20, ..Limits::default() };
        let of = |digest: Digest| UsableDigest::of(DigestId(0), &digest, &limits).err();
        assert!(matches!(of(Digest { hash: None, ..good.clone() }), Some(Error::DigestUnusable { .. })));
        assert!(matches!(of(Digest { salt: None, ..good.clone() }), Some(Error::DigestUnusable { .. })));
        assert!(matches!(of(Digest { digest: None, ..good.clone() }), Some(Error::DigestUnusable { .. })));
        assert!(matches!(of(Digest { iterations: None, ..good.clone() }), Some(Error::DigestUnusable { .. })));
        assert!(matches!(of(Digest { iterations: Some(u32::MAX), ..good.clone() }), Some(Error::KdfLimit { .. })));
        assert!(matches!(of(Digest { salt: Some("AAAA".into()), ..good.clone() }), Some(Error::Salt { .. })));
        assert!(matches!(of(Digest { type_name: "new".into(), ..good }), Some(Error::DigestUnusable { .. })));
    }
}
