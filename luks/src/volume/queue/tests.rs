//! A `VolumeQueue` against the `Volume`: the same bytes, the same refusals, over every version of the queue below; parks, suspends
//! and new maps while requests are in flight.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a few hundred KiB")]

mod denied;

use super::super::tests::{KIB, cipher, crypt, linear, one_key};
use super::*;
use crate::volume::{Extent, MapEntry, Target};
use block::fault::{FaultDisk, Op};
use block::{FileDisk, IoUringQueue, MemDisk, OpenMode, PreadQueue, Sectors};
use dmcrypt::{SectorCipher, SectorSize};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

/// Where the data of the maps begins.
const OFFSET: u64 = 16 * KIB;
const DEPTH: usize = 6;

type Below = Box<dyn BlockQueue + Send>;

/// An empty file of `len` bytes.
fn file(len: u64) -> (tempfile::NamedTempFile, FileDisk) {
    let file = tempfile::NamedTempFile::new().expect("file");
    file.as_file().set_len(len).expect("length");
    let mode = OpenMode { direct: block::Direct::IfPossible, ..OpenMode::default() };
    let disk = FileDisk::open(file.path(), &mode).expect("open");
    (file, disk)
}

/// Every version of the queue on `disk` that this system gives.
fn versions(disk: &FileDisk, depth: usize) -> Vec<(&'static str, Below)> {
    let mut versions: Vec<(_, Below)> = vec![("pread", Box::new(PreadQueue::new(disk.clone(), depth).expect("queue")))];
    match IoUringQueue::new(disk.clone(), depth) {
        Ok(queue) => versions.push(("io_uring", Box::new(queue))),
        Err(why) => println!("without io_uring: {why}"),
    }
    versions
}

fn next<D: BlockIo, Q: BlockQueue>(queue: &mut VolumeQueue<D, Q>) -> Completion {
    loop {
        if let Some(completion) = queue.complete() {
            return completion;
        }
        queue.wait().expect("wait");
    }
}

fn run<D: BlockIo, Q: BlockQueue>(queue: &mut VolumeQueue<D, Q>, op: QueueOp) -> Completion {
    queue.submit(7, op).expect("room");
    let completion = next(queue);
    assert_eq!(completion.tag, 7);
    completion
}

fn write<D: BlockIo, Q: BlockQueue>(queue: &mut VolumeQueue<D, Q>, offset: u64, bytes: &[u8], fua: bool) -> QueueOp {
    let mut buf = queue.buffer(bytes.len());
    buf.copy_from_slice(bytes);
    QueueOp::Write { offset: Bytes(offset), buf, fua }
}

fn read<D: BlockIo, Q: BlockQueue>(queue: &mut VolumeQueue<D, Q>, offset: u64, len: usize) -> QueueOp {
    QueueOp::Read { offset: Bytes(offset), buf: queue.buffer(len) }
}

fn kind(completion: Completion) -> BlockErrorKind {
    completion.result.expect_err("an error").kind
}

/// One segment of a map: the seed of its key (linear without one), whether its sectors are large, and its length in blocks.
type Drawn = (Option<u8>, bool, u64);

/// Up to five segments.
fn segments() -> impl Strategy<Value = Vec<Drawn>> {
    let segment = (prop_oneof![Just(None), any::<u8>().prop_map(Some)], any::<bool>(), 1u64..40);
    proptest::collection::vec(segment, 1..6)
}

/// The map of `segments`, one after the other on the device, and its size.
fn drawn_map(segments: &[Drawn]) -> (SegmentMap, u64) {
    let mut entries: Vec<MapEntry> = Vec::new();
    let mut start = 0;
    for &(seed, large, blocks) in segments {
        let len = 4 * KIB * blocks;
        let target = match seed {
            None => Target::Linear { device_offset: Bytes(OFFSET + start) },
            Some(seed) => {
                let size = if large { SectorSize::S4096 } else { SectorSize::S512 };
                let iv_base = Sectors(u64::from(seed) * 8);
                Target::Crypt { device_offset: Bytes(OFFSET + start), iv_base, cipher: cipher(seed, size) }
            }
        };
        entries.push(MapEntry { start: Bytes(start), len: Extent::Fixed(Bytes(len)), target });
        start += len;
    }
    (SegmentMap::new(entries).expect("map"), start)
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8, bool),
    WriteZeroes,
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u16, u16)>> {
    let step = prop_oneof![
        4 => Just(Step::Read),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(byte, fua)| Step::Write(byte, fua && byte % 4 == 0)),
        1 => Just(Step::WriteZeroes),
        1 => Just(Step::Flush),
    ];
    proptest::collection::vec((step, any::<u16>(), any::<u16>()), 1..40)
}

