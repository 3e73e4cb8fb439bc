//! dm-crypt cipher strings, `cipher-chainmode-ivmode[:ivopts]` and `capi:chainmode(cipher)-ivmode[:ivopts]`, parsed and
//! printed round trip.
//!
//! Invariant: a `CipherSpec` names a combination that [`crate::build`] can serve (the key's length aside). What dm-crypt
//! knows besides is refused with a word on what it is (`known`).
//! Source: Linux `dm-crypt.rst`, "cipher"; shorthand of LUKS headers as cryptsetup reads it; luks2-format §8.

use std::fmt;
use std::str::FromStr;

use crate::{CipherError, known};

/// Block cipher; all have blocks of 16 bytes and keys of 16, 24 or 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// AES (FIPS 197).
    Aes,
    /// Serpent, of the AES competition.
    Serpent,
    /// Twofish, of the AES competition.
    Twofish,
    /// Camellia (RFC 3713).
    Camellia,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 4] = [Algorithm::Aes, Algorithm::Serpent, Algorithm::Twofish, Algorithm::Camellia];

    /// Name in cipher strings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Aes => "aes",
            Algorithm::Serpent => "serpent",
            Algorithm::Twofish => "twofish",
            Algorithm::Camellia => "camellia",
        }
    }
}

/// Chaining mode: how the blocks of one sector depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// XTS (IEEE 1619): each block under its own tweak; the key is data key ‖ tweak key.
    Xts,
    /// CBC (SP 800-38A): each block xored with the ciphertext before it.
    Cbc,
}

/// Hash of an ESSIV generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EssivHash {
    /// SHA-256; its 32 bytes become a key of the data's cipher.
    Sha256,
}

/// IV generator: what a sector's number becomes before the mode uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Iv {
    /// The number's low 32 bits, little-endian, zero filled: repeats every 2 TiB.
    Plain,
    /// The 64-bit number, little-endian, zero filled.
    Plain64,
    /// `plain64` encrypted under the hash of the whole volume key.
    Essiv(EssivHash),
}

/// A parsed cipher string such as `aes-xts-plain64`. Prints as the string that dm-crypt takes, in the spelling that it was
/// parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
    /// `capi:mode(cipher)-iv` instead of `cipher-mode-iv`.
    kernel_api: bool,
}

/// Start of the spelling that uses the names of the kernel's crypto API.
const KERNEL_API: &str = "capi:";

