//! `volume down [NAME…]`: unmounts and closes volumes. While one of them is in use, all stay up and the users are named.

use clap::Args;
use volumes::life;

use super::{SetArgs, Work};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Volumes; all of the set without any
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Takes volumes down.
pub(crate) fn run(args: &DownArgs) -> Result<Code, Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    let chosen = life::chosen(work.set.config(), &args.names).map_err(&failed)?;
    let reports = life::down(work.set.config(), &chosen, &work.machine(), &work.set).map_err(&failed)?;
    if args.report.json {
        output::json(&reports)?;
    }
    for report in reports.iter().filter(|_| !args.report.json) {
        output::line(&format!("{}  {}", report.name, if report.changed { "down" } else { "was down" }))?;
    }
    Ok(Code::Success)
}
