//! `flags IMAGE`: the flags that the header keeps for every opening, shown or set. `open --persistent` and
//! `refresh --persistent` set them to those in force.

use clap::Args;
use serde_json::json;

use crate::args::Common;
use crate::args::flags::FlagArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// What LUKS1 lacks.
pub(crate) const NO_FLAGS: &str = "flags of its own";

/// Arguments of `flags`.
#[derive(Debug, Args)]
pub(crate) struct FlagsArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    flags: FlagArgs,
    /// Keep no flags
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Shows or sets the flags.
pub(crate) fn run(args: &FlagsArgs, _common: &Common) -> Result<Code, Failure> {
    let wanted = args.flags.kept();
    if args.none && !wanted.is_empty() {
        return Err(Failure::wrong("--none and a flag contradict each other").with_hint("leave one of them out"));
    }
    let limits = image::limits(&LimitArgs::default());
    let changes = args.none || !wanted.is_empty();
    let image = Image::open(&args.target, if changes { Access::ChangeHeader } else { Access::Read })?;
    let flags = if changes {
        let mut container = image.luks2(&limits, NO_FLAGS)?;
        container.set_flags(&wanted).map_err(|error| Failure::of_luks(image.path(), error))?;
        container.header().metadata().config.flags.clone()
    } else {
        image.load_luks2(&limits, NO_FLAGS)?.metadata().config.flags.clone()
    };
    if args.report.json {
        output::json(&json!({ "image": output::path(image.path()), "flags": flags }))?;
    } else if !changes {
        for flag in &flags {
            output::line(flag)?;
        }
    }
    Ok(Code::Success)
}

/// Has the header of an open volume keep these flags.
pub(crate) fn keep(target: &TargetArgs, flags: FlagArgs) -> Result<(), Failure> {
    let image = Image::open(target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), NO_FLAGS)?;
    container.set_flags(&flags.kept()).map_err(|error| {
        let name = image.path().display().to_string();
        Failure::of_luks(image.path(), error).with_hint(format!("the volume is open; later: luksctl flags {name}"))
    })
}
