//! What one run of `luksbench io` measured: everything that a table, a report, a comparison and a baseline are made of, and
//! the format of its JSON.
//!
//! Samples are kept, not summaries: medians, intervals and verdicts are computed from them by whoever reads a run, so that
//! two runs can be compared later by better statistics than those of their time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the JSON; another is refused.
pub const FORMAT: u32 = 1;
/// The layer that every other one is compared with: the file itself.
pub const PLAIN: &str = "plain";

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// Begin, seconds since 1970-01-01 UTC.
    pub started_unix_s: u64,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// Every layer that was asked for, also those that this machine has not.
    pub layers: Vec<Layer>,
    /// In the order in which they ran.
    pub jobs: Vec<Job>,
    /// One for each job and layer that was measured.
    pub measurements: Vec<Measurement>,
    /// Somebody ended it early: what is there is whole rounds.
    pub interrupted: bool,
    /// What the reader should know: fewer rounds than asked for, io_uring denied, …
    pub remarks: Vec<String>,
}

/// The machine and what ran on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Logical processors that may be used.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Kernel of our AES, with the reason for its choice.
    pub aes_kernel: String,
    /// File system of the target and the device below it, as far as known.
    pub storage: String,
    /// Programs and crates: name to version.
    pub versions: BTreeMap<String, String>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The target as given.
    pub target: String,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
    /// Rounds, each with every layer.
    pub rounds: u32,
    /// Time for one job on one layer in one round, in milliseconds.
    pub piece_ms: u64,
    /// Not counted before each piece, in milliseconds.
    pub warm_up_ms: u64,
    /// Past the page cache.
    pub direct: bool,
    /// Encryption sector in bytes.
    pub sector_bytes: u32,
    /// `io_uring` or `pread`.
    pub queue: String,
}

/// One way from the reader to the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// `plain`, `ring`, `fuse`, `fuse-loop`, `nbd`, `ublk`, `dm-crypt`.
    pub name: String,
    /// For people.
    pub title: String,
    /// Why it was not measured; `None` if it was.
    pub absent: Option<String>,
    /// The one that `luksctl open` would take here.
    pub chosen_by_open: bool,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// One block after the other.
    SequentialRead,
    /// One block after the other.
    SequentialWrite,
    /// Anywhere, aligned to the block.
    RandomRead,
    /// Anywhere, aligned to the block.
    RandomWrite,
    /// 70% reads, 30% writes, anywhere.
    RandomMixed,
}

impl Pattern {
    /// Whether it leaves the bytes as they are.
    #[must_use]
    pub fn only_reads(self) -> bool {
        matches!(self, Pattern::SequentialRead | Pattern::RandomRead)
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Unique in its run: `seq-read`, `seq-write`, `rand-read`, `rand-write`, `mixed`, and with `-qd1` at depth 1.
    pub name: String,
    /// What it does.
    pub pattern: Pattern,
    /// Block in bytes.
    pub block_bytes: u32,
    /// Requests in flight for each thread.
    pub depth: u32,
    /// Threads.
    pub threads: u32,
}

/// A job on a layer: one sample for each round in which it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the [`Job`].
    pub job: String,
    /// Name of the [`Layer`].
    pub layer: String,
    /// In the order of their rounds.
    pub samples: Vec<Sample>,
}

/// A job on a layer in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From 0. Samples of the same round lie next to each other in time.
    pub round: u32,
    /// Bytes moved, both ways together.
    pub bytes: u64,
    /// Requests completed.
    pub requests: u64,
    /// Time it took, in nanoseconds.
    pub elapsed_ns: u64,
    /// Processor time of everybody who took part, servers included, in nanoseconds: in user mode.
    pub user_ns: u64,
    /// The same in the kernel.
    pub kernel_ns: u64,
    /// Time from submission to completion.
    pub latency: Latency,
}

/// Latencies of a sample, in nanoseconds, from a histogram with three significant digits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Least.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Most.
    pub max_ns: u64,
    /// Percentile (`"50"`, `"90"`, `"99"`, `"99.9"`, `"99.99"`) to value.
    pub percentiles_ns: BTreeMap<String, u64>,
    /// The whole histogram: V2 deflate-free encoding of HdrHistogram, in base64.
    pub histogram: String,
}

impl Sample {
    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        if self.elapsed_ns == 0 {
            return 0.0;
        }
        #[allow(clippy::cast_precision_loss)] // a rate
        let rate = self.bytes as f64 * 1e9 / self.elapsed_ns as f64;
        rate
    }
}

impl Run {
    /// The samples of `job` on `layer`.
    #[must_use]
    pub fn samples(&self, job: &str, layer: &str) -> &[Sample] {
        let found = self.measurements.iter().find(|measured| measured.job == job && measured.layer == layer);
        found.map_or(&[], |measured| &measured.samples)
    }
}
