//! dm-crypt cipher strings, `cipher-chainmode-ivmode[:ivopts]`, parsed and printed round trip.
//!
//! Invariant: a `CipherSpec` names a combination that [`crate::build`] can serve (the key's length aside).
//! Source: Linux `dm-crypt.rst`, "cipher"; shorthand of LUKS headers as cryptsetup reads it.

use std::fmt;
use std::str::FromStr;

use crate::CipherError;

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
    /// SHA-256; its 32 bytes become an AES-256 key.
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

/// A parsed cipher string such as `aes-xts-plain64`. Prints as the string that dm-crypt takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    mode: Mode,
    iv: Iv,
}

impl CipherSpec {
    /// Parses a full string, `cipher-mode-iv[:option]`; case matters, as in the kernel.
    ///
    /// # Errors
    /// [`CipherError::Unknown`] when the string has another shape, [`CipherError::Unsupported`] naming the part that
    /// is not available.
    pub fn parse(spec: &str) -> Result<Self, CipherError> {
        let mut parts = spec.splitn(3, '-');
        let (Some(cipher), Some(mode), Some(iv)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CipherError::Unknown { spec: cut(spec) });
        };
        if [cipher, mode, iv].iter().any(|part| part.is_empty()) {
            return Err(CipherError::Unknown { spec: cut(spec) });
        }
        let unsupported = |part: &str| CipherError::Unsupported { spec: cut(spec), part: cut(part) };
        if cipher != "aes" {
            return Err(unsupported(cipher));
        }
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
        Ok(Self { mode, iv })
    }

    /// Like [`CipherSpec::parse`], with the shorthand that old headers use: `aes` and `aes-plain` mean `aes-cbc-plain`.
    ///
    /// # Errors
    /// As [`CipherSpec::parse`].
    pub fn parse_shorthand(spec: &str) -> Result<Self, CipherError> {
        match spec.split_once('-') {
            None if !spec.is_empty() => Self::parse(&format!("{spec}-cbc-plain")),
            Some((cipher, "plain")) => Self::parse(&format!("{cipher}-cbc-plain")),
            _ => Self::parse(spec),
        }
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

    /// Key lengths in bytes that this string takes; an XTS key holds both halves.
    #[must_use]
    pub fn key_sizes(&self) -> &'static [usize] {
        match self.mode {
            Mode::Xts => &[32, 64],
            Mode::Cbc => &[16, 24, 32],
        }
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
        let mode = match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        };
        let iv = match self.iv {
            Iv::Plain => "plain",
            Iv::Plain64 => "plain64",
            Iv::Essiv(EssivHash::Sha256) => "essiv:sha256",
        };
        write!(f, "aes-{mode}-{iv}")
    }
}

/// The text as it may stand in a message: at most 80 characters.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 6] = [
        "aes-xts-plain64",
        "aes-xts-plain",
        "aes-xts-essiv:sha256",
        "aes-cbc-essiv:sha256",
        "aes-cbc-plain64",
        "aes-cbc-plain",
    ];

    #[test]
    fn every_string_prints_as_it_was_parsed() {
        for spec in ALL {
            assert_eq!(CipherSpec::parse(spec).unwrap().to_string(), spec);
        }
    }

    #[test]
    fn shorthand_means_cbc_plain() {
        for spec in ["aes", "aes-plain", "aes-cbc-plain"] {
            assert_eq!(CipherSpec::parse_shorthand(spec).unwrap().to_string(), "aes-cbc-plain");
        }
        for spec in ALL {
            assert_eq!(CipherSpec::parse_shorthand(spec).unwrap().to_string(), spec);
        }
        assert!(matches!(CipherSpec::parse_shorthand(""), Err(CipherError::Unknown { .. })));
    }

    #[test]
    fn wrong_shapes_are_unknown() {
        for spec in ["", "aes", "aes-xts", "-", "--", "aes--plain64", "-xts-plain64", "aes-xts-"] {
            assert!(matches!(CipherSpec::parse(spec), Err(CipherError::Unknown { .. })), "{spec:?}");
        }
    }

    #[test]
    fn the_missing_part_is_named() {
        for (spec, missing) in [
            ("serpent-xts-plain64", "serpent"),
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
