//! `repair IMAGE`: rewrites a broken or stale header copy from the good one. Shows the plan, asks, then writes.
//! `--dry-run` only shows it, and ends with 10 when there is something to do.

use clap::Args;
use luks::repair::{ForeignSignature, RepairPlan, plan, repair};
use serde_json::json;
use session::SystemEnv;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `repair`.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Show what would be written; 10 if that is anything
    #[arg(long)]
    dry_run: bool,
    /// Overwrite another format's signature in the place of the broken copy
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Plans, asks, repairs.
pub(crate) fn run(args: &RepairArgs, common: &Common) -> Result<Code, Failure> {
    let access = if args.dry_run { Access::Read } else { Access::ChangeHeader };
    let image = Image::open(&args.target, access)?;
    let limits = image::limits(&LimitArgs::default());
    let planned = plan(&image.load_luks2(&limits, "second copy of its header")?);
    if planned.rewrite.is_none() || args.dry_run {
        show(args, &image, &planned, false)?;
        let found = planned.rewrite.is_some();
        return Ok(if found { Code::Found } else { Code::Success });
    }
    if !common.batch_mode && confirm::can_ask() {
        confirm::typed_yes(&format!("{}: {planned}.", image.path().display()))?;
    }
    let foreign = if args.force { ForeignSignature::Overwrite } else { ForeignSignature::Refuse };
    let done =
        repair(image.header(), &SystemEnv, &limits, foreign).map_err(|error| Failure::of_luks(image.path(), error))?;
    show(args, &image, &done, true)?;
    Ok(Code::Success)
}

fn show(args: &RepairArgs, image: &Image, plan: &RepairPlan, repaired: bool) -> Result<(), Failure> {
    if !args.report.json {
        let done = if repaired { "Done: " } else { "" };
        output::words(&format!("{done}{plan}"));
        return Ok(());
    }
    let rewrite = plan.rewrite.as_ref();
    output::json(&json!({
        "image": output::path(image.path()),
        "needs_repair": rewrite.is_some() && !repaired,
        "repaired": repaired,
        "source": plan.source.to_string(),
        "epoch": plan.seqid,
        "rewrite": rewrite.map(|(position, state)| json!({
            "copy": position.to_string(),
            "state": state.to_string(),
            "offset_bytes": plan.offset.0,
            "size_bytes": plan.size.0,
        })),
    }))
}
