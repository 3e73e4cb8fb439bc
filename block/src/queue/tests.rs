//! One suite over every version of the queue, on files with and without the page cache; the versions that work on any disk also
//! run on memory and on fault disks.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a few hundred KiB")]

mod denied;

use super::*;
use crate::fault::{FaultDisk, Op};
use crate::{BlockIo, Direct, FileDisk, MemDisk, OpenMode};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io::Write as _;

const SIZE: usize = 256 << 10;
const BLOCK: usize = 4096;
const DEPTH: usize = 8;

/// A file of `SIZE` zero bytes, as a disk.
fn file_disk(direct: Direct) -> (tempfile::NamedTempFile, FileDisk) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0; SIZE]).unwrap();
    let disk = FileDisk::open(file.path(), &OpenMode { direct, ..OpenMode::default() }).unwrap();
    (file, disk)
}

type Made<'a> = Box<dyn BlockQueue + Send + 'a>;

/// Every version of the queue on `disk`, by name.
fn versions(disk: &FileDisk) -> Vec<(&'static str, Made<'static>)> {
    let mut versions: Vec<(_, Made<'_>)> = vec![("pread", Box::new(PreadQueue::new(disk.clone(), DEPTH).unwrap()))];
    match IoUringQueue::new(disk.clone(), DEPTH) {
        Ok(queue) => versions.push(("io_uring", Box::new(queue))),
        Err(why) => println!("without io_uring: {why}"),
    }
    versions
}

/// Runs `check` on every version, on a fresh file each, with and without the page cache.
fn on_every_file(check: impl Fn(&str, &mut Made<'_>, &FileDisk)) {
    for direct in [Direct::Never, Direct::IfPossible] {
        let count = versions(&file_disk(direct).1).len();
        for number in 0..count {
            let (_file, disk) = file_disk(direct);
            let (name, mut queue) = versions(&disk).swap_remove(number);
            check(&format!("{name}, {direct:?}"), &mut queue, &disk);
        }
    }
}

fn read(queue: &mut Made<'_>, offset: usize, len: usize) -> QueueOp {
    QueueOp::Read { offset: Bytes(offset as u64), buf: queue.buffer(len) }
}

fn write(queue: &mut Made<'_>, offset: usize, len: usize, byte: u8, fua: bool) -> QueueOp {
    let mut buf = queue.buffer(len);
    buf.fill(byte);
    QueueOp::Write { offset: Bytes(offset as u64), buf, fua }
}

/// The next completion, waiting for it.
fn next(queue: &mut Made<'_>) -> Completion {
    loop {
        if let Some(completion) = queue.complete() {
            return completion;
        }
        queue.wait().unwrap();
    }
}

fn run(queue: &mut Made<'_>, op: QueueOp) -> Completion {
    queue.submit(77, op).unwrap();
    let completion = next(queue);
    assert_eq!(completion.tag, 77);
    completion
}

fn kind(completion: Completion) -> BlockErrorKind {
    completion.result.unwrap_err().kind
}

fn is_readable(queue: &Made<'_>) -> bool {
    let descriptor = queue.descriptor();
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write { byte: u8, fua: bool },
    WriteZeroes,
    Discard,
    Flush,
    Collect,
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize, usize)>> {
    let step = prop_oneof![
        4 => Just(Step::Read),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(byte, fua)| Step::Write { byte, fua: fua && byte % 4 == 0 }),
        1 => Just(Step::WriteZeroes),
        1 => Just(Step::Discard),
        1 => Just(Step::Flush),
        2 => Just(Step::Collect),
    ];
    let blocks = SIZE / BLOCK;
    let range = (0..blocks).prop_flat_map(move |first| (Just(first), 1..=(blocks - first).min(24)));
    proptest::collection::vec((step, range).prop_map(|(step, (first, count))| (step, first, count)), 1..60)
}

/// What should be in the disk, and what is under way.
struct Model {
    content: Vec<u8>,
    in_flight: HashMap<u64, (bool, usize, usize)>,
}

impl Model {
    /// Whether no order is promised between this and something in flight.
    fn races(&self, change: bool, first: usize, count: usize) -> bool {
        self.in_flight.values().any(|(other_change, other_first, other_count)| {
            (change || *other_change) && first < other_first + other_count && *other_first < first + count
        })
    }

    fn ended(&mut self, queue: &mut Made<'_>, completion: Completion) {
        completion.result.unwrap();
        let (_, first, count) = self.in_flight.remove(&completion.tag).expect("a tag in flight, once");
        let range = first * BLOCK..(first + count) * BLOCK;
        if let QueueOp::Read { buf, .. } | QueueOp::Write { buf, .. } = completion.op {
            assert!(buf[..] == self.content[range], "blocks {first}, {count}");
            queue.recycle(buf);
        }
    }
}

fn follow_model(queue: &mut Made<'_>, steps: &[(Step, usize, usize)]) {
    let mut model = Model { content: vec![0; SIZE], in_flight: HashMap::new() };
    for (tag, (step, first, count)) in steps.iter().enumerate() {
        let (offset, len) = (first * BLOCK, count * BLOCK);
        let (at, all) = (Bytes(offset as u64), Bytes(len as u64));
        let change = !matches!(step, Step::Read | Step::Flush);
        while queue.room() == 0 || model.races(change, *first, *count) {
            let completion = next(queue);
            model.ended(queue, completion);
        }
        let mut set = |byte| model.content[offset..offset + len].fill(byte);
        let op = match step {
            Step::Read => read(queue, offset, len),
            Step::Write { byte, fua } => {
                set(*byte);
                write(queue, offset, len, *byte, *fua)
            }
            Step::WriteZeroes => {
                set(0);
                QueueOp::WriteZeroes { offset: at, len: all }
            }
            // Every disk of this suite reads zeros afterwards.
            Step::Discard => {
                set(0);
                QueueOp::Discard { offset: at, len: all }
            }
            Step::Flush => QueueOp::Flush,
            Step::Collect => {
                while let Some(completion) = queue.complete() {
                    model.ended(queue, completion);
                }
                continue;
            }
        };
        queue.submit(tag as u64, op).unwrap();
        let blocks = if matches!(step, Step::Flush) { (false, 0, 0) } else { (change, *first, *count) };
        model.in_flight.insert(tag as u64, blocks);
    }
    while !model.in_flight.is_empty() {
        let completion = next(queue);
        model.ended(queue, completion);
    }
    assert!(queue.complete().is_none() && queue.room() == DEPTH);
    let whole = read(queue, 0, SIZE);
    let all = run(queue, whole).op.into_buffer().unwrap();
    assert!(all[..] == model.content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn random_operations_agree_with_a_model(steps in steps()) {
        on_every_file(|_, queue, _| follow_model(queue, &steps));
        let mut memory: Made<'_> = Box::new(PreadQueue::new(MemDisk::new(Bytes(SIZE as u64)), DEPTH).unwrap());
        follow_model(&mut memory, &steps);
    }
}

#[test]
fn a_full_queue_gives_the_operation_back_and_is_no_failure() {
    on_every_file(|name, queue, _| {
        for tag in 0..DEPTH as u64 {
            let op = write(queue, 4096 * tag as usize, 4096, tag as u8, false);
            queue.submit(tag, op).unwrap();
        }
        assert_eq!(queue.room(), 0, "{name}");
        let op = write(queue, 0, 8192, 99, false);
        let Full(back) = queue.submit(99, op).unwrap_err();
        assert_eq!(back.range(), (Bytes(0), 8192));
        assert!(back.into_buffer().unwrap().iter().all(|byte| *byte == 99));
        let mut tags: Vec<u64> =
            (0..DEPTH).map(|_| next(queue)).map(|done| done.result.map(|()| done.tag).unwrap()).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..DEPTH as u64).collect::<Vec<_>>(), "{name}");
        assert!(queue.room() == DEPTH && queue.complete().is_none());
    });
}

