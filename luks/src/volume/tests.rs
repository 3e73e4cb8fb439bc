//! The volume's promises: borders, exchange under load, suspend, poison.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a few hundred KiB")]

use super::*;
use block::fault::FaultDisk;
use block::{MemDisk, Sectors};
use dmcrypt::{CipherSpec, SectorCipher, SectorSize};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

pub(super) const KIB: u64 = 1024;

pub(super) fn cipher(seed: u8, sector_size: SectorSize) -> Arc<dyn SectorCipher> {
    let key: Vec<u8> = (0..64).map(|i: u8| i.wrapping_mul(7).wrapping_add(seed)).collect();
    let spec = CipherSpec::parse("aes-xts-plain64").expect("spec");
    Arc::from(dmcrypt::build(&spec, &key, sector_size).expect("cipher"))
}

pub(super) fn crypt(
    start: u64,
    len: Extent,
    device_offset: u64,
    iv_base: u64,
    cipher: &Arc<dyn SectorCipher>,
) -> MapEntry {
    let target =
        Target::Crypt { device_offset: Bytes(device_offset), iv_base: Sectors(iv_base), cipher: Arc::clone(cipher) };
    MapEntry { start: Bytes(start), len, target }
}

pub(super) fn linear(start: u64, len: u64, device_offset: u64) -> MapEntry {
    MapEntry {
        start: Bytes(start),
        len: Extent::Fixed(Bytes(len)),
        target: Target::Linear { device_offset: Bytes(device_offset) },
    }
}

pub(super) fn one_key(cipher: &Arc<dyn SectorCipher>, device_offset: u64) -> SegmentMap {
    SegmentMap::new(vec![crypt(0, Extent::ToEnd, device_offset, 0, cipher)]).expect("map")
}

/// A small generator, so that a failure can be repeated from the seed in the test.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            *byte = (self.below(256)) as u8;
        }
    }
}

/// crypt under one key, linear, crypt under another key with 4096-byte sectors.
fn three_segments() -> (Volume<MemDisk>, Arc<dyn SectorCipher>, Arc<dyn SectorCipher>) {
    let (first, second) = (cipher(1, SectorSize::S512), cipher(2, SectorSize::S4096));
    let map = SegmentMap::new(vec![
        crypt(0, Extent::Fixed(Bytes(64 * KIB)), 16 * KIB, 0, &first),
        linear(64 * KIB, 32 * KIB, 256 * KIB),
        crypt(96 * KIB, Extent::ToEnd, 96 * KIB, 192, &second),
    ])
    .expect("map");
    (Volume::new(MemDisk::new(Bytes(224 * KIB + 100 * KIB)), map, false), first, second)
}

#[test]
fn three_segments_under_two_keys_behave_as_one_array() {
    let (volume, first, second) = three_segments();
    let size = volume.geometry().size.0;
    assert_eq!(size, 96 * KIB + (324 - 96) * KIB);
    assert_eq!(volume.geometry().logical_block, 4096);
    // The linear part lies inside the device range of the last segment; keep away from it.
    let size = 160 * KIB;
    let mut model = vec![0u8; size as usize];
    volume.write_zeroes(Bytes(0), Bytes(size)).expect("zero");
    let mut dice = Dice(0x5eed);
    for round in 0..300 {
        let start = dice.below(size / 4096);
        let len = 4096 * (1 + dice.below(size / 4096 - start)) as usize;
        let range = (start * 4096) as usize..(start * 4096) as usize + len;
        match dice.below(5) {
            3 => {
                dice.fill(&mut model[range.clone()]);
                let mut given_up = model[range].to_vec();
                volume.write_consuming(Bytes(start * 4096), &mut given_up, round % 2 == 0).expect("write");
            }
            0 => {
                dice.fill(&mut model[range.clone()]);
                volume.write_at(Bytes(start * 4096), &model[range], round % 2 == 0).expect("write");
            }
            1 => {
                model[range.clone()].fill(0);
                volume.write_zeroes(Bytes(start * 4096), Bytes(range.len() as u64)).expect("zeroes");
            }
            _ => {
                let mut got = vec![0xa5; len];
                volume.read_at(Bytes(start * 4096), &mut got).expect("read");
                assert!(got == model[range], "round {round}");
            }
        }
    }
    check_below(&volume, &model, &first, &second);
}

