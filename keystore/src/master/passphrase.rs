//! [`MasterPassphrase`]: the master secret is derived from a passphrase, with Argon2id (RFC 9106) and a salt that lies in
//! the store: `master.kdf`, one line of text.
//!
//! ```text
//! luksctl-master-kdf 1 argon2id MEMORY_KIB PASSES LANES SALT\n
//! ```
//!
//! The salt is 32 random bytes in hexadecimal. Derived rather than sealed: there is one secret less on the disk, and a wrong
//! passphrase is told by the metadata of the store. Whoever changes the line gets another master secret and is refused.
//!
//! Invariant: the cost is bounded before memory is taken.

use super::{Master, MasterSource};
use crate::Error;
use crate::limits::{ARGON2_LANES_MAX, ARGON2_MEMORY_KIB_MAX, ARGON2_PASSES_MAX};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use secret::{KeyProvider, KeyRequest, Purpose, Secret, Sheltered, scrubbed};

/// The file in the store that has salt and cost.
pub const PASSPHRASE_FILE: &str = "master.kdf";
const FIRST_WORDS: [&str; 3] = ["luksctl-master-kdf", "1", "argon2id"];
const DERIVED_BYTES: usize = 64;
const SALT_BYTES: usize = 32;

/// What one derivation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Cost {
    /// 256 MiB, four passes, four lanes: about a second.
    pub const DEFAULT: Argon2Cost = Argon2Cost { memory_kib: 256 << 10, passes: 4, lanes: 4 };

    fn check(&self) -> Result<(), Error> {
        for (field, value, least, most) in [
            ("lanes of Argon2id", self.lanes, 1, ARGON2_LANES_MAX),
            ("KiB of memory of Argon2id", self.memory_kib, 8 * self.lanes.min(ARGON2_LANES_MAX), ARGON2_MEMORY_KIB_MAX),
            ("passes of Argon2id", self.passes, 1, ARGON2_PASSES_MAX),
        ] {
            if !(least..=most).contains(&value) {
                let (value, least, most) = (value.into(), least.into(), most.into());
                return Err(Error::OutOfBounds { field, value, least, most });
            }
        }
        Ok(())
    }
}

/// Cost and salt, as they lie in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassphraseSalt {
    cost: Argon2Cost,
    salt: [u8; SALT_BYTES],
}

impl PassphraseSalt {
    /// A new random salt with this cost.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for the cost, [`Error::Io`] without randomness.
    pub fn random(cost: Argon2Cost) -> Result<PassphraseSalt, Error> {
        cost.check()?;
        let mut salt = [0; SALT_BYTES];
        super::fill_random(&mut salt)?;
        Ok(PassphraseSalt { cost, salt })
    }

    /// The line of the file.
    pub fn to_text(&self) -> String {
        let Argon2Cost { memory_kib, passes, lanes } = self.cost;
        let salt = crate::metadata::to_hex(&self.salt);
        format!("{} {memory_kib} {passes} {lanes} {salt}\n", FIRST_WORDS.join(" "))
    }

    /// Reads the line back.
    ///
    /// # Errors
    /// [`Error::Field`] names the word that makes no sense, [`Error::OutOfBounds`] the cost.
    pub fn from_text(text: &str) -> Result<PassphraseSalt, Error> {
        let wrong = |field: &str, problem: &str| Error::Field {
            file: PASSPHRASE_FILE,
            field: field.to_owned(),
            problem: problem.to_owned(),
        };
        let words: Vec<&str> = text.split_ascii_whitespace().take(8).collect();
        let [magic, version, algorithm, memory, passes, lanes, salt] = words[..] else {
            return Err(wrong("the line", "must have seven words"));
        };
        if [magic, version, algorithm] != FIRST_WORDS {
            return Err(wrong("the line", "must start with \"luksctl-master-kdf 1 argon2id\""));
        }
        let number = |field: &str, word: &str| word.parse().map_err(|_| wrong(field, "is not a number"));
        let cost = Argon2Cost {
            memory_kib: number("the memory", memory)?,
            passes: number("the passes", passes)?,
            lanes: number("the lanes", lanes)?,
        };
        cost.check()?;
        let salt = crate::metadata::from_hex(salt).ok_or_else(|| wrong("the salt", "is not 64 hexadecimal digits"))?;
        Ok(PassphraseSalt { cost, salt })
    }
}

