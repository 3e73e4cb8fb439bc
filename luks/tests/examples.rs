//! The examples do what they say: each is included here and run on an image of its own.
#![allow(clippy::unwrap_used)]
#![allow(clippy::duplicate_mod, reason = "each example stands alone, with the same surroundings")]

#[path = "../examples/add_keyslot.rs"]
mod add_keyslot;
#[path = "../examples/create.rs"]
mod create;
#[path = "../examples/custom_disk.rs"]
mod custom_disk;
#[path = "../examples/custom_key_provider.rs"]
mod custom_key_provider;
#[path = "../examples/inspect.rs"]
mod inspect;
#[path = "../examples/unlock_and_read.rs"]
mod unlock_and_read;

use std::path::PathBuf;

use block::{Bytes, FileDisk, OpenMode};
use custom_key_provider::KeyFolder;
use luks::calibrate::{Effort, KdfCost};
use luks::{KeyslotId, Limits};
use secret::{KeyProvider, KeyRequest, KeySourceError, Secret};

const PASSPHRASE: &[u8] = b"of the examples";

fn cheap() -> KdfCost {
    KdfCost { effort: Effort::Forced { iterations: 4 }, memory_kib: Some(32), parallel: Some(1), ..KdfCost::default() }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::copy_of(bytes).unwrap()
}

fn created(folder: &tempfile::TempDir) -> PathBuf {
    let image = folder.path().join("image");
    create::create(&image, Bytes(20 << 20), &secret(PASSPHRASE), cheap()).unwrap();
    image
}

#[test]
fn create_inspect_add_a_keyslot_unlock_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = created(&folder);
    let before = inspect::inspect(&image).unwrap();
    assert!(before.contains("made by an example") && before.contains("segment 0: crypt at 16 MiB"), "{before}");
    assert!(before.contains("keyslot 0: luks2, argon2id") && !before.contains("keyslot 1"), "{before}");

    let second = add_keyslot::add_keyslot(&image, &secret(PASSPHRASE), &secret(b"another"), &cheap()).unwrap();
    assert_eq!(second, KeyslotId(1));
    assert!(inspect::inspect(&image).unwrap().contains("keyslot 1: luks2, argon2id"));

    let first = unlock_and_read::first_sector(&image, &secret(PASSPHRASE)).unwrap();
    assert_eq!(first, unlock_and_read::first_sector(&image, &secret(b"another")).unwrap());
    // A hole of the file, decrypted.
    assert!(first.iter().filter(|byte| **byte == 0).count() < 32);
    let refused = unlock_and_read::first_sector(&image, &secret(b"a third")).unwrap_err();
    assert!(refused.to_string().contains("No key available"), "{refused}");
    assert!(create::create(&image, Bytes(20 << 20), &secret(PASSPHRASE), cheap()).is_err(), "an image was overwritten");
}

/// Has never heard of anything.
struct Stranger;

impl KeyProvider for Stranger {
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        Ok(None)
    }
}

/// Has a wrong key for everything.
struct Wrong;

impl KeyProvider for Wrong {
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        Ok(Some(Secret::copy_of(b"wrong")?))
    }
}

#[test]
fn a_key_provider_answers_for_its_own_container_only() {
    let folder = tempfile::tempdir().unwrap();
    let image = created(&folder);
    let uuid = luks::load(&FileDisk::open(&image, &OpenMode::default()).unwrap(), &Limits::default()).unwrap().uuid();
    let mut keys = KeyFolder { folder: folder.path().to_owned(), uuid: uuid.clone() };
    assert_eq!(custom_key_provider::unlock_with(&image, &mut [&mut keys, &mut Stranger]).unwrap(), None);
    std::fs::write(folder.path().join(uuid), PASSPHRASE).unwrap();
    for others in [&mut Stranger as &mut dyn KeyProvider, &mut Wrong] {
        assert_eq!(custom_key_provider::unlock_with(&image, &mut [others, &mut keys]).unwrap(), Some(KeyslotId(0)));
    }
}

#[test]
fn a_disk_of_ones_own_holds_a_container() {
    let disk = custom_disk::Pieces::new(Bytes(20 << 20));
    let plain = [0xa5; 512];
    assert_eq!(custom_disk::there_and_back(&disk, &plain).unwrap(), plain);
    assert!((2..40 << 10).contains(&disk.count()), "{}", disk.count());
}
