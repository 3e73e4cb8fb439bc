//! Hash functions under the names that LUKS2 metadata uses, and PBKDF2 over HMAC of each.
//!
//! Names are compared without regard to case, and the spellings that cryptsetup's OpenSSL backend also accepts
//! (`sha-256`, `rmd160`, `blake2b512`) are understood; the text in the metadata is never rewritten. MD5 and other hashes
//! shorter than the 20 bytes that a LUKS2 digest needs are not offered, except `blake2s-128`, which can still serve a
//! keyslot's KDF.
//!
//! Sources: FIPS 180-4 (SHA-1, SHA-2), FIPS 202 (SHA-3), ISO/IEC 10118-3 (RIPEMD-160, Whirlpool), RFC 7693 (BLAKE2),
//! RFC 2104 (HMAC), RFC 8018 §5.2 (PBKDF2).
//!
//! Nothing here allocates. Input blocks and chaining values pass over the stack: callers that feed secrets run under
//! [`secret::scrubbed`].

use digest::{Digest, Output};
use hmac::{Hmac, SimpleHmac};
use zeroize::Zeroize;

use crate::error::Error;

/// The longest digest of all [`HashAlg`]s, in bytes.
pub const MAX_DIGEST_BYTES: usize = 64;

/// A hash function that LUKS2 metadata can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the hash of its name")]
#[non_exhaustive]
pub enum HashAlg {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Sha512_224,
    Sha512_256,
    Sha3_224,
    Sha3_256,
    Sha3_384,
    Sha3_512,
    Ripemd160,
    Whirlpool,
    Blake2b160,
    Blake2b256,
    Blake2b384,
    Blake2b512,
    Blake2s128,
    Blake2s160,
    Blake2s224,
    Blake2s256,
}

/// Every hash with its LUKS2 name, its digest length in bytes and the other spellings understood.
const TABLE: [(HashAlg, &str, usize, &[&str]); 21] = [
    (HashAlg::Sha1, "sha1", 20, &["sha-1"]),
    (HashAlg::Sha224, "sha224", 28, &["sha-224", "sha2-224"]),
    (HashAlg::Sha256, "sha256", 32, &["sha-256", "sha2-256"]),
    (HashAlg::Sha384, "sha384", 48, &["sha-384", "sha2-384"]),
    (HashAlg::Sha512, "sha512", 64, &["sha-512", "sha2-512"]),
    (HashAlg::Sha512_224, "sha512-224", 28, &["sha-512/224", "sha2-512/224"]),
    (HashAlg::Sha512_256, "sha512-256", 32, &["sha-512/256", "sha2-512/256"]),
    (HashAlg::Sha3_224, "sha3-224", 28, &[]),
    (HashAlg::Sha3_256, "sha3-256", 32, &[]),
    (HashAlg::Sha3_384, "sha3-384", 48, &[]),
    (HashAlg::Sha3_512, "sha3-512", 64, &[]),
    (HashAlg::Ripemd160, "ripemd160", 20, &["rmd160", "ripemd", "ripemd-160"]),
    (HashAlg::Whirlpool, "whirlpool", 64, &[]),
    (HashAlg::Blake2b160, "blake2b-160", 20, &[]),
    (HashAlg::Blake2b256, "blake2b-256", 32, &[]),
    (HashAlg::Blake2b384, "blake2b-384", 48, &[]),
    (HashAlg::Blake2b512, "blake2b-512", 64, &["blake2b512"]),
    (HashAlg::Blake2s128, "blake2s-128", 16, &[]),
    (HashAlg::Blake2s160, "blake2s-160", 20, &[]),
    (HashAlg::Blake2s224, "blake2s-224", 28, &[]),
    (HashAlg::Blake2s256, "blake2s-256", 32, &["blake2s256"]),
];

