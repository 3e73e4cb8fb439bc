//! What the look at keyslot areas promises: no false alarm in thousands of good areas, every realistic damage found and placed.

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes of a few hundred KiB")]

use std::sync::Arc;

use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, BlockIo, Bytes, MemDisk};

use super::noise::{SECTOR_LEN, equal_pairs};
use super::*;
use crate::area::wipe_area;
use crate::env::fixed::FixedEnv;
use crate::format::sample::{cheap, fixed, formatted, open, params, secret, try_open};

/// Length of the stripes of a 128-bit key, the smallest area that is common.
const AREA_LEN: usize = 16 * 4000;

fn noise_of(env: &FixedEnv, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    env.env().rng.fill(&mut bytes).expect("noise");
    bytes
}

#[test]
fn thousands_of_random_areas_raise_no_alarm_and_the_statistic_is_the_stated_one() {
    let env = FixedEnv::new(0x5eed, 1);
    let (mut sectors, mut alarms, mut high, mut low) = (0u32, 0, 0u32, 0u32);
    for _ in 0..2000 {
        for sector in noise_of(&env, AREA_LEN).chunks_exact(SECTOR_LEN) {
            sectors += 1;
            alarms += u32::from(noise::judge(sector).is_some());
            let pairs = equal_pairs(sector);
            high += u32::from(pairs >= 590);
            low += u32::from(pairs <= 450);
        }
    }
    assert_eq!((sectors, alarms), (250_000, 0));
    // Of the same exact distribution as the bounds: P(C ≥ 590) = 8.654e-4, P(C ≤ 450) = 1.600e-3; six standard deviations.
    for (count, probability) in [(high, 8.654e-4), (low, 1.600e-3)] {
        let expected = f64::from(sectors) * probability;
        assert!((f64::from(count) - expected).abs() < 6.0 * expected.sqrt(), "{count}, expected {expected}");
    }
}

/// An ext4 superblock as mke2fs leaves it, reduced to the fields that are set in every one.
fn superblock() -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let fields: [(usize, &[u8]); 12] = [
        (0, &[0x00, 0x10, 0, 0]),
        (4, &[0x00, 0x40, 0, 0]),
        (12, &[0xbc, 0x3a, 0, 0]),
        (16, &[0xf5, 0x0f, 0, 0]),
        (24, &[2, 0, 0, 0]),
        (32, &[0x00, 0x80, 0, 0]),
        (40, &[0x00, 0x10, 0, 0]),
        (48, &[0x8a, 0x5e, 0x21, 0x67]),
        (54, &[0xff, 0xff]),
        (56, &[0x53, 0xef]),
        (104, b"\x1d\x8a\x67\x90\x5b\x3e\x4f\x8d\xa2\x11\x0b\x6c\x31\xde\x70\x44"),
        (236, b"\x9f\x02\x7c\x11\xe5\x58\x4a\x0f\x93\xd4\x26\xaa\x81\x5b\x3c\x60"),
    ];
    for (at, field) in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

fn gpt() -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..16].copy_from_slice(b"EFI PART\0\0\x01\0\\\0\0\0");
    bytes
}

/// Damage of one kind at random places: how often it was found.
fn hits(env: &FixedEnv, damage: &[u8], aligned: bool) -> u32 {
    let mut found = 0;
    let mut area = noise_of(env, AREA_LEN);
    for _ in 0..1000 {
        let place = u64::from_le_bytes(noise_of(env, 8).try_into().expect("8 bytes"));
        let mut at = (place % (AREA_LEN - damage.len()) as u64) as usize;
        if aligned {
            at -= at % SECTOR_LEN;
        }
        let kept = area[at..at + damage.len()].to_vec();
        area[at..at + damage.len()].copy_from_slice(damage);
        let sectors = at / SECTOR_LEN..=(at + damage.len() - 1) / SECTOR_LEN;
        let judged = |sector: usize| noise::judge(&area[sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN]);
        found += u32::from(sectors.into_iter().any(|sector| judged(sector).is_some()));
        area[at..at + kept.len()].copy_from_slice(&kept);
    }
    found
}

#[test]
fn realistic_damage_is_found_wherever_it_is() {
    let env = FixedEnv::new(7, 1);
    let sentence = b"The quick brown fox jumps over the lazy dog, and the dog does not mind at all, it seems to me.\n";
    let counter: Vec<u8> = (0..512u32).map(|at| (at % 256) as u8).collect();
    let words: Vec<u8> = (0..128u32).flat_map(|at| (at * 4096).to_le_bytes()).collect();
    for (what, damage, aligned) in [
        ("a zeroed sector", vec![0; 512], true),
        ("512 zeros anywhere", vec![0; 512], false),
        ("16 zeros anywhere", vec![0; 16], false),
        ("32 bytes of 0xff", vec![0xff; 32], false),
        ("an ext4 superblock", superblock(), true),
        ("a partition table", gpt(), true),
        ("a sentence", sentence.to_vec(), false),
        ("a page of text", sentence.repeat(6)[..512].to_vec(), true),
        ("block numbers", words, true),
        ("a counter", counter, true),
    ] {
        // 16 zeros may lie half in either sector, 8 and 8, which is still enough.
        assert_eq!(hits(&env, &damage, aligned), 1000, "{what}");
    }
    assert_eq!(hits(&env, &noise_of(&env, 512), true), 0, "other ciphertext cannot be told: the documents say so");
}

fn sample() -> Arc<MemDisk> {
    let disk = formatted(&params());
    let mut container = open(&disk);
    let key = try_open(&container, "first").expect("key");
    container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).expect("add");
    disk
}

