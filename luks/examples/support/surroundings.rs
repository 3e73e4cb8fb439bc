//! What the format crate asks of a machine, answered by the Rust standard library and `getrandom`.
//!
//! `luks` itself makes no system call: randomness, clocks and the machine's memory come in through [`Env`], so that a test
//! can replay a run from a seed. A program that has a better idea of its memory (a cgroup, a limit of its own) says so here.

use std::time::{Duration, Instant};

use block::Bytes;
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};

/// The machine that this program runs on.
pub(crate) struct Machine {
    started: Instant,
}

impl Machine {
    /// This machine.
    pub(crate) fn new() -> Machine {
        Machine { started: Instant::now() }
    }

    /// What the functions of `luks` take.
    pub(crate) fn env(&self) -> Env<'_> {
        Env { rng: self, clock: self, memory: self }
    }
}

impl Rng for Machine {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        getrandom::fill(buf).map_err(|error| EnvError::Random { len_bytes: buf.len(), reason: error.to_string() })
    }
}

impl Clock for Machine {
    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    /// Only the calibration of PBKDF2 reads it; on one thread this is close enough.
    fn process_cpu(&self) -> Duration {
        self.started.elapsed()
    }
}

impl MemoryBudget for Machine {
    fn total(&self) -> Bytes {
        Bytes(memory_kib("MemTotal:") << 10)
    }

    fn available(&self) -> Bytes {
        Bytes(memory_kib("MemAvailable:") << 10)
    }

    fn free_without_swap(&self) -> Option<Bytes> {
        (memory_kib("SwapTotal:") == 0).then(|| Bytes(memory_kib("MemFree:") << 10))
    }

    fn online_cpus(&self) -> u32 {
        std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
    }
}

/// A line of `/proc/meminfo`.
fn memory_kib(name: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = table.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
