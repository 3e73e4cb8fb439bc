//! `audit show|verify`: the log of what was done to the managed set.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use secret::Secret;
use serde_json::Value;
use volumes::VolumesError;
use volumes::audit::{
    Category, Event, Filter, Head, Moment, Report, Snapshot, heads_of_journal, read_seed, shown, verify,
};

use super::volume::SetArgs;
use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::{self, Code};
use crate::failure::Failure;
use crate::output;

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// What to do with the log
    #[command(subcommand)]
    verb: AuditVerb,
}

/// What can be done with the log.
#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// Print records
    Show(ShowArgs),
    /// Find out whether a record was changed, deleted, swapped, inserted, cut off or rolled back
    Verify(VerifyArgs),
}

/// Where the log is.
#[derive(Debug, Args)]
struct WhereArgs {
    #[command(flatten)]
    set: SetArgs,
    /// The log is in this folder instead of the one that the set names
    #[arg(long, value_name = "FOLDER")]
    log: Option<PathBuf>,
}

impl WhereArgs {
    fn folder(&self) -> Result<PathBuf, Failure> {
        match &self.log {
            Some(folder) => Ok(folder.clone()),
            None => Ok(self.set.load()?.audit.folder),
        }
    }
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// None before this: 2026-11-23, 2026-11-23T08:00:00Z, or 90m, 24h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// None at or after this, as --since
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Only these: ACCESS, KEY, CONFIG, BACKUP, RECOVERY, SECURITY
    #[arg(long, value_name = "CATEGORY", value_delimiter = ',', value_parser = category)]
    category: Vec<Category>,
    /// Only what was done to this
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// The seed is in this file instead of the set's file or key store
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// What an earlier `verify` printed: the log must have gone on from there; more than once
    #[arg(long, value_name = "COUNT:HEX", value_parser = |text: &str| text.parse::<Head>())]
    head: Vec<Head>,
    /// Do not ask the system's journal which heads it remembers
    #[arg(long)]
    no_journal: bool,
    #[command(flatten)]
    report: ReportArgs,
}

impl VerifyArgs {
    /// The log, and the seeds that it may have begun with: in a file, or sealed in the set's key store.
    fn places(&self) -> Result<(PathBuf, Vec<Secret>), Failure> {
        let failed = |error: VolumesError| of_audit(&error);
        if let (Some(folder), Some(seed)) = (&self.place.log, &self.seed) {
            return Ok((folder.clone(), vec![read_seed(seed).map_err(failed)?]));
        }
        let set = self.place.set.set()?;
        let folder = self.place.log.clone().unwrap_or_else(|| set.config().audit.folder.clone());
        let file = self.seed.as_ref().unwrap_or(&set.config().audit.seed);
        if self.seed.is_some() || file.symlink_metadata().is_ok() || !set.has_store() {
            return Ok((folder, vec![read_seed(file).map_err(failed)?]));
        }
        let seeds = set.audit_seeds().map_err(|error| super::volume::of_volumes(set.path(), &error))?;
        Ok((folder, seeds.into_iter().map(|(_, seed)| seed).collect()))
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    Moment::parse(text, Moment::now())
}

fn category(text: &str) -> Result<Category, String> {
    let found = Category::ALL.into_iter().find(|category| category.word().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "must be ACCESS, KEY, CONFIG, BACKUP, RECOVERY or SECURITY".to_owned())
}

/// Runs the verb below `audit`.
pub(crate) fn run(args: &AuditArgs, _common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        AuditVerb::Show(args) => show(args),
        AuditVerb::Verify(args) => run_verify(args),
    }
}

/// A failure on its way out of the library's loop.
struct Stopped(Failure);

impl From<VolumesError> for Stopped {
    fn from(error: VolumesError) -> Stopped {
        Stopped(of_audit(&error))
    }
}

fn show(args: &ShowArgs) -> Result<Code, Failure> {
    let folder = args.place.folder()?;
    let filter =
        Filter { since: args.since, until: args.until, categories: args.category.clone(), target: args.target.clone() };
    let mut records = Vec::new();
    let done = shown(&folder, &filter, |record| {
        if args.report.json {
            records.push(record.clone());
            return Ok(());
        }
        output::line(&in_words(record)).map_err(Stopped)
    });
    let done = done.map_err(|stopped| stopped.0)?;
    if args.report.json {
        output::json(&records)?;
    } else if done.chosen == 0 {
        output::words("No such record.");
    }
    if done.broken > 0 {
        output::words(&format!(
            "luksctl: warning: {} lines are no records; `luksctl audit verify` locates them",
            done.broken
        ));
    }
    Ok(Code::Success)
}

