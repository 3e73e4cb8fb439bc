//! Ctrl-C, SIGTERM and SIGHUP without half-made state: a thread waits for them (they are blocked in every other thread
//! from then on, so start this before any other thread and after the last prompt). The first signal removes the files that
//! this run has made and not finished; then either the program ends at once with 128 + signal, or, where the work asked to
//! stop at a good place by itself ([`Interrupt::stop_softly`]), only a flag is set and the second signal ends it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::signal::{SigSet, Signal};

use crate::exit::Code;
use crate::failure::Failure;

#[derive(Default)]
struct Shared {
    /// Files to remove when a signal comes. Held while they are removed, so `keep` cannot be overtaken.
    unfinished: Mutex<Vec<PathBuf>>,
    soft: AtomicBool,
    /// The first signal that came.
    signal: OnceLock<Signal>,
}

/// Handle to the waiting thread. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// Blocks the three signals and starts the thread that waits for them.
    pub(crate) fn watch() -> Result<Interrupt, Failure> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().map_err(|error| Failure::wrong(format!("blocking signals: {error}")))?;
        let interrupt = Interrupt::default();
        let shared = Arc::clone(&interrupt.shared);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || wait(&signals, &shared))
            .map_err(|error| Failure::wrong(format!("starting a thread: {error}")))?;
        Ok(interrupt)
    }

    /// No thread, no signals.
    #[cfg(test)]
    pub(crate) fn ignoring_signals() -> Interrupt {
        Interrupt::default()
    }

    /// From now on `path` is removed when a signal comes.
    pub(crate) fn remove_on_signal(&self, path: &Path) {
        self.unfinished().push(path.to_owned());
    }

    /// From now on `path` stays.
    pub(crate) fn keep(&self, path: &Path) {
        self.unfinished().retain(|other| other != path);
    }

    /// From now on the first signal only sets the flag that [`Interrupt::signal`] reads.
    pub(crate) fn stop_softly(&self) {
        self.shared.soft.store(true, Ordering::Release);
    }

    /// The signal that came, if one did.
    pub(crate) fn signal(&self) -> Option<Signal> {
        self.shared.signal.get().copied()
    }

    fn unfinished(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.shared.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiting thread: ends with the process.
fn wait(signals: &SigSet, shared: &Shared) {
    while let Ok(signal) = signals.wait() {
        let first = shared.signal.set(signal).is_ok();
        if first && shared.soft.load(Ordering::Acquire) {
            continue;
        }
        let mut unfinished = shared.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        for path in unfinished.drain(..) {
            // It may not exist yet; there is nobody left to tell about anything else.
            let removed = std::fs::remove_file(&path);
            drop(removed);
        }
        crate::output::words(&format!("luksctl: stopped by {signal}"));
        std::process::exit(i32::from(Code::of_signal(signal) as u8));
    }
}