impl CipherSpec {
    /// Parses a full string, `cipher-mode-iv[:option]` or `capi:mode(cipher)-iv[:option]`; case matters, as in the kernel.
    ///
    /// # Errors
    /// [`CipherError::Unknown`] when the string has another shape, [`CipherError::Unsupported`] naming the part that
    /// is not available.
    pub fn parse(spec: &str) -> Result<Self, CipherError> {
        let unknown = || CipherError::Unknown { spec: cut(spec) };
        let unsupported =
            |part: &str| CipherError::Unsupported { spec: cut(spec), part: cut(part), what: known::what(part) };
        let kernel_api = spec.strip_prefix(KERNEL_API);
        let [cipher, mode, iv] = match kernel_api {
            Some(rest) => kernel_api_parts(rest).map_err(|template| match template {
                Some(template) => unsupported(template),
                None => unknown(),
            })?,
            None => match short_parts(spec) {
                Some(parts) => parts,
                // `cipher_null-ecb` and its like have no IV generator, and are known all the same.
                None => match spec.split('-').find(|part| known::what(part).is_some()) {
                    Some(part) => return Err(unsupported(part)),
                    None => return Err(unknown()),
                },
            },
        };
        if [cipher, mode, iv].iter().any(|part| part.is_empty()) {
            return Err(unknown());
        }
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == cipher);
        let algorithm = algorithm.ok_or_else(|| unsupported(cipher))?;
        let mode = match mode {
            "xts" => Mode::Xts,
            "cbc" => Mode::Cbc,
            other => return Err(unsupported(other)),
        };
        let iv = match iv {
            "plain" => Iv::Plain,
            "plain64" => Iv::Plain64,
            "essiv:sha256" => Iv::Essiv(EssivHash::Sha256),
            other => return Err(unsupported(other)),
        };
        Ok(Self { algorithm, mode, iv, kernel_api: kernel_api.is_some() })
    }

    /// Like [`CipherSpec::parse`], with the shorthand that old headers use: `aes` and `aes-plain` mean `aes-cbc-plain`.
    ///
    /// # Errors
    /// As [`CipherSpec::parse`].
    pub fn parse_shorthand(spec: &str) -> Result<Self, CipherError> {
        if spec.starts_with(KERNEL_API) {
            return Self::parse(spec);
        }
        match spec.split_once('-') {
            None if !spec.is_empty() => Self::parse(&format!("{spec}-cbc-plain")),
            Some((cipher, "plain")) => Self::parse(&format!("{cipher}-cbc-plain")),
            _ => Self::parse(spec),
        }
    }

    /// The block cipher.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The chaining mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The IV generator.
    #[must_use]
    pub fn iv(&self) -> Iv {
        self.iv
    }

    /// Whether it is spelled `capi:mode(cipher)-iv`. cryptsetup takes that for data, not for keyslots.
    #[must_use]
    pub fn is_kernel_api(&self) -> bool {
        self.kernel_api
    }

    /// The same encryption in the usual spelling, `cipher-mode-iv`.
    #[must_use]
    pub fn usual(&self) -> Self {
        Self { kernel_api: false, ..*self }
    }

    /// Key lengths in bytes that this string takes; an XTS key holds both halves.
    #[must_use]
    pub fn key_sizes(&self) -> &'static [usize] {
        match self.mode {
            Mode::Xts => &[32, 48, 64],
            Mode::Cbc => &[16, 24, 32],
        }
    }

    /// `key` does not have one of these lengths.
    pub(crate) fn wrong_key_size(&self, key: &[u8]) -> CipherError {
        CipherError::KeySize { spec: self.to_string(), got_bytes: key.len(), allowed: self.key_sizes() }
    }
}

/// Cipher, mode and IV generator of `cipher-mode-iv`.
fn short_parts(spec: &str) -> Option<[&str; 3]> {
    let mut parts = spec.splitn(3, '-');
    Some([parts.next()?, parts.next()?, parts.next()?])
}

/// The same of `mode(cipher)-iv`, or what stands in the place of `mode(cipher)` if that has another shape. As in the
/// kernel, the IV generator starts behind the last hyphen that is not in its option.
fn kernel_api_parts(rest: &str) -> Result<[&str; 3], Option<&str>> {
    let without_option = rest.rfind(':').map_or(rest, |colon| &rest[..colon]);
    let hyphen = without_option.rfind('-').ok_or(None)?;
    let (template, iv) = (&rest[..hyphen], &rest[hyphen + 1..]);
    let parts = template.strip_suffix(')').and_then(|inner| inner.split_once('('));
    match parts {
        Some((mode, cipher)) if !cipher.contains(['(', ')', ',']) && known::what(mode).is_none() => {
            Ok([cipher, mode, iv])
        }
        _ if template.is_empty() => Err(None),
        _ => Err(Some(template)),
    }
}

impl FromStr for CipherSpec {
    type Err = CipherError;

    fn from_str(spec: &str) -> Result<Self, CipherError> {
        Self::parse(spec)
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cipher = self.algorithm.name();
        let mode = match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        };
        let iv = match self.iv {
            Iv::Plain => "plain",
            Iv::Plain64 => "plain64",
            Iv::Essiv(EssivHash::Sha256) => "essiv:sha256",
        };
        if self.kernel_api {
            return write!(f, "{KERNEL_API}{mode}({cipher})-{iv}");
        }
        write!(f, "{cipher}-{mode}-{iv}")
    }
}

