//! An [`Env`] that gives the same answers at every run: numbers from a seed, a clock that ticks, a fixed amount of memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::Bytes;
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};

/// Surroundings made of a seed.
pub(crate) struct Surroundings {
    state: AtomicU64,
    now_us: AtomicU64,
}

impl Surroundings {
    pub(crate) fn new(seed: u64) -> Surroundings {
        Surroundings { state: AtomicU64::new(seed), now_us: AtomicU64::new(0) }
    }

    pub(crate) fn env(&self) -> Env<'_> {
        Env { rng: self, clock: self, memory: self }
    }

    fn tick(&self) -> Duration {
        Duration::from_micros(self.now_us.fetch_add(1000, Ordering::Relaxed))
    }
}

impl Rng for Surroundings {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        for chunk in buf.chunks_mut(8) {
            // splitmix64 (S. Vigna)
            let z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl Clock for Surroundings {
    fn monotonic(&self) -> Duration {
        self.tick()
    }
    fn process_cpu(&self) -> Duration {
        self.tick()
    }
}

impl MemoryBudget for Surroundings {
    fn total(&self) -> Bytes {
        Bytes(1 << 30)
    }
    /// 1 MiB for a derivation, beside the 4 MiB that the library wants to stay free.
    fn available(&self) -> Bytes {
        Bytes(5 << 20)
    }
    fn free_without_swap(&self) -> Option<Bytes> {
        None
    }
    fn online_cpus(&self) -> u32 {
        1
    }
}
