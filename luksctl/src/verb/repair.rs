//! `repair IMAGE`: rewrites a broken or stale header copy from the good one, gives damaged fields of a LUKS1 header their values
//! back, and finishes the removal of keyslots that was cut short. Shows the plan, asks, then writes.
//! `--dry-run` only shows it, and ends with 10 when there is something to do.

mod luks1;

use std::fmt;
use std::sync::Arc;

use clap::Args;
use luks::repair::{ForeignSignature, RepairPlan, plan, repair};
use luks::{Container, Error, KeyslotId, Limits, Rule};
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

/// What there is to do.
struct Work {
    copies: RepairPlan,
    /// Keyslots whose removal was cut short.
    half_removed: Vec<KeyslotId>,
}

impl Work {
    fn is_nothing(&self) -> bool {
        self.copies.rewrite.is_none() && self.half_removed.is_empty()
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.half_removed.is_empty() {
            return self.copies.fmt(f);
        }
        if self.copies.rewrite.is_some() {
            write!(f, "{}; ", self.copies)?;
        }
        f.write_str(&finish_words(&self.half_removed))
    }
}

fn finish_words(half_removed: &[KeyslotId]) -> String {
    let ids: Vec<String> = half_removed.iter().map(ToString::to_string).collect();
    format!("finish removing keyslot {}: its area is overwritten, it opens nothing", ids.join(", "))
}

/// Plans, asks, repairs.
pub(crate) fn run(args: &RepairArgs, common: &Common) -> Result<Code, Failure> {
    let access = if args.dry_run { Access::Read } else { Access::ChangeHeader };
    let image = Image::open(&args.target, access)?;
    let limits = image::limits(&LimitArgs::default());
    let failed = |error| Failure::of_luks(image.path(), error);
    match luks::luks1::repair::plan(image.header(), &limits) {
        Err(Error::Luks2 | Error::NotLuks | Error::Block(_)) => {}
        // A primary copy of LUKS2 that lost its version: the secondary may be there.
        Err(Error::InvalidLuks1(broken)) if broken.rule == Rule::Luks1Version => {}
        planned => return luks1::run(args, &image, planned.map_err(failed)?, common),
    }
    let header = image.load_luks2(&limits, "second copy of its header").map_err(|failure| {
        // The usual hint is to format, which is the last thing to do where a header was lost.
        if failure.code() != Code::Wrong || !nothing_is_left(&image, &limits) {
            return failure;
        }
        let path = image.header().path().display();
        failure
            .with_hint(format!("no copy of a header is left; `luksctl header restore {path} BACKUP` brings one back"))
    })?;
    let copies = plan(&header);
    let policy = args.target.policy()?.unwrap_or_default();
    let open = || {
        let opened = Container::open(Arc::clone(image.header()), Arc::clone(image.header()), limits.clone());
        opened.map(|container| container.with_policy(policy.clone()))
    };
    let half_removed = open().and_then(|container| container.half_removed()).map_err(failed)?;
    let work = Work { copies, half_removed };
    if work.is_nothing() || args.dry_run {
        show(args, &image, &work, false)?;
        return Ok(if work.is_nothing() { Code::Success } else { Code::Found });
    }
    if !common.batch_mode && confirm::can_ask() {
        confirm::typed_yes(&format!("{}: {work}.", image.path().display()))?;
    }
    let foreign = if args.force { ForeignSignature::Overwrite } else { ForeignSignature::Refuse };
    repair(image.header(), &SystemEnv, &limits, foreign, &work.copies).map_err(failed)?;
    let half_removed = open().and_then(|mut container| container.finish_removals(&SystemEnv.env())).map_err(failed)?;
    show(args, &image, &Work { half_removed, ..work }, true)?;
    Ok(Code::Success)
}

fn nothing_is_left(image: &Image, limits: &Limits) -> bool {
    matches!(luks::load_any(image.header(), limits), Err(Error::NotLuks))
}

fn show(args: &RepairArgs, image: &Image, work: &Work, repaired: bool) -> Result<(), Failure> {
    if !args.report.json {
        let done = if repaired { "Done: " } else { "" };
        output::words(&format!("{done}{work}"));
        return Ok(());
    }
    let rewrite = work.copies.rewrite.as_ref();
    output::json(&json!({
        "image": output::path(image.path()),
        "version": 2,
        "needs_repair": !work.is_nothing() && !repaired,
        "repaired": repaired,
        "source": work.copies.source.to_string(),
        "epoch": work.copies.seqid,
        "rewrite": rewrite.map(|(position, state)| json!({
            "copy": position.to_string(),
            "state": state.to_string(),
            "offset_bytes": work.copies.offset.0,
            "size_bytes": work.copies.size.0,
        })),
        "fields": [],
        "half_removed": work.half_removed.iter().map(|id| id.0).collect::<Vec<_>>(),
    }))
}
