//! LUKS1 headers made by hand: each rule has bytes that break it, and what is valid is written as it was read.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "luks1/image.rs"]
mod image;

use std::collections::BTreeSet;

use block::{BlockIo, Bytes, MemDisk};
use image::{HEADER, Vector, good, vectors};
use luks::luks1::load_unlocked;
use luks::{Error, Limits, Luks1Header, Rule};
use proptest::prelude::*;

fn parse(bytes: &[u8]) -> Result<Luks1Header, luks::Violation> {
    Luks1Header::parse(bytes.try_into().expect("592 bytes"))
}

fn judge(vector: &Vector) -> Result<Luks1Header, luks::Violation> {
    let header = parse(&vector.header())?;
    header.check_device(Bytes(u64::from(vector.device_sectors) * 512))?;
    Ok(header)
}

#[test]
fn each_vector_breaks_the_rule_of_its_name() {
    for vector in vectors() {
        let found = judge(&vector).err().map_or("valid", |violation| violation.rule.name());
        assert_eq!(found, vector.rule, "{}", vector.what);
    }
}

#[test]
fn every_rule_has_a_vector() {
    let all: BTreeSet<&str> =
        Rule::ALL.iter().map(|rule| rule.name()).filter(|rule| rule.starts_with("luks1-")).collect();
    let broken: BTreeSet<&str> = vectors().iter().map(|vector| vector.rule).filter(|rule| *rule != "valid").collect();
    assert_eq!(all, broken);
}

#[test]
fn the_fields_are_where_the_specification_has_them() {
    let header = parse(&good()).expect("valid");
    assert_eq!(header.cipher(), "aes-xts-plain64");
    assert_eq!((header.hash_spec.to_text().as_ref(), header.key_bytes), ("sha256", 64));
    assert_eq!((header.digest, header.digest_salt, header.digest_iterations), ([0x11; 20], [0x22; 32], 1000));
    assert_eq!(header.uuid.to_text(), "0cdf2c46-9b94-4dd9-b1d0-17f4cdbf4a36");
    assert_eq!(header.payload_offset(), Bytes(2 << 20));
    assert_eq!(header.keyslots_end(), Bytes(u64::from(image::DEVICE_SECTORS) * 512));
    let enabled: Vec<u32> = header.enabled().map(|(id, _)| id).collect();
    assert_eq!(enabled, [1]);
    let slot = header.slots[1];
    assert_eq!((slot.iterations, slot.salt, slot.stripes), (1000, [0x33; 32], 4000));
    assert_eq!(header.material_offset(&slot), Bytes(512 * 512));
}

#[test]
fn what_is_valid_is_written_as_it_was_read() {
    for vector in vectors().iter().filter(|vector| vector.rule == "valid") {
        assert_eq!(judge(vector).expect("valid").to_bytes()[..], vector.header(), "{}", vector.what);
    }
}

#[test]
fn a_device_says_what_it_holds() {
    let load = |head: &[u8], sectors: u64| {
        let disk = MemDisk::new(Bytes(sectors * 512));
        let mut block = head.to_vec();
        block.resize(1024, 0);
        disk.write_at(Bytes(0), &block[..block.len().min(usize::try_from(sectors).unwrap() * 512)], false)
            .expect("write");
        load_unlocked(&disk)
    };
    assert!(load(&good(), 8192).is_ok());
    assert!(matches!(load(&[0; HEADER], 8192), Err(Error::NotLuks)));
    assert!(matches!(load(&good(), 1), Err(Error::NotLuks)), "too short for a header");
    assert!(matches!(load(&good(), 2), Err(Error::InvalidLuks1(broken)) if broken.rule == Rule::Luks1DeviceSize));
    let mut two = good();
    two[7] = 2;
    assert!(matches!(load(&two, 8192), Err(Error::Luks2)));
    let disk = MemDisk::new(Bytes(8 << 20));
    disk.write_at(Bytes(0), &[good(), vec![0; 1024 - HEADER]].concat(), false).expect("write");
    assert!(matches!(luks::load(&disk, &Limits::default()), Err(Error::Luks1)));
}

proptest! {
    #[test]
    fn mutated_headers_never_panic_and_survive_a_rewrite(
        changes in proptest::collection::vec((0..HEADER, any::<u8>()), 0..12), size in any::<u64>(),
    ) {
        let mut bytes = good();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(header) = parse(&bytes) {
            let _ = header.check_device(Bytes(size));
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..]);
        }
    }
}
