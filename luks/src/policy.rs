//! What a header may ask for and be: a [`Policy`], held against the header in memory before any key derivation.
//!
//! A LUKS header is not authenticated. Who can write to the disk can exchange it for one that says `cipher_null`, weakens the
//! cipher, demands hours of work, simulates a re-encryption, or is simply an old one. The rules of the format ([`crate::Rule`])
//! say what a header is; a policy says which of the valid ones this user accepts. **Pins** tie it to one very container.
//!
//! Invariants: a policy is plain data and does no I/O; it is judged on the same [`Header`] that unlocks afterwards, so nothing is
//! read again between check and use ([`crate::Container`] does so for every unlock and every edit); all breaches are named,
//! not only the first; the null cipher is accepted only if [`Policy::null_cipher`] says so, whatever the lists say.
//!
//! Sources: luks2-format §2–§5, §10; the incidents in `docs/lessons.md`. The numbers of [`Policy::strict`]: `docs/policy.md`.

mod breach;
mod judge;
mod pins;

use std::fmt;

use crate::any::AnyHeader;
use crate::error::Error;
use crate::header::Header;
use crate::luks1::Luks1Header;

pub(crate) use breach::list;
pub use breach::{Breach, Place, PolicyRule};
pub use pins::{Fingerprint, Pins};

/// The names that are accepted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Every name.
    Any,
    /// These and no others, compared without regard to case.
    Only(Vec<String>),
}

impl Names {
    /// These names and no others.
    pub fn only<I>(names: I) -> Names
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Names::Only(names.into_iter().map(Into::into).collect())
    }

    /// Whether `name` is among them.
    pub fn accepts(&self, name: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Only(names) => names.iter().any(|has| has.eq_ignore_ascii_case(name)),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Names::Any => f.write_str("any"),
            Names::Only(names) if names.is_empty() => f.write_str("none"),
            Names::Only(names) => f.write_str(&names.join(", ")),
        }
    }
}

/// The least and the most of a cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The floor: what protects the passphrase.
    pub min: u32,
    /// The ceiling: what protects the machine.
    pub max: u32,
}

impl Bounds {
    /// No floor and no ceiling; [`crate::Limits`] still holds.
    pub const ANY: Bounds = Bounds { min: 0, max: u32::MAX };
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds::ANY
    }
}

/// What is accepted of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// How messages call it.
    pub name: String,
    /// Versions of LUKS: 1, 2.
    pub versions: Vec<u16>,
    /// Ciphers of segments, in dm-crypt's notation.
    pub ciphers: Names,
    /// Ciphers of keyslot areas.
    pub keyslot_ciphers: Names,
    /// Whether data or keys may be "encrypted" by `cipher_null`, which encrypts nothing. No list above can say so.
    pub null_cipher: bool,
    /// Smallest volume key in bits. An XTS key counts with both halves.
    pub key_bits_min: u32,
    /// Smallest key of a keyslot area in bits.
    pub keyslot_key_bits_min: u32,
    /// Types of keyslots: `luks2`. A re-encryption's keyslot is judged by [`Policy::reencryption`].
    pub keyslot_types: Names,
    /// Key derivation functions: `argon2id`, `argon2i`, `pbkdf2`.
    pub kdf_types: Names,
    /// PBKDF2 iterations of keyslots. The ceiling holds for digests too; their floor is not judged, since their keys are
    /// random.
    pub pbkdf2_iterations: Bounds,
    /// Argon2 passes.
    pub argon2_passes: Bounds,
    /// Argon2 memory in KiB.
    pub argon2_memory_kib: Bounds,
    /// Argon2 lanes.
    pub argon2_lanes: Bounds,
    /// Hashes of key derivation, anti-forensic splitter, digests and header checksum.
    pub hashes: Names,
    /// Mandatory requirements. Those of a re-encryption are judged by [`Policy::reencryption`].
    pub requirements: Names,
    /// Types of segments: `crypt`.
    pub segment_types: Names,
    /// Whether a re-encryption may be under way.
    pub reencryption: bool,
    /// What ties the policy to one container.
    pub pins: Pins,
}

/// PBKDF2 iterations that [`Policy::strict`] wants, OWASP's number of 2023 for HMAC-SHA-256.
const STRICT_PBKDF2: Bounds = Bounds { min: 600_000, max: 50_000_000 };
/// The ciphers that [`Policy::strict`] accepts: XTS over the full sector number.
const STRICT_CIPHERS: [&str; 4] =
    ["aes-xts-plain64", "serpent-xts-plain64", "twofish-xts-plain64", "camellia-xts-plain64"];
