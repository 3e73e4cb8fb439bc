//! [`SystemEnv`]: the surroundings of the format crate, taken from the running system.
//!
//! Random bytes come from getrandom(2); clocks from clock_gettime(2); memory from `/proc/meminfo` and every cgroup above
//! the process, so that a key derivation is refused by name before the OOM killer would end it.

use std::time::Duration;

use block::Bytes;
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup;

/// The running system as the surroundings of the format crate.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

impl SystemEnv {
    /// What the format crate takes.
    #[must_use]
    pub fn env(&self) -> Env<'_> {
        Env { rng: self, clock: self, memory: self }
    }
}

impl Rng for SystemEnv {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        getrandom::fill(buf).map_err(|error| EnvError::Random { len_bytes: buf.len(), reason: error.to_string() })
    }
}

impl Clock for SystemEnv {
    fn monotonic(&self) -> Duration {
        read_clock(ClockId::Monotonic)
    }

    fn process_cpu(&self) -> Duration {
        read_clock(ClockId::ProcessCPUTime)
    }
}

impl MemoryBudget for SystemEnv {
    fn total(&self) -> Bytes {
        Bytes(MemInfo::read().total_bytes)
    }

    fn available(&self) -> Bytes {
        let available = MemInfo::read().available_bytes;
        Bytes(cgroup::room_bytes().map_or(available, |room| room.min(available)))
    }

    fn free_without_swap(&self) -> Option<Bytes> {
        let info = MemInfo::read();
        (info.swap_total_bytes == 0).then_some(Bytes(info.free_bytes))
    }

    fn online_cpus(&self) -> u32 {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        u32::try_from(cpus).unwrap_or(u32::MAX)
    }
}

fn read_clock(id: ClockId) -> Duration {
    let now = clock_gettime(id);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct MemInfo {
    total_bytes: u64,
    free_bytes: u64,
    available_bytes: u64,
    swap_total_bytes: u64,
}

impl MemInfo {
    /// Where `/proc` is missing everything is 0, and a derivation that asks for memory is refused.
    fn read() -> MemInfo {
        MemInfo::parse(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn parse(text: &str) -> MemInfo {
        let mut info = MemInfo::default();
        for line in text.lines() {
            let Some((key, rest)) = line.split_once(':') else {
                continue;
            };
            let kib: u64 = rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let bytes = kib.saturating_mul(1024);
            match key {
                "MemTotal" => info.total_bytes = bytes,
                "MemFree" => info.free_bytes = bytes,
                "MemAvailable" => info.available_bytes = bytes,
                "SwapTotal" => info.swap_total_bytes = bytes,
                _ => {}
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kib() {
        let info = MemInfo::parse("MemTotal:   16 kB\nMemFree: 4 kB\nMemAvailable:  8 kB\nSwapTotal: 0 kB\nX: 1\n");
        let expected = MemInfo { total_bytes: 16384, free_bytes: 4096, available_bytes: 8192, swap_total_bytes: 0 };
        assert_eq!(info, expected);
    }

    #[test]
    fn the_running_system_answers() {
        let system = SystemEnv;
        assert!(system.total() >= system.available(), "{} < {}", system.total(), system.available());
        assert!(system.available().0 > 0);
        assert!(system.online_cpus() >= 1);
        let before = system.monotonic();
        assert!(system.monotonic() >= before);
        let (mut first, mut second) = ([0_u8; 32], [0_u8; 32]);
        system.fill(&mut first).unwrap();
        system.fill(&mut second).unwrap();
        assert_ne!(first, second);
    }
}
