//! Promise: under any load, of any size, depth and alignment, with overlapping writes, zeroing and trimming all at once, no
//! byte reads back wrong. fio does it with a CRC-32C in every block, over FUSE and over NBD, on the loop device and past it.
//!
//! `LUKS_FIO_SECONDS` makes it long (`make test-fio`); `LUKS_SEED` repeats the choices of a run.
//!
//! fio's own nbd engine is not used: with blocks of several sizes it finds mismatches on any server; `nbd.rs` has it with one
//! size at a time, and a model of every NBD request.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block::{BlockError, BlockIo, Bytes, Geometry, MemDisk};
use promises::Rig;
use promises::backend::{SMALL_HEADER_BYTES, format_small};
use promises::disk_model::compare;
use promises::random::{Random, seed};
use promises::served::Served;
use promises::skip::needs_programs;
use promises::user_space::Way;

const MIB: u64 = 1 << 20;
/// Of the device: the model's, that of each fio job.
const MODEL_BYTES: u64 = 2 * MIB;
const JOB_BYTES: u64 = 8 * MIB;
const JOBS_ON_DEVICE: u64 = 3;
const JOBS_ON_FILE: u64 = 2;
const DATA_BYTES: u64 = MODEL_BYTES + (JOBS_ON_DEVICE + JOBS_ON_FILE) * JOB_BYTES;
const NAME: &str = "fio";
/// In the suite, for each way.
const SECONDS: u64 = 2;

fn seconds() -> u64 {
    std::env::var("LUKS_FIO_SECONDS").ok().map_or(SECONDS, |text| text.parse().unwrap())
}

/// fio on `file` from `offset` on: random writes and reads of random sizes that overlap, checked as it goes and at the end.
struct Job {
    number: u64,
    file: PathBuf,
    offset: u64,
    block: u64,
    past_the_cache: bool,
}

impl Job {
    fn start(&self, random: &mut Random, seconds: u64, folder: &Path) -> Child {
        let depth = random.pick(&[1, 2, 4, 16, 64]);
        let largest = random.pick(&[8, 64, 512]) * 1024;
        let mut fio = Command::new("fio");
        fio.arg(format!("--name=job{}", self.number)).arg(format!("--filename={}", self.file.display()));
        fio.arg(format!("--offset={}", self.offset)).arg(format!("--size={JOB_BYTES}"));
        fio.arg(format!("--bsrange={}-{largest}", self.block)).arg(format!("--blockalign={}", self.block));
        fio.arg(format!("--iodepth={depth}")).arg(format!("--iodepth_batch_complete_max={depth}"));
        fio.arg(format!("--randseed={}", random.number() >> 1)).arg(format!("--runtime={seconds}"));
        fio.args(["--time_based", "--rw=randrw", "--norandommap=1", "--serialize_overlap=1", "--verify=crc32c"]);
        fio.args([
            "--verify_fatal=1",
            "--verify_backlog=64",
            "--do_verify=1",
            "--fsync=128",
            "--allow_mounted_write=0",
        ]);
        if self.past_the_cache {
            fio.args(["--ioengine=libaio", "--direct=1"]);
        } else {
            fio.args(["--ioengine=psync", "--direct=0"]);
        }
        fio.arg("--minimal").current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        fio.spawn().unwrap()
    }
}

