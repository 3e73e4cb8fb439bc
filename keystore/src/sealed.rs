//! One sealed file: a secret of at most 64 KiB under AES-256-GCM, with a header that says what it is.
//!
//! ```text
//!   0  8  magic "LKSEALED"             64 64  name, zeros behind it
//!   8  2  version, 1                  128 32  salt of HKDF
//!  10  1  purpose                     160 12  nonce of AES-GCM
//!  11  1  zero                        172 16  master id
//!  12  4  bytes of the secret, n      188  4  zeros
//!  16  8  generation                  192  n  ciphertext
//!  24  8  created, seconds            192+n 16  tag
//!  32 16  UUID of the store
//!  48 16  UUID of the volume, or zeros
//! ```
//!
//! Integers are big-endian. key = HKDF-SHA256(master, salt, "luksctl key store 1 seal" ‖ purpose ‖ generation ‖ store ‖
//! volume ‖ name field), 32 bytes; the header, bytes 0 to 191, is the associated data. Sources: RFC 5869, NIST SP 800-38D.
//!
//! Invariants: the key of AES-GCM is used once, as each file has its own salt of 32 random bytes; nothing is given out
//! before the tag was held; the secret is in locked memory only.

use crate::limits::{NAME_BYTES_MAX, SEALED_BYTES_MAX};
use crate::{Error, Master, Timestamp};
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit, Nonce, Tag};
use secret::{Secret, scrubbed};
use uuid::Uuid;

/// The first bytes of a sealed file.
pub const MAGIC: &[u8; 8] = b"LKSEALED";
/// The version that is written and read here.
pub const VERSION: u16 = 1;
/// Bytes before the ciphertext.
pub const HEADER_BYTES: usize = 192;
/// Bytes behind it.
pub const TAG_BYTES: usize = 16;
/// The most a sealed file can have.
pub const FILE_BYTES_MAX: usize = HEADER_BYTES + SEALED_BYTES_MAX + TAG_BYTES;
const SEAL_INFO: &[u8] = b"luksctl key store 1 seal";

const GENERATION_AT: usize = 16;
const CREATED_AT: usize = 24;
const STORE_AT: usize = 32;
const VOLUME_AT: usize = 48;
const NAME_AT: usize = 64;
const SALT_AT: usize = NAME_AT + NAME_BYTES_MAX;
const NONCE_AT: usize = SALT_AT + 32;
const MASTER_AT: usize = NONCE_AT + 12;
const RESERVED_AT: usize = MASTER_AT + 16;
const _: () = assert!(RESERVED_AT + 4 == HEADER_BYTES);

/// What a sealed secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The key of a volume, the bytes of its key file.
    VolumeKey = 1,
    /// The key that backups are encrypted with.
    BackupKey = 2,
    /// The recovery key.
    RecoveryKey = 3,
    /// A small value for a program.
    Value = 4,
}

impl Purpose {
    fn from_byte(byte: u8) -> Option<Purpose> {
        [Purpose::VolumeKey, Purpose::BackupKey, Purpose::RecoveryKey, Purpose::Value]
            .into_iter()
            .find(|purpose| *purpose as u8 == byte)
    }
}

/// What a sealed file is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What it is for.
    pub purpose: Purpose,
    /// The store it belongs to.
    pub store: Uuid,
    /// The volume that it opens; nil where there is none.
    pub volume: Uuid,
    /// The name of the key.
    pub name: String,
    /// Which generation.
    pub generation: u64,
}

/// A header as it stands in a file. Not to be believed before [`open`] held the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the file says that it is.
    pub label: Label,
    /// When it says that the secret was made.
    pub created: Timestamp,
    /// Which master secret it says it was sealed under.
    pub master_id: [u8; 16],
}

