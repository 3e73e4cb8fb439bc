//! Going on with a ublk device whose server died, for who asked for it when the volume was opened (`--recover`).
//!
//! * Readers wait while there is no server. An `open --recover` of the same name unlocks again and goes on with the very device, if
//!   the volume is the one that it was: what the killed server had in hand is asked of the new one again.
//! * Nobody waits for ever: a [`watch`] beside the server, a process without secrets, takes the device away when it has been without
//!   a server for [`PATIENCE`]; then readers get errors.
//! * The fingerprint of the volume lies in the entry: what the header says of it, nothing secret.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use export::ublk::{marked, remove};
use serde::{Deserialize, Serialize};

use crate::SessionError;
use crate::run_dir::{Entry, replace_file};

/// The first argument of a watcher, where a server has its run directory.
pub(crate) const WATCH_WORD: &str = "ublk-watch";
/// How long readers may wait for another server.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// From the start of the watcher to the device.
const BEGIN_WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);
const FILE: &str = "ublk";
/// Longest fingerprint that is read.
const FINGERPRINT_MAX_BYTES: u64 = 16 << 10;

/// What a server is told that is to go on, or to be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveryOrder {
    /// The volume behind the device that a dead server left, if it left one.
    pub(crate) left: Option<String>,
}

/// What the dead server of `entry` wrote down.
pub(crate) fn left_behind(entry: &Entry) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(entry.folder.join(FILE)).ok()?;
    file.take(FINGERPRINT_MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Writes down which volume is behind the device.
pub(crate) fn note(entry: &Entry, fingerprint: &str) -> Result<(), SessionError> {
    replace_file(&entry.folder, FILE, fingerprint.as_bytes())
}

/// Starts the process that gives up on the device of this mark.
pub(crate) fn start_watcher(mark: u64) -> std::io::Result<()> {
    // This process was started as PROGRAM … RUN NAME.
    let own: Vec<OsString> = std::env::args_os().skip(1).collect();
    let before = own.get(..own.len().saturating_sub(2)).unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0("luksctl")
        .args(before)
        .args([WATCH_WORD, &mark.to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    std::thread::Builder::new().name("watcher-exit".to_owned()).spawn(move || child.wait())?;
    Ok(())
}

/// The body of that process.
pub(crate) fn watch(mark: &OsString) -> ExitCode {
    let Some(mark) = mark.to_str().and_then(|text| text.parse::<u64>().ok()) else {
        return ExitCode::FAILURE;
    };
    let (begun, mut was_there, mut alone_since) = (Instant::now(), false, None);
    loop {
        // An error says nothing of the device: it is asked again.
        if let Ok(devices) = marked(mark) {
            was_there |= !devices.is_empty();
            if devices.is_empty() && (was_there || begun.elapsed() >= BEGIN_WAIT) {
                return ExitCode::SUCCESS;
            }
            match devices.iter().find(|device| device.waits) {
                None => alone_since = None,
                Some(device) if alone_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE => {
                    let _ = remove(device.number);
                }
                Some(_) => {}
            }
        }
        sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunDir;

    #[test]
    fn a_fingerprint_is_found_again_and_goes_with_its_entry() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        let entry = run.entry(&"vol".parse().unwrap());
        entry.create().unwrap();
        assert_eq!(left_behind(&entry), None);
        note(&entry, "volume 1").unwrap();
        assert_eq!(left_behind(&entry).as_deref(), Some("volume 1"));
        entry.remove().unwrap();
        assert!(!entry.exists());
    }

    #[test]
    fn a_watcher_of_nothing_sensible_ends() {
        assert_eq!(watch(&"x".into()), ExitCode::FAILURE);
    }
}
