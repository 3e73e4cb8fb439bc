//! Interleaved rounds: every contender runs once per round, so that a slow minute hits all of them, and the median
//! over the rounds is what counts.

use std::time::{Duration, Instant};

/// Repeats `work` until `slice` has passed; returns the mean time of one call.
pub(crate) fn timed(slice: Duration, mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut calls = 0_u32;
    // The clock costs some 25 ns: look at it every 16 calls only.
    while calls == 0 || start.elapsed() < slice {
        for _ in 0..16 {
            work();
        }
        calls += 16;
    }
    start.elapsed() / calls
}

/// The median; the lower one of two. Zero when there is none.
pub(crate) fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        let of = |values: &[u64]| median(values.iter().map(|&ms| Duration::from_millis(ms)).collect());
        assert_eq!(of(&[]), Duration::ZERO);
        assert_eq!(of(&[7]), Duration::from_millis(7));
        assert_eq!(of(&[9, 1, 100]), Duration::from_millis(9));
        assert_eq!(of(&[4, 3, 2, 1]), Duration::from_millis(2));
    }

    #[test]
    fn timed_counts_every_call() {
        let mut calls = 0_u32;
        let mean = timed(Duration::from_millis(5), || calls += 1);
        assert!(calls >= 16);
        assert!(mean <= Duration::from_millis(5));
    }
}