/// The bytes of a part of the header whose place is fixed.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Reads the header of `file` without a master secret.
///
/// # Errors
/// [`Error::NotSealed`], [`Error::Version`], [`Error::SealedSize`], [`Error::Changed`] for a header that was never written.
pub fn header(file: &str, bytes: &[u8]) -> Result<Header, Error> {
    let file = || file.to_owned();
    if bytes.len() < 10 || &bytes[..8] != MAGIC {
        return Err(Error::NotSealed { file: file() });
    }
    let version = u16::from_be_bytes(field(bytes, 8));
    if version != VERSION {
        return Err(Error::Version { file: file(), version });
    }
    let least = HEADER_BYTES + TAG_BYTES;
    if bytes.len() < least {
        return Err(Error::SealedSize { file: file(), got_bytes: bytes.len(), wanted_bytes: least });
    }
    let len_bytes = u32::from_be_bytes(field(bytes, 12)) as usize;
    if len_bytes > SEALED_BYTES_MAX {
        return Err(Error::Changed { file: file() });
    }
    if bytes.len() != least + len_bytes {
        return Err(Error::SealedSize { file: file(), got_bytes: bytes.len(), wanted_bytes: least + len_bytes });
    }
    let name_field: [u8; NAME_BYTES_MAX] = field(bytes, NAME_AT);
    let name_len = name_field.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES_MAX);
    let (name, behind) = name_field.split_at(name_len);
    let zeros = bytes[11] == 0 && behind.iter().chain(&bytes[RESERVED_AT..HEADER_BYTES]).all(|byte| *byte == 0);
    match (Purpose::from_byte(bytes[10]), std::str::from_utf8(name)) {
        (Some(purpose), Ok(name)) if zeros => Ok(Header {
            label: Label {
                purpose,
                store: Uuid::from_bytes(field(bytes, STORE_AT)),
                volume: Uuid::from_bytes(field(bytes, VOLUME_AT)),
                name: name.to_owned(),
                generation: u64::from_be_bytes(field(bytes, GENERATION_AT)),
            },
            created: Timestamp::from_seconds(u64::from_be_bytes(field(bytes, CREATED_AT))),
            master_id: field(bytes, MASTER_AT),
        }),
        _ => Err(Error::Changed { file: file() }),
    }
}

/// The cipher for one file, whose header (without a tag) stands in `bytes`.
fn cipher(master: &Master, bytes: &[u8]) -> Result<Aes256Gcm, Error> {
    let info = [
        SEAL_INFO,
        &bytes[10..11],
        &bytes[GENERATION_AT..CREATED_AT],
        &bytes[STORE_AT..NAME_AT],
        &bytes[NAME_AT..SALT_AT],
    ];
    let key = master.derive(&bytes[SALT_AT..NONCE_AT], &info, 32)?;
    Aes256Gcm::new_from_slice(key.expose()).map_err(|_| Error::OutOfBounds {
        field: "the key of AES-256",
        value: 0,
        least: 32,
        most: 32,
    })
}

/// Seals `secret`: the bytes of the file.
///
/// # Errors
/// [`Error::TooLarge`] beyond 64 KiB, [`Error::Io`] without randomness, [`Error::Secret`].
pub fn seal(master: &Master, label: &Label, created: Timestamp, secret: &Secret) -> Result<Vec<u8>, Error> {
    let len_bytes = u32::try_from(secret.len()).unwrap_or(u32::MAX);
    if secret.len() > SEALED_BYTES_MAX || label.name.len() > NAME_BYTES_MAX {
        return Err(Error::TooLarge { file: label.name.clone(), limit_bytes: SEALED_BYTES_MAX });
    }
    let mut bytes = vec![0; HEADER_BYTES + secret.len() + TAG_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_be_bytes());
    bytes[10] = label.purpose as u8;
    bytes[12..16].copy_from_slice(&len_bytes.to_be_bytes());
    bytes[GENERATION_AT..CREATED_AT].copy_from_slice(&label.generation.to_be_bytes());
    bytes[CREATED_AT..STORE_AT].copy_from_slice(&created.seconds().to_be_bytes());
    bytes[STORE_AT..VOLUME_AT].copy_from_slice(label.store.as_bytes());
    bytes[VOLUME_AT..NAME_AT].copy_from_slice(label.volume.as_bytes());
    bytes[NAME_AT..NAME_AT + label.name.len()].copy_from_slice(label.name.as_bytes());
    crate::master::fill_random(&mut bytes[SALT_AT..MASTER_AT])?;
    bytes[MASTER_AT..RESERVED_AT].copy_from_slice(&master.id(label.store)?);
    let nonce = Nonce::from(field::<12>(&bytes, NONCE_AT));
    let (head, rest) = bytes.split_at_mut(HEADER_BYTES);
    let (ciphertext, tag) = rest.split_at_mut(secret.len());
    // The buffers have one length and the length is within GCM's bound, so neither of these fails.
    let too_large = || Error::TooLarge { file: label.name.clone(), limit_bytes: SEALED_BYTES_MAX };
    let made = scrubbed(|| {
        let cipher = cipher(master, head)?;
        let buffers = InOutBuf::new(secret.expose(), ciphertext).map_err(|_| too_large())?;
        cipher.encrypt_inout_detached(&nonce, head, buffers).map_err(|_| too_large())
    })?;
    tag.copy_from_slice(&made);
    Ok(bytes)
}

