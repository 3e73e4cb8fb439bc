//! Alarms: volumes that could not be unlocked too often, and the command of the user's choice.
//!
//! The log itself is the counter: failures of the last five minutes are counted in its last lines, so nothing else has to be kept and
//! nothing can be reset without leaving the log's chain.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use super::medium::Medium;
use super::{Category, Event, Level, Moment, Outcome};
use crate::VolumesError;

/// Action of a record about an unlocking.
pub(super) const UNLOCK: &str = "unlock";
/// Action of the alarm.
const ALARM: &str = "unlock-failures";
/// More failures than this raise it.
const FAILURES_MAX: usize = 5;
/// Within this time.
const WINDOW_S: u32 = 300;
/// How much of the end of a file is searched: more than two thousand records.
const SEARCHED_BYTES: u64 = 1 << 20;
/// How long the command may take.
const COMMAND_TIME: Duration = Duration::from_secs(10);
/// Pause between two looks at it.
const COMMAND_PAUSE: Duration = Duration::from_millis(10);

/// Too many failures.
pub(super) struct Alarm {
    volume: String,
    uid: u32,
    count: usize,
}

impl Alarm {
    /// Its record.
    pub(super) fn event(&self) -> Event {
        Event::new(Category::Security, ALARM, &self.volume)
            .level(Level::High)
            .ended(Outcome::Failed)
            .detail("failures", self.count)
            .detail("seconds", WINDOW_S)
    }
}

/// Whether the failures of this volume and user raise an alarm now; one that was raised lasts for the window.
pub(super) fn due<M: Medium>(
    medium: &mut M,
    newest: &str,
    volume: &str,
    uid: u32,
    now: Moment,
) -> Result<Option<Alarm>, VolumesError> {
    let since = now.minus_seconds(WINDOW_S).to_string();
    let names = medium.names().map_err(VolumesError::io("list", "the audit log"))?;
    let (mut count, mut is_raised) = (0, false);
    // The window may have begun in the month before.
    for name in names.iter().filter(|name| name.as_str() <= newest).rev().take(2) {
        let failed = |source| VolumesError::Io { what: "read", path: name.into(), source };
        let len = medium.len(name).map_err(failed)?;
        let most = usize::try_from(SEARCHED_BYTES).unwrap_or(usize::MAX);
        let tail = medium.read(name, len.saturating_sub(SEARCHED_BYTES), most).map_err(failed)?;
        for line in tail.split(|byte| *byte == b'\n') {
            let Ok(record) = serde_json::from_slice::<Value>(line) else { continue };
            let is_ours = record["target"] == volume
                && record["actor"]["uid"] == uid
                && record["time"].as_str().is_some_and(|time| time >= since.as_str());
            count += usize::from(is_ours && record["action"] == UNLOCK && record["outcome"] == Outcome::Failed.word());
            is_raised |= is_ours && record["action"] == ALARM;
        }
    }
    let is_due = count > FAILURES_MAX && !is_raised;
    Ok(is_due.then(|| Alarm { volume: volume.to_owned(), uid, count }))
}

/// Runs the command, without a shell, with nothing but the alarm in its environment, for at most ten seconds.
pub(super) fn run(command: &[String], alarm: &Alarm) {
    let Some((program, arguments)) = command.split_first() else { return };
    let message = format!("{} failed attempts to unlock {} within five minutes", alarm.count, alarm.volume);
    let spawned = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LUKSCTL_ALERT_LEVEL", Level::High.word())
        .env("LUKSCTL_ALERT_VOLUME", alarm.volume.replace('\0', ""))
        .env("LUKSCTL_ALERT_UID", alarm.uid.to_string())
        .env("LUKSCTL_ALERT_MESSAGE", message.replace('\0', ""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return log::warn!("the alert command {program} did not start: {error}"),
    };
    let until = Instant::now() + COMMAND_TIME;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return log::warn!("the alert command {program}: {status}"),
            Ok(None) if Instant::now() < until => std::thread::sleep(COMMAND_PAUSE),
            Ok(None) => break,
            Err(error) => return log::warn!("waiting for the alert command {program}: {error}"),
        }
    }
    log::warn!("the alert command {program} takes longer than {} seconds and is stopped", COMMAND_TIME.as_secs());
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && let Err(error) = kill_process_group(group, Signal::KILL)
    {
        log::warn!("stopping the alert command: {error}");
    }
    if let Err(error) = child.wait() {
        log::warn!("waiting for the alert command {program}: {error}");
    }
}
