//! [`Master`]: the secret that everything in a store hangs on, and the sources it comes from.
//!
//! Each source is a [`MasterSource`]: a file of mode 0600, a passphrase, a credential of systemd, a key of the kernel's
//! keyring, the output of a command. What the source gives is used as it is, byte for byte; only a passphrase is stretched.
//!
//! Invariants: 32 bytes to 8 KiB; in locked memory only; never used as a key itself but through HKDF-SHA256 (RFC 5869).

mod command;
mod credential;
mod file;
mod keyring;
mod passphrase;

pub use command::MasterCommand;
pub use credential::MasterCredential;
pub use file::MasterFile;
pub use keyring::MasterKeyring;
pub use passphrase::{Argon2Cost, MasterPassphrase, PASSPHRASE_FILE, PassphraseSalt};

use crate::Error;
use crate::limits::{MASTER_BYTES_MAX, MASTER_BYTES_MIN};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use secret::{Secret, scrubbed};
use sha2::Sha256;
use uuid::Uuid;

const ID_INFO: &[u8] = b"luksctl key store 1 master id";
const METADATA_INFO: &[u8] = b"luksctl key store 1 metadata";

/// The master secret of a store.
#[derive(Debug)]
pub struct Master(Secret);

impl Master {
    /// Takes `secret`, which came from `what`.
    ///
    /// # Errors
    /// [`Error::MasterSize`] below 32 bytes or above 8 KiB.
    pub fn new(secret: Secret, what: &str) -> Result<Master, Error> {
        if !(MASTER_BYTES_MIN..=MASTER_BYTES_MAX).contains(&secret.len()) {
            return Err(Error::MasterSize {
                what: what.to_owned(),
                got_bytes: secret.len(),
                least_bytes: MASTER_BYTES_MIN,
                limit_bytes: MASTER_BYTES_MAX,
            });
        }
        Ok(Master(secret))
    }

    /// A new one of 64 random bytes.
    ///
    /// # Errors
    /// [`Error::Io`] without randomness, [`Error::Secret`].
    pub fn random() -> Result<Master, Error> {
        Ok(Master(random_secret(64)?))
    }

    /// HKDF-SHA256 over the master secret.
    pub(crate) fn derive(&self, salt: &[u8], info: &[&[u8]], len_bytes: usize) -> Result<Secret, Error> {
        Secret::fill_with(len_bytes, |out| {
            scrubbed(|| Hkdf::<Sha256>::new(Some(salt), self.0.expose()).expand_multi_info(info, out)).map_err(|_| {
                Error::OutOfBounds { field: "derived bytes", value: len_bytes as u64, least: 1, most: 255 * 32 }
            })
        })
    }

    /// Tells this master secret from another one in store `store`; says nothing about it.
    ///
    /// # Errors
    /// [`Error::Secret`].
    pub fn id(&self, store: Uuid) -> Result<[u8; 16], Error> {
        let mut id = [0; 16];
        id.copy_from_slice(self.derive(store.as_bytes(), &[ID_INFO], 16)?.expose());
        Ok(id)
    }

    /// HMAC-SHA256 of the metadata.
    pub(crate) fn authenticate(&self, store: Uuid, content: &[u8]) -> Result<[u8; 32], Error> {
        let key = self.derive(store.as_bytes(), &[METADATA_INFO], 32)?;
        scrubbed(|| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).map_err(|_| Error::OutOfBounds {
                field: "the key of HMAC",
                value: 0,
                least: 1,
                most: 64,
            })?;
            mac.update(content);
            Ok(mac.finalize().into_bytes().into())
        })
    }

    /// The bytes, for the file of a [`MasterFile`].
    pub(crate) fn secret(&self) -> &Secret {
        &self.0
    }
}

/// `len_bytes` random bytes, straight from the kernel into locked memory.
pub(crate) fn random_secret(len_bytes: usize) -> Result<Secret, Error> {
    Secret::fill_with(len_bytes, fill_random)
}

/// Random bytes from the kernel.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|error| Error::Io {
        what: "read randomness".to_owned(),
        source: error.raw_os_error().map_or(std::io::ErrorKind::Other.into(), std::io::Error::from_raw_os_error),
    })
}

/// Where a master secret comes from.
pub trait MasterSource {
    /// What people call it, with its place: `the file /opt/keys/master.key`.
    fn describe(&self) -> String;

    /// Fetches the secret.
    ///
    /// # Errors
    /// [`Error::NoMaster`] where it has none, [`Error::MasterSize`], and what the source has to say.
    fn fetch(&mut self) -> Result<Master, Error>;
}

impl<S: MasterSource + ?Sized> MasterSource for Box<S> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        (**self).fetch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_secret_has_32_bytes_to_8_kib() {
        for (len_bytes, fits) in [(0, false), (31, false), (32, true), (8192, true), (8193, false)] {
            let made = Master::new(Secret::zeroed(len_bytes).unwrap(), "a test");
            assert_eq!(made.is_ok(), fits, "{len_bytes}");
        }
    }

    /// RFC 5869, A.1 with its 22 bytes of input; the length check is not in the way of `derive`.
    #[test]
    fn derivation_is_hkdf_sha256() {
        let master = Master(Secret::copy_of(&[0x0b; 22]).unwrap());
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let out = master.derive(&salt, &[&info[..4], &info[4..]], 42).unwrap();
        let hex: String = out.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    }

    #[test]
    fn the_id_depends_on_master_and_store() {
        let (one, other) = (Master::random().unwrap(), Master::random().unwrap());
        let store = Uuid::from_bytes([1; 16]);
        assert_eq!(one.id(store).unwrap(), one.id(store).unwrap());
        assert_ne!(one.id(store).unwrap(), other.id(store).unwrap());
        assert_ne!(one.id(store).unwrap(), one.id(Uuid::from_bytes([2; 16])).unwrap());
    }
}
