//! `key report` and `key check-age`: ages of the managed set's keys, without opening its store.

use clap::Args;
use volumes::keys::{KeyReport, Report};
use volumes::set::Set;

use super::managed::Managed;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::volume::SetArgs;

/// Arguments of `key report`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `key check-age`.
#[derive(Debug, Args)]
pub(super) struct CheckAgeArgs {
    #[command(flatten)]
    set: SetArgs,
    /// A key counts as due that falls due within so many days
    #[arg(long, value_name = "DAYS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3650))]
    within: u32,
    #[command(flatten)]
    report: ReportArgs,
}

fn report_of(args: &SetArgs, within_days: u32) -> Result<Report, Failure> {
    let managed = Managed::looking(args)?;
    let report = Report::of(&managed.set, Set::now(), within_days).map_err(managed.failed())?;
    if let Some(seconds) = report.clock_back_seconds {
        output::words(&format!(
            "luksctl: warning: the clock stands {seconds} seconds before the last change of the key store; ages are counted \
             from that change"
        ));
    }
    Ok(report)
}

/// Prints what there is to know of the keys.
pub(super) fn run(args: &ShowArgs) -> Result<Code, Failure> {
    let report = report_of(&args.set, 0)?;
    if args.report.json {
        output::json(&report)?;
        return Ok(Code::Success);
    }
    output::line(&format!("Key store {}, master secret since {}", report.store, report.master_since))?;
    for key in &report.keys {
        print(key)?;
    }
    output::line(&match &report.newest_key_backup {
        Some(time) => format!("Newest backup of keys: {time}"),
        None => "No backup of keys: the volumes open with this store alone".to_owned(),
    })?;
    if !report.has_recovery_key {
        output::line("No recovery key: backups of keys cannot be written")?;
    }
    output::line("")?;
    report.cautions.iter().try_for_each(|caution| output::line(caution))?;
    Ok(Code::Success)
}

fn print(key: &KeyReport) -> Result<(), Failure> {
    let state = match (key.generation, key.age_days) {
        (Some(generation), Some(days)) => format!("generation {generation}, {days} days old"),
        _ => "not in use yet".to_owned(),
    };
    let due = match (&key.due, key.is_due) {
        (Some(due), true) => format!(", DUE since {due}"),
        (Some(due), false) => format!(", due {due}"),
        (None, _) => String::new(),
    };
    output::line(&format!("{} ({}): {state}{due}", key.name, key.kind))?;
    if let Some(stage) = key.rotation {
        output::line(&format!(
            "  a rotation was cut off after \"{stage}\"; `luksctl key rotate {}` finishes it",
            key.name
        ))?;
    }
    if !key.retired.is_empty() {
        let numbers: Vec<String> = key.retired.iter().map(u64::to_string).collect();
        output::line(&format!("  kept sealed: generation {}", numbers.join(", ")))?;
    }
    if let (Some(written), Some(writable)) = (key.written_bytes, key.writable_bytes) {
        output::line(&format!(
            "  written under the volume key: {written} bytes; {writable} bytes to the limit of IEEE 1619"
        ))?;
    }
    for backup in &key.header_backups {
        let (path, generation) = (backup.path.display(), backup.opens_with_generation);
        let gone = if backup.key_is_there { "" } else { ", which the store has no more" };
        output::line(&format!("  header backup {path} opens with generation {generation}{gone}"))?;
    }
    Ok(())
}

/// Says which keys are due; 10 if one is.
pub(super) fn run_check_age(args: &CheckAgeArgs) -> Result<Code, Failure> {
    let report = report_of(&args.set, args.within)?;
    let due: Vec<&KeyReport> = report.keys.iter().filter(|key| key.is_due).collect();
    if args.report.json {
        output::json(&due)?;
    } else {
        for key in &due {
            let (days, since) = (key.age_days.unwrap_or(0), key.due.as_deref().unwrap_or("-"));
            output::line(&format!("{}: {days} days old, due {since}", key.name))?;
        }
        if due.is_empty() {
            output::words(&format!("No key is due; they are rotated every {} days.", report.rotation_days));
        } else {
            output::words("`luksctl key rotate-all --due` rotates them.");
        }
    }
    Ok(if due.is_empty() { Code::Success } else { Code::Found })
}
