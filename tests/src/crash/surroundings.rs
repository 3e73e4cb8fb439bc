//! A seeded environment: the same seed gives the same salts, stripes and keys, and so the same bytes on the platter.
#![allow(clippy::panic)]

use block::Bytes;
use block::fault::SplitMix64;
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};
use std::sync::Mutex;
use std::time::Duration;

/// Randomness from a seed, a clock that stands still, and memory enough.
pub struct Surroundings {
    random: Mutex<SplitMix64>,
}

impl Surroundings {
    /// The surroundings of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Surroundings {
        Surroundings { random: Mutex::new(SplitMix64::new(seed)) }
    }

    /// What an operation is given.
    #[must_use]
    pub fn env(&self) -> Env<'_> {
        Env { rng: self, clock: self, memory: self }
    }
}

impl Rng for Surroundings {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        let Ok(mut random) = self.random.lock() else { panic!("another thread panicked") };
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&random.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl Clock for Surroundings {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    fn process_cpu(&self) -> Duration {
        Duration::ZERO
    }
}

impl MemoryBudget for Surroundings {
    fn total(&self) -> Bytes {
        Bytes(16 << 30)
    }
    fn available(&self) -> Bytes {
        Bytes(8 << 30)
    }
    fn free_without_swap(&self) -> Option<Bytes> {
        None
    }
    fn online_cpus(&self) -> u32 {
        2
    }
}
