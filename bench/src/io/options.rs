//! Options of `luksbench io`, and the jobs and layers that they name.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use luksbench::run::{Job, Pattern};

/// Added to the name of a job for the same at depth 1.
const SHALLOW: &str = "-qd1";
const MOST_DEPTH: u32 = 1024;
/// Of data, if no size is given.
pub(super) const USUAL_SIZE_BYTES: u64 = 1 << 30;

/// Options of `luksbench io`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Jobs: seq-read and seq-write (1 MiB at depth 8), rand-read, rand-write and mixed (4 KiB at depth 32; mixed is 70% reads), and \
each with -qd1 at its end for the same at depth 1.

Layers: plain (the file itself), ring (our cipher in the ring of this process), fuse, fuse-loop (a loop device on it, as root \
gets it), nbd (its Unix socket), ublk, dm-crypt (root, by luksctl), and fio (the plain file by the program fio, as a check of luksbench \
itself; plain opens the file and sets up its ring as fio does then, without O_NONBLOCK, which makes it slower on tmpfs). What this machine has not is named with the reason.

All layers work on one file, in turns: each round has every job on every layer, in another order each time. A request's latency is \
the time from its submission to its completion, so cipher and server are in it. Processor time is that of this process and of the server; \
the kernel's own workers (loop devices, dm-crypt, ublk) cannot be told apart from those of others and are left out.

Ctrl-C ends after the present piece; what was measured by then is reported. Everything that was made is removed again. Only SIGKILL can \
leave the test file behind; the next run in its folder names it.")]
pub(crate) struct Args {
    /// A folder, also that of a mounted volume, or a file to make: a test file is made there and removed at the end. Or a LUKS2 image or
    /// device, whose data is only read: jobs that write are refused. What exists is never written to
    pub(super) target: PathBuf,
    /// Only this job; may be repeated
    #[arg(long = "job", value_name = "JOB")]
    pub(super) jobs: Vec<String>,
    /// Only this layer; may be repeated. plain is always measured, for the others are compared with it
    #[arg(long = "layer", value_name = "LAYER")]
    pub(super) layers: Vec<String>,
    /// Requests in flight for each thread, of all jobs that are not -qd1
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_DEPTH)))]
    pub(super) depth: Option<u32>,
    /// Threads of each job
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) threads: u32,
    /// Bytes of each request of all jobs, such as 16K
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) block_size: Option<u64>,
    /// Seconds of one job on one layer in one round
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(super) duration: f64,
    /// Seconds before that are not counted
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = seconds_or_none)]
    pub(super) warm_up: f64,
    /// Rounds, each with every job on every layer
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Size of the data, such as 4G; 1G if not given, and of an image no more than it holds
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) size: Option<u64>,
    /// Past the page cache; the default
    #[arg(long, overrides_with = "buffered")]
    direct: bool,
    /// Through the page cache
    #[arg(long, overrides_with = "direct")]
    pub(super) buffered: bool,
    /// Bytes of an encryption sector: 512, 1024, 2048 or 4096; 4096 if not given, and of an image its own
    #[arg(long, value_name = "BYTES")]
    pub(super) sector_size: Option<u32>,
    /// Write everything that was measured to this file, as JSON, every sample included; "-" is the standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a page with plots to this file, all in one
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Judge by the targets in this file instead of those of the program
    #[arg(long, value_name = "FILE")]
    pub(super) targets: Option<PathBuf>,
    /// No progress
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// A size in bytes, or with K, M, G or T behind it.
fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        other => bail!("{other} is no unit; K, M, G and T are"),
    };
    let number: u64 = digits.parse().with_context(|| format!("{digits:?} is no number"))?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).context("that is no size")
}

fn seconds(text: &str) -> Result<f64> {
    let seconds = seconds_or_none(text)?;
    ensure!(seconds >= 0.01, "{text} is too short; 0.01 is the least");
    Ok(seconds)
}

fn seconds_or_none(text: &str) -> Result<f64> {
    let seconds: f64 = text.parse()?;
    ensure!((0.0..=3600.0).contains(&seconds), "{text} is not between 0 and 3600");
    Ok(seconds)
}