/// One record on one line.
fn in_words(record: &Value) -> String {
    let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or("-");
    let actor = record.get("actor").unwrap_or(&Value::Null);
    let number = |name: &str| actor.get(name).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), |n| n.to_string());
    let process = actor.get("process").and_then(Value::as_str).unwrap_or("-");
    let details = record.get("details").and_then(Value::as_object).into_iter().flatten();
    let details = details.map(|(name, value)| format!(" {name}={}", value.as_str().unwrap_or("-"))).collect::<String>();
    format!(
        "{} {} {} {} {} {} by uid {} (login {}, {process}){details}",
        text("time"),
        text("level"),
        text("category"),
        text("action"),
        text("target"),
        text("outcome"),
        number("uid"),
        number("login_uid")
    )
}

fn run_verify(args: &VerifyArgs) -> Result<Code, Failure> {
    let failed = |error: VolumesError| of_audit(&error);
    let (folder, seeds) = args.places()?;
    let snapshot = Snapshot::read(&folder).map_err(failed)?;
    // One for each chain that there was; that of this log fits best.
    let mut best = None;
    for seed in seeds {
        let report = verify(&snapshot, &seed, &args.head).map_err(failed)?;
        if best.as_ref().is_none_or(|(_, best): &(_, Report)| report.faults.len() < best.faults.len()) {
            best = Some((seed, report));
        }
    }
    let (seed, mut report) = best.ok_or_else(|| {
        Failure::device("the key store has no seed of an audit log")
            .with_hint("give the file with the seed of this log: --seed FILE")
    })?;
    if !args.no_journal {
        let owner = folder.metadata().map_err(|error| Failure::from_open(&folder, &error))?.uid();
        match heads_of_journal(&report.chain, owner) {
            Some(heads) if !heads.is_empty() => {
                report = verify(&snapshot, &seed, &[args.head.clone(), heads].concat()).map_err(failed)?;
            }
            Some(_) => report.notes.push("the journal remembers no head of this chain".to_owned()),
            None => report.notes.push("there is no journal to ask which heads it remembers".to_owned()),
        }
    }
    if args.report.json {
        output::json(&report)?;
    } else {
        for fault in &report.faults {
            output::line(&fault.to_string())?;
        }
        report.notes.iter().for_each(|note| output::words(&format!("note: {note}")));
        match &report.head {
            Some(head) if report.faults.is_empty() => output::line(&format!("good: {head}"))?,
            Some(_) => output::words(&format!("{} faults.", report.faults.len())),
            None => output::words("There is no record."),
        }
    }
    Ok(if report.faults.is_empty() { Code::Success } else { Code::Found })
}

/// Records changes of the set's file before they are made. What cannot be recorded is not done.
pub(crate) fn record(config: &volumes::config::Config, events: &[Event]) -> Result<(), Failure> {
    let journal = Box::new(volumes::audit::SystemJournal::default());
    let log = volumes::audit::AuditLog::new(&config.audit, journal);
    for event in events {
        log.record(event, Moment::now()).map_err(|error| {
            let failure = of_audit(&error);
            let message = format!("nothing was changed, as it cannot be recorded: {}", failure.message());
            failure.saying(message)
        })?;
    }
    Ok(())
}

/// What the audit log says.
fn of_audit(error: &VolumesError) -> Failure {
    let look = |path: &Path| format!("ls -la {}", path.display());
    match error {
        VolumesError::Io { what: "read" | "open", path, source } => {
            Failure::from_open(path, source).or_hint(look(path))
        }
        VolumesError::Io { what, path, source } => Failure::from_write(what, path, source).or_hint(look(path)),
        VolumesError::AuditBusy { .. } => {
            Failure::busy(error.to_string()).with_hint("try again when the other command is done")
        }
        VolumesError::AuditState { path, .. } | VolumesError::File { path, .. } => {
            Failure::wrong(error.to_string()).with_hint(look(path))
        }
        VolumesError::Secret(error) => Failure::new(exit::of_secret(error), error.to_string()),
        VolumesError::KeySource(error) => Failure::of_key_source(error),
        _ => Failure::wrong(error.to_string()).with_hint("give the file with the seed of this log: --seed FILE"),
    }
}
