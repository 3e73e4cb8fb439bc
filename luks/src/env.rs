//! What the format crate needs from its surroundings: random bytes, clocks and knowledge of the machine's memory.
//!
//! This crate makes no syscalls. Everything that a system would answer comes in through [`Env`], so that a test which
//! supplies all three parts replays a run exactly from its seed.

use std::fmt;
use std::time::Duration;

use block::Bytes;

/// The surroundings of one operation. Cheap to copy: it only borrows.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Source of salts, anti-forensic stripes and generated keys.
    pub rng: &'a dyn Rng,
    /// Clocks that the KDF benchmark reads.
    pub clock: &'a dyn Clock,
    /// How much memory and how many CPUs a KDF may count on.
    pub memory: &'a dyn MemoryBudget,
}

impl fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env { .. }")
    }
}

/// A cryptographically secure source of random bytes.
pub trait Rng: Sync {
    /// Overwrites the whole of `buf` with random bytes, or fails; `buf` is then not to be used.
    ///
    /// # Errors
    /// [`EnvError::Random`] when the source has none.
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError>;
}

/// Two clocks, each counting from a point of its own.
pub trait Clock: Sync {
    /// Time that never goes back, for work that runs on several threads.
    fn monotonic(&self) -> Duration;
    /// CPU time used by all threads of this process.
    fn process_cpu(&self) -> Duration;
}

/// What the machine offers to a KDF, read anew at each call.
pub trait MemoryBudget: Sync {
    /// Physical memory of the machine.
    fn total(&self) -> Bytes;
    /// What this process can take now without being killed: the least of the system's available memory and of the
    /// room in every cgroup above the process.
    fn available(&self) -> Bytes;
    /// `Some(free memory)` when the machine has no swap, `None` when it has some.
    fn free_without_swap(&self) -> Option<Bytes>;
    /// CPUs that are online; at least 1.
    fn online_cpus(&self) -> u32;
}

/// The surroundings failed to deliver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// The random source gave an error.
    #[error("cannot get {len_bytes} random bytes: {reason}")]
    Random {
        /// How many bytes were asked for.
        len_bytes: usize,
        /// What the source said; never key material.
        reason: String,
    },
}

#[cfg(test)]
pub(crate) mod fixed {
    //! An environment whose every answer is set by the test, and which counts what it was asked.

    use super::{Bytes, Clock, Duration, Env, EnvError, MemoryBudget, Rng};
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// Seeded numbers, a clock moved by hand or by a fixed step per reading, and a fixed amount of memory.
    pub(crate) struct FixedEnv {
        state: AtomicU64,
        now_us: AtomicU64,
        step_us: u64,
        pub(crate) clock_reads: AtomicU32,
        pub(crate) memory_reads: AtomicU32,
        pub(crate) total: Bytes,
        pub(crate) available: Bytes,
        pub(crate) free_without_swap: Option<Bytes>,
        pub(crate) online_cpus: u32,
    }

    impl FixedEnv {
        /// `step_us`: how far the clocks move at each reading.
        pub(crate) fn new(seed: u64, step_us: u64) -> FixedEnv {
            FixedEnv {
                state: AtomicU64::new(seed),
                now_us: AtomicU64::new(0),
                step_us,
                clock_reads: AtomicU32::new(0),
                memory_reads: AtomicU32::new(0),
                total: Bytes(16 << 30),
                available: Bytes(8 << 30),
                free_without_swap: None,
                online_cpus: 4,
            }
        }

        pub(crate) fn env(&self) -> Env<'_> {
            Env { rng: self, clock: self, memory: self }
        }

        /// How often any clock or memory figure was read.
        pub(crate) fn touched(&self) -> u32 {
            self.clock_reads.load(Ordering::Relaxed) + self.memory_reads.load(Ordering::Relaxed)
        }

        fn tick(&self) -> Duration {
            self.clock_reads.fetch_add(1, Ordering::Relaxed);
            Duration::from_micros(self.now_us.fetch_add(self.step_us, Ordering::Relaxed))
        }

        fn asked(&self) {
            self.memory_reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Rng for FixedEnv {
        fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
            for chunk in buf.chunks_mut(8) {
                // splitmix64
                let z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
            }
            Ok(())
        }
    }

    impl Clock for FixedEnv {
        fn monotonic(&self) -> Duration {
            self.tick()
        }
        fn process_cpu(&self) -> Duration {
            self.tick()
        }
    }

    impl MemoryBudget for FixedEnv {
        fn total(&self) -> Bytes {
            self.asked();
            self.total
        }
        fn available(&self) -> Bytes {
            self.asked();
            self.available
        }
        fn free_without_swap(&self) -> Option<Bytes> {
            self.asked();
            self.free_without_swap
        }
        fn online_cpus(&self) -> u32 {
            self.asked();
            self.online_cpus
        }
    }
}
