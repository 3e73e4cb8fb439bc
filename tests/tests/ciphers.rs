//! Promise: what cryptsetup formatted without encrypting it is refused, until somebody asks for it in so many words; and a
//! cipher that is not here is refused by its name, before any key is derived.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::{Bytes, Direct, FileDisk, OpenMode};
use luks::{Container, Error, Limits, Policy, UnlockRequest};
use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::needs_programs;
use secret::Secret;
use serde_json::Value;
use session::SystemEnv;
use sha2::{Digest as _, Sha256};

const IMAGE_BYTES: u64 = 20 << 20;
const DATA_OFFSET: u64 = 16 << 20;
const COPY_BYTES: u64 = 16 << 10;
/// Where the checksum lies in a binary header.
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// An image of cryptsetup's whose data are said to have this cipher; its keyslots are under AES. Without the kernel
/// cryptsetup formats with no other cipher, so the name is put into both copies afterwards.
fn formatted(rig: &Rig, cipher: &str) -> PathBuf {
    let image = rig.path("image");
    File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let mut command = Command::new("cryptsetup");
    command.args(["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    succeed(command.arg("--key-file").arg(rig.key()).arg(&image));
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for copy_at in [0, COPY_BYTES] {
        let mut copy = vec![0; usize::try_from(COPY_BYTES).unwrap()];
        file.read_exact_at(&mut copy, copy_at).unwrap();
        let (binary, area) = copy.split_at_mut(4096);
        let end = area.iter().position(|byte| *byte == 0).unwrap();
        let mut json: Value = serde_json::from_slice(&area[..end]).unwrap();
        json["segments"]["0"]["encryption"] = cipher.into();
        let text = json.to_string();
        area.fill(0);
        area[..text.len()].copy_from_slice(text.as_bytes());
        binary[CHECKSUM].fill(0);
        let checksum = Sha256::new().chain_update(&*binary).chain_update(&*area).finalize();
        binary[CHECKSUM][..checksum.len()].copy_from_slice(&checksum);
        file.write_all_at(&copy, copy_at).unwrap();
    }
    // cryptsetup agrees that this is a header.
    succeed(Command::new("cryptsetup").args(["luksDump", "--debug"]).arg(&image));
    image
}

fn container(image: &Path, policy: Policy) -> Container<Arc<FileDisk>, Arc<FileDisk>> {
    let mode = OpenMode { read_only: true, direct: Direct::Never, exclusive: false };
    let disk = Arc::new(FileDisk::open(image, &mode).unwrap());
    Container::open(Arc::clone(&disk), disk, Limits::default()).unwrap().with_policy(policy)
}

#[test]
fn the_null_cipher_is_refused_until_asked_for() {
    if !needs_programs("the_null_cipher_is_refused_until_asked_for", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("ciphers");
    let image = formatted(&rig, "cipher_null-ecb");
    let plain: Vec<u8> = (0..=u8::MAX).cycle().take(8192).collect();
    File::options().write(true).open(&image).unwrap().write_all_at(&plain, DATA_OFFSET).unwrap();

    let key = Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    let refused = container(&image, Policy::default_preset());
    let error = refused.unlock(&SystemEnv.env(), &UnlockRequest::default(), &key).unwrap_err();
    assert!(matches!(error, Error::Policy { .. }) && error.to_string().contains("cipher_null-ecb"), "{error}");
    assert!(
        refused.header().metadata().caution().is_some_and(|caution| caution.contains("NOTHING ON IT IS ENCRYPTED"))
    );

    let asked_for = container(&image, Policy::default_preset().allowing_null_cipher());
    let volume_key = asked_for.unlock(&SystemEnv.env(), &UnlockRequest::default(), &key).unwrap();
    let volume = asked_for.volume(&volume_key, true).unwrap();
    let mut bytes = vec![0; plain.len()];
    block::BlockIo::read_at(&volume, Bytes(0), &mut bytes).unwrap();
    assert!(bytes == plain, "it is not the disk's own bytes");

    let out = rig.path("out");
    let copied = run(rig.luksctl(&["copy-out", "--key-file"]).arg(rig.key()).arg(&image).arg(&out));
    let words = String::from_utf8_lossy(&copied.stderr);
    assert_eq!(copied.status.code(), Some(1), "{copied:?}");
    assert!(words.contains("NOTHING ON IT IS ENCRYPTED") && words.contains("cipher_null-ecb"), "{words}");
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    if !needs_programs("what_is_not_here_is_refused_by_name", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("ciphers");
    for (cipher, says) in [
        ("xchacha20,aes-adiantum-plain64", ["xchacha20,aes", "Adiantum"]),
        ("aes-lrw-benbi", ["lrw", "older than XTS"]),
        ("aes-cbc-eboiv", ["eboiv", "BitLocker"]),
        ("anubis-cbc-plain64", ["anubis", "is not supported"]),
        ("capi:xts(ecb(aes))-plain64", ["xts(ecb(aes))", "is not supported"]),
    ] {
        let image = formatted(&rig, cipher);
        let out = rig.path("out");
        let copied = run(rig.luksctl(&["copy-out", "--key-file"]).arg(rig.key()).arg(&image).arg(&out));
        let words = String::from_utf8_lossy(&copied.stderr);
        assert_eq!(copied.status.code(), Some(1), "{copied:?}");
        assert!(words.contains(cipher) && says.iter().all(|says| words.contains(says)), "{cipher}: {words}");
        assert!(!out.exists(), "{cipher}: something was written");
    }
}
