//! `resize NAME`: makes an open volume as long as its image has become, or a mapping `--size`, while it is in use. The file system
//! on it is not touched: grow it afterwards, shrink it before. A server has the key, and is asked for nothing else.

use block::Bytes;
use clap::Args;

use crate::args::Common;
use crate::args::again::AgainArgs;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `resize`.
#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Name given to `open`, or to cryptsetup
    #[arg(value_name = "NAME")]
    name: String,
    /// The size of the plaintext, with its unit: 5G, or 2048s for 512-byte sectors; of a volume below FUSE it can be no other than the default [default: all that the image has room for]
    #[arg(short = 'b', long, value_name = "SIZE", value_parser = crate::size::parse_with_unit, conflicts_with = "device_size")]
    size: Option<Bytes>,
    /// The same; a number without a unit is bytes
    #[arg(hide_short_help = true, long, value_name = "SIZE", value_parser = crate::size::parse)]
    device_size: Option<Bytes>,
    #[command(flatten)]
    again: AgainArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Resizes.
pub(crate) fn run(args: &ResizeArgs, common: &Common) -> Result<Code, Failure> {
    crate::harden::keep_in_memory();
    let runs = super::run_dir()?;
    let (mut source, again) = args.again.source(&runs, &args.name)?;
    let size = args.size.or(args.device_size);
    let done = session::resize(&runs, &args.name, size, &again, &mut source).map_err(Failure::of_session)?;
    if args.report.json {
        output::json(&done)?;
    } else if common.verbose {
        output::words(&format!("{}: {}, was {}.", done.name, Bytes(done.size_bytes), Bytes(done.was_bytes)));
    }
    Ok(Code::Success)
}