/// A passphrase from a [`KeyProvider`] (a prompt, a descriptor, a key file), stretched.
pub struct MasterPassphrase<P> {
    provider: P,
    salt: PassphraseSalt,
    attempt: u32,
}

impl<P: KeyProvider> MasterPassphrase<P> {
    /// The passphrase that `provider` gives, with `salt`.
    pub fn new(provider: P, salt: PassphraseSalt) -> MasterPassphrase<P> {
        MasterPassphrase { provider, salt, attempt: 0 }
    }
}

impl<P: KeyProvider> MasterSource for MasterPassphrase<P> {
    fn describe(&self) -> String {
        "the master passphrase".to_owned()
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        self.attempt += 1;
        let request = KeyRequest { volume: "the key store", purpose: Purpose::Unlock, attempt: self.attempt };
        let passphrase = self.provider.key_for(&request)?.filter(|passphrase| !passphrase.is_empty());
        let passphrase = passphrase.ok_or_else(|| Error::NoMaster { what: self.describe() })?;
        Master::new(derive(&passphrase, &self.salt)?, &self.describe())
    }
}

fn derive(passphrase: &Secret, salt: &PassphraseSalt) -> Result<Secret, Error> {
    let Argon2Cost { memory_kib, passes, lanes } = salt.cost;
    let refused = |_| Error::OutOfBounds {
        field: "KiB of memory of Argon2id",
        value: memory_kib.into(),
        least: 8,
        most: ARGON2_MEMORY_KIB_MAX.into(),
    };
    let params = Params::new(memory_kib, passes, lanes, Some(DERIVED_BYTES)).map_err(refused)?;
    let mut memory: Sheltered<Block> = Sheltered::new(params.block_count())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Secret::fill_with(DERIVED_BYTES, |out| {
        let blocks: &mut [Block] = &mut memory;
        scrubbed(|| argon2.hash_password_into_with_memory(passphrase.expose(), &salt.salt, out, blocks))
            .map_err(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use secret::{KeySourceError, SecretError};

    struct Typed(&'static [u8]);

    impl KeyProvider for Typed {
        fn key_for(&mut self, _: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
            Ok(Some(Secret::copy_of(self.0).map_err(|error: SecretError| error)?))
        }
    }

    const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };

    #[test]
    fn one_passphrase_and_salt_give_one_master_secret() {
        let salt = PassphraseSalt::random(CHEAP).unwrap();
        let of = |passphrase, salt: &PassphraseSalt| {
            MasterPassphrase::new(Typed(passphrase), salt.clone()).fetch().unwrap().secret().expose().to_vec()
        };
        assert_eq!(of(b"correct horse", &salt), of(b"correct horse", &salt));
        assert_ne!(of(b"correct horse", &salt), of(b"correct hors", &salt));
        assert_ne!(of(b"correct horse", &salt), of(b"correct horse", &PassphraseSalt::random(CHEAP).unwrap()));
        let empty = MasterPassphrase::new(Typed(b""), salt).fetch();
        assert!(matches!(empty, Err(Error::NoMaster { .. })));
    }

    #[test]
    fn the_line_reads_back_and_nonsense_is_named() {
        let salt = PassphraseSalt::random(CHEAP).unwrap();
        let line = salt.to_text();
        assert_eq!(PassphraseSalt::from_text(&line).unwrap(), salt);
        for (wrong, field) in [
            (String::new(), "the line"),
            (line.replace("argon2id", "argon2i"), "the line"),
            (line.replace(" 64 ", " x "), "the memory"),
            (line.replace(" 64 1 1 ", " 64 1 17 "), "lanes"),
            (line.replace(" 64 ", " 4294967295 "), "memory"),
            (line.replace(" 64 1 1 ", " 64 0 1 "), "passes"),
            (line.trim_end()[..line.len() - 2].to_owned(), "the salt"),
        ] {
            let error = PassphraseSalt::from_text(&wrong).unwrap_err().to_string();
            assert!(error.contains(field), "{wrong}: {error}");
        }
    }
}