fn look(disk: &Arc<MemDisk>) -> CheckReport {
    check(disk, &Limits::default(), &Policy::default_preset()).expect("check")
}

/// The area of a keyslot of the sample.
fn area(disk: &Arc<MemDisk>, id: u32) -> crate::Area {
    open(disk).header().metadata().keyslots.get(KeyslotId(id)).expect("slot").area.clone()
}

fn found(disk: &Arc<MemDisk>) -> Vec<(u32, u64, u64, Damage)> {
    look(disk).areas.into_iter().map(|one| (one.keyslot.0, one.offset.0, one.len.0, one.damage)).collect()
}

#[test]
fn a_good_container_is_clean() {
    let report = look(&sample());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.examined, [KeyslotId(0), KeyslotId(1)]);
    let refused = check(&sample(), &Limits::default(), &Policy::strict()).expect("check");
    assert!(!refused.is_clean() && !refused.breaches.is_empty() && refused.areas.is_empty());
}

#[test]
fn damage_is_named_with_slot_place_and_length() {
    let start = |disk: &Arc<MemDisk>| area(disk, 1).offset.0;
    let write = |disk: &Arc<MemDisk>, at: u64, bytes: &[u8]| disk.write_at(Bytes(at), bytes, false).expect("write");
    let disk = sample();
    let at = start(&disk) + 5 * 512;
    write(&disk, at, &[0; 3 * 512]);
    assert_eq!(found(&disk), [(1, at, 3 * 512, Damage::Constant(0))]);
    assert!(look(&disk).half_removed().is_empty(), "zeros elsewhere are no mark");

    let disk = sample();
    write(&disk, at, &superblock());
    let remains = found(&disk);
    assert_eq!(remains[0], (1, at, 512, Damage::Remains("an ext2, ext3 or ext4 file system")));
    assert_eq!(remains[1], (1, at + 512, 512, Damage::Constant(0)));

    let disk = sample();
    write(&disk, at, &gpt());
    write(&disk, at + 1024, &b"so it is written. ".repeat(29)[..512]);
    let both = found(&disk);
    assert_eq!(both[0], (1, at, 512, Damage::Remains("a GUID partition table")));
    assert_eq!(both[1], (1, at + 1024, 512, Damage::Text));

    let disk = sample();
    let mut copy = vec![0; 1024];
    disk.read_at(Bytes(area(&disk, 0).offset.0 + 512), &mut copy).expect("read");
    write(&disk, at, &copy);
    let offset = Bytes(area(&disk, 0).offset.0 + 512);
    assert_eq!(found(&disk), [(1, at, 1024, Damage::Repeated { keyslot: KeyslotId(0), offset })]);

    let disk = sample();
    let mut block = vec![0; 512];
    disk.read_at(Bytes(at), &mut block).expect("read");
    write(&disk, at + 4096, &block);
    assert_eq!(found(&disk), [(1, at + 4096, 512, Damage::Repeated { keyslot: KeyslotId(1), offset: Bytes(at) })]);
}

#[test]
fn what_stands_behind_the_stripes_is_not_judged() {
    let disk = sample();
    let area = area(&disk, 1);
    let behind = area.offset.0 + 32 * 4000;
    assert!(behind < area.offset.0 + area.size.0, "a key of 256 bits leaves room");
    disk.write_at(Bytes(behind), &[0; 512], false).expect("write");
    assert!(look(&disk).is_clean());
}

#[test]
fn a_wipe_marks_first_and_a_cut_one_is_named() {
    let disk = sample();
    let area = area(&disk, 0);
    let failing = FaultDisk::new(Arc::clone(&disk));
    // The mark goes through, the noise behind it does not.
    failing.fail_once(Op::Write, 2, BlockErrorKind::Io);
    wipe_area(&failing, &fixed().env(), &area).expect_err("cut");
    let report = look(&disk);
    assert_eq!(report.half_removed(), [KeyslotId(0)]);
    assert_eq!((report.areas.len(), report.areas[0].len), (1, Bytes(512)));
    assert!(try_open(&open(&disk), "first").is_err(), "the mark alone kills the key");
    try_open(&open(&disk), "second").expect("the other one is untouched");

    let disk = sample();
    wipe_area(&disk, &fixed().env(), &area).expect("wiped");
    assert_eq!(look(&disk).half_removed(), [KeyslotId(0)], "listed, and wiped whole");
    let mut bytes = vec![0; area.size.0 as usize];
    disk.read_at(area.offset, &mut bytes).expect("read");
    assert!(bytes[512..].chunks(512).all(|sector| noise::judge(sector).is_none()), "noise behind the mark");
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let disk = FaultDisk::new(sample());
    let at = area(disk.inner(), 1).offset;
    let look = || check(&disk, &Limits::default(), &Policy::default_preset()).expect("check");
    assert!(look().is_clean());
    // The last read of a look is the second area as a whole; where that fails, each sector comes alone.
    let reads = disk.counts().reads;
    for nth in [reads, reads + 1 + 8, reads + 1 + 9] {
        disk.fail_once(Op::Read, nth, BlockErrorKind::Io);
    }
    let found = look().areas;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(matches!(found[0].damage, Damage::Unreadable(_)), "{found:?}");
    assert_eq!((found[0].keyslot, found[0].offset, found[0].len), (KeyslotId(1), Bytes(at.0 + 4096), Bytes(1024)));
}

#[test]
fn looking_writes_nothing() {
    let disk = FaultDisk::new(sample());
    check(&disk, &Limits::default(), &Policy::strict()).expect("check");
    let counts = disk.counts();
    assert!(counts.writes == 0 && counts.reads > 0, "{counts:?}");
}
