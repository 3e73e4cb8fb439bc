//! `uuid IMAGE`: prints the UUID; `--uuid NEW` sets it.

use clap::Args;
use serde_json::json;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `uuid`.
#[derive(Debug, Args)]
pub(crate) struct UuidArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Give the container this UUID
    #[arg(long, value_name = "UUID")]
    uuid: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Prints or sets the UUID.
pub(crate) fn run(args: &UuidArgs, common: &Common) -> Result<Code, Failure> {
    let limits = image::limits(&LimitArgs::default());
    let (path, uuid) = match &args.uuid {
        None => {
            let image = Image::open(&args.target, Access::Read)?;
            (image.path().to_owned(), image.load(&limits)?.uuid())
        }
        Some(uuid) => {
            let image = Image::open(&args.target, Access::ChangeHeader)?;
            let mut container = image.container(&limits)?;
            if !common.batch_mode && confirm::can_ask() {
                confirm::typed_yes(&format!(
                    "what finds {} by its UUID {} will no longer find it.",
                    image.path().display(),
                    container.uuid()
                ))?;
            }
            container.set_uuid(uuid).map_err(|error| Failure::of_luks(image.path(), error))?;
            (image.path().to_owned(), container.uuid())
        }
    };
    if args.report.json {
        output::json(&json!({ "image": output::path(&path), "uuid": uuid }))?;
    } else if args.uuid.is_none() {
        output::line(&uuid)?;
    }
    Ok(Code::Success)
}
