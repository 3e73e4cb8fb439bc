//! `key verify`: every sealed file opens, every key opens its volume, the newest backup opens with the recovery key and has
//! the keys that are in use.

use clap::Args;
use serde::Serialize;
use volumes::keys::{Verified, verify};

use super::managed::Managed;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::volume::SetArgs;

/// Arguments of `key verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Take a store that is older than what the audit log remembers, or another one; it is remembered from now on
    #[arg(long)]
    accept_older: bool,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Serialize)]
struct Answer {
    checked: Vec<Verified>,
    good: bool,
}

/// Verifies; 10 if something is wrong.
pub(super) fn run(args: &VerifyArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let store =
        if args.accept_older { managed.set.accept_store().map_err(managed.failed())? } else { managed.store()? };
    let checked = verify(&managed.set, &store).map_err(managed.failed())?;
    let good = checked.iter().all(|one| one.problem.is_none());
    if args.report.json {
        output::json(&Answer { checked, good })?;
    } else {
        for one in &checked {
            output::line(&match &one.problem {
                None => format!("good: {}", one.what),
                Some(problem) => format!("BAD:  {}: {problem}", one.what),
            })?;
        }
    }
    Ok(if good { Code::Success } else { Code::Found })
}
