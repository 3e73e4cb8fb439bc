//! The containers that the operations start from: small, cheap to unlock, and with what other programs may have left.
//!
//! Keyslot 0 opens with `first`, keyslot 1 with `other`; token 3 is of a type that nobody knows and points at keyslot 0;
//! the JSON has a member that nobody knows.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use block::{BlockIo, Bytes, MemDisk};
use luks::edit::NewKeyslot;
use luks::format::{FormatParams, NewKdf, format};
use luks::luks1::format::Luks1FormatParams;
use luks::luks1::{self, Luks1Container};
use luks::{Container, HashAlg, HeaderStore, KdfParams, KeyslotId, Limits, UnlockRequest, VolumeKey};
use secret::Secret;
use std::sync::Arc;

use super::surroundings::Surroundings;

/// Size of the device: header and keyslots before 1 MiB, or 2 MiB with LUKS1, data behind it.
pub const SIZE: Bytes = Bytes(3 << 20);
/// Size of one header copy.
pub const COPY: u64 = 16 << 10;
const BINARY: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 0x1c0..0x200;
/// Where the first keyslot of LUKS1 is described, how long each description is, and where in it the stripes stand.
const LUKS1_SLOTS: u64 = 208;
const LUKS1_SLOT: u64 = 48;
const LUKS1_STRIPES: u64 = 44;
/// The type of the token that nobody knows.
pub const FOREIGN_TOKEN: &str = "nobody-knows";

/// A passphrase.
#[must_use]
pub fn secret(text: &str) -> Secret {
    Secret::copy_of(text.as_bytes()).unwrap()
}

/// A keyslot that costs next to nothing to open.
#[must_use]
pub fn cheap() -> NewKeyslot {
    NewKeyslot::new(KdfParams::minimal_for_random_key())
}

/// A 256-bit key, areas of 128 KiB, room for six.
#[must_use]
pub fn params() -> FormatParams {
    FormatParams {
        kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
        key_size_bits: Some(256),
        keyslots_size: Some(Bytes(768 << 10)),
        label: Some("before".to_owned()),
        ..FormatParams::default()
    }
}

/// An open handle.
pub fn open<S: HeaderStore + Clone>(disk: &S) -> Container<S, S> {
    Container::open(disk.clone(), disk.clone(), Limits::default()).unwrap()
}

/// The key that `passphrase` opens.
///
/// # Errors
/// Those of the unlock.
pub fn key<S: HeaderStore>(
    container: &Container<S, S>,
    surroundings: &Surroundings,
    passphrase: &str,
) -> Result<VolumeKey, luks::Error> {
    container.unlock(&surroundings.env(), &UnlockRequest::default(), &secret(passphrase))
}

/// A disk of zeros.
#[must_use]
pub fn empty(_surroundings: &Surroundings) -> MemDisk {
    MemDisk::new(SIZE)
}

/// The sample container.
#[must_use]
pub fn plain(surroundings: &Surroundings) -> MemDisk {
    let disk = Arc::new(empty(surroundings));
    format(&disk, &disk, &surroundings.env(), &params(), &secret("first")).unwrap();
    let mut container = open(&disk);
    let volume_key = key(&container, surroundings, "first").unwrap();
    container.keyslot_add(&surroundings.env(), &volume_key, &secret("other"), &cheap()).unwrap();
    drop(container);
    let disk = disk.snapshot();
    rewrite_json(&disk, |json| {
        json["tokens"]["3"] =
            serde_json::json!({ "type": FOREIGN_TOKEN, "keyslots": ["0"], "blob": { "b": [1], "a": "x" } });
        json["note"] = "keep me".into();
    });
    disk
}

/// The sample container with a second token.
#[must_use]
pub fn with_second_token(surroundings: &Surroundings) -> MemDisk {
    let disk = plain(surroundings);
    rewrite_json(&disk, |json| json["tokens"]["5"] = serde_json::json!({ "type": "passing", "keyslots": ["1"] }));
    disk
}

/// The LUKS1 sample container made a LUKS2 one.
#[must_use]
pub fn converted(surroundings: &Surroundings) -> MemDisk {
    let (disk, limits) = (plain1(surroundings), Limits::default());
    let plan = luks::convert::plan(&disk, luks::Version::Luks2, &limits).unwrap();
    luks::convert::convert(&disk, &surroundings.env(), &plan, &limits, &mut luks::NoRecovery).unwrap();
    disk
}

/// A LUKS1 container with a 256-bit key.
#[must_use]
pub fn params1() -> Luks1FormatParams {
    Luks1FormatParams {
        kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
        key_size_bits: Some(256),
        ..Luks1FormatParams::default()
    }
}