/// The bytes below are those of the ciphers alone, sector by sector, with IVs counted in 512-byte units.
fn check_below(volume: &Volume<MemDisk>, model: &[u8], first: &Arc<dyn SectorCipher>, second: &Arc<dyn SectorCipher>) {
    let below = |offset: u64, len: usize| {
        let mut bytes = vec![0u8; len];
        volume.disk().read_at(Bytes(offset), &mut bytes).expect("read below");
        bytes
    };
    for sector in 0..128usize {
        let mut bytes = below(16 * KIB + 512 * sector as u64, 512);
        first.decrypt_in_place(sector as u64, &mut bytes);
        assert!(bytes == model[512 * sector..][..512], "first segment, sector {sector}");
    }
    assert!(below(256 * KIB, 32 * 1024) == model[64 * 1024..96 * 1024], "linear segment");
    for sector in 0..16usize {
        let mut bytes = below(96 * KIB + 4096 * sector as u64, 4096);
        second.decrypt_in_place(192 + 8 * sector as u64, &mut bytes);
        assert!(bytes == model[96 * 1024 + 4096 * sector..][..4096], "last segment, sector {sector}");
    }
}

/// A disk that wants memory aligned to its blocks, as with direct I/O.
struct Picky(MemDisk);

impl BlockIo for Picky {
    fn geometry(&self) -> Geometry {
        Geometry { memory_alignment: 4096, ..self.0.geometry() }
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        assert!(buf.as_ptr().addr().is_multiple_of(4096), "memory at {:p}", buf.as_ptr());
        self.0.write_at(offset, buf, fua)
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.0.write_zeroes(offset, len)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.0.flush()
    }
}

#[test]
fn memory_that_the_disk_cannot_take_is_not_encrypted_in_place() {
    let cipher = cipher(4, SectorSize::S4096);
    let volume = Volume::new(Picky(MemDisk::new(Bytes(64 * KIB))), one_key(&cipher, 4096), false);
    let mut memory = block::AlignedBuf::zeroed(12 << 10);
    for shift in [0, 16] {
        let part = &mut memory[shift..shift + 8192];
        part.fill(shift as u8 + 1);
        volume.write_consuming(Bytes(8192), part, false).expect("write");
        assert_eq!(part.iter().all(|byte| *byte == shift as u8 + 1), shift != 0, "shift {shift}");
        let mut got = vec![0; 8192];
        volume.read_at(Bytes(8192), &mut got).expect("read");
        assert!(got.iter().all(|byte| *byte == shift as u8 + 1), "shift {shift}");
    }
}

#[test]
fn requests_that_do_not_fit_are_refused_and_change_nothing() {
    let volume = Volume::new(MemDisk::new(Bytes(64 * KIB + 700)), one_key(&cipher(3, SectorSize::S4096), 4096), false);
    assert_eq!(volume.geometry().size.0, 60 * KIB);
    let mut buf = vec![0u8; 8192];
    let kind = |result: Result<(), BlockError>| result.expect_err("refused").kind;
    assert_eq!(kind(volume.read_at(Bytes(512), &mut buf)), BlockErrorKind::Unaligned);
    assert_eq!(kind(volume.write_at(Bytes(0), &buf[..512], false)), BlockErrorKind::Unaligned);
    assert_eq!(kind(volume.read_at(Bytes(56 * KIB), &mut buf)), BlockErrorKind::OutOfRange);
    assert_eq!(kind(volume.write_at(Bytes(56 * KIB), &buf, false)), BlockErrorKind::OutOfRange);
    assert_eq!(kind(volume.write_zeroes(Bytes(4096), Bytes(u64::MAX - 4095))), BlockErrorKind::OutOfRange);
    assert_eq!(kind(volume.discard(Bytes(0), Bytes(4096))), BlockErrorKind::Unsupported);
    assert!(!volume.is_poisoned());
    let read_only = Volume::new(MemDisk::new(Bytes(64 * KIB)), one_key(&cipher(3, SectorSize::S4096), 0), true);
    assert_eq!(kind(read_only.write_at(Bytes(0), &buf, false)), BlockErrorKind::ReadOnly);
    assert_eq!(kind(read_only.write_zeroes(Bytes(0), Bytes(4096))), BlockErrorKind::ReadOnly);
    assert_eq!(kind(read_only.discard(Bytes(0), Bytes(4096))), BlockErrorKind::ReadOnly);
    assert!(read_only.geometry().read_only);
    read_only.flush().expect("flush");
}

