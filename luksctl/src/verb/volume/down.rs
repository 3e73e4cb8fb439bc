//! `volume down [NAME…]`: unmounts and closes volumes. While one of them is in use, all stay up and the users are named.

use clap::Args;
use volumes::{keys, life};

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
    // Before the servers end, which their counts do not outlive.
    let measured = chosen
        .iter()
        .filter_map(|volume| Some((volume.name.clone(), keys::written::measured(&work.set, volume, &work.run)?)));
    let measured: Vec<(String, u64)> = measured.collect();
    let reports = life::down(work.set.config(), &chosen, &work.machine(), &work.set).map_err(&failed)?;
    if let Err(error) = keys::written::note(&work.set, &measured) {
        output::words(&format!("luksctl: warning: what was written is not counted: {error}"));
    }
    if args.report.json {
        output::json(&reports)?;
    }
    for report in reports.iter().filter(|_| !args.report.json) {
        output::line(&format!("{}  {}", report.name, if report.changed { "down" } else { "was down" }))?;
    }
    Ok(Code::Success)
}