/// Bytes that differ from sector to sector.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(seed | 1)).collect()
}

/// Does `steps` on the queue, and on the volume `twin` beside it.
fn follow<D: BlockIo, Q: BlockQueue>(
    queue: &mut VolumeQueue<D, Q>,
    twin: &Volume<MemDisk>,
    size: u64,
    steps: &[(Step, u16, u16)],
) {
    let block = queue.geometry().logical_block as u64;
    let mut in_flight: HashMap<u64, (u64, u64, Option<Vec<u8>>)> = HashMap::new();
    let collect = |queue: &mut VolumeQueue<D, Q>, in_flight: &mut HashMap<u64, (u64, u64, Option<Vec<u8>>)>| {
        let done = next(queue);
        let (_, _, expected) = in_flight.remove(&done.tag).expect("in flight, once");
        done.result.expect("done");
        if let Some(buf) = done.op.into_buffer() {
            assert!(expected.is_some_and(|expected| expected == buf[..]), "the buffer of {}", done.tag);
            queue.recycle(buf);
        }
    };
    for (tag, (step, first, count)) in (0u64..).zip(steps) {
        let start = block * (u64::from(*first) % (size / block));
        let len = block * (1 + u64::from(*count) % ((size - start) / block));
        // No order is promised in flight.
        let races = |(other, other_len, _): &(u64, u64, _)| start < other + other_len && *other < start + len;
        while queue.room() == 0 || in_flight.values().any(races) {
            collect(queue, &mut in_flight);
        }
        let mut expected = None;
        let op = match step {
            Step::Flush => QueueOp::Flush,
            Step::WriteZeroes => {
                twin.write_zeroes(Bytes(start), Bytes(len)).expect("zeroes");
                QueueOp::WriteZeroes { offset: Bytes(start), len: Bytes(len) }
            }
            Step::Write(seed, fua) => {
                let bytes = pattern(*seed, len as usize);
                twin.write_at(Bytes(start), &bytes, *fua).expect("write");
                let op = write(queue, start, &bytes, *fua);
                expected = Some(bytes);
                op
            }
            Step::Read => {
                let mut bytes = vec![0; len as usize];
                twin.read_at(Bytes(start), &mut bytes).expect("read");
                expected = Some(bytes);
                read(queue, start, len as usize)
            }
        };
        in_flight.insert(tag, (start, len, expected));
        queue.submit(tag, op).expect("room");
    }
    while !in_flight.is_empty() {
        collect(queue, &mut in_flight);
    }
    assert!(queue.complete().is_none() && queue.room() == DEPTH);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_queue_leaves_the_same_bytes_as_the_volume(segments in segments(), steps in steps()) {
        let (map, size) = drawn_map(&segments);
        let device = OFFSET + size;
        let all = |disk: &dyn BlockIo| {
            let mut bytes = vec![0; device as usize];
            disk.read_at(Bytes(0), &mut bytes).expect("read");
            bytes
        };
        let (_first, probe) = file(device);
        for number in 0..versions(&probe, DEPTH).len() {
            let (_file, disk) = file(device);
            let twin = Volume::new(MemDisk::new(Bytes(device)), map.clone(), false);
            let volume = Arc::new(Volume::new(disk.clone(), map.clone(), false));
            let (_, below) = versions(&disk, DEPTH).swap_remove(number);
            let mut queue = VolumeQueue::new(volume, below);
            follow(&mut queue, &twin, size, &steps);
            assert!(all(&disk) == all(twin.disk()), "the ciphertext differs");
        }
    }
}

/// A volume over one file, and a queue of each version on it.
fn on_every_version(check: impl Fn(&str, VolumeQueue<FileDisk, Below>, &Arc<dyn SectorCipher>)) {
    let (_file, probe) = file(64 * KIB);
    for number in 0..versions(&probe, DEPTH).len() {
        let (_file, disk) = file(8 << 20);
        let key = cipher(3, SectorSize::S4096);
        let volume = Arc::new(Volume::new(disk.clone(), one_key(&key, OFFSET), false));
        let (name, below) = versions(&disk, DEPTH).swap_remove(number);
        check(name, VolumeQueue::new(volume, below), &key);
    }
}