#[test]
fn a_volume_grows_with_its_disk() {
    let volume = Volume::new(MemDisk::new(Bytes(64 * KIB)), one_key(&cipher(3, SectorSize::S512), 4096), false);
    let buf = vec![7u8; 4096];
    assert!(volume.write_at(Bytes(60 * KIB), &buf, false).is_err());
    volume.disk().set_len(Bytes(128 * KIB));
    assert_eq!(volume.geometry().size.0, 124 * KIB);
    volume.write_at(Bytes(120 * KIB), &buf, false).expect("write in the new part");
    let mut got = vec![0u8; 4096];
    volume.read_at(Bytes(120 * KIB), &mut got).expect("read");
    assert_eq!(got, buf);
}

#[test]
fn a_discard_goes_through_only_where_allowed() {
    let disk = FaultDisk::new(MemDisk::new(Bytes(64 * KIB)));
    let volume = Volume::new(disk, one_key(&cipher(3, SectorSize::S512), 4096), false);
    volume.write_at(Bytes(0), &[9u8; 8192], false).expect("write");
    let refused = volume.discard(Bytes(0), Bytes(4096)).expect_err("not allowed");
    assert_eq!((refused.kind, volume.disk().counts().discards), (BlockErrorKind::Unsupported, 0));
    let volume = volume.with_discards(true);
    volume.discard(Bytes(0), Bytes(4096)).expect("allowed");
    assert_eq!(volume.disk().counts().discards, 1);
    let mut got = [0u8; 4096];
    volume.read_at(Bytes(4096), &mut got).expect("read");
    assert_eq!(got, [9u8; 4096], "what was not discarded stays");
}

/// Each thread writes and reads back its own part in requests of many sizes, across whatever borders there are.
fn hammer(volume: &Volume<MemDisk>, part: u64, part_len: u64, stop: &AtomicBool) -> (u64, Vec<u8>) {
    let base = part * part_len;
    let mut model = vec![0u8; part_len as usize];
    volume.write_at(Bytes(base), &model, false).expect("first write");
    let mut dice = Dice(0x1234_5678 + part);
    let mut rounds = 0u64;
    while !stop.load(Ordering::Relaxed) || rounds < 20 {
        let start = 512 * dice.below(part_len / 512);
        let len = 512 * (1 + dice.below((part_len - start) / 512));
        let range = start as usize..(start + len) as usize;
        if dice.below(2) == 0 {
            dice.fill(&mut model[range.clone()]);
            volume.write_at(Bytes(base + start), &model[range], false).expect("write");
        } else {
            let mut got = vec![0u8; len as usize];
            volume.read_at(Bytes(base + start), &mut got).expect("read");
            assert!(got == model[range], "part {part}, round {rounds}, {len} bytes at {start}");
        }
        rounds += 1;
    }
    (rounds, model)
}

