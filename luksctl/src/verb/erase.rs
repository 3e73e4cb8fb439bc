//! `erase IMAGE`: destroys every keyslot that opens the data. No passphrase is asked for; the header stays valid.

use clap::Args;
use serde_json::json;
use session::SystemEnv;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `erase`.
#[derive(Debug, Args)]
pub(crate) struct EraseArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Erases.
pub(crate) fn run(args: &EraseArgs, common: &Common) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&LimitArgs::default()))?;
    let path = image.header().path();
    confirm::before_loss(
        common,
        &format!(
            "every keyslot of {0} will be destroyed. Without a backup of the header nobody can ever open {0} again.",
            path.display()
        ),
    )?;
    let gone = container.erase(&SystemEnv.env()).map_err(|error| Failure::of_luks(path, error))?;
    if args.report.json {
        let ids: Vec<u32> = gone.iter().map(|id| id.0).collect();
        output::json(&json!({ "image": output::path(path), "destroyed": ids }))?;
    } else if gone.is_empty() {
        output::words("There was no keyslot to destroy.");
    } else {
        let ids: Vec<String> = gone.iter().map(ToString::to_string).collect();
        output::words(&format!("Keyslots destroyed: {}.", ids.join(", ")));
    }
    Ok(Code::Success)
}