#[test]
fn requests_longer_than_a_piece_and_more_than_the_room_below_all_end() {
    on_every_version(|name, mut queue, _| {
        let len = 5 * CHUNK_BYTES / 2;
        for tag in 0..DEPTH as u64 {
            let op = write(&mut queue, tag * 4096, &vec![tag as u8; len], false);
            queue.submit(tag, op).expect("room");
        }
        assert_eq!(queue.room(), 0, "{name}");
        let op = QueueOp::WriteZeroes { offset: Bytes(0), len: Bytes(len as u64) };
        assert!(matches!(queue.submit(9, op), Err(Full(QueueOp::WriteZeroes { .. }))));
        let mut seen = [false; DEPTH];
        for _ in 0..DEPTH {
            let done = next(&mut queue);
            done.result.expect("written");
            assert!(!std::mem::replace(&mut seen[done.tag as usize], true));
            assert!(done.op.into_buffer().expect("buffer").iter().all(|byte| u64::from(*byte) == done.tag));
        }
        run(&mut queue, QueueOp::WriteZeroes { offset: Bytes(0), len: Bytes(len as u64) }).result.expect("zeroes");
        let op = read(&mut queue, 0, len + 4096);
        let buf = run(&mut queue, op).op.into_buffer().expect("buffer");
        assert!(buf[..len].iter().all(|byte| *byte == 0) && buf[len..].iter().all(|byte| (1..6).contains(byte)));
    });
}

#[test]
fn what_the_volume_refuses_the_queue_refuses_with_the_buffer() {
    on_every_version(|name, mut queue, _| {
        assert_eq!(queue.geometry().logical_block, 4096);
        let size = queue.geometry().size.0;
        let op = write(&mut queue, 512, &[1; 4096], false);
        let refused = run(&mut queue, op);
        assert!(refused.op.into_buffer().is_some_and(|buf| buf.iter().all(|byte| *byte == 1)));
        assert_eq!(refused.result.expect_err("unaligned").kind, BlockErrorKind::Unaligned, "{name}");
        let op = read(&mut queue, 0, 512);
        assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::Unaligned);
        let op = read(&mut queue, size, 4096);
        assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::OutOfRange);
        let (offset, len) = (Bytes(0), Bytes(4096));
        assert_eq!(kind(run(&mut queue, QueueOp::Discard { offset, len })), BlockErrorKind::Unsupported);
        let zeroes = QueueOp::WriteZeroes { offset: Bytes(u64::MAX - 4095), len };
        assert_eq!(kind(run(&mut queue, zeroes)), BlockErrorKind::OutOfRange);
        assert!(!queue.volume().is_poisoned());
    });
    let volume = Volume::new(MemDisk::new(Bytes(64 * KIB)), one_key(&cipher(3, SectorSize::S512), 0), true);
    let below = PreadQueue::new(MemDisk::new(Bytes(64 * KIB)), DEPTH).expect("queue");
    let mut queue = VolumeQueue::new(Arc::new(volume), below);
    let op = write(&mut queue, 0, &[1; 512], false);
    assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::ReadOnly);
    assert!(queue.geometry().read_only);
}

/// Serves `rounds` writes and reads of one block each, and says how often there was no room while nothing was in flight.
fn serve(mut queue: VolumeQueue<FileDisk, Below>, stop: &mpsc::Receiver<()>) -> u64 {
    let mut model = [0u8; 64];
    let mut turned_away = 0;
    for round in 0u64.. {
        if round > 50 && stop.try_recv().is_ok() {
            break;
        }
        let mut in_flight = 0;
        for slot in 0..DEPTH as u64 {
            let block = (round * 7 + slot * 11) % 64;
            let byte = (round % 251) as u8;
            let is_write = round % 2 == 0;
            let op = if is_write {
                write(&mut queue, block * 4096, &[byte; 4096], false)
            } else {
                read(&mut queue, block * 4096, 4096)
            };
            if let Err(Full(op)) = queue.submit(block, op) {
                queue.recycle(op.into_buffer().expect("buffer"));
                if in_flight == 0 {
                    turned_away += 1;
                    queue.wait().expect("wait");
                    assert!(queue.complete().is_none());
                }
                break;
            }
            in_flight += 1;
            if is_write {
                model[block as usize] = byte;
            }
        }
        for _ in 0..in_flight {
            let done = next(&mut queue);
            done.result.expect("done");
            let buf = done.op.into_buffer().expect("buffer");
            assert!(buf.iter().all(|byte| *byte == model[done.tag as usize]), "round {round}, block {}", done.tag);
            queue.recycle(buf);
        }
    }
    turned_away
}

