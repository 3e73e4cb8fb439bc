//! Promise: a request to a ublk device of an unlocked volume allocates nothing in the server. Reads and writes of every size,
//! durable ones, flushes, zeros and discards, from two threads at once. Every thread of this process is counted, the clients too.
//!
//! Runs in the VM lane.
#![allow(clippy::unwrap_used)]

#[path = "../../luks/tests/hot_path/counting.rs"]
mod counting;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use block::{AlignedBuf, BlockQueue, Direct, FileDisk, FileQueue, OpenMode};
use export::ublk::{OpenQueue, UblkOptions, serve};
use luks::{Container, Limits, UnlockRequest, VolumeQueue};
use nix::fcntl::{FallocateFlags, fallocate};
use promises::Rig;
use promises::crypt_volume::starts_clean;
use promises::rig::succeed;
use secret::Secret;
use session::SystemEnv;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const PART_BYTES: u64 = 4 << 20;
/// Twice what one request of the driver carries.
const LARGEST_BYTES: usize = 1 << 20;
const CLIENTS: u64 = 2;
/// Of each client in one round.
const REQUESTS: u64 = 48;
/// Rounds before one without an allocation must have been seen: the first ones fill the pools.
const ROUNDS: usize = 30;

fn open_queue(rig: &Rig, image: &Path) -> Arc<OpenQueue> {
    rig.format_cheap(image, "32M", &["--sector-size", "4096"]);
    let disk = FileDisk::open(image, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() }).unwrap();
    let container = Container::open(disk.clone(), disk, Limits::default()).unwrap();
    let key = Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    let key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), &key).unwrap();
    let volume = Arc::new(container.into_volume(&key, false).unwrap());
    Arc::new(move |depth| {
        let below = FileQueue::open(volume.disk().clone(), depth)?;
        Ok(Box::new(VolumeQueue::new(Arc::clone(&volume), below.queue)) as Box<dyn BlockQueue>)
    })
}

/// A client's requests of one round, in a part of the device of its own.
fn ask(plain: &File, durable: &File, buf: &mut [u8], part: u64) {
    for number in 0..REQUESTS {
        let len = LARGEST_BYTES >> (number % 9);
        let at = part * PART_BYTES + number % 3 * LARGEST_BYTES as u64;
        let range = |how: FallocateFlags| {
            let (at, len) = (i64::try_from(at).unwrap(), i64::try_from(len).unwrap());
            fallocate(plain, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len).unwrap();
        };
        match number % 8 {
            0 | 2 => plain.write_all_at(&buf[..len], at).unwrap(),
            4 => durable.write_all_at(&buf[..len], at).unwrap(),
            5 => range(FallocateFlags::FALLOC_FL_ZERO_RANGE),
            6 => range(FallocateFlags::FALLOC_FL_PUNCH_HOLE),
            7 => plain.sync_data().unwrap(),
            _ => plain.read_exact_at(&mut buf[..len], at).unwrap(),
        }
    }
}

/// Allocations of the whole process in the calmest of some rounds.
fn least_allocations(device: &Path) -> u64 {
    let (gate, over) = (Barrier::new(usize::try_from(CLIENTS).unwrap() + 1), AtomicBool::new(false));
    let mut least = u64::MAX;
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | flags).open(device);
    std::thread::scope(|scope| {
        for part in 0..CLIENTS {
            let (gate, over) = (&gate, &over);
            let (plain, durable) = (open(0).unwrap(), open(libc::O_DSYNC).unwrap());
            scope.spawn(move || {
                let mut buf = AlignedBuf::zeroed(LARGEST_BYTES);
                loop {
                    gate.wait();
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    ask(&plain, &durable, &mut buf, part);
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
fn vm_ublk_requests_allocate_nothing() {
    if !starts_clean("vm_ublk_requests_allocate_nothing") {
        return;
    }
    succeed(Command::new("modprobe").arg("ublk_drv"));
    let rig = Rig::new("ublk-hot-path");
    let open_queue = open_queue(&rig, &rig.path("image"));
    let mut export = serve(&open_queue, &UblkOptions::default()).unwrap();

    let before = counting::of_all_threads();
    drop(std::hint::black_box(vec![1_u8; 10]));
    assert!(counting::of_all_threads() > before, "the counter counts");
    assert_eq!(least_allocations(export.path()), 0, "in {} requests", REQUESTS * CLIENTS);
    export.stop().unwrap();
}
