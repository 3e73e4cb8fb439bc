//! The whole way from bytes to blocks. Input: `flags`, then patches: offset (24 bit), length (16 bit), bytes.
//!
//! Flags: bit 0 the image with an Argon2id keyslot instead of PBKDF2; bit 1 checksums are repaired after the patches. A patch
//! at [`CUT`] cuts the image: its first two bytes are the new length in sectors.
//!
//! ```text
//!      0  primary copy        16 KiB
//!  16384  secondary copy      16 KiB
//!  32768  keyslots area      128 KiB, one keyslot of a 256-bit key
//! 163840  data                64 KiB
//! ```

use std::sync::OnceLock;

use block::{BlockErrorKind, BlockIo, Bytes, MemDisk};
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::{
    Container, Error, FormatParams, KdfParams, Limits, NewKdf, UnlockRequest, Volume, VolumeKey, load_unlocked,
};
use secret::Secret;

use super::image::repair_checksums;
use super::surroundings::Surroundings;
use super::{Rules, rules_of, rules_of_health};

const DATA: u64 = 160 << 10;
const DISK: u64 = DATA + (64 << 10);
const RIGHT: &[u8] = b"right";
const WRONG: &[u8] = b"wrong";
/// The offset of a patch that cuts the image.
const CUT: u32 = 0xff_ffff;

/// A valid image and the volume key in it.
struct Template {
    image: Vec<u8>,
    key: Vec<u8>,
}

pub(crate) fn run(input: &[u8]) -> Rules {
    let Some((&flags, patches)) = input.split_first() else { return Rules::new() };
    let template = template(flags & 1 != 0);
    let mut image = template.image.clone();
    patch(&mut image, patches);
    if flags & 2 != 0 {
        repair_checksums(&mut image);
    }
    let disk = MemDisk::from_bytes(&image);
    let (reached, opened) = open(&disk, &image, template);
    assert!(opened || image != template.image, "an untouched image does not open");
    reached
}

pub(crate) fn template_image(argon2: bool) -> &'static [u8] {
    &template(argon2).image
}

fn template(argon2: bool) -> &'static Template {
    static TEMPLATES: [OnceLock<Template>; 2] = [OnceLock::new(), OnceLock::new()];
    TEMPLATES[usize::from(argon2)].get_or_init(|| {
        let cost = KdfCost {
            effort: Effort::Forced { iterations: 4 },
            memory_kib: Some(32),
            parallel: Some(1),
            key_size_bytes: 32,
        };
        let params = FormatParams {
            key_size_bits: Some(256),
            sector_size: Some(512),
            kdf: match argon2 {
                true => NewKdf::Calibrate(KdfChoice::Argon2id, cost),
                false => NewKdf::Given(KdfParams::minimal_for_random_key()),
            },
            label: Some("fuzz".to_owned()),
            uuid: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
            data_offset: Some(Bytes(DATA)),
            ..FormatParams::default()
        };
        let (disk, surroundings) = (MemDisk::new(Bytes(DISK)), Surroundings::new(7));
        luks::format::format(&disk, &disk, &surroundings.env(), &params, &secret(RIGHT)).expect("format");
        let container = Container::open(&disk, &disk, limits()).expect("open");
        let key = container.unlock(&surroundings.env(), &UnlockRequest::default(), &secret(RIGHT)).expect("unlock");
        Template { image: content(&disk), key: key.expose().to_vec() }
    })
}

/// Enough for both templates and not a step more.
fn limits() -> Limits {
    Limits {
        kdf_memory_kib: 64,
        kdf_time: 8,
        kdf_lanes: 2,
        kdf_iterations: 1000,
        kdf_total_work_kib: 512,
        key_bytes: 64,
        keyslot_area_bytes: 256 << 10,
        ..Limits::default()
    }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::copy_of(bytes).expect("memory")
}

