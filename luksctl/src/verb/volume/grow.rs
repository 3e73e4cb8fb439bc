//! `volume grow NAME SIZE`: image, mapping, file system, and the size in the file.

use clap::Args;
use volumes::life::{self, Growth};

use super::{SetArgs, Work};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume grow`.
#[derive(Debug, Args)]
pub(crate) struct GrowArgs {
    /// The volume
    #[arg(value_name = "NAME")]
    name: String,
    /// How large its image shall be: 10G, or +5G for so much more than the file says
    #[arg(value_name = "SIZE", value_parser = Growth::parse)]
    size: Growth,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Grows a volume.
pub(crate) fn run(args: &GrowArgs) -> Result<Code, Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    let chosen = life::chosen(work.set.config(), std::slice::from_ref(&args.name)).map_err(&failed)?;
    let Some(volume) = chosen.first() else { return Ok(Code::Success) };
    let store = work.set.store().map_err(&failed)?;
    let place = (work.set.config(), work.set.path());
    let grown = life::grow(place, volume, args.size, &store, &work.machine(), &work.set).map_err(&failed)?;
    if args.report.json {
        output::json(&grown)?;
    } else {
        let (was, now) = (block::Bytes(grown.was_bytes), block::Bytes(grown.image_bytes));
        output::line(&format!("{}  {was} -> {now}", grown.name))?;
    }
    Ok(Code::Success)
}