/// Opens the sealed `bytes` of `file`, which must be what `label` says.
///
/// # Errors
/// As [`header`]; [`Error::Swapped`], [`Error::OtherGeneration`], [`Error::OtherMaster`], [`Error::Changed`].
pub fn open(master: &Master, label: &Label, file: &str, bytes: &[u8]) -> Result<Secret, Error> {
    let seen = header(file, bytes)?;
    let swapped = |field, found: String, wanted: String| Error::Swapped { file: file.to_owned(), field, found, wanted };
    let found = &seen.label;
    if found.purpose != label.purpose {
        return Err(swapped("purpose", format!("{:?}", found.purpose), format!("{:?}", label.purpose)));
    }
    if found.name != label.name {
        return Err(swapped("name", format!("{:?}", found.name), format!("{:?}", label.name)));
    }
    if found.store != label.store {
        return Err(swapped("a file of store", found.store.to_string(), label.store.to_string()));
    }
    if found.volume != label.volume {
        return Err(swapped("key of volume", found.volume.to_string(), label.volume.to_string()));
    }
    if found.generation != label.generation {
        let (found, wanted) = (found.generation, label.generation);
        return Err(Error::OtherGeneration { file: file.to_owned(), found, wanted });
    }
    if seen.master_id != master.id(label.store)? {
        return Err(Error::OtherMaster { file: file.to_owned() });
    }
    let (head, rest) = bytes.split_at(HEADER_BYTES);
    let (ciphertext, tag) = rest.split_at(rest.len() - TAG_BYTES);
    let changed = || Error::Changed { file: file.to_owned() };
    Secret::fill_with(ciphertext.len(), |plain| {
        scrubbed(|| {
            let cipher = cipher(master, head)?;
            let buffers = InOutBuf::new(ciphertext, plain).map_err(|_| changed())?;
            let nonce = Nonce::from(field::<12>(head, NONCE_AT));
            let tag = Tag::from(field::<TAG_BYTES>(tag, 0));
            cipher.decrypt_inout_detached(&nonce, head, buffers, &tag).map_err(|_| changed())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        let (store, volume) = (Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]));
        Label { purpose: Purpose::VolumeKey, store, volume, name: "data".into(), generation: 3 }
    }

    fn sealed(master: &Master, label: &Label) -> Vec<u8> {
        let secret = Secret::copy_of(&[0xa5; 64]).unwrap();
        seal(master, label, Timestamp::from_seconds(1_733_054_400), &secret).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_and_shows_nothing_of_the_secret() {
        let master = Master::random().unwrap();
        let bytes = sealed(&master, &label());
        assert_eq!(bytes.len(), HEADER_BYTES + 64 + TAG_BYTES);
        assert!(open(&master, &label(), "data.key", &bytes).unwrap().ct_eq(&[0xa5; 64]));
        assert!(!bytes.windows(4).any(|window| window == [0xa5; 4]));
        let seen = header("data.key", &bytes).unwrap();
        assert_eq!((seen.label, seen.created.stamp().as_str()), (label(), "20241201_120000"));
        let again = sealed(&master, &label());
        assert_ne!(bytes[SALT_AT..], again[SALT_AT..], "salt and nonce are new each time");
    }

    #[test]
    fn sizes_from_nothing_to_the_limit_are_sealed() {
        let master = Master::random().unwrap();
        for len_bytes in [0, 1, 15, 16, 17, SEALED_BYTES_MAX] {
            let secret = Secret::copy_of(&vec![7; len_bytes]).unwrap();
            let bytes = seal(&master, &label(), Timestamp::from_seconds(0), &secret).unwrap();
            assert!(open(&master, &label(), "f", &bytes).unwrap().ct_eq(secret.expose()));
        }
        let secret = Secret::zeroed(SEALED_BYTES_MAX + 1).unwrap();
        let refused = seal(&master, &label(), Timestamp::from_seconds(0), &secret);
        assert!(matches!(refused, Err(Error::TooLarge { .. })));
    }

    /// The file of `docs/keystore.md`, opened here with HKDF and AES-GCM written out by the description there.
    #[test]
    fn a_reader_after_the_document_opens_it() {
        let secret = Secret::copy_of(&(0..64).collect::<Vec<u8>>()).unwrap();
        let master = Master::new(secret, "a test").unwrap();
        let bytes = sealed(&master, &label());
        let mut info = b"luksctl key store 1 seal".to_vec();
        info.push(1);
        info.extend(3_u64.to_be_bytes());
        info.extend([[1; 16], [2; 16]].concat());
        info.extend([&b"data"[..], &[0; 60]].concat());
        let ikm: Vec<u8> = (0..64).collect();
        let mut key = [0; 32];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(&bytes[128..160]), &ikm).expand(&info, &mut key).unwrap();
        let cipher = Aes256Gcm::new_from_slice(&key).unwrap();
        let mut plain = bytes[192..bytes.len() - 16].to_vec();
        let nonce = Nonce::from(field::<12>(&bytes, 160));
        let tag = Tag::from(field::<16>(&bytes, bytes.len() - 16));
        let buffer = InOutBuf::from(&mut plain[..]);
        cipher.decrypt_inout_detached(&nonce, &bytes[..192], buffer, &tag).unwrap();
        assert_eq!(plain, [0xa5; 64]);
    }

    #[test]
    fn each_misuse_has_an_error_of_its_own() {
        let master = Master::random().unwrap();
        let bytes = sealed(&master, &label());
        let refused = |label: &Label, bytes: &[u8]| open(&master, label, "data.key", bytes).unwrap_err();
        let with = |change: fn(&mut Label)| {
            let mut label = label();
            change(&mut label);
            label
        };
        let swapped = with(|label| label.name = "logs".into());
        assert!(matches!(refused(&swapped, &bytes), Error::Swapped { field: "name", .. }));
        let swapped = with(|label| label.volume = Uuid::from_bytes([9; 16]));
        assert!(matches!(refused(&swapped, &bytes), Error::Swapped { field: "key of volume", .. }));
        let swapped = with(|label| label.store = Uuid::from_bytes([9; 16]));
        assert!(matches!(refused(&swapped, &bytes), Error::Swapped { field: "a file of store", .. }));
        let swapped = with(|label| label.purpose = Purpose::Value);
        assert!(matches!(refused(&swapped, &bytes), Error::Swapped { field: "purpose", .. }));
        let newer = with(|label| label.generation = 4);
        assert!(matches!(refused(&newer, &bytes), Error::OtherGeneration { found: 3, wanted: 4, .. }));
        let other = Master::random().unwrap();
        assert!(matches!(open(&other, &label(), "f", &bytes), Err(Error::OtherMaster { .. })));
        assert!(matches!(refused(&label(), b"raw key bytes"), Error::NotSealed { .. }));
        assert!(matches!(refused(&label(), &bytes[..100]), Error::SealedSize { .. }));
        assert!(matches!(refused(&label(), &bytes[..bytes.len() - 1]), Error::SealedSize { .. }));
        let mut version = bytes.clone();
        version[9] = 2;
        assert!(matches!(refused(&label(), &version), Error::Version { version: 2, .. }));
    }

    #[test]
    fn no_changed_bit_is_let_through() {
        let master = Master::random().unwrap();
        let bytes = sealed(&master, &label());
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(open(&master, &label(), "data.key", &changed).is_err(), "bit {at}");
        }
        // A header that names another generation, for a store that expects it: only the tag tells.
        for at in [23, 31, 47, 63, 130, 165, 200] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let seen = header("data.key", &changed).unwrap();
            let error = open(&master, &seen.label, "data.key", &changed).unwrap_err();
            assert!(matches!(error, Error::Changed { .. } | Error::OtherMaster { .. }), "{at}: {error}");
        }
    }
}
