//! `volume status [NAME…]`: mounted, used, backend, age of key and backup, health. It needs no key.

use clap::Args;
use volumes::life::{self, Health, VolumeStatus};
use volumes::set::Set;

use super::{SetArgs, Work};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Volumes; all of the set without any
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Shows volumes; the exit code is 10 if one of them is red.
pub(crate) fn run(args: &StatusArgs) -> Result<Code, Failure> {
    let found = look(&args.set, &args.names)?;
    if args.report.json {
        output::json(&found)?;
    } else {
        found.iter().flat_map(lines).try_for_each(|line| output::line(&line))?;
    }
    let is_red = found.iter().any(|status| status.health == Health::Red);
    Ok(if is_red { Code::Found } else { Code::Success })
}

/// What `status` and `list` show.
pub(super) fn look(set: &SetArgs, names: &[String]) -> Result<Vec<VolumeStatus>, Failure> {
    let work = Work::looking(set)?;
    let failed = work.failed();
    let store = work.metadata()?;
    let chosen = life::chosen(work.set.config(), names).map_err(&failed)?;
    let statuses = chosen.into_iter().map(|volume| {
        life::status(work.set.config(), volume, store.as_ref(), &work.machine(), Set::now()).map_err(&failed)
    });
    statuses.collect()
}

/// The word of a health.
pub(super) fn word(health: Health) -> &'static str {
    match health {
        Health::Green => "green",
        Health::Yellow => "yellow",
        Health::Red => "red",
    }
}

fn lines(status: &VolumeStatus) -> Vec<String> {
    let bytes = |bytes: u64| block::Bytes(bytes).to_string();
    let days = |days: u64| format!("{days} days");
    let used = match (status.used_bytes, status.size_bytes) {
        (Some(used), Some(size)) => Some(format!("{} of {}", bytes(used), bytes(size))),
        _ => None,
    };
    let key = match (status.key_age_days, status.key_generation) {
        (Some(age), Some(generation)) => Some(format!("{}, generation {generation}", days(age))),
        _ => None,
    };
    let rows = [
        ("state", Some(status.state.clone())),
        ("mounted", status.mounted.as_ref().map(|path| path.display().to_string())),
        ("used", used),
        ("backend", status.backend.clone()),
        ("image", Some(status.image.display().to_string())),
        ("size", status.image_bytes.map(bytes)),
        ("key age", key),
        ("key backup", status.key_backup_age_days.map(days)),
        ("header", Some(if status.header_backup { "backed up" } else { "not backed up" }.to_owned())),
        ("health", Some(word(status.health).to_owned())),
    ];
    let rows = rows.into_iter().filter_map(|(label, value)| value.map(|value| format!("  {label:<11} {value}")));
    let problems = status.problems.iter().map(|problem| format!("  {:<11} {problem}", "problem"));
    std::iter::once(format!("{} ({})", status.name, status.mapping)).chain(rows).chain(problems).collect()
}