#[test]
fn parks_suspends_and_new_sizes_in_flight_lose_and_tear_nothing() {
    on_every_version(|name, queue, key| {
        let volume = Arc::clone(queue.volume());
        volume.write_zeroes(Bytes(0), Bytes(64 * 4096)).expect("zeroes");
        let (stop, stopped) = mpsc::channel();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(queue, &stopped));
            for round in 0..15u64 {
                std::thread::sleep(Duration::from_millis(2));
                if round % 3 == 0 {
                    let len = Extent::Fixed(Bytes(64 * 4096 + round * 4096));
                    let map = SegmentMap::new(vec![crypt(0, len, OFFSET, 0, key)]).expect("map");
                    volume.swap_map(map).expect("swap");
                    assert_eq!(volume.geometry().size.0, 64 * 4096 + round * 4096);
                } else if round % 3 == 1 {
                    drop(volume.park());
                } else {
                    volume.suspend();
                    assert_eq!(Arc::strong_count(key), 1, "{name}: neither volume nor queue holds the key");
                    std::thread::sleep(Duration::from_millis(2));
                    volume.resume(one_key(key, OFFSET));
                }
            }
            stop.send(()).expect("server");
            server.join().expect("server");
        });
    });
}

#[test]
fn a_suspended_queue_has_no_room_until_it_is_resumed_or_told_to_fail() {
    on_every_version(|name, mut queue, key| {
        let volume = Arc::clone(queue.volume());
        volume.suspend();
        let op = read(&mut queue, 0, 4096);
        assert_eq!(queue.room(), 0, "{name}");
        let Err(Full(op)) = queue.submit(1, op) else { panic!("{name}: taken") };
        std::thread::scope(|scope| {
            scope.spawn(|| volume.resume(one_key(key, OFFSET)));
            while queue.room() == 0 {
                assert!(queue.complete().is_none());
                if queue.room() == 0 {
                    queue.wait().expect("wait");
                }
            }
        });
        run(&mut queue, op).result.expect("resumed");
        volume.suspend();
        let joined_late = VolumeQueue::new(
            Arc::clone(&volume),
            PreadQueue::new(MemDisk::new(Bytes(64 * KIB)), DEPTH).expect("queue"),
        );
        assert_eq!((queue.room(), joined_late.room()), (0, 0));
        volume.fail_suspended();
        assert_eq!(joined_late.room(), DEPTH);
        let op = read(&mut queue, 0, 4096);
        assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::Suspended, "{name}");
        assert!(!volume.has_refused_writes(), "a read loses nothing");
        let op = write(&mut queue, 0, &[1; 4096], false);
        assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::Suspended, "{name}");
        assert_eq!(kind(run(&mut queue, QueueOp::Flush)), BlockErrorKind::Suspended, "{name}");
        assert!(volume.has_refused_writes());
        volume.resume(one_key(key, OFFSET));
        run(&mut queue, QueueOp::Flush).result.expect("flush");
    });
}

#[test]
fn a_park_waits_for_what_is_in_flight_and_a_dropped_queue_lets_it_go() {
    on_every_version(|name, mut queue, _| {
        let volume = Arc::clone(queue.volume());
        let op = write(&mut queue, 0, &[4; 4096], false);
        queue.submit(1, op).expect("room");
        let second = write(&mut queue, 4096, &[4; 4096], false);
        std::thread::scope(|scope| {
            let parker = scope.spawn(|| drop(volume.park()));
            while queue.room() > 0 {
                std::thread::yield_now();
            }
            assert!(!parker.is_finished(), "{name}: parked with a request inside");
            assert!(queue.submit(2, second).is_err(), "{name}: parked, but something went in");
            next(&mut queue).result.expect("written");
            parker.join().expect("parked");
        });
        let op = write(&mut queue, 0, &[5; 4096], false);
        queue.submit(3, op).expect("room");
        drop(queue);
        volume.suspend();
    });
}

