//! `luksbench queue`: the queues of the data plane, io_uring against pread, without and with the cipher between, in turns on one
//! file.
//!
//! In each round every contender does the same requests, one after the other; the ratios are taken inside a round, and medians
//! are reported. The container is made for the run, with a key derivation that costs nothing, and removed afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use block::{BlockIo as _, BlockQueue, Bytes, Direct, FileDisk, IoUringQueue, PreadQueue, QueueOp};
use luks::{Volume, VolumeQueue};
use serde::Serialize;

use luksbench::rounds::Quartiles;

use crate::image::{self, DATA_OFFSET};

const NAMES: [&str; 4] = ["pread", "io_uring", "pread + cipher", "io_uring + cipher"];

/// Options of `luksbench queue`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for the image: its file system is what is measured
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    folder: PathBuf,
    /// Size of the volume in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..=65536))]
    size_mib: u64,
    /// Operations in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// Rounds, each with every queue
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Leave the page cache out where the file system can
    #[arg(long)]
    direct: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// One kind of request.
#[derive(Clone, Copy, Serialize)]
struct Case {
    write: bool,
    request_bytes: usize,
}

#[derive(Serialize)]
struct Line {
    case: Case,
    /// Medians over the rounds, in the order of `NAMES`.
    mib_per_second: Vec<f64>,
    /// io_uring over pread inside each round, median; above 1 is faster.
    plain_ratio: Option<f64>,
    cipher_ratio: Option<f64>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir_in(&args.folder).with_context(|| format!("folder {}", args.folder.display()))?;
    let (volume, disk) = volume(&folder.path().join("image"), args)?;
    let mut lines = Vec::new();
    for write in [false, true] {
        for request_bytes in [4 << 10, 1 << 20] {
            lines.push(measure(args, Case { write, request_bytes }, &volume, &disk)?);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    let direct = if disk.is_direct() { "direct" } else { "through the page cache" };
    println!("{} operations in flight, {direct}, median of {} rounds, MiB/s", args.depth, args.rounds);
    for line in lines {
        let what = if line.case.write { "write" } else { "read" };
        println!("{what} {} KiB", line.case.request_bytes >> 10);
        for (name, rate) in NAMES.iter().zip(&line.mib_per_second) {
            println!("  {name:18} {rate:8.0}");
        }
        if let (Some(plain), Some(cipher)) = (line.plain_ratio, line.cipher_ratio) {
            println!("  io_uring / pread   {plain:8.2}, with the cipher {cipher:.2}");
        }
    }
    Ok(())
}

/// An unlocked volume in a new file that is written all over, and its disk.
fn volume(path: &Path, args: &Args) -> Result<(Arc<Volume<FileDisk>>, FileDisk)> {
    image::create(path, Bytes::from_mib(args.size_mib), None)?;
    let direct = if args.direct { Direct::IfPossible } else { Direct::Never };
    let volume = Arc::new(image::open(path, None, direct)?);
    volume.write_zeroes(Bytes::ZERO, volume.geometry().size)?;
    volume.flush()?;
    let disk = volume.disk().clone();
    Ok((volume, disk))
}

/// The queue of this number in [`NAMES`], and where its data begins; `None` where the kernel gives no ring.
fn queue(
    number: usize,
    args: &Args,
    volume: &Arc<Volume<FileDisk>>,
    disk: &FileDisk,
) -> Result<Option<Box<dyn BlockQueue>>> {
    let depth = args.depth as usize;
    let below: Box<dyn BlockQueue> = if number.is_multiple_of(2) {
        Box::new(PreadQueue::new(disk.clone(), depth)?)
    } else {
        match IoUringQueue::new(disk.clone(), depth) {
            Ok(queue) => Box::new(queue),
            Err(why) => {
                eprintln!("luksbench: no io_uring here: {why}");
                return Ok(None);
            }
        }
    };
    Ok(Some(if number < 2 { below } else { Box::new(VolumeQueue::new(Arc::clone(volume), below)) }))
}

fn measure(args: &Args, case: Case, volume: &Arc<Volume<FileDisk>>, disk: &FileDisk) -> Result<Line> {
    let size = volume.geometry().size;
    let mut rates: [Vec<f64>; 4] = Default::default();
    let mut queues = Vec::new();
    for number in 0..4 {
        queues.push(queue(number, args, volume, disk)?);
    }
    for round in 0..=args.rounds {
        for ((number, queue), rates) in (0..).zip(&mut queues).zip(&mut rates) {
            let Some(queue) = queue else { continue };
            // Without the cipher the same bytes of the file are moved.
            let start = if number < 2 { DATA_OFFSET } else { Bytes::ZERO };
            let took = pass(queue.as_mut(), case, start, size)?;
            // The first round warms.
            if round > 0 {
                rates.push(size.0 as f64 / f64::from(1 << 20) / took.as_secs_f64());
            }
        }
    }
    let median = |values: &Vec<f64>| Quartiles::of(values).map_or(0.0, |quartiles| quartiles.median);
    let ratio = |of: usize, to: usize| Quartiles::of_ratios(&rates[of], &rates[to]).map(|quartiles| quartiles.median);
    let (plain_ratio, cipher_ratio) = (ratio(1, 0), ratio(3, 2));
    Ok(Line { case, mib_per_second: rates.iter().map(median).collect(), plain_ratio, cipher_ratio })
}

/// Goes once through the volume, in order that no cache knows, with as much in flight as the queue takes.
fn pass(queue: &mut dyn BlockQueue, case: Case, start: Bytes, size: Bytes) -> Result<Duration> {
    let request = case.request_bytes as u64;
    let count = size.0 / request;
    // A step that shares no divisor with a power of two times something small visits every request once.
    let step = (0..).map(|add| count * 5 / 8 + add).find(|step| gcd(*step, count) == 1).unwrap_or(1);
    let began = Instant::now();
    let (mut sent, mut ended, mut at) = (0, 0, 0);
    while ended < count {
        while sent < count && queue.room() > 0 {
            let offset = Bytes(start.0 + at * request);
            let buf = queue.buffer(case.request_bytes);
            let op =
                if case.write { QueueOp::Write { offset, buf, fua: false } } else { QueueOp::Read { offset, buf } };
            queue.submit(sent, op).map_err(|_| anyhow!("a queue with room was full"))?;
            (sent, at) = (sent + 1, (at + step) % count);
        }
        match queue.complete() {
            None => queue.wait()?,
            Some(done) => {
                done.result?;
                ended += 1;
                done.op.into_buffer().into_iter().for_each(|buf| queue.recycle(buf));
            }
        }
    }
    Ok(began.elapsed())
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
