//! [`MasterKeyring`]: the master secret as the payload of a `user` key in the kernel's keyring.
//!
//! Only keys of type `user` (which `keyctl padd user NAME @u` makes) can be read back; `logon` keys can not, by design.

use super::{Master, MasterSource};
use crate::Error;
use secret::KeyringKey;

/// The `user` key of this description, found as request_key(2) finds it.
#[derive(Clone, Debug)]
pub struct MasterKeyring {
    description: String,
}

impl MasterKeyring {
    /// The key that is called so.
    pub fn new(description: impl Into<String>) -> MasterKeyring {
        MasterKeyring { description: description.into() }
    }
}

impl MasterSource for MasterKeyring {
    fn describe(&self) -> String {
        format!("the user key {:?} of the kernel's keyring", self.description)
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        let found = KeyringKey::new(self.description.as_str()).read()?;
        Master::new(found.ok_or_else(|| Error::NoMaster { what: self.describe() })?, &self.describe())
    }
}
