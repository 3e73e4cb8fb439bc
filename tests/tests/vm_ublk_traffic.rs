//! Promise: whatever a volume through ublk is asked for at random, it holds what was written: writes of every size with and
//! without FUA, zeros, discards, flushes, several at once; against a model, and with fio's `verify=crc32c`.
//!
//! Runs in the VM lane: seconds in the short one, ten minutes in the long one. fio comes on the work disk, where the host has it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, status};
use promises::crypt_volume::starts_clean;
use promises::random::Random;
use promises::rig::succeed;
use promises::{Rig, kernel_leftovers, skip, vm};

const NAME: &str = "traffic";
const BLOCK_BYTES: usize = 4096;
/// Each model thread has a part of the device of its own; fio has the rest.
const THREADS: usize = 3;
const PART_BYTES: usize = 8 << 20;
const FIO_BYTES: usize = 32 << 20;
/// 1 MiB, twice what one request of the driver carries.
const LARGEST_BLOCKS: u64 = 256;

fn duration() -> Duration {
    Duration::from_secs(if vm::is_full() { 600 } else { 5 })
}

/// What a part of the device must hold; `None` where a discard left it open.
struct Model(Vec<Option<u8>>);

/// A buffer whose first byte lies at a multiple of a block.
fn aligned(len: usize) -> block::AlignedBuf {
    block::AlignedBuf::zeroed(len)
}

fn open(device: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | flags).open(device).unwrap()
}

/// Asks for anything until the time is over; every block of the part is checked at the end. Returns the number of requests.
fn drive(device: &Path, start: usize, mut random: Random, until: Instant) -> u64 {
    let (file, durable) = (open(device, 0), open(device, libc::O_DSYNC));
    let blocks = PART_BYTES / BLOCK_BYTES;
    let mut model = Model(vec![None; blocks]);
    let mut buffer = aligned(usize::try_from(LARGEST_BLOCKS).unwrap() * BLOCK_BYTES);
    let mut count = 0;
    while Instant::now() < until {
        let longest_blocks = random.pick(&[1, 8, 64, LARGEST_BLOCKS]);
        let len = 1 + usize::try_from(random.below(longest_blocks)).unwrap();
        let first = usize::try_from(random.below((blocks - len) as u64 + 1)).unwrap();
        let (at, len_bytes) = ((start + first * BLOCK_BYTES) as u64, len * BLOCK_BYTES);
        let range = |how: FallocateFlags| {
            let (at, len_bytes) = (i64::try_from(at).unwrap(), i64::try_from(len_bytes).unwrap());
            fallocate(&file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len_bytes).unwrap();
        };
        match random.below(10) {
            0..=3 => {
                let byte = random.number().to_le_bytes()[0];
                buffer[..len_bytes].fill(byte);
                let to = if random.flip() { &file } else { &durable };
                to.write_all_at(&buffer[..len_bytes], at).unwrap();
                model.0[first..first + len].fill(Some(byte));
            }
            4..=6 => check(&file, &model, start, first..first + len, &mut buffer),
            7 => {
                range(FallocateFlags::FALLOC_FL_ZERO_RANGE);
                model.0[first..first + len].fill(Some(0));
            }
            8 => {
                let (at, len_bytes) = (at.to_string(), len_bytes.to_string());
                let discard = ["--force", "--offset", &at, "--length", &len_bytes];
                succeed(Command::new("blkdiscard").args(discard).arg(device));
                model.0[first..first + len].fill(None);
            }
            _ => file.sync_data().unwrap(),
        }
        count += 1;
    }
    for first in (0..blocks).step_by(64) {
        check(&file, &model, start, first..(first + 64).min(blocks), &mut buffer);
    }
    count
}

fn check(file: &File, model: &Model, start: usize, range: std::ops::Range<usize>, buffer: &mut [u8]) {
    let at = start + range.start * BLOCK_BYTES;
    let found = &mut buffer[..range.len() * BLOCK_BYTES];
    file.read_exact_at(found, at as u64).unwrap();
    for (number, block) in found.chunks(BLOCK_BYTES).enumerate() {
        if let Some(byte) = model.0[range.start + number] {
            let wrong = block.iter().position(|found| *found != byte);
            let place = at + number * BLOCK_BYTES;
            assert_eq!(wrong, None, "byte {place} and on: {:?} instead of {byte}", &block[..8]);
        }
    }
}

/// fio over its part, again and again: written and trimmed in random sizes and depths, read back and compared.
fn fio(device: &Path, start: usize, mut random: Random, until: Instant) -> u64 {
    let tools = vm::work_disk().join("fio");
    if !tools.join("fio").exists() {
        skip("vm_ublk_traffic_is_what_was_written", "fio is not on the host; the model alone ran");
        return 0;
    }
    let size_bytes = if vm::is_full() { FIO_BYTES } else { FIO_BYTES / 4 };
    let mut rounds = 0;
    while Instant::now() < until || rounds < 2 {
        let how = if rounds % 2 == 0 { "randwrite" } else { "randtrimwrite" };
        let depth = random.pick(&[1, 4, 32]);
        let mut fio = Command::new(tools.join("fio"));
        fio.env("LD_LIBRARY_PATH", tools.join("lib")).current_dir("/run");
        fio.args(["--name=verify", "--direct=1", "--ioengine=libaio", "--verify=crc32c", "--verify_fatal=1"]);
        fio.args(["--bsrange=4k-256k", "--thread", "--serialize_overlap=1", "--verify_backlog=64"]);
        fio.args([format!("--rw={how}"), format!("--iodepth={depth}"), format!("--randseed={}", random.number() >> 1)]);
        fio.args([
            format!("--offset={start}"),
            format!("--size={size_bytes}"),
            format!("--filename={}", device.display()),
        ]);
        succeed(&mut fio);
        rounds += 1;
    }
    rounds
}

#[test]
fn vm_ublk_traffic_is_what_was_written() {
    let test = "vm_ublk_traffic_is_what_was_written";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let (rig, mut random) = (Rig::new("ublk-traffic"), Random::seeded(test));
    let image = rig.path("image");
    let data_bytes = THREADS * PART_BYTES + FIO_BYTES;
    format_small(&rig, &image, SMALL_HEADER_BYTES + data_bytes as u64, false, &["--sector-size", "4096"]);
    let device = Backend::Ublk.open(&rig, &image, NAME);
    let until = Instant::now() + duration();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let (device, seed) = (&device, random.number());
            threads.push(scope.spawn(move || drive(device, number * PART_BYTES, Random::from_seed(seed), until)));
        }
        let rounds = fio(&device, THREADS * PART_BYTES, Random::from_seed(random.number()), until);
        let counts: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        eprintln!("{counts:?} requests of the model, {rounds} rounds of fio");
        assert!(counts.iter().all(|count| *count > 10), "too few requests to show anything: {counts:?}");
    });
    assert_eq!(status(&rig, NAME)["state"], "open");
    // Written through ublk, and no less there through another driver.
    let content = std::fs::read(&device).unwrap();
    Backend::Ublk.close(&rig, NAME);
    let device = Backend::Dm.open(&rig, &image, NAME);
    assert!(std::fs::read(&device).unwrap() == content, "dm-crypt reads other bytes");
    Backend::Dm.close(&rig, NAME);
    kernel_leftovers::demand_none(&rig, &[], "the traffic");
}
