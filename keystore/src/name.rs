//! [`KeyName`]: how a key or a small value is called, and so its file.
//!
//! Invariant: 1 to 64 bytes of `a-z A-Z 0-9 _ -`, starting with a letter or digit: never a path, never hidden, never with a
//! dot, so that `NAME.key.3` can be taken apart.

use crate::Error;
use crate::limits::NAME_BYTES_MAX;
use std::fmt;

/// The name of the master key's file, which no key of the store may have.
const MASTER: &str = "master";

/// A checked name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl KeyName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`Error::Name`] says what is wrong with it.
    pub fn new(name: &str) -> Result<KeyName, Error> {
        let wrong = |problem| Err(Error::Name { name: name.chars().take(NAME_BYTES_MAX).collect(), problem });
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return wrong("it must have 1 to 64 characters");
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            return wrong("only letters, digits, _ and - are allowed");
        }
        if !name.as_bytes()[0].is_ascii_alphanumeric() {
            return wrong("it must start with a letter or a digit");
        }
        if name == MASTER {
            return wrong("master.key is the master key's file");
        }
        Ok(KeyName(name.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_neither_paths_nor_hidden_nor_dotted() {
        for good in ["data", "a", "0", "backup-encryption", "API_KEY", &"x".repeat(64)] {
            assert_eq!(KeyName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "..", "a/b", "a.b", "-x", "_x", "master", "ä", "a b", "a\0", &"x".repeat(65)] {
            assert!(matches!(KeyName::new(bad), Err(Error::Name { .. })), "{bad:?}");
        }
    }
}
