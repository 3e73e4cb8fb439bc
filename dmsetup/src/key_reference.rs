//! The key word of a dm-crypt table: where the kernel finds the key, never the key.
//!
//! Invariant: no key bytes are kept. A table that another tool made may hold its key as hex digits; of those only the
//! number is remembered, and they print as zeros, as dmsetup prints them without `--showkeys`.
//! Source: Documentation/admin-guide/device-mapper/dm-crypt.rst.

use std::fmt;
use std::str::FromStr;

use crate::crypt_option::canonical;
use crate::dm_error::DmError;

/// More than any cipher of dm-crypt takes.
const KEY_MAX_BYTES: usize = 4096;

/// Type of a key in the kernel keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyType {
    /// Readable by the kernel only: what we and cryptsetup use.
    Logon,
    /// Readable by its owner.
    User,
    /// Wrapped by another key.
    Encrypted,
    /// Sealed by a TPM or another device.
    Trusted,
}

impl KeyType {
    fn word(self) -> &'static str {
        match self {
            KeyType::Logon => "logon",
            KeyType::User => "user",
            KeyType::Encrypted => "encrypted",
            KeyType::Trusted => "trusted",
        }
    }
}

/// Where the kernel finds the key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyReference {
    /// `:BYTES:TYPE:DESCRIPTION`: in the kernel keyring while the table is loaded.
    Keyring {
        /// Length of the key.
        len_bytes: u32,
        /// Type of the keyring's key.
        kind: KeyType,
        /// Its description.
        description: String,
    },
    /// `-`: the cipher has no key (`cipher_null`).
    Empty,
    /// The table holds hex digits: another tool's key, or the zeros that remain of a wiped one.
    Inline {
        /// Length of the key.
        len_bytes: u32,
        /// Every digit is zero: wiped, or already hidden by whoever printed the table.
        zeros: bool,
    },
}

impl KeyReference {
    /// A `logon` key for the digest of a LUKS volume, described as cryptsetup does: `cryptsetup:<uuid>-d<digest>`.
    /// `uuid` is the header's, with dashes.
    #[must_use]
    pub fn luks2(len_bytes: u32, uuid: &str, digest: u32) -> KeyReference {
        KeyReference::Keyring { len_bytes, kind: KeyType::Logon, description: format!("cryptsetup:{uuid}-d{digest}") }
    }

    /// Length of the key that is referred to.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        match self {
            KeyReference::Keyring { len_bytes, .. } | KeyReference::Inline { len_bytes, .. } => *len_bytes,
            KeyReference::Empty => 0,
        }
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyReference::Keyring { len_bytes, kind, description } => {
                write!(f, ":{len_bytes}:{}:{description}", kind.word())
            }
            KeyReference::Empty => f.write_str("-"),
            KeyReference::Inline { len_bytes, .. } => (0..*len_bytes).try_for_each(|_| f.write_str("00")),
        }
    }
}

impl FromStr for KeyReference {
    type Err = DmError;

    /// # Errors
    /// [`DmError::BadTable`], which never repeats the word: it may be a key.
    fn from_str(word: &str) -> Result<KeyReference, DmError> {
        let bad = |what| DmError::BadTable { what, token: format!("a word of {} bytes, not shown", word.len()) };
        if word == "-" {
            return Ok(KeyReference::Empty);
        }
        if let Some(reference) = word.strip_prefix(':') {
            let mut parts = reference.splitn(3, ':');
            let (Some(len), Some(kind), Some(description)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(bad("a key reference is :BYTES:TYPE:DESCRIPTION"));
            };
            let kind = [KeyType::Logon, KeyType::User, KeyType::Encrypted, KeyType::Trusted]
                .into_iter()
                .find(|known| known.word() == kind)
                .ok_or_else(|| bad("the type of a key is logon, user, encrypted or trusted"))?;
            let len_bytes = canonical(len).ok_or_else(|| bad("a key reference begins with the key's length"))?;
            if description.is_empty() || !description.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad("a key's description is one printable word"));
            }
            return Ok(KeyReference::Keyring { len_bytes, kind, description: description.to_owned() });
        }
        if word.is_empty() || !word.len().is_multiple_of(2) || word.len() > 2 * KEY_MAX_BYTES {
            return Err(bad("a key is hex digits, two for each byte"));
        }
        if !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad("a key is hex digits, a :reference or -"));
        }
        let len_bytes = u32::try_from(word.len() / 2).map_err(|_| bad("a key is hex digits, two for each byte"))?;
        Ok(KeyReference::Inline { len_bytes, zeros: word.bytes().all(|byte| byte == b'0') })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_print_as_they_were_read() {
        for word in [":64:logon:cryptsetup:7f0c9a4e-1234-4cde-8899-aabbccddeeff-d0", ":32:user:a:b", "-", "0000"] {
            assert_eq!(word.parse::<KeyReference>().unwrap().to_string(), word);
        }
        let ours = KeyReference::luks2(64, "7f0c9a4e-1234-4cde-8899-aabbccddeeff", 0);
        assert_eq!(ours.to_string(), ":64:logon:cryptsetup:7f0c9a4e-1234-4cde-8899-aabbccddeeff-d0");
    }

    #[test]
    fn a_key_in_a_table_is_counted_and_forgotten() {
        let reference: KeyReference = "00ffA07c".parse().unwrap();
        assert_eq!(reference, KeyReference::Inline { len_bytes: 4, zeros: false });
        assert_eq!(reference.to_string(), "00000000");
        assert!(!format!("{reference:?}").to_lowercase().contains("a07c"));
    }

    #[test]
    fn a_bad_word_is_not_repeated_in_the_error() {
        for word in [
            "",
            "deadbee",
            "deadbeefxx",
            ":64",
            ":64:logon",
            ":064:logon:x",
            ":1:secret:deadbeef",
            ":1:user:",
            ":1:user:a b",
        ] {
            let error = word.parse::<KeyReference>().unwrap_err().to_string();
            assert!(!error.contains("deadbee"), "{error}");
        }
    }
}