/// The text as it may stand in a message: at most 80 characters.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every string there is, in both spellings.
    fn all() -> Vec<String> {
        let mut all = Vec::new();
        for cipher in ["aes", "serpent", "twofish", "camellia"] {
            for mode in ["xts", "cbc"] {
                for iv in ["plain", "plain64", "essiv:sha256"] {
                    all.extend([format!("{cipher}-{mode}-{iv}"), format!("capi:{mode}({cipher})-{iv}")]);
                }
            }
        }
        all
    }

    #[test]
    fn every_string_prints_as_it_was_parsed() {
        for spec in all() {
            let parsed = CipherSpec::parse(&spec).unwrap();
            assert_eq!(parsed.to_string(), spec);
            assert_eq!(parsed.is_kernel_api(), spec.starts_with("capi:"));
        }
    }

    #[test]
    fn both_spellings_mean_the_same() {
        for pair in all().chunks(2) {
            let [usual, kernel_api] = [&pair[0], &pair[1]].map(|spec| CipherSpec::parse(spec).unwrap());
            assert_ne!(usual, kernel_api);
            assert_eq!(usual, kernel_api.usual());
            assert_eq!(usual, usual.usual());
        }
    }

    #[test]
    fn shorthand_means_cbc_plain() {
        for spec in ["aes", "aes-plain", "aes-cbc-plain"] {
            assert_eq!(CipherSpec::parse_shorthand(spec).unwrap().to_string(), "aes-cbc-plain");
        }
        for spec in all() {
            assert_eq!(CipherSpec::parse_shorthand(&spec).unwrap().to_string(), spec);
        }
        assert_eq!(CipherSpec::parse_shorthand("serpent-plain").unwrap().to_string(), "serpent-cbc-plain");
        assert!(matches!(CipherSpec::parse_shorthand(""), Err(CipherError::Unknown { .. })));
    }

    #[test]
    fn wrong_shapes_are_unknown() {
        for spec in [
            "",
            "aes",
            "aes-xts",
            "-",
            "--",
            "aes--plain64",
            "-xts-plain64",
            "aes-xts-",
            "capi:",
            "capi:-",
            "capi:-plain64",
            "capi:(aes)-plain64",
            "capi:xts()-plain64",
            "capi:xts(aes)-",
            "capi:xts(aes)",
        ] {
            assert!(matches!(CipherSpec::parse(spec), Err(CipherError::Unknown { .. })), "{spec:?}");
        }
    }

    #[test]
    fn the_missing_part_is_named() {
        for (spec, missing) in [
            ("anubis-xts-plain64", "anubis"),
            ("xchacha20,aes-adiantum-plain64", "xchacha20,aes"),
            ("cipher_null-ecb-plain", "cipher_null"),
            ("cipher_null-ecb", "cipher_null"),
            ("null", "null"),
            ("aes-ecb", "ecb"),
            ("aes-hctr2-plain64", "hctr2"),
            ("aes-gcm-random", "gcm"),
            ("capi:gcm(aes)-random", "gcm(aes)"),
            ("capi:authenc(hmac(sha256),xts(aes))-plain64", "authenc(hmac(sha256),xts(aes))"),
            ("capi:rfc7539(chacha20,poly1305)-random", "rfc7539(chacha20,poly1305)"),
            ("capi:xts(ecb(aes-generic))-plain64", "xts(ecb(aes-generic))"),
            ("capi:xts-aes-aesni-plain64", "xts-aes-aesni"),
            ("capi:xts(anubis)-plain64", "anubis"),
            ("capi:lrw(aes)-benbi", "lrw(aes)"),
            ("capi:xts(paes)-plain64", "paes"),
            ("capi:xts(aes)-essiv:sha1", "essiv:sha1"),
            ("capi:XTS(aes)-plain64", "XTS"),
            ("AES-xts-plain64", "AES"),
            ("aes-lrw-benbi", "lrw"),
            ("aes-xts-plain64be", "plain64be"),
            ("aes-cbc-essiv", "essiv"),
            ("aes-cbc-essiv:sha1", "essiv:sha1"),
            ("aes-xts-plain64-more", "plain64-more"),
            ("aes-xts-plain64 ", "plain64 "),
        ] {
            let Err(CipherError::Unsupported { part, .. }) = CipherSpec::parse(spec) else {
                panic!("{spec:?} was not refused as unsupported");
            };
            assert_eq!(part, missing);
        }
    }

    #[test]
    fn a_hostile_string_is_cut_in_the_message() {
        let error = CipherSpec::parse(&"é-".repeat(5000)).unwrap_err();
        assert!(error.to_string().len() < 600);
    }
}
