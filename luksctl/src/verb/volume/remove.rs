//! `volume remove NAME`: destroys a volume that is down. What that is, is said and asked first.

use clap::Args;
use serde_json::json;
use volumes::life;
use volumes::set::Set;

use super::{SetArgs, Work};
use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::{confirm, output};

/// Arguments of `volume remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The volume
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Removes a volume.
pub(crate) fn run(args: &RemoveArgs, common: &Common) -> Result<Code, Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    let chosen = life::chosen(work.set.config(), std::slice::from_ref(&args.name)).map_err(&failed)?;
    let Some(volume) = chosen.first() else { return Ok(Code::Success) };
    let mut store = work.set.store().map_err(&failed)?;
    let plan = life::remove_plan(work.set.config(), volume, &store, &work.machine()).map_err(&failed)?;
    confirm::before_loss(common, &format!("{}: {}", plan.name, plan.words()))?;
    life::remove(work.set.path(), volume, &plan, &mut store, &work.set, Set::now()).map_err(&failed)?;
    work.set.remember(&store).map_err(&failed)?;
    // The newest backup of keys is one without this key.
    work.set.back_up_keys(&store).map_err(&failed)?;
    if args.report.json {
        output::json(&json!({ "removed": plan }))?;
    } else {
        output::words(&format!("{} is removed.", plan.name));
    }
    Ok(Code::Success)
}
