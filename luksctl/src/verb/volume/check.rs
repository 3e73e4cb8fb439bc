//! `volume check [NAME…]`: fsck of volumes that are down; without --repair nothing changes.

use clap::Args;
use volumes::life;

use super::{SetArgs, Work};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Volumes; all of the set without any
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    /// Mend what can be mended without questions
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Checks file systems; the exit code is 10 if one of them has errors.
pub(crate) fn run(args: &CheckArgs) -> Result<Code, Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    let chosen = life::chosen(work.set.config(), &args.names).map_err(&failed)?;
    let store = work.set.store().map_err(&failed)?;
    let mut reports = Vec::new();
    for volume in chosen {
        let report = life::check(work.set.config(), volume, args.repair, &store, &work.machine(), &work.set);
        let report = report.map_err(&failed)?;
        if !args.report.json {
            let state = if report.checked.good { "good" } else { "has errors" };
            output::line(&format!("{}  {state}  {}", report.name, report.checked.words))?;
        }
        reports.push(report);
    }
    if args.report.json {
        output::json(&reports)?;
    }
    Ok(if reports.iter().all(|report| report.checked.good) { Code::Success } else { Code::Found })
}