fn job(name: &str) -> Option<Job> {
    let (base, shallow) = name.strip_suffix(SHALLOW).map_or((name, false), |base| (base, true));
    let (pattern, block_bytes, depth) = match base {
        "seq-read" => (Pattern::SequentialRead, 1 << 20, 8),
        "seq-write" => (Pattern::SequentialWrite, 1 << 20, 8),
        "rand-read" => (Pattern::RandomRead, 4 << 10, 32),
        "rand-write" => (Pattern::RandomWrite, 4 << 10, 32),
        "mixed" => (Pattern::RandomMixed, 4 << 10, 32),
        _ => return None,
    };
    Some(Job { name: name.to_owned(), pattern, block_bytes, depth: if shallow { 1 } else { depth }, threads: 1 })
}

const USUAL_JOBS: [&str; 7] =
    ["seq-read", "seq-write", "rand-read", "rand-write", "mixed", "rand-read-qd1", "rand-write-qd1"];

impl Args {
    /// The jobs, as the options have them, on data of this size; those that write only if `may_write`.
    pub(super) fn chosen_jobs(&self, size_bytes: u64, may_write: bool) -> Result<Vec<Job>> {
        let mut jobs: Vec<Job> = Vec::new();
        let reads = |name: &&str| job(name).is_some_and(|job| job.pattern.only_reads());
        let names: Vec<&str> = match self.jobs.as_slice() {
            [] => USUAL_JOBS.into_iter().filter(|name| may_write || reads(name)).collect(),
            names => names.iter().map(String::as_str).collect(),
        };
        for name in names {
            let mut job = job(name).with_context(|| {
                format!("there is no job {name}; there are seq-read, seq-write, rand-read, rand-write, mixed, each also with {SHALLOW}")
            })?;
            ensure!(
                may_write || job.pattern.only_reads(),
                "{name} writes, and {} is only read: luksbench writes to nothing that it did not make. Name its folder",
                self.target.display()
            );
            job.threads = self.threads;
            if let Some(bytes) = self.block_size {
                job.block_bytes = u32::try_from(bytes)
                    .ok()
                    .filter(|bytes| *bytes <= 64 << 20)
                    .with_context(|| format!("a block of {bytes} bytes is too large; 64 MiB is the most"))?;
            }
            if let Some(depth) = self.depth
                && !name.ends_with(SHALLOW)
            {
                job.depth = depth;
            }
            check(&job, size_bytes)?;
            if jobs.iter().all(|other| other.name != job.name) {
                jobs.push(job);
            }
        }
        Ok(jobs)
    }

    /// The sector of a test file, in bytes.
    pub(super) fn sector_bytes(&self) -> Result<u32> {
        let sector = self.sector_size.unwrap_or(4096);
        ensure!(
            [512, 1024, 2048, 4096].contains(&sector),
            "a sector of {sector} bytes: 512, 1024, 2048 or 4096 it must be"
        );
        Ok(sector)
    }
}

fn check(job: &Job, size_bytes: u64) -> Result<()> {
    // Servers and loop devices have blocks of 4096 bytes.
    ensure!(
        job.block_bytes.is_multiple_of(4096),
        "requests of {} bytes: they must be a multiple of 4096, the block of every layer",
        job.block_bytes
    );
    ensure!(
        size_bytes.is_multiple_of(1 << 20) && size_bytes >= u64::from(job.block_bytes) * u64::from(job.depth),
        "a size of {size_bytes} bytes: it must be whole MiB and hold the {} requests of {} bytes in flight of {}",
        job.depth,
        job.block_bytes,
        job.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!([size("512").ok(), size("4K").ok(), size("1g").ok()], [Some(512), Some(4096), Some(1 << 30)]);
        for wrong in ["", "0", "4X", "K", "99999999999T", "-1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(seconds("0").is_err() && seconds("nan").is_err() && seconds_or_none("0").is_ok());
    }

    #[test]
    fn every_job_exists_at_depth_one_too() {
        for name in USUAL_JOBS {
            let deep = job(name.trim_end_matches(SHALLOW)).unwrap();
            let shallow = job(&format!("{}{SHALLOW}", deep.name)).unwrap();
            assert_eq!((shallow.depth, shallow.pattern, shallow.block_bytes), (1, deep.pattern, deep.block_bytes));
            assert!(deep.depth > 1);
        }
        assert!(job("read").is_none());
    }
}
