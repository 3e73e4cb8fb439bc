//! The anti-forensic splitter `luks1`: a key blown up to 4000 stripes, every one of which is needed to get it back.
//!
//! With L the key length, N = [`STRIPES`], stripes s_0 … s_{N-1} of L bytes:
//!
//! ```text
//! D_0 = 0,  D_{i+1} = diffuse(D_i ^ s_i)  for i = 0 … N-2,  key = D_{N-1} ^ s_{N-1}
//! diffuse: block i of H-size bytes becomes H(be32(i) ‖ block i); a short last block keeps its length
//! ```
//!
//! Splitting draws s_0 … s_{N-2} at random and solves for the last. Source: LUKS2 format specification 1.1.4 (`af`
//! object), after C. Fruhwirth, "New Methods in Hard Disk Encryption" (2005), §5.2.
//!
//! Stripes and keys are only ever in [`Secret`] memory; the hash's work runs on a stack that is scrubbed.

use secret::{Secret, scrubbed};

use crate::env::Rng;
use crate::error::Error;
use crate::hash::HashAlg;

/// Stripes of every LUKS2 keyslot. The `stripes` member of the metadata is never used for reading.
pub const STRIPES: usize = 4000;

/// Length of the split form of a key of `key_len_bytes`, without padding to a sector.
pub fn split_len_bytes(key_len_bytes: usize) -> Option<usize> {
    key_len_bytes.checked_mul(STRIPES)
}

/// Merges the first `key_len_bytes` × [`STRIPES`] bytes of `material` into the key. Bytes after them are padding.
///
/// # Errors
/// [`Error::StripesShort`] when `material` holds fewer bytes or the key has none, [`Error::Secret`] without memory.
pub fn merge(alg: HashAlg, key_len_bytes: usize, material: &[u8]) -> Result<Secret, Error> {
    merge_stripes(alg, key_len_bytes, STRIPES, material)
}

/// Splits `key` into [`STRIPES`] stripes with random bytes of `rng`: the inverse of [`merge`].
///
/// # Errors
/// [`Error::Env`] when the random source fails, [`Error::Secret`] without memory.
pub fn split(alg: HashAlg, key: &Secret, rng: &dyn Rng) -> Result<Secret, Error> {
    let key_len_bytes = key.len();
    let len_bytes = split_len_bytes(key_len_bytes).filter(|len_bytes| *len_bytes > 0);
    let len_bytes = len_bytes.ok_or(Error::StripesShort { key_len_bytes, len_bytes: 0 })?;
    Secret::fill_with(len_bytes, |material| {
        let last = len_bytes - key_len_bytes;
        rng.fill(&mut material[..last])?;
        let mut state = Secret::zeroed(key_len_bytes)?;
        let (random, tail) = material.split_at_mut(last);
        diffuse_all(alg, state.expose_mut(), random);
        tail.copy_from_slice(key.expose());
        xor_into(tail, state.expose());
        Ok(())
    })
}

fn merge_stripes(alg: HashAlg, key_len_bytes: usize, stripes: usize, material: &[u8]) -> Result<Secret, Error> {
    let short = Error::StripesShort { key_len_bytes, len_bytes: material.len() };
    let Some(len_bytes) = key_len_bytes.checked_mul(stripes).filter(|len| *len > 0 && *len <= material.len()) else {
        return Err(short);
    };
    let (random, last) = material[..len_bytes].split_at(len_bytes - key_len_bytes);
    Secret::fill_with(key_len_bytes, |state| {
        diffuse_all(alg, state, random);
        xor_into(state, last);
        Ok(())
    })
}

/// Runs `state = diffuse(state ^ stripe)` over all `stripes`, scrubbing the stack once at the end.
fn diffuse_all(alg: HashAlg, state: &mut [u8], stripes: &[u8]) {
    scrubbed(|| {
        for stripe in stripes.chunks_exact(state.len()) {
            xor_into(state, stripe);
            diffuse(alg, state);
        }
    });
}

/// Replaces each block of digest size by the hash of its 32-bit big-endian number and its content.
fn diffuse(alg: HashAlg, state: &mut [u8]) {
    let mut whole = [0; crate::hash::MAX_DIGEST_BYTES];
    for (number, block) in (0u32..).zip(state.chunks_mut(alg.digest_len_bytes())) {
        let out = &mut whole[..block.len()];
        alg.digest(&[&number.to_be_bytes(), block], out);
        block.copy_from_slice(out);
    }
}

fn xor_into(target: &mut [u8], other: &[u8]) {
    for (byte, with) in target.iter_mut().zip(other) {
        *byte ^= with;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;
    use crate::hex::hex;

    fn diffused(alg: HashAlg, len: u8) -> String {
        let mut state: Vec<u8> = (0..len).collect();
        diffuse(alg, &mut state);
        hex(&state)
    }

    /// Vectors computed once from the formula and checked against images of cryptsetup 2.6.1.
    #[test]
    fn diffuse_has_the_known_vectors() {
        assert_eq!(
            diffused(HashAlg::Sha256, 0x28),
            "bff51a6d513395979e3a870c8483769a5a70002e6e32c146c53e1d2edc4670029168dfa0b824fbae"
        );
        assert_eq!(diffused(HashAlg::Sha1, 0x20), "84e066de1e0d3544386085dd64a6451af137c6f0348ec54d3df31b787d1ba9d0");
    }

    #[test]
    fn merge_of_three_stripes_has_the_known_vector() {
        let material: Vec<u8> = (0..120u32).map(|i| ((7 * i + 3) & 255) as u8).collect();
        let key = merge_stripes(HashAlg::Sha256, 40, 3, &material).unwrap();
        assert_eq!(
            hex(key.expose()),
            "8a4eb0cf11f4c942ca2d2b262902ae512df55813bf0c67c538d726ccc0120354385c7de83e4b7498"
        );
    }

    #[test]
    fn split_then_merge_gives_the_key_for_every_hash() {
        let fixed = FixedEnv::new(1, 1);
        for alg in HashAlg::all() {
            for len in [1usize, 16, 33, 64] {
                let key = Secret::copy_of(&vec![0xa5; len]).unwrap();
                let mut material = split(alg, &key, &fixed).unwrap();
                assert_eq!(material.len(), len * STRIPES);
                let merged = merge(alg, len, material.expose()).unwrap();
                assert!(merged.ct_eq(key.expose()), "{} {len}", alg.name());
                // One flipped bit anywhere loses the key. (Chains of single bytes soon meet again.)
                material.expose_mut()[len * 17] ^= 1;
                assert!(len == 1 || !merge(alg, len, material.expose()).unwrap().ct_eq(key.expose()));
            }
        }
    }

    #[test]
    fn too_few_stripes_and_empty_keys_are_named_errors() {
        let material = vec![0; 16 * STRIPES - 1];
        assert!(matches!(merge(HashAlg::Sha256, 16, &material), Err(Error::StripesShort { .. })));
        assert!(matches!(merge(HashAlg::Sha256, 0, &material), Err(Error::StripesShort { .. })));
        assert!(matches!(merge(HashAlg::Sha256, usize::MAX, &material), Err(Error::StripesShort { .. })));
    }
}
