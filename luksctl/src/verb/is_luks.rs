//! `is-luks IMAGE`: 0 for a LUKS container, of the version that `--type` asks for, 1 for anything else, 4 if there is nothing to look at. Quiet unless asked;
//! `--json` reports on a file that is no container, too.

use clap::Args;
use serde_json::json;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::{output, terminal};

/// Arguments of `is-luks`.
#[derive(Debug, Args)]
pub(crate) struct IsLuksArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Looks for a valid header.
pub(crate) fn run(args: &IsLuksArgs, common: &Common) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::Read)?;
    let found = image.look(&image::limits(&LimitArgs::default()));
    let code = if found.is_ok() { Code::Success } else { Code::Wrong };
    if let Err(error) = &found
        && (is_trouble(error) || matches!(error, luks::Error::Policy { .. }))
    {
        return found.map(|_| code).map_err(|error| Failure::of_luks(image.path(), error));
    }
    if let Ok(header) = &found {
        image::advise(image.path(), header.advice());
    }
    if args.report.json {
        output::json(&match &found {
            Ok(header) => json!({
                "image": output::path(image.path()), "luks": true, "version": header.version().number(),
                "uuid": header.uuid(), "healthy": header.is_healthy(), "advice": header.advice(),
            }),
            Err(error) => json!({ "image": output::path(image.path()), "luks": false, "reason": error.to_string() }),
        })?;
    } else if let Err(error) = &found
        && common.verbose
    {
        output::words(&terminal::plain(&format!("luksctl: {}: {error}", image.path().display())));
    }
    Ok(code)
}

/// Whether nothing was learnt about the file: it could not be read, or not be locked.
fn is_trouble(error: &luks::Error) -> bool {
    matches!(error, luks::Error::Block(_) | luks::Error::Locked { .. } | luks::Error::Lock { .. })
}
