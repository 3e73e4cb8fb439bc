//! Progress of long work, with the rate and the time left: a bar on stderr when that is a lively terminal, nothing otherwise.

use std::time::Duration;

use block::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

/// Columns and numbers: how much, of how much, how fast, how long still.
const TEMPLATE: &str = "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
/// The same where the end is not known (copying in from a pipe).
const OPEN_ENDED: &str = "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}";

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);

/// A bar; silent where nobody watches.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `total`, or a counter without an end.
    pub(crate) fn new(what: &'static str, total: Option<Bytes>, quiet: bool) -> Progress {
        if quiet || !crate::output::is_lively() {
            return Progress { bar: ProgressBar::hidden() };
        }
        let bar = match total {
            Some(total) => ProgressBar::new(total.0),
            None => ProgressBar::no_length(),
        };
        let template = if total.is_some() { TEMPLATE } else { OPEN_ENDED };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Progress { bar }
    }

    /// Something without a measure of its own, which moves by itself until it is dropped.
    pub(crate) fn waiting(what: &'static str) -> Progress {
        if !crate::output::is_lively() {
            return Progress { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(TICK);
        Progress { bar }
    }

    /// So much is done.
    pub(crate) fn at(&self, done: Bytes) {
        self.bar.set_position(done.0);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