/// What a job did: bytes read and written. Panics with fio's words if a block was not what had been written.
fn end_of(child: Child) -> Result<(u64, u64), String> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Terse version 3: fields 5 and 46 (from 0) are kibibytes read and written, field 4 is the error.
    let fields: Vec<&str> = text.lines().rev().find(|line| line.starts_with("3;")).unwrap_or("").split(';').collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    match (output.status.success(), number(4), number(5), number(46)) {
        (true, Some(0), Some(read), Some(written)) => Ok((read << 10, written << 10)),
        _ => Err(format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

fn no_mismatch(test: &str, way: Way) {
    if !(way.is_possible(test) && needs_programs(test, &["fio", "blkdiscard", "fallocate"])) {
        return;
    }
    let seed = seed(test);
    let mut random = Random::from_seed(seed);
    let rig = Rig::new("fio");
    let image = rig.path("image");
    let sector = random.pick(&[512, 4096]);
    format_small(&rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, false, &["--sector-size", &sector.to_string()]);
    let open = way.open(&rig, &image, NAME);
    let sysfs = Path::new("/sys/block").join(open.device.file_name().unwrap());
    let backing = std::fs::read_to_string(sysfs.join("loop/backing_file")).unwrap();
    let below = PathBuf::from(backing.trim_end());
    let until = Instant::now() + Duration::from_secs(seconds());
    let jobs = (0..JOBS_ON_DEVICE + JOBS_ON_FILE).map(|number| {
        let on_device = number < JOBS_ON_DEVICE;
        // Below the loop device any byte may be asked for.
        let (file, block) = if on_device { (&open.device, 4096) } else { (&below, random.pick(&[64, 512, 1536])) };
        Job { number, file: file.clone(), offset: MODEL_BYTES + number * JOB_BYTES, block, past_the_cache: on_device }
    });
    let jobs: Vec<Job> = jobs.collect();
    let running: Vec<Child> = jobs.iter().map(|job| job.start(&mut random, seconds(), &rig.path(""))).collect();
    let (mut rounds, mut zeroed) = (0, 0);
    while rounds == 0 || Instant::now() < until {
        zeroed += compare(&open.device, MODEL_BYTES, 4096, random.number() | 1)
            .unwrap_or_else(|wrong| panic!("LUKS_SEED={seed}, beside fio: {wrong}"));
        rounds += 1;
    }
    let (mut read, mut written) = (0, 0);
    for (job, child) in jobs.iter().zip(running) {
        let done = end_of(child).unwrap_or_else(|words| panic!("LUKS_SEED={seed}, job {}: {words}", job.number));
        read += done.0;
        written += done.1;
    }
    assert!(written > MIB && read > MIB && zeroed > 0, "too little to prove anything: {written}, {read}, {zeroed}");
    eprintln!(
        "{way:?}, {} s, sectors of {sector}: {} MiB written, {} MiB read and checked by fio, {zeroed} ranges zeroed or trimmed, no \
         mismatch",
        seconds(),
        written / MIB,
        read / MIB
    );
    open.close(&rig);
}

#[test]
fn fio_finds_no_mismatch_over_fuse() {
    no_mismatch("fio: fio_finds_no_mismatch_over_fuse", Way::Fuse);
}

#[test]
fn fio_finds_no_mismatch_over_nbd() {
    no_mismatch("fio: fio_finds_no_mismatch_over_nbd", Way::Nbd);
}

/// Says of some writes that they were done.
struct Forgetful {
    disk: MemDisk,
    writes: AtomicU64,
    /// Every so many writes.
    period: u64,
}

impl BlockIo for Forgetful {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        if self.writes.fetch_add(1, Ordering::Relaxed) % self.period == self.period - 1 {
            return Ok(());
        }
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

/// Runs in which a mismatch must have been found.
const TRIES: usize = 6;

#[test]
fn a_disk_that_forgets_one_write_in_500_is_caught() {
    let test = "fio: a_disk_that_forgets_one_write_in_500_is_caught";
    if !(Way::Fuse.is_possible(test) && needs_programs(test, &["fio"])) {
        return;
    }
    let rig = Rig::new("fio");
    let mut random = Random::seeded(test);
    let mut run = |name: &str, period| {
        let disk = Forgetful { disk: MemDisk::new(Bytes(JOB_BYTES)), writes: AtomicU64::new(0), period };
        let below = Served::new(Arc::new(disk), &rig.path(name));
        let job = Job { number: 0, file: below.file.clone(), offset: 0, block: 512, past_the_cache: false };
        let found = end_of(job.start(&mut random, seconds(), &rig.path("")));
        below.end();
        found
    };
    // A busy machine may write over each of the few lost blocks before it reads them.
    let words = (0..TRIES).find_map(|number| run(&format!("forgetful-{number}"), 500).err()).unwrap();
    assert!(words.contains("verify"), "{words}");
    run("honest", u64::MAX).unwrap();
}
