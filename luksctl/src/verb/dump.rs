//! `dump IMAGE`: what the header says. As text with cryptsetup's labels (scripts grep them), as our JSON, or as the
//! header's own JSON. Only header bytes are read; nothing is written. 10 if a copy of the header is damaged.

mod json;
mod luks1;
mod text;

use clap::Args;
use luks::AnyHeader;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
    /// Print the header's own JSON, indented
    #[arg(long, conflicts_with = "json")]
    dump_json_metadata: bool,
}

/// Prints the header.
pub(crate) fn run(args: &DumpArgs, _common: &Common) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::Read)?;
    let header = image.load(&image::limits(&LimitArgs::default()))?;
    image::advise(image.header().path(), header.advice());
    match (&header, args.dump_json_metadata, args.report.json) {
        (AnyHeader::Luks1(_), true, _) => {
            let error = luks::Error::Luks1Has { no: "JSON of its own: --json prints ours" };
            return Err(Failure::of_luks(image.path(), error));
        }
        (AnyHeader::Luks1(header), false, true) => output::json(&luks1::json(image.path(), header))?,
        (AnyHeader::Luks1(header), false, false) => output::data(luks1::text(image.path(), header).as_bytes())?,
        (AnyHeader::Luks2(header), true, _) => output::json(&header.metadata().to_map())?,
        (AnyHeader::Luks2(header), false, true) => output::json(&json::of(image.path(), header))?,
        (AnyHeader::Luks2(header), false, false) => output::data(text::of(header).as_bytes())?,
    }
    Ok(if header.is_healthy() { Code::Success } else { Code::Found })
}