#[test]
fn overlapping_operations_in_flight_each_happen_in_some_order() {
    on_every_file(|name, queue, _| {
        for round in 0..40u8 {
            let (old, new) = (round, round + 1);
            let (whole, half) = (write(queue, 0, SIZE, new, false), write(queue, SIZE / 2, SIZE / 2, new, false));
            queue.submit(1, whole).unwrap();
            queue.submit(2, half).unwrap();
            let op = read(queue, 0, SIZE);
            queue.submit(3, op).unwrap();
            for _ in 0..3 {
                let completion = next(queue);
                completion.result.unwrap();
                let buf = completion.op.into_buffer().unwrap();
                assert!(completion.tag != 3 || buf.iter().all(|byte| [old, new].contains(byte)), "{name}");
                assert!(completion.tag == 3 || buf.iter().all(|byte| *byte == new), "{name}: a write's buffer changed");
                queue.recycle(buf);
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_with_the_buffer_and_changes_nothing() {
    on_every_file(|name, queue, disk| {
        let block = disk.geometry().logical_block as usize;
        let unaligned = [(1, 2 * block), (block / 2, block), (0, block + 1)];
        for (offset, len) in unaligned {
            let op = write(queue, offset, len, 7, false);
            let refused = run(queue, op);
            assert_eq!(refused.result.as_ref().unwrap_err().op, "write");
            assert_eq!(refused.result.unwrap_err().kind, BlockErrorKind::Unaligned, "{name}");
            assert_eq!(refused.op.into_buffer().unwrap().len(), len);
            let op = read(queue, offset, len);
            assert_eq!(kind(run(queue, op)), BlockErrorKind::Unaligned, "{name}");
        }
        for offset in [SIZE, SIZE - block, 1 << 40] {
            let op = write(queue, offset, 2 * block, 7, false);
            assert_eq!(kind(run(queue, op)), BlockErrorKind::OutOfRange, "{name}");
            let op = read(queue, offset, 2 * block);
            assert_eq!(kind(run(queue, op)), BlockErrorKind::OutOfRange, "{name}");
        }
        let (offset, len) = (Bytes(u64::MAX - block as u64 + 1), Bytes(block as u64));
        assert_eq!(kind(run(queue, QueueOp::WriteZeroes { offset, len })), BlockErrorKind::OutOfRange, "{name}");
        assert_eq!(kind(run(queue, QueueOp::Discard { offset, len })), BlockErrorKind::OutOfRange, "{name}");
        let empty = write(queue, 0, 0, 7, true);
        run(queue, empty).result.unwrap();
        let whole = read(queue, 0, SIZE);
        assert!(run(queue, whole).op.into_buffer().unwrap().iter().all(|byte| *byte == 0), "{name}");
        assert_eq!(disk.geometry().size, Bytes(SIZE as u64), "{name}: a write made the file longer");
    });
}

#[test]
fn a_file_that_shrank_or_grew_under_the_queue_is_seen() {
    on_every_file(|name, queue, disk| {
        let op = write(queue, 0, SIZE, 5, false);
        run(queue, op).result.unwrap();
        // Behind the disk's back, so that it still believes in the old size.
        std::fs::File::options().write(true).open(disk.path()).unwrap().set_len(SIZE as u64 / 2).unwrap();
        let op = read(queue, SIZE / 4, SIZE / 2);
        let short = run(queue, op);
        assert_eq!(short.result.unwrap_err().kind, BlockErrorKind::OutOfRange, "{name}");
        assert_eq!(short.op.into_buffer().unwrap().len(), SIZE / 2);
        disk.set_len(Bytes(2 * SIZE as u64)).unwrap();
        assert_eq!(queue.geometry().size, Bytes(2 * SIZE as u64));
        let op = write(queue, 2 * SIZE - BLOCK, BLOCK, 6, true);
        run(queue, op).result.unwrap();
    });
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let (file, _) = file_disk(Direct::Never);
    let disk = FileDisk::open(file.path(), &OpenMode { read_only: true, ..OpenMode::default() }).unwrap();
    for (name, mut queue) in versions(&disk) {
        let op = write(&mut queue, 0, BLOCK, 1, false);
        assert_eq!(kind(run(&mut queue, op)), BlockErrorKind::ReadOnly, "{name}");
        let (offset, len) = (Bytes(0), Bytes(BLOCK as u64));
        assert_eq!(kind(run(&mut queue, QueueOp::WriteZeroes { offset, len })), BlockErrorKind::ReadOnly, "{name}");
        assert_eq!(kind(run(&mut queue, QueueOp::Discard { offset, len })), BlockErrorKind::ReadOnly, "{name}");
        let op = read(&mut queue, 0, BLOCK);
        run(&mut queue, op).result.unwrap();
    }
}

#[test]
fn a_waker_makes_the_descriptor_readable_until_the_next_complete() {
    on_every_file(|name, queue, _| {
        assert!(queue.complete().is_none() && !is_readable(queue), "{name}");
        for _ in 0..3 {
            let waker = queue.waker();
            std::thread::scope(|scope| {
                scope.spawn(move || waker.wake());
                queue.wait().unwrap();
            });
            assert!(queue.complete().is_none());
            // The byte of the wake may be taken in two steps.
            while is_readable(queue) {
                assert!(queue.complete().is_none());
            }
        }
        let op = read(queue, 0, BLOCK);
        run(queue, op).result.unwrap();
    });
}

#[test]
fn a_queue_dropped_with_operations_in_flight_harms_nobody() {
    for _ in 0..20 {
        on_every_file(|name, queue, disk| {
            for tag in 0..DEPTH as u64 {
                let op = if tag % 2 == 0 { write(queue, 0, SIZE, 3, false) } else { read(queue, 0, SIZE) };
                queue.submit(tag, op).unwrap();
            }
            let first = queue.complete();
            let empty: Made<'_> = Box::new(PreadQueue::new(MemDisk::new(Bytes(0)), 1).unwrap());
            drop(std::mem::replace(queue, empty));
            drop(first);
            let mut content = vec![0; SIZE];
            disk.read_at(Bytes(0), &mut content).unwrap();
            assert!(content.iter().all(|byte| [0, 3].contains(byte)), "{name}");
        });
    }
}

#[test]
fn an_error_of_the_disk_comes_back_with_the_buffer_and_only_to_its_operation() {
    let disk = FaultDisk::new(MemDisk::new(Bytes(SIZE as u64)));
    disk.fail_once(Op::Write, 2, BlockErrorKind::NoSpace);
    disk.fail_once(Op::Read, 1, BlockErrorKind::Io);
    disk.fail_once(Op::Flush, 1, BlockErrorKind::Gone);
    let mut queue: Made<'_> = Box::new(PreadQueue::new(&disk, DEPTH).unwrap());
    for tag in 0..3 {
        let op = write(&mut queue, 4096 * tag, 4096, 9, tag == 2);
        queue.submit(tag as u64, op).unwrap();
    }
    let op = read(&mut queue, 8192, 4096);
    queue.submit(3, op).unwrap();
    queue.submit(4, QueueOp::Flush).unwrap();
    let kinds: Vec<_> = (0..5)
        .map(|_| {
            let done = next(&mut queue);
            assert!(done.tag == 4 || done.op.into_buffer().unwrap().len() == 4096);
            done.result.err().map(|error| error.kind)
        })
        .collect();
    let expected = [None, Some(BlockErrorKind::NoSpace), None, Some(BlockErrorKind::Io), Some(BlockErrorKind::Gone)];
    assert_eq!(kinds, expected);
    assert_eq!(disk.counts().fua_writes, 1);
}

/// Whether this system gives a ring at all; where it does not, that has to be said.
fn ring(disk: &FileDisk, depth: usize) -> Option<IoUringQueue> {
    let opened = FileQueue::open(disk.clone(), depth).unwrap();
    match (IoUringQueue::new(disk.clone(), depth), opened.pread_because) {
        (Ok(queue), None) => Some(queue),
        (Ok(queue), Some(PreadBecause::PageCache)) if !disk.is_direct() => Some(queue),
        (Err(why), Some(because)) => {
            println!("no ring here: {why}");
            match because {
                PreadBecause::PageCache => assert!(!disk.is_direct()),
                PreadBecause::NoRing(same) => {
                    assert!(disk.is_direct() && same.source.is_some() && same.op.starts_with("io_uring"), "{same}");
                }
            }
            None
        }
        (made, because) => panic!("{} but {because:?}", made.is_ok()),
    }
}

#[test]
fn through_the_page_cache_no_ring_is_taken() {
    let (_file, disk) = file_disk(Direct::Never);
    let opened = FileQueue::open(disk, 4).unwrap();
    let because = opened.pread_because.unwrap();
    assert!(matches!(because, PreadBecause::PageCache), "{because}");
    let mut queue = opened.queue;
    let buf = queue.buffer(BLOCK);
    queue.submit(7, QueueOp::Write { offset: Bytes::ZERO, buf, fua: false }).unwrap();
    let done = queue.complete().unwrap();
    assert_eq!((done.tag, done.result.is_ok()), (7, true));
}

#[test]
fn buffers_of_one_ring_serve_another_and_outlive_their_own() {
    let (_file, disk) = file_disk(Direct::IfPossible);
    let (Some(mut first), Some(mut second)) = (ring(&disk, 4), ring(&disk, 4)) else { return };
    let mut of_first: Vec<IoBuf> = (0..10).map(|_| first.buffer(BLOCK)).collect();
    assert_eq!(of_first.iter().filter(|buf| buf.is_registered()).count(), first.registered_buffers());
    for (number, buf) in (0u8..).zip(&mut of_first) {
        buf.fill(number);
    }
    drop(first);
    for (number, buf) in (0u64..).zip(of_first) {
        let offset = Bytes(number * BLOCK as u64);
        second.submit(number, QueueOp::Write { offset, buf, fua: false }).unwrap();
        while second.room() < 4 {
            if let Some(done) = second.complete() {
                done.result.unwrap();
                second.recycle(done.op.into_buffer().unwrap());
            }
        }
    }
    let mut content = vec![0; 10 * BLOCK];
    disk.read_at(Bytes(0), &mut content).unwrap();
    assert!(content.chunks(BLOCK).zip(0u8..).all(|(block, number)| block.iter().all(|byte| *byte == number)));
}

#[test]
fn after_a_failed_flush_every_version_refuses_to_vouch() {
    on_every_file(|name, queue, disk| {
        disk.note_failed_flush();
        assert_eq!(kind(run(queue, QueueOp::Flush)), BlockErrorKind::Io, "{name}");
        let op = write(queue, 0, BLOCK, 1, true);
        assert_eq!(kind(run(queue, op)), BlockErrorKind::Io, "{name}");
        let op = write(queue, 0, BLOCK, 1, false);
        run(queue, op).result.unwrap();
    });
}

#[test]
fn a_queue_that_is_gone_holds_its_disk_no_longer() {
    for _ in 0..20 {
        let (file, _) = file_disk(Direct::Never);
        for number in 0..2 {
            let disk = FileDisk::open(file.path(), &OpenMode::default()).unwrap();
            let locked = disk.lock_use(false).unwrap();
            let mut made = versions(&disk);
            if number < made.len() {
                let (_, mut queue) = made.swap_remove(number);
                let op = write(&mut queue, 0, SIZE, 1, true);
                run(&mut queue, op).result.unwrap();
            }
            drop((locked, made, disk));
        }
    }
}
