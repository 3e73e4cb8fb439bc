//! `volume config show|check|import|example`: the file that describes the set.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use volumes::audit::{Category, Event, Level, Outcome};
use volumes::config::EXAMPLE;
use volumes::variables::{self, DotEnv, Import};

use super::{SetArgs, of_refusal, of_volumes};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::audit;

/// Arguments of `volume config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// What to do with the file
    #[command(subcommand)]
    verb: ConfigVerb,
}

/// What can be done with the file.
#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the set with every default written out
    Show(ShowArgs),
    /// Find every fault of the file
    Check(CheckArgs),
    /// Write the guide's environment variables into the file
    Import(ImportArgs),
    /// Print the guide's layout as a file to begin with
    Example,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    set: SetArgs,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// File of lines NAME=VALUE, as containers and shells read it
    #[arg(value_name = "ENVFILE")]
    file: PathBuf,
    #[command(flatten)]
    set: SetArgs,
    /// Also write what makes the set less strict
    #[arg(long)]
    allow_loosening: bool,
    /// Show what would be written, write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs the verb below `volume config`.
pub(crate) fn run(args: &ConfigArgs) -> Result<Code, Failure> {
    match &args.verb {
        ConfigVerb::Show(args) => show(args),
        ConfigVerb::Check(args) => {
            let config = args.set.load()?;
            let count = config.volumes.len();
            output::words(&format!("{}: {count} volumes, no fault.", args.set.config.display()));
            Ok(Code::Success)
        }
        ConfigVerb::Import(args) => import(args),
        ConfigVerb::Example => output::data(EXAMPLE.as_bytes()).map(|()| Code::Success),
    }
}

fn show(args: &ShowArgs) -> Result<Code, Failure> {
    let config = args.set.load()?;
    if args.report.json {
        output::json(&config)?;
    } else {
        let text = config.to_toml().map_err(|error| of_volumes(&args.set.config, &error))?;
        output::data(text.as_bytes())?;
    }
    Ok(Code::Success)
}

fn import(args: &ImportArgs) -> Result<Code, Failure> {
    let path = &args.set.config;
    let failed = |error| of_volumes(path, &error);
    let env = variables::read_dotenv(&args.file).map_err(|error| match error {
        volumes::VolumesError::Io { source, .. } => Failure::from_open(&args.file, &source),
        other => of_volumes(&args.file, &other),
    })?;
    let found = DotEnv::parse(&env).map_err(|error| {
        Failure::wrong(format!("{}:{error}", args.file.display())).with_hint("mend that line; nothing was written")
    })?;
    let _alone = alone(path)?;
    let text = volumes::config::read(path).map_err(failed)?;
    let import = variables::import(&text, path, &found.known, args.allow_loosening).map_err(|error| {
        let failure = of_refusal(path, &error);
        // The line is one of the file of variables.
        match error {
            variables::Refusal::Value { .. } => failure.saying(format!("{}:{error}", args.file.display())),
            _ => failure,
        }
    })?;
    if !args.dry_run && !import.changes.is_empty() {
        write(path, &text, &import)?;
    }
    report(args, &import, found.others)
}

/// Holds other imports off until it is dropped.
fn alone(path: &Path) -> Result<File, Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).map_err(|error| Failure::from_open(path, &error))?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Failure::busy(format!("{}: another import is under way", path.display())).with_hint("try again when it is done")
    })?;
    Ok(folder)
}

/// Records each change and then makes them. The log is that of the set as it was: turning it off is its last record.
fn write(path: &Path, before: &str, import: &Import) -> Result<(), Failure> {
    let failed = |error| of_volumes(path, &error);
    let before = volumes::config::Config::parse(before, path).map_err(failed)?;
    let config = if before.audit.enabled { &before } else { &import.config };
    let events: Vec<Event> = import
        .changes
        .iter()
        .map(|change| Event::config(path.display(), &change.key, &change.old, &change.new))
        .map(
            |event| {
                if import.changes.iter().any(|change| change.loosens) { event.level(Level::Warning) } else { event }
            },
        )
        .collect();
    if config.audit.enabled {
        audit::record(config, &events)?;
    }
    volumes::config::replace(path, &import.text).map_err(|error| {
        if config.audit.enabled {
            let event = Event::new(Category::Config, "set", path.display()).ended(Outcome::Failed);
            if let Err(error) = audit::record(config, &[event]) {
                log::warn!("{}", error.message());
            }
        }
        failed(error)
    })
}

/// Says what changed, and what did not.
fn report(args: &ImportArgs, import: &Import, others: usize) -> Result<Code, Failure> {
    if args.report.json {
        output::json(&json!({
            "written": !args.dry_run && !import.changes.is_empty(),
            "changes": import.changes,
            "left_out": import.left_out,
            "other_variables": others,
        }))?;
        return Ok(Code::Success);
    }
    for change in &import.changes {
        output::line(&format!("{}: {} -> {} ({})", change.key, change.old, change.new, change.variable))?;
    }
    for left_out in &import.left_out {
        output::words(&format!("{}: not written: {}", left_out.variable, left_out.why));
    }
    if others > 0 {
        output::words(&format!("{others} variables are not this program's."));
    }
    if import.changes.is_empty() {
        output::words(&format!("{}: nothing to change.", args.set.config.display()));
    }
    Ok(Code::Success)
}
