//! Ctrl-C, SIGTERM and SIGHUP: a flag, so that whoever measures comes to a good end and everything is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// Whether to stop.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Watches for the signals from now on. Start it before any other thread: they inherit that the signals are blocked.
    pub(super) fn watch() -> Result<Stop> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("blocking signals")?;
        let stop = Stop::default();
        let wanted = stop.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while signals.wait().is_ok() {
                wanted.0.store(true, Ordering::Relaxed);
            }
        })?;
        Ok(stop)
    }

    /// Whether somebody wants it.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
