//! Where the libraries' warnings go: stderr, prefixed like our own words. Warnings always, everything else with `-v`.

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::terminal;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Error => "error",
                Level::Warn => "warning",
                Level::Info => "info",
                Level::Debug => "debug",
                Level::Trace => "trace",
            };
            crate::output::words(&format!("luksctl: {level}: {}", terminal::plain(&record.args().to_string())));
        }
    }

    fn flush(&self) {}
}

/// Starts logging to stderr. A second start changes nothing.
pub(crate) fn start(verbose: bool) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Warn });
    }
}