/// Runs `$call!(HashType, MacType)` for the types behind `$alg`. BLAKE2 buffers its last block lazily, so its HMAC is
/// the plain one over whole hashes.
macro_rules! with_types {
    ($alg:expr, $call:ident) => {{
        use blake2::{Blake2b, Blake2s};
        use digest::consts::{U16, U20, U28, U32, U48, U64};
        match $alg {
            HashAlg::Sha1 => $call!(sha1::Sha1, Hmac),
            HashAlg::Sha224 => $call!(sha2::Sha224, Hmac),
            HashAlg::Sha256 => $call!(sha2::Sha256, Hmac),
            HashAlg::Sha384 => $call!(sha2::Sha384, Hmac),
            HashAlg::Sha512 => $call!(sha2::Sha512, Hmac),
            HashAlg::Sha512_224 => $call!(sha2::Sha512_224, Hmac),
            HashAlg::Sha512_256 => $call!(sha2::Sha512_256, Hmac),
            HashAlg::Sha3_224 => $call!(sha3::Sha3_224, Hmac),
            HashAlg::Sha3_256 => $call!(sha3::Sha3_256, Hmac),
            HashAlg::Sha3_384 => $call!(sha3::Sha3_384, Hmac),
            HashAlg::Sha3_512 => $call!(sha3::Sha3_512, Hmac),
            HashAlg::Ripemd160 => $call!(ripemd::Ripemd160, Hmac),
            HashAlg::Whirlpool => $call!(whirlpool::Whirlpool, Hmac),
            HashAlg::Blake2b160 => $call!(Blake2b<U20>, SimpleHmac),
            HashAlg::Blake2b256 => $call!(Blake2b<U32>, SimpleHmac),
            HashAlg::Blake2b384 => $call!(Blake2b<U48>, SimpleHmac),
            HashAlg::Blake2b512 => $call!(Blake2b<U64>, SimpleHmac),
            HashAlg::Blake2s128 => $call!(Blake2s<U16>, SimpleHmac),
            HashAlg::Blake2s160 => $call!(Blake2s<U20>, SimpleHmac),
            HashAlg::Blake2s224 => $call!(Blake2s<U28>, SimpleHmac),
            HashAlg::Blake2s256 => $call!(Blake2s<U32>, SimpleHmac),
        }
    }};
}

impl HashAlg {
    /// The hash that metadata calls `name`, in any case.
    ///
    /// # Errors
    /// [`Error::UnknownHash`] with the name.
    pub fn parse(name: &str) -> Result<HashAlg, Error> {
        TABLE
            .iter()
            .find(|(_, own, _, others)| {
                own.eq_ignore_ascii_case(name) || others.iter().any(|other| other.eq_ignore_ascii_case(name))
            })
            .map(|row| row.0)
            .ok_or_else(|| Error::UnknownHash { name: name.chars().take(80).collect() })
    }

    /// Every hash known, in the order of the table of names.
    pub fn all() -> impl Iterator<Item = HashAlg> {
        TABLE.iter().map(|row| row.0)
    }

    /// The name under which metadata is written.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// Length of a digest, 16 to [`MAX_DIGEST_BYTES`] bytes.
    pub fn digest_len_bytes(self) -> usize {
        TABLE.iter().find(|row| row.0 == self).map_or(0, |row| row.2)
    }

    /// Writes the first `out.len()` bytes of the hash of `parts` put end to end.
    ///
    /// # Panics
    /// When `out` is longer than [`digest_len_bytes`](Self::digest_len_bytes): a caller's bug.
    pub fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        macro_rules! run {
            ($hash:ty, $mac:ident) => {
                digest_into::<$hash>(parts, out)
            };
        }
        with_types!(self, run);
    }

    /// `PBKDF2-HMAC-hash(passphrase, salt, iterations)` cut to `out.len()` bytes (RFC 8018 §5.2):
    /// T_i = U_1 ^ … ^ U_c, U_1 = HMAC(P, S ‖ be32(i)), U_j = HMAC(P, U_{j-1}).
    ///
    /// `iterations` of 0 counts as 1, as every implementation treats it. One thread; no bound on the work: see
    /// [`derive`](crate::kdf::derive).
    pub fn pbkdf2(self, passphrase: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        macro_rules! run {
            ($hash:ty, $mac:ident) => {
                // An HMAC key may have any length, so the error arm is never taken; it leaves no key, only zeros.
                if pbkdf2::pbkdf2::<$mac<$hash>>(passphrase, salt, iterations, out).is_err() {
                    out.fill(0);
                }
            };
        }
        with_types!(self, run);
    }
}

