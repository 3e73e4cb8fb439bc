//! The hot path of a volume: nothing is allocated per request, and nothing is copied but by the cipher.
#![allow(clippy::unwrap_used)]
#![allow(clippy::duplicate_mod, reason = "the example stands alone")]

#[path = "hot_path/counting.rs"]
mod counting;
#[path = "../examples/create.rs"]
mod create;
#[path = "../examples/support/surroundings.rs"]
mod surroundings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::{
    BlockError, BlockIo, BlockQueue, Bytes, Completion, Direct, FileDisk, Geometry, IoUringQueue, OpenMode, PreadQueue,
    QueueOp,
};
use luks::calibrate::{Effort, KdfCost};
use luks::{Container, Limits, UnlockRequest, Volume, VolumeQueue};
use secret::Secret;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const DEPTH: usize = 16;
const WARM_ROUNDS: u64 = 8;
/// Rounds of [`DEPTH`] requests: more than a thousand requests.
const ROUNDS: u64 = 64;

fn image(folder: &tempfile::TempDir) -> PathBuf {
    let image = folder.path().join("image");
    let effort = Effort::Forced { iterations: 4 };
    let cheap = KdfCost { effort, memory_kib: Some(32), parallel: Some(1), ..KdfCost::default() };
    create::create(&image, Bytes(32 << 20), &Secret::copy_of(b"hot").unwrap(), cheap).unwrap();
    image
}

fn volume<D: BlockIo + Clone>(image: &Path, data: D) -> Arc<Volume<D>> {
    let header = FileDisk::open(image, &OpenMode::default()).unwrap();
    let container = Container::open(header, data, Limits::default()).unwrap();
    let machine = surroundings::Machine::new();
    let passphrase = Secret::copy_of(b"hot").unwrap();
    let key = container.unlock(&machine.env(), &UnlockRequest::default(), &passphrase).unwrap();
    Arc::new(container.into_volume(&key, false).unwrap())
}

fn next(queue: &mut dyn BlockQueue) -> Completion {
    loop {
        if let Some(completion) = queue.complete() {
            return completion;
        }
        queue.wait().unwrap();
    }
}

/// One round: [`DEPTH`] requests of 4 KiB to 1 MiB at once.
fn serve_round(queue: &mut dyn BlockQueue, round: u64) {
    for number in 0..DEPTH as u64 {
        let len = 4096 << ((number + round) % 9);
        let offset = Bytes(number * (1 << 20) % (15 << 20));
        let op = match number % 4 {
            0 | 1 => QueueOp::Read { offset, buf: queue.buffer(len) },
            2 => QueueOp::Write { offset, buf: queue.buffer(len), fua: number == 2 },
            _ if round.is_multiple_of(8) => QueueOp::Flush,
            _ => QueueOp::WriteZeroes { offset, len: Bytes(len as u64) },
        };
        queue.submit(number, op).unwrap();
    }
    for _ in 0..DEPTH {
        let completion = next(queue);
        completion.result.unwrap();
        if let Some(buf) = completion.op.into_buffer() {
            queue.recycle(buf);
        }
    }
}

#[test]
fn a_thousand_requests_in_steady_state_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(&folder);
    for direct in [Direct::Never, Direct::IfPossible] {
        let disk = FileDisk::open(&image, &OpenMode { direct, ..OpenMode::default() }).unwrap();
        let volume = volume(&image, disk.clone());
        let pread = VolumeQueue::new(Arc::clone(&volume), PreadQueue::new(disk.clone(), DEPTH).unwrap());
        let mut queues: Vec<(&str, Box<dyn BlockQueue>)> = vec![("pread", Box::new(pread))];
        match IoUringQueue::new(disk, DEPTH) {
            Ok(ring) => queues.push(("io_uring", Box::new(VolumeQueue::new(volume, ring)))),
            Err(why) => println!("without io_uring: {why}"),
        }
        for (name, mut queue) in queues {
            (0..WARM_ROUNDS + 9).for_each(|round| serve_round(queue.as_mut(), round));
            let before = counting::of_this_thread();
            (0..ROUNDS).for_each(|round| serve_round(queue.as_mut(), round));
            let allocations = counting::of_this_thread() - before;
            assert_eq!(allocations, 0, "{name}, {direct:?}: in {} requests", ROUNDS * DEPTH as u64);
        }
    }
    let before = counting::of_this_thread();
    drop(std::hint::black_box(vec![1u8; 10]));
    assert_eq!(counting::of_this_thread() - before, 1, "the counter counts");
}

/// A disk that remembers where the last buffer lay.
struct Watched {
    disk: FileDisk,
    address: AtomicUsize,
}

impl BlockIo for Watched {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.address.store(buf.as_ptr().addr(), Ordering::Relaxed);
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.address.store(buf.as_ptr().addr(), Ordering::Relaxed);
        self.disk.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.disk.write_zeroes(offset, len)
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.disk.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }
}

/// A read is read into the request's own buffer and decrypted there; a write is encrypted into one other buffer, and that is
/// what is written. So the cipher is all that moves data.
#[test]
fn a_request_is_moved_by_the_cipher_alone() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(&folder);
    let disk = FileDisk::open(&image, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() }).unwrap();
    let watched = Arc::new(Watched { disk, address: AtomicUsize::new(0) });
    let volume = volume(&image, Arc::clone(&watched));
    let mut queue = VolumeQueue::new(volume, PreadQueue::new(Arc::clone(&watched), DEPTH).unwrap());
    for len in [4096, 256 << 10, 1 << 20] {
        let mut buf = queue.buffer(len);
        buf.fill(7);
        let plain = buf.as_ptr().addr();
        queue.submit(1, QueueOp::Write { offset: Bytes(0), buf, fua: false }).unwrap();
        let written = next(&mut queue).op.into_buffer().unwrap();
        let sealed = watched.address.load(Ordering::Relaxed);
        assert!(sealed != plain && written.as_ptr().addr() == plain && written.iter().all(|byte| *byte == 7));
        queue.submit(2, QueueOp::Read { offset: Bytes(0), buf: written }).unwrap();
        let read = next(&mut queue).op.into_buffer().unwrap();
        assert_eq!((watched.address.load(Ordering::Relaxed), read.as_ptr().addr()), (plain, plain));
        assert!(read.iter().all(|byte| *byte == 7));
        queue.recycle(read);
        // The buffer that was written is the one that the next request gets.
        let (first, second) = (queue.buffer(len), queue.buffer(len));
        let lent = [first.as_ptr().addr(), second.as_ptr().addr()];
        assert!(lent.contains(&sealed) && lent.contains(&plain));
        queue.recycle(first);
        queue.recycle(second);
    }
}