/// An open LUKS1 handle.
pub fn open1<S: HeaderStore + Clone>(disk: &S) -> Luks1Container<S, S> {
    Luks1Container::open(disk.clone(), disk.clone(), Limits::default()).unwrap()
}

/// The LUKS1 sample container: keyslot 0 opens with `first`, keyslot 6 with `other`.
#[must_use]
pub fn plain1(surroundings: &Surroundings) -> MemDisk {
    let disk = Arc::new(MemDisk::new(SIZE));
    luks1::format::format(&disk, &disk, &surroundings.env(), &params1(), &secret("first")).unwrap();
    let mut container = open1(&disk);
    let volume_key = container.unlock(&surroundings.env(), None, &secret("first")).unwrap();
    let sixth = NewKeyslot { id: Some(luks::KeyslotId(6)), ..cheap() };
    container.keyslot_add(&surroundings.env(), &volume_key, &secret("other"), &sixth).unwrap();
    drop(container);
    disk.snapshot()
}

/// The LUKS1 sample container with damage on both sides of the border between its two sectors: the stripes of keyslots 0 and 7.
#[must_use]
pub fn damaged1(surroundings: &Surroundings) -> MemDisk {
    let disk = plain1(surroundings);
    for slot in [0, 7] {
        let field = LUKS1_SLOTS + slot * LUKS1_SLOT + LUKS1_STRIPES;
        let mut sector = [0; 512];
        disk.read_at(Bytes(field / 512 * 512), &mut sector).unwrap();
        let at = (field % 512) as usize;
        sector[at..at + 4].copy_from_slice(&4001_u32.to_be_bytes());
        disk.write_at(Bytes(field / 512 * 512), &sector, false).unwrap();
    }
    disk
}

/// The LUKS1 sample container after a removal of keyslot 6 that was cut short.
#[must_use]
pub fn half_removed1(surroundings: &Surroundings) -> MemDisk {
    let disk = Arc::new(plain1(surroundings));
    let header = open1(&disk).header().clone();
    disk.write_at(header.material_offset(&header.slots[6]), &[0; 512], false).unwrap();
    disk.snapshot()
}

/// The sample container after a removal of keyslot 1 that was cut short.
#[must_use]
pub fn half_removed(surroundings: &Surroundings) -> MemDisk {
    let disk = Arc::new(plain(surroundings));
    let offset = open(&disk).header().metadata().keyslots.get(KeyslotId(1)).unwrap().area.offset;
    disk.write_at(offset, &[0; 512], false).unwrap();
    disk.snapshot()
}

/// The sample container with its primary copy broken.
#[must_use]
pub fn primary_broken(surroundings: &Surroundings) -> MemDisk {
    let disk = plain(surroundings);
    disk.write_at(Bytes(BINARY as u64), &[0x11; 512], false).unwrap();
    disk
}

/// The sample container with its secondary copy broken.
#[must_use]
pub fn secondary_broken(surroundings: &Surroundings) -> MemDisk {
    let disk = plain(surroundings);
    disk.write_at(Bytes(COPY), &[0; 512], false).unwrap();
    disk
}

/// The sample container whose secondary copy missed the last change.
#[must_use]
pub fn secondary_stale(surroundings: &Surroundings) -> MemDisk {
    let disk = Arc::new(plain(surroundings));
    let mut old = vec![0; COPY as usize];
    disk.read_at(Bytes(COPY), &mut old).unwrap();
    open(&disk).set_subsystem(Some("newer")).unwrap();
    disk.write_at(Bytes(COPY), &old, false).unwrap();
    disk.snapshot()
}

/// Changes the JSON of both copies and makes their checksums right again: what another program may have written.
///
/// # Panics
/// If `disk` holds no container of 16 KiB copies.
pub fn rewrite_json(disk: &MemDisk, edit: impl Fn(&mut serde_json::Value)) {
    for offset in [0, COPY] {
        let mut copy = vec![0; COPY as usize];
        disk.read_at(Bytes(offset), &mut copy).unwrap();
        let text: Vec<u8> = copy[BINARY..].iter().copied().take_while(|byte| *byte != 0).collect();
        let mut json = serde_json::from_slice(&text).unwrap();
        edit(&mut json);
        let mut text = serde_json::to_vec(&json).unwrap();
        text.resize(copy.len() - BINARY, 0);
        copy[BINARY..].copy_from_slice(&text);
        copy[CHECKSUM].fill(0);
        let mut checksum = [0; 32];
        HashAlg::parse("sha256").unwrap().digest(&[&copy], &mut checksum);
        copy[CHECKSUM.start..CHECKSUM.start + 32].copy_from_slice(&checksum);
        disk.write_at(Bytes(offset), &copy, false).unwrap();
    }
}