fn digest_into<H: Digest>(parts: &[&[u8]], out: &mut [u8]) {
    let mut state = H::new();
    for part in parts {
        state.update(part);
    }
    let mut whole: Output<H> = state.finalize();
    out.copy_from_slice(&whole[..out.len()]);
    whole.as_mut_slice().zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::{hex, unhex};

    #[test]
    fn names_are_found_in_any_case_and_unknown_ones_named() {
        for alg in HashAlg::all() {
            assert_eq!(HashAlg::parse(alg.name()).unwrap(), alg);
            assert_eq!(HashAlg::parse(&alg.name().to_uppercase()).unwrap(), alg);
        }
        assert_eq!(HashAlg::parse("rmd160").unwrap(), HashAlg::Ripemd160);
        assert_eq!(HashAlg::parse("Sha-256").unwrap(), HashAlg::Sha256);
        for name in ["", "md5", "sha", "sha2561", "sha256 ", "sm3", "blake2b-128"] {
            let error = HashAlg::parse(name).unwrap_err();
            assert!(matches!(&error, Error::UnknownHash { name: n } if n == name), "{error}");
        }
    }

    /// Known answers for the three bytes "abc", from the standards named above; for the shorter BLAKE2 from Python's hashlib.
    #[test]
    fn abc_has_the_published_digest() {
        let vectors = [
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                "sha384",
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                "sha512",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            ("sha512-224", "4634270f707b6a54daae7530460842e20e37ed265ceee9a43e8924aa"),
            ("sha512-256", "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"),
            ("ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
            (
                "whirlpool",
                "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c7181eebdb6c57e277d0e34957114cbd6c797fc9d95d8b582d225292076d4eef5",
            ),
            ("sha3-224", "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
            ("sha3-256", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
            (
                "sha3-384",
                "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b298d88cea927ac7f539f1edf228376d25",
            ),
            (
                "sha3-512",
                "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
            ),
            (
                "blake2b-512",
                "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
            ),
            ("blake2b-160", "384264f676f39536840523f284921cdc68b6846b"),
            (
                "blake2b-384",
                "6f56a82c8e7ef526dfe182eb5212f7db9df1317e57815dbda46083fc30f54ee6c66ba83be64b302d7cba6ce15bb556f4",
            ),
            ("blake2s-128", "aa4938119b1dc7b87cbad0ffd200d0ae"),
            ("blake2s-160", "5ae3b99be29b01834c3b508521ede60438f8de17"),
            ("blake2s-224", "0b033fc226df7abde29f67a05d3dc62cf271ef3dfea4d387407fbd55"),
            ("blake2b-256", "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
            ("blake2s-256", "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
        ];
        for (name, expected) in vectors {
            let alg = HashAlg::parse(name).unwrap();
            let mut out = vec![0; alg.digest_len_bytes()];
            alg.digest(&[b"a", b"", b"bc"], &mut out);
            assert_eq!(hex(&out), expected, "{name}");
        }
        assert_eq!(vectors.len(), TABLE.len(), "every hash has its vector");
    }

    #[test]
    fn every_hash_fills_its_length_and_a_shorter_output_is_a_prefix() {
        for alg in HashAlg::all() {
            let mut whole = vec![0; alg.digest_len_bytes()];
            alg.digest(&[b"abc"], &mut whole);
            assert!(whole.iter().any(|byte| *byte != 0), "{}", alg.name());
            let mut part = [0; 7];
            alg.digest(&[b"abc"], &mut part);
            assert_eq!(part[..], whole[..7], "{}", alg.name());
        }
    }

    /// Passphrase, salt, iterations, derived key.
    type Vector = (&'static [u8], &'static [u8], u32, &'static str);

    /// RFC 6070, and the same inputs for SHA-256 from RFC 7914 §11.
    #[test]
    fn pbkdf2_has_the_published_vectors() {
        let sha1: [Vector; 5] = [
            (b"password", b"salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
            (b"password", b"salt", 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"),
            (b"password", b"salt", 4096, "4b007901b765489abead49d926f721d065a429c1"),
            (
                b"passwordPASSWORDpassword",
                b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
                4096,
                "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
            ),
            (b"pass\0word", b"sa\0lt", 4096, "56fa6aa75548099dcc37d7f03425e0c3"),
        ];
        for (passphrase, salt, iterations, expected) in sha1 {
            let mut out = vec![0; expected.len() / 2];
            HashAlg::Sha1.pbkdf2(passphrase, salt, iterations, &mut out);
            assert_eq!(hex(&out), expected);
        }
        let mut out = [0; 64];
        HashAlg::Sha256.pbkdf2(b"passwd", b"salt", 1, &mut out);
        assert_eq!(
            out[..],
            unhex(
                "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
            )[..]
        );
    }
}