/// The hashes that [`Policy::strict`] accepts: no collisions and no shorter than 256 bits.
const STRICT_HASHES: [&str; 10] = [
    "sha256",
    "sha384",
    "sha512",
    "sha3-256",
    "sha3-384",
    "sha3-512",
    "blake2b-256",
    "blake2b-384",
    "blake2b-512",
    "blake2s-256",
];

impl Policy {
    /// What holds when nothing else is said: every header that cryptsetup makes, but for the null cipher.
    pub fn default_preset() -> Policy {
        Policy {
            name: "default".to_owned(),
            versions: vec![1, 2],
            ciphers: Names::Any,
            keyslot_ciphers: Names::Any,
            null_cipher: false,
            key_bits_min: 0,
            keyslot_key_bits_min: 0,
            keyslot_types: Names::Any,
            kdf_types: Names::Any,
            pbkdf2_iterations: Bounds::ANY,
            argon2_passes: Bounds::ANY,
            argon2_memory_kib: Bounds::ANY,
            argon2_lanes: Bounds::ANY,
            hashes: Names::Any,
            requirements: Names::Any,
            segment_types: Names::Any,
            reencryption: true,
            pins: Pins::default(),
        }
    }

    /// What a careful administrator makes today, and nothing else: LUKS2, XTS with 256 bits or more, costs that slow an
    /// attacker down and do not stop the machine, no requirement, no re-encryption.
    pub fn strict() -> Policy {
        Policy {
            name: "strict".to_owned(),
            versions: vec![2],
            ciphers: Names::only(STRICT_CIPHERS),
            keyslot_ciphers: Names::only(STRICT_CIPHERS),
            null_cipher: false,
            key_bits_min: 256,
            keyslot_key_bits_min: 256,
            keyslot_types: Names::only(["luks2"]),
            kdf_types: Names::only(["argon2id", "argon2i", "pbkdf2"]),
            pbkdf2_iterations: STRICT_PBKDF2,
            argon2_passes: Bounds { min: 4, max: 100 },
            argon2_memory_kib: Bounds { min: 64 << 10, max: 1 << 20 },
            argon2_lanes: Bounds { min: 1, max: 16 },
            hashes: Names::only(STRICT_HASHES),
            requirements: Names::Only(Vec::new()),
            segment_types: Names::only(["crypt"]),
            reencryption: false,
            pins: Pins::default(),
        }
    }

    /// The preset of this name.
    pub fn preset(name: &str) -> Option<Policy> {
        match name {
            "default" => Some(Policy::default_preset()),
            "strict" => Some(Policy::strict()),
            _ => None,
        }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Policy {
        Policy { name: name.into(), ..self }
    }

    /// The same for one container.
    #[must_use]
    pub fn pinned(self, pins: Pins) -> Policy {
        Policy { pins, ..self }
    }

    /// The same with the null cipher accepted: data that is not encrypted at all.
    #[must_use]
    pub fn allowing_null_cipher(self) -> Policy {
        Policy { null_cipher: true, ..self }
    }

    /// Everything that `header` has or asks for and this policy does not accept.
    pub fn judge(&self, header: &Header) -> Vec<Breach> {
        judge::of_luks2(self, header)
    }

    /// As [`Policy::judge`], as a refusal.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check(&self, header: &Header) -> Result<(), Error> {
        self.refuse(self.judge(header))
    }

    /// As [`Policy::judge`], for LUKS1.
    pub fn judge_luks1(&self, header: &Luks1Header) -> Vec<Breach> {
        judge::of_luks1(self, header)
    }

    /// As [`Policy::check`], for LUKS1.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check_luks1(&self, header: &Luks1Header) -> Result<(), Error> {
        self.refuse(self.judge_luks1(header))
    }

    /// As [`Policy::judge`], for either version.
    pub fn judge_any(&self, header: &AnyHeader) -> Vec<Breach> {
        match header {
            AnyHeader::Luks1(header) => self.judge_luks1(header),
            AnyHeader::Luks2(header) => self.judge(header),
        }
    }

    /// As [`Policy::check`], for either version.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check_any(&self, header: &AnyHeader) -> Result<(), Error> {
        self.refuse(self.judge_any(header))
    }

    fn refuse(&self, breaches: Vec<Breach>) -> Result<(), Error> {
        if breaches.is_empty() { Ok(()) } else { Err(Error::Policy { policy: self.name.clone(), breaches }) }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::default_preset()
    }
}

/// Whether this cipher encrypts nothing: `cipher_null` in any of the kernel's spellings (`cipher_null-ecb`,
/// `capi:ecb(cipher_null)`, `ecb-cipher_null`, `null`).
pub fn is_null_cipher(encryption: &str) -> bool {
    encryption.to_ascii_lowercase().contains("null")
}

#[cfg(test)]
mod tests;