fn patch(image: &mut Vec<u8>, mut patches: &[u8]) {
    while let Some((&[a, b, c, high, low], rest)) = patches.split_first_chunk::<5>() {
        let offset = u32::from_be_bytes([0, a, b, c]);
        let (bytes, after) = rest.split_at(usize::from(u16::from_be_bytes([high, low])).min(rest.len()));
        patches = after;
        if let (CUT, [high, low, ..]) = (offset, bytes) {
            image.truncate(usize::from(u16::from_be_bytes([*high, *low])) * 512);
            continue;
        }
        let start = (offset as usize).min(image.len());
        let room = &mut image[start..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
    }
}

/// Everything that opening does; whether the right passphrase led to a volume.
fn open(disk: &MemDisk, image: &[u8], template: &Template) -> (Rules, bool) {
    let (reached, key) = load_and_unlock(disk);
    assert!(content(disk) == image, "opening wrote to the disk");
    let Some(key) = key else { return (reached, false) };
    assert!(key.expose() == template.key, "another volume key was accepted");
    let container = Container::open(disk, disk, limits()).expect("a header that was loaded");
    match container.volume(&key, true) {
        Ok(volume) => read_only(&volume),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return (reached, false);
        }
    }
    assert!(content(disk) == image, "a read-only volume wrote to the disk");
    read_and_write(&container.volume(&key, false).expect("as above"), image);
    (reached, true)
}

fn load_and_unlock(disk: &MemDisk) -> (Rules, Option<VolumeKey>) {
    let reached = match load_unlocked(disk, &limits()) {
        Ok(header) => {
            assert!(!luks::repair::plan(&header).to_string().is_empty());
            assert_eq!(header.health().is_healthy(), header.health().advice().is_none());
            rules_of_health(header.health())
        }
        Err(error) => return (rules_of(&error), None),
    };
    let container = Container::open(disk, disk, limits()).expect("a header that was loaded");
    let surroundings = Surroundings::new(1);
    let unlock = |passphrase| container.unlock(&surroundings.env(), &UnlockRequest::default(), &secret(passphrase));
    let wrong = unlock(WRONG).expect_err("the wrong passphrase opens");
    match unlock(RIGHT) {
        Ok(key) => {
            assert!(matches!(wrong, Error::NoKey { .. }), "the right passphrase opens, but the wrong one is: {wrong}");
            (reached, Some(key))
        }
        Err(error) => {
            assert_eq!(error.to_string(), wrong.to_string(), "no passphrase opens, for one and the same reason");
            (reached, None)
        }
    }
}

fn read_only(volume: &Volume<&MemDisk>) {
    let geometry = volume.geometry();
    assert!(geometry.read_only);
    let block = vec![0; geometry.logical_block as usize];
    let error = volume.write_at(Bytes(0), &block, false).expect_err("a write to a read-only volume");
    assert_eq!(error.kind, BlockErrorKind::ReadOnly);
}

/// The first and the last block keep what is written to them, and no byte outside of the two changes on the disk.
fn read_and_write(volume: &Volume<&MemDisk>, image: &[u8]) {
    let geometry = volume.geometry();
    let block_bytes = u64::from(geometry.logical_block);
    let mut read = vec![0; geometry.logical_block as usize];
    let error = volume.read_at(geometry.size, &mut read).expect_err("a read behind the end");
    assert_eq!(error.kind, BlockErrorKind::OutOfRange);
    let Some(last) = geometry.size.0.checked_sub(block_bytes) else { return };
    for offset in [0, last] {
        let written: Vec<u8> = (0..=u8::MAX).cycle().take(read.len()).collect();
        volume.write_at(Bytes(offset), &written, false).expect("write");
        volume.read_at(Bytes(offset), &mut read).expect("read");
        assert!(read == written, "block at {offset} reads back otherwise");
    }
    volume.flush().expect("flush");
    let changed = content(volume.disk()).iter().zip(image).filter(|(now, before)| now != before).count() as u64;
    assert!(changed <= 2 * block_bytes, "{changed} bytes changed");
    let header = &image[..image.len().min(32 << 10)];
    assert!(content(volume.disk()).starts_with(header), "a write to the volume changed the header");
}

/// All bytes of a disk.
fn content(disk: &MemDisk) -> Vec<u8> {
    let size = disk.geometry().size;
    let mut bytes = vec![0; usize::try_from(size.0).expect("size")];
    disk.read_at(Bytes(0), &mut bytes).expect("read");
    bytes
}
