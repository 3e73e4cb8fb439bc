//! How far it is and how long it takes: one line that changes on a terminal, a line now and then elsewhere, nothing with -q.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const PERIOD: Duration = Duration::from_secs(10);
/// Between two changes of the line on a terminal.
const REFRESH: Duration = Duration::from_millis(100);

/// The line.
pub(super) struct Progress {
    quiet: bool,
    terminal: bool,
    told: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: std::io::stderr().is_terminal(), told: None, shown: false }
    }

    /// Says `what`, and that `left` is left.
    pub(super) fn say(&mut self, what: &str, left: Option<Duration>) {
        let period = if self.terminal { REFRESH } else { PERIOD };
        if self.quiet || self.told.is_some_and(|told| told.elapsed() < period) {
            return;
        }
        self.told = Some(Instant::now());
        let left = left.map(|left| format!(", {} left", minutes(left))).unwrap_or_default();
        if self.terminal {
            self.shown = true;
            put(&format!("\r\x1b[K{what}{left}"));
        } else {
            put(&format!("luksbench: {what}{left}\n"));
        }
    }

    /// What comes next is said at once.
    pub(super) fn next_part(&mut self) {
        self.told = None;
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            put("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether anybody reads it or not.
fn put(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{} s", seconds.max(1)) } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_minutes() {
        let said = [0, 59, 60, 754].map(|seconds| minutes(Duration::from_secs(seconds)));
        assert_eq!(said, ["1 s", "59 s", "1 min 0 s", "12 min 34 s"]);
    }
}
