//! Promise: a request to a FUSE export of an unlocked volume allocates nothing in the server, and its data is moved by the cipher
//! alone: encrypted out of the request as the kernel delivered it, decrypted where it is sent back from.
#![allow(clippy::unwrap_used)]

#[path = "../../luks/tests/hot_path/counting.rs"]
mod counting;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use block::{AlignedBuf, BlockError, BlockIo, Bytes, Direct, FileDisk, Geometry, OpenMode};
use export::fuse::{FuseOptions, serve};
use luks::{Container, Limits, UnlockRequest, Volume};
use promises::Rig;
use promises::skip::needs_fuse;
use secret::Secret;
use session::SystemEnv;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const PAGE_BYTES: usize = 4096;
const LARGE_BYTES: usize = 1 << 20;
const CLIENTS: usize = 2;
/// Of each client in one round: reads and writes, large and small.
const REQUESTS: u64 = 40;
/// Rounds before one without an allocation must have been seen. The first ones fill the pools; one in which the machine did not
/// get round to a thread for [`Lanes`'s patience](export::fuse) parks requests, and parking allocates.
const ROUNDS: usize = 30;

/// A volume that remembers where the last buffers lay.
struct Watched {
    volume: Volume<FileDisk>,
    read: AtomicUsize,
    written: AtomicUsize,
}

impl BlockIo for Watched {
    fn geometry(&self) -> Geometry {
        self.volume.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.read.store(buf.as_ptr().addr(), Ordering::SeqCst);
        self.volume.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.written.store(buf.as_ptr().addr(), Ordering::SeqCst);
        self.volume.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.volume.write_zeroes(offset, len)
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.volume.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.volume.flush()
    }
}

fn volume(rig: &Rig, image: &Path) -> Arc<Watched> {
    rig.format_cheap(image, "32M", &["--sector-size", "4096"]);
    let disk = FileDisk::open(image, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() }).unwrap();
    let container = Container::open(disk.clone(), disk, Limits::default()).unwrap();
    let key = Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    let key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), &key).unwrap();
    let volume = container.into_volume(&key, false).unwrap();
    Arc::new(Watched { volume, read: AtomicUsize::new(0), written: AtomicUsize::new(0) })
}

/// A client's requests of one round, in a part of the disk of its own.
fn ask(file: &File, buf: &mut [u8], part: u64) {
    for number in 0..REQUESTS {
        let len = if number.is_multiple_of(4) { LARGE_BYTES } else { PAGE_BYTES };
        let at = part * (4 << 20) + number % 3 * LARGE_BYTES as u64;
        if number.is_multiple_of(2) {
            file.write_all_at(&buf[..len], at).unwrap();
        } else {
            file.read_exact_at(&mut buf[..len], at).unwrap();
        }
    }
}

/// Allocations of the whole process in the calmest of some rounds.
fn least_allocations(path: &Path) -> u64 {
    let (gate, over) = (Barrier::new(CLIENTS + 1), AtomicBool::new(false));
    let mut least = u64::MAX;
    std::thread::scope(|scope| {
        for part in 0..CLIENTS as u64 {
            let (gate, over) = (&gate, &over);
            scope.spawn(move || {
                let file = File::options().read(true).write(true).open(path).unwrap();
                let mut buf = AlignedBuf::zeroed(LARGE_BYTES);
                loop {
                    gate.wait();
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    ask(&file, &mut buf, part);
                    gate.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            let before = counting::of_all_threads();
            gate.wait();
            gate.wait();
            least = least.min(counting::of_all_threads() - before);
            if least == 0 {
                break;
            }
        }
        over.store(true, Ordering::SeqCst);
        gate.wait();
    });
    least
}

#[test]
fn a_request_through_fuse_allocates_nothing_and_is_moved_by_the_cipher_alone() {
    if !needs_fuse("fuse_hot_path: a_request_through_fuse_allocates_nothing_and_is_moved_by_the_cipher_alone") {
        return;
    }
    let rig = Rig::new("fuse-hot-path");
    let watched = volume(&rig, &rig.path("image"));
    let point = rig.path("point");
    std::fs::create_dir(&point).unwrap();
    let export = serve(Arc::clone(&watched), &point, &FuseOptions::default()).unwrap();

    let before = counting::of_all_threads();
    drop(std::hint::black_box(vec![1_u8; 10]));
    assert!(counting::of_all_threads() > before, "the counter counts");
    assert_eq!(least_allocations(export.file_path()), 0, "in {} requests", REQUESTS * CLIENTS as u64);

    let file = File::options().read(true).write(true).open(export.file_path()).unwrap();
    // Aligned: the kernel takes as many pages as a request has room for, and would cut other memory in the middle of a block.
    let mut bytes = AlignedBuf::zeroed(LARGE_BYTES);
    bytes.fill(0x77);
    file.write_all_at(&bytes, 0).unwrap();
    bytes.fill(0);
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x77));
    drop(file);
    // Every buffer of ours begins at a page. What the kernel delivers begins with the request's header, and the data behind it.
    let [written, read] = [&watched.written, &watched.read].map(|address| address.load(Ordering::SeqCst));
    assert!(
        written > 0 && !written.is_multiple_of(PAGE_BYTES),
        "a write was copied before it was encrypted: {written:#x}"
    );
    assert!(read > 0 && read.is_multiple_of(PAGE_BYTES), "a read was not decrypted in a buffer for it: {read:#x}");
    export.unmount_within(Duration::from_secs(10)).unwrap();
}
