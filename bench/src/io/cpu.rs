//! Processor time of this process, the workers of its rings included, and of a server.
//!
//! Source: getrusage(2), proc_pid_stat(5).

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Times since the processes began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub(super) user: Duration,
    pub(super) kernel: Duration,
}

impl CpuTime {
    /// Of this process and of the server `pid`.
    pub(super) fn now(pid: Option<u32>) -> Result<CpuTime> {
        let own = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
        let mut sum = CpuTime { user: duration(own.user_time()), kernel: duration(own.system_time()) };
        if let Some(pid) = pid {
            let path = format!("/proc/{pid}/stat");
            let text = std::fs::read_to_string(&path).with_context(|| format!("{path}: the server has ended"))?;
            let server = of_stat(&text, rustix::param::clock_ticks_per_second()).context(path)?;
            sum = CpuTime { user: sum.user + server.user, kernel: sum.kernel + server.kernel };
        }
        Ok(sum)
    }

    /// What was added since `before`.
    pub(super) fn since(self, before: CpuTime) -> CpuTime {
        CpuTime { user: self.user.saturating_sub(before.user), kernel: self.kernel.saturating_sub(before.kernel) }
    }
}

fn duration(time: TimeVal) -> Duration {
    let seconds = Duration::from_secs(time.tv_sec().try_into().unwrap_or(0));
    seconds + Duration::from_micros(time.tv_usec().try_into().unwrap_or(0))
}

/// The fields utime and stime, 14 and 15; the name in field 2 may have anything in it.
fn of_stat(text: &str, ticks_per_second: u64) -> Option<CpuTime> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_nanos(ticks * (1_000_000_000 / ticks_per_second.max(1))))
    };
    Some(CpuTime { user: next()?, kernel: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let text = "7 (a) (b 1 2) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 3 0 5 6 7";
        let time = of_stat(text, 100).unwrap();
        assert_eq!((time.user, time.kernel), (Duration::from_millis(2500), Duration::from_millis(500)));
        assert_eq!(of_stat("7 (a) S 1", 100), None);
        let before = CpuTime::now(Some(std::process::id())).unwrap();
        let since = CpuTime::now(Some(std::process::id())).unwrap().since(before);
        assert!(since.user < Duration::from_secs(100));
        assert!(CpuTime::now(Some(u32::MAX)).is_err());
    }
}