#[test]
fn a_grown_device_is_seen_by_the_queue() {
    let disk = Arc::new(MemDisk::new(Bytes(OFFSET + 8 * KIB)));
    let volume = Arc::new(Volume::new(Arc::clone(&disk), one_key(&cipher(1, SectorSize::S512), OFFSET), false));
    let below = PreadQueue::new(Arc::clone(&disk), DEPTH).expect("queue");
    let mut queue = VolumeQueue::new(volume, below);
    let op = write(&mut queue, 8 * KIB, &[1; 512], false);
    assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::OutOfRange);
    disk.set_len(Bytes(OFFSET + 16 * KIB));
    assert_eq!(queue.geometry().size.0, 16 * KIB);
    let op = write(&mut queue, 8 * KIB, &[1; 512], false);
    run(&mut queue, op).result.expect("there now");
}

type Failing = Arc<FaultDisk<MemDisk>>;

fn failing() -> (Failing, VolumeQueue<Failing, PreadQueue<Failing>>) {
    let disk = Arc::new(FaultDisk::new(MemDisk::new(Bytes(4 << 20))));
    let keys = [cipher(1, SectorSize::S512), cipher(2, SectorSize::S512)];
    let map = SegmentMap::new(vec![
        crypt(0, Extent::Fixed(Bytes(64 * KIB)), 0, 0, &keys[0]),
        linear(64 * KIB, 64 * KIB, 64 * KIB),
        crypt(128 * KIB, Extent::ToEnd, 128 * KIB, 0, &keys[1]),
    ]);
    let volume = Arc::new(Volume::new(Arc::clone(&disk), map.expect("map"), false).with_discards(true));
    let below = PreadQueue::new(Arc::clone(&disk), DEPTH).expect("queue");
    (Arc::clone(&disk), VolumeQueue::new(volume, below))
}

#[test]
fn an_error_below_comes_back_with_the_buffer_and_ends_only_its_request() {
    let (disk, mut queue) = failing();
    // The second of the three pieces fails.
    disk.fail_once(Op::Write, 2, BlockErrorKind::NoSpace);
    let bytes = pattern(9, 192 * 1024);
    let op = write(&mut queue, 0, &bytes, false);
    let full = run(&mut queue, op);
    assert_eq!(full.result.as_ref().expect_err("full").kind, BlockErrorKind::NoSpace);
    let QueueOp::Write { buf, .. } = full.op else { panic!("another operation") };
    assert!(buf[..] == bytes[..], "the plaintext is as it was");
    assert!(!queue.volume().is_poisoned(), "a full disk is an answer");
    let again = QueueOp::Write { offset: Bytes(0), buf, fua: true };
    run(&mut queue, again).result.expect("the same buffer again, not encrypted twice");
    assert_eq!(disk.counts().fua_writes, 3);
    disk.fail_once(Op::Read, 3, BlockErrorKind::Io);
    let op = read(&mut queue, 0, bytes.len());
    let failed = run(&mut queue, op);
    assert_eq!(failed.op.range(), (Bytes(0), 192 * KIB));
    assert_eq!(failed.result.expect_err("unreadable").kind, BlockErrorKind::Io);
    let op = read(&mut queue, 0, bytes.len());
    assert!(run(&mut queue, op).op.into_buffer().expect("buffer")[..] == bytes[..]);
    run(&mut queue, QueueOp::Discard { offset: Bytes(0), len: Bytes(192 * KIB) }).result.expect("discard");
    assert_eq!(disk.counts().discards, 3);
}

#[test]
fn a_lost_write_or_flush_poisons_the_volume_for_queue_and_volume_alike() {
    for op in [Op::Write, Op::Flush] {
        let (disk, mut queue) = failing();
        disk.fail_once(op, 1, BlockErrorKind::Io);
        let request = write(&mut queue, 0, &[1; 512], false);
        queue.submit(1, request).expect("room");
        queue.submit(2, QueueOp::Flush).expect("room");
        let results = [next(&mut queue), next(&mut queue)].map(|done| done.result.is_ok());
        assert_eq!(results, [op == Op::Flush, false], "a flush vouches for nothing after a lost write");
        assert!(queue.volume().is_poisoned());
        assert_eq!(kind(run(&mut queue, QueueOp::Flush)), BlockErrorKind::Io);
        let request = write(&mut queue, 0, &[1; 512], false);
        assert_eq!(kind(run(&mut queue, request)), BlockErrorKind::Io);
        assert!(queue.volume().flush().is_err());
        let request = read(&mut queue, 0, 512);
        run(&mut queue, request).result.expect("reading still works");
    }
}