/// Re-encrypts the volume step by step from one key to the other while it is in use.
fn reencrypt_under_load(volume: &Volume<MemDisk>, size: u64, keys: [&Arc<dyn SectorCipher>; 2], offset: u64) {
    const STEP: u64 = 24 * KIB;
    let [old, new] = keys;
    let mut border = 0u64;
    while border < size {
        let len = STEP.min(size - border);
        let mut parked = volume.park();
        let mut bytes = vec![0u8; len as usize];
        parked.disk().read_at(Bytes(offset + border), &mut bytes).expect("read");
        old.decrypt_in_place(border / 512, &mut bytes);
        new.encrypt_in_place(border / 512, &mut bytes);
        parked.disk().write_at(Bytes(offset + border), &bytes, false).expect("write");
        border += len;
        let mut entries = vec![crypt(0, Extent::Fixed(Bytes(border)), offset, 0, new)];
        if border < size {
            entries.push(crypt(border, Extent::ToEnd, offset + border, border / 512, old));
        }
        parked.replace(SegmentMap::new(entries).expect("map"));
        drop(parked);
        std::thread::yield_now();
    }
    volume.swap_map(one_key(new, offset)).expect("swap");
}

#[test]
fn a_map_exchanged_under_load_loses_and_tears_nothing() {
    const PARTS: u64 = 4;
    const PART_LEN: u64 = 96 * KIB;
    const OFFSET: u64 = 16 * KIB;
    let keys = [cipher(5, SectorSize::S512), cipher(6, SectorSize::S512)];
    let volume = Volume::new(MemDisk::new(Bytes(OFFSET + PARTS * PART_LEN)), one_key(&keys[0], OFFSET), false);
    let stop = AtomicBool::new(false);
    let models = std::thread::scope(|scope| {
        let (volume, stop) = (&volume, &stop);
        let threads: Vec<_> =
            (0..PARTS).map(|part| scope.spawn(move || hammer(volume, part, PART_LEN, stop))).collect();
        for round in 0..4 {
            let (old, new) = (&keys[round % 2], &keys[(round + 1) % 2]);
            reencrypt_under_load(volume, PARTS * PART_LEN, [old, new], OFFSET);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect::<Vec<_>>()
    });
    for (part, (_, model)) in models.iter().enumerate() {
        let mut got = vec![0u8; PART_LEN as usize];
        volume.read_at(Bytes(part as u64 * PART_LEN), &mut got).expect("read");
        assert!(&got == model, "part {part} at the end");
    }
}

#[test]
fn suspend_under_load_blocks_and_resume_goes_on() {
    const PART_LEN: u64 = 64 * KIB;
    let key = cipher(8, SectorSize::S512);
    let volume = Volume::new(MemDisk::new(Bytes(2 * PART_LEN)), one_key(&key, 0), false);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|part| {
                let (volume, stop) = (&volume, &stop);
                scope.spawn(move || hammer(volume, part, PART_LEN, stop))
            })
            .collect();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(3));
            volume.suspend();
            assert!(volume.is_suspended());
            assert_eq!(Arc::strong_count(&key), 1, "the volume holds no key");
            assert_eq!(volume.geometry().size.0, 2 * PART_LEN);
            assert_eq!(volume.swap_map(one_key(&key, 0)).expect_err("suspended").kind, BlockErrorKind::Suspended);
            std::thread::sleep(Duration::from_millis(3));
            volume.resume(one_key(&key, 0));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("thread");
        }
    });
}

#[test]
fn a_suspended_volume_told_to_fail_answers_suspended() {
    let key = cipher(8, SectorSize::S512);
    let volume = Volume::new(MemDisk::new(Bytes(64 * KIB)), one_key(&key, 0), false);
    volume.suspend();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| volume.read_at(Bytes(0), &mut [0u8; 512]));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished(), "a suspended volume blocks");
        volume.fail_suspended();
        assert_eq!(waiter.join().expect("thread").expect_err("sent away").kind, BlockErrorKind::Suspended);
    });
    assert_eq!(volume.flush().expect_err("sent away").kind, BlockErrorKind::Suspended);
    volume.resume(one_key(&key, 0));
    volume.flush().expect("flush");
}

