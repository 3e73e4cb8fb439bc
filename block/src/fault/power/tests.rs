//! The fault model of [`super::PowerCutDisk`], clause by clause.

#![allow(clippy::cast_possible_truncation)] // Sizes here are small.

use super::*;

const SEEDS: std::ops::Range<u64> = 0..300;

fn sector(disk: &MemDisk, number: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    disk.read_at(Bytes(number * 512), &mut bytes).unwrap();
    bytes
}

fn first_byte(disk: &MemDisk, number: u64) -> u8 {
    let bytes = sector(disk, number);
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a sector must never be torn");
    bytes[0]
}

#[test]
fn flushed_bytes_are_in_every_cut() {
    let disk = PowerCutDisk::new(Bytes::from_mib(1));
    disk.write_at(Bytes(4096), &[7; 8192], false).unwrap();
    disk.flush().unwrap();
    disk.write_at(Bytes(65536), &[8; 512], false).unwrap();
    for seed in SEEDS {
        let cut = disk.cut(seed);
        assert!((8..24).all(|number| first_byte(&cut, number) == 7), "seed {seed}");
    }
}

#[test]
fn an_unflushed_write_is_lost_kept_or_torn_between_sectors() {
    let disk = PowerCutDisk::new(Bytes::from_mib(1));
    disk.write_at(Bytes(0), &[1; 4096], false).unwrap();
    disk.flush().unwrap();
    disk.write_at(Bytes(0), &[2; 4096], false).unwrap();
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in SEEDS {
        let cut = disk.cut(seed);
        let new = (0..8).filter(|&number| first_byte(&cut, number) == 2).count();
        assert!((0..8).all(|number| [1, 2].contains(&first_byte(&cut, number))), "seed {seed}");
        match new {
            0 => lost += 1,
            8 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(lost > 20 && kept > 20 && torn > 20, "lost {lost}, kept {kept}, torn {torn}");
    let mut live = [0; 4096];
    disk.read_at(Bytes(0), &mut live).unwrap();
    assert_eq!(live, [2; 4096], "the live disk goes on");
}

#[test]
fn a_later_write_may_survive_alone_and_an_older_one_may_win() {
    let disk = PowerCutDisk::new(Bytes::from_mib(1));
    disk.write_at(Bytes(0), &[1; 512], false).unwrap();
    disk.write_at(Bytes(512), &[2; 512], false).unwrap();
    disk.write_at(Bytes(0), &[3; 512], false).unwrap();
    let seen: std::collections::BTreeSet<(u8, u8)> =
        SEEDS.map(|seed| disk.cut(seed)).map(|cut| (first_byte(&cut, 0), first_byte(&cut, 1))).collect();
    for pair in [(0, 0), (0, 2), (1, 0), (1, 2), (3, 0), (3, 2)] {
        assert!(seen.contains(&pair), "{pair:?} is possible but was not seen in {seen:?}");
    }
    assert_eq!(seen.len(), 6);
}

#[test]
fn a_forced_write_is_durable_alone() {
    let disk = PowerCutDisk::new(Bytes::from_mib(1));
    disk.write_at(Bytes(0), &[1; 512], false).unwrap();
    disk.write_at(Bytes(512), &[2; 512], false).unwrap();
    disk.write_at(Bytes(0), &[3; 512], true).unwrap();
    assert_eq!(disk.unflushed(), 2);
    let second: std::collections::BTreeSet<u8> = SEEDS
        .map(|seed| {
            let cut = disk.cut(seed);
            assert_eq!(first_byte(&cut, 0), 3, "seed {seed}");
            first_byte(&cut, 1)
        })
        .collect();
    assert_eq!(second.into_iter().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn zeroing_and_discard_can_be_lost_like_a_write() {
    for discard in [false, true] {
        let disk = PowerCutDisk::new(Bytes::from_mib(4));
        disk.write_at(Bytes(0), &vec![9; 4 << 20], false).unwrap();
        disk.flush().unwrap();
        let result =
            if discard { disk.discard(Bytes(0), Bytes(2 << 20)) } else { disk.write_zeroes(Bytes(0), Bytes(2 << 20)) };
        result.unwrap();
        let seen: std::collections::BTreeSet<u8> = SEEDS.map(|seed| first_byte(&disk.cut(seed), 7)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 9]);
        disk.flush().unwrap();
        assert!(SEEDS.map(|seed| first_byte(&disk.cut(seed), 7)).all(|byte| byte == 0));
    }
}

#[test]
fn a_lying_flush_and_a_lying_fua_lose_bytes() {
    let disk = PowerCutDisk::new(Bytes::from_mib(1));
    disk.lie_about_flush(true);
    disk.write_at(Bytes(0), &[5; 512], false).unwrap();
    disk.write_at(Bytes(512), &[5; 512], true).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.flushes(), 1);
    for number in [0, 1] {
        assert!(SEEDS.map(|seed| first_byte(&disk.cut(seed), number)).any(|byte| byte == 0), "sector {number}");
    }
    disk.lie_about_flush(false);
    disk.flush().unwrap();
    assert!(SEEDS.map(|seed| first_byte(&disk.cut(seed), 0)).all(|byte| byte == 5));
}

#[test]
fn the_same_seed_gives_the_same_cut_and_a_cut_of_256_mib_is_cheap() {
    let disk = PowerCutDisk::new(Bytes::from_mib(256));
    for number in 0..256_u64 {
        disk.write_at(Bytes::from_mib(number), &vec![number as u8; 65536], false).unwrap();
    }
    disk.flush().unwrap();
    disk.write_at(Bytes(0), &vec![255; 65536], false).unwrap();
    let (first, second) = (disk.cut(42), disk.cut(42));
    let mut pair = (vec![0; 65536], vec![0; 65536]);
    first.read_at(Bytes(0), &mut pair.0).unwrap();
    second.read_at(Bytes(0), &mut pair.1).unwrap();
    assert_eq!(pair.0, pair.1);
    let began = std::time::Instant::now();
    let cuts: Vec<MemDisk> = (0..100).map(|seed| disk.cut(seed)).collect();
    assert_eq!(cuts.len(), 100);
    // Copying the 16 MiB that are present a hundred times would take far longer.
    assert!(began.elapsed() < std::time::Duration::from_millis(500), "{:?}", began.elapsed());
}
