//! `umount DIR`: unmounts what `mount` mounted and closes the volume; returns when everything is on disk.

use std::path::PathBuf;

use clap::Args;

use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `umount`.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Folder that `mount` mounted on
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    report: ReportArgs,
}

/// Unmounts and closes.
pub(crate) fn run(args: &UmountArgs, common: &Common) -> Result<Code, Failure> {
    let done = session::umount(&super::run_dir()?, &args.folder).map_err(Failure::of_session)?;
    if args.report.json {
        output::json(&done)?;
    } else if common.verbose {
        output::words(&format!("{} {}.", done.name, if done.closed { "closed" } else { "unmounted, still open" }));
    }
    Ok(Code::Success)
}