#[test]
fn a_write_that_waits_is_counted_and_one_that_was_sent_away_is_remembered() {
    let key = cipher(8, SectorSize::S512);
    let volume = Volume::new(MemDisk::new(Bytes(64 * KIB)), one_key(&key, 0), false);
    volume.suspend();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| volume.write_at(Bytes(0), &[1u8; 512], false));
        while volume.waiting_writes() == 0 {
            std::thread::yield_now();
        }
        volume.resume(one_key(&key, 0));
        waiter.join().expect("thread").expect("resumed");
    });
    assert!(volume.waiting_writes() == 0 && !volume.has_refused_writes());
    volume.suspend();
    volume.fail_suspended();
    assert!(volume.read_at(Bytes(0), &mut [0u8; 512]).is_err() && !volume.has_refused_writes(), "a read loses nothing");
    volume.write_at(Bytes(0), &[2u8; 512], false).expect_err("sent away");
    assert!(volume.waiting_writes() == 0 && volume.has_refused_writes());
}

/// A disk whose next write or flush fails as told.
struct Failing {
    inner: MemDisk,
    write: AtomicU32,
    flush: AtomicBool,
}

impl BlockIo for Failing {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        match self.write.swap(0, Ordering::SeqCst) {
            1 => Err(refusal(BlockErrorKind::Io, "write", offset.0, buf.len() as u64)),
            2 => Err(refusal(BlockErrorKind::NoSpace, "write", offset.0, buf.len() as u64)),
            _ => self.inner.write_at(offset, buf, fua),
        }
    }
    fn write_zeroes(&self, _: Bytes, _: Bytes) -> Result<(), BlockError> {
        panic!("a hole below the volume")
    }
    fn discard(&self, _: Bytes, _: Bytes) -> Result<(), BlockError> {
        panic!("a discard below the volume")
    }
    fn flush(&self) -> Result<(), BlockError> {
        if self.flush.swap(false, Ordering::SeqCst) {
            return Err(refusal(BlockErrorKind::Io, "flush", 0, 0));
        }
        self.inner.flush()
    }
}

fn failing() -> Volume<Failing> {
    let disk =
        Failing { inner: MemDisk::new(Bytes(64 * KIB)), write: AtomicU32::new(0), flush: AtomicBool::new(false) };
    Volume::new(disk, one_key(&cipher(9, SectorSize::S512), 0), false)
}

fn assert_poisoned(volume: &Volume<Failing>) {
    assert!(volume.is_poisoned());
    let kind = |result: Result<(), BlockError>| result.expect_err("poisoned").kind;
    assert_eq!(kind(volume.write_at(Bytes(0), &[0u8; 512], false)), BlockErrorKind::Io);
    assert_eq!(kind(volume.write_zeroes(Bytes(0), Bytes(512))), BlockErrorKind::Io);
    assert_eq!(kind(volume.flush()), BlockErrorKind::Io);
    volume.read_at(Bytes(0), &mut [0u8; 512]).expect("reading still works");
}

#[test]
fn a_failed_flush_poisons() {
    let volume = failing();
    volume.write_zeroes(Bytes(0), Bytes(64 * KIB)).expect("encrypted zeroes, no hole");
    volume.flush().expect("flush");
    volume.disk().flush.store(true, Ordering::SeqCst);
    assert!(volume.flush().is_err());
    assert_poisoned(&volume);
}

#[test]
fn a_lost_write_poisons_and_a_full_disk_does_not() {
    let volume = failing();
    volume.disk().write.store(2, Ordering::SeqCst);
    assert_eq!(volume.write_at(Bytes(0), &[1u8; 512], false).expect_err("full").kind, BlockErrorKind::NoSpace);
    volume.write_at(Bytes(0), &[1u8; 512], false).expect("room again");
    volume.flush().expect("flush");
    volume.disk().write.store(1, Ordering::SeqCst);
    assert_eq!(volume.write_at(Bytes(0), &[1u8; 512], false).expect_err("lost").kind, BlockErrorKind::Io);
    assert_poisoned(&volume);
}
