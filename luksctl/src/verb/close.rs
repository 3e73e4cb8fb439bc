//! `close NAME`: flush, take the device away, wipe the keys; returns when all of that is done. Also cleans up after a server
//! that died or an opening that was broken off, and closes what cryptsetup opened.

use clap::Args;
use session::{CloseOptions, CloseReport};

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `close`.
#[derive(Debug, Args)]
pub(crate) struct CloseArgs {
    /// Name given to `open`
    #[arg(value_name = "NAME")]
    name: String,
    /// Do not refuse a mapping that is in use: it goes with its last user
    #[arg(long)]
    deferred: bool,
}

/// Closes a volume.
pub(crate) fn run(args: &CloseArgs, common: &Common) -> Result<Code, Failure> {
    let runs = super::run_dir()?;
    let options = CloseOptions::default().deferred(args.deferred);
    let done = session::close(&runs, &args.name, &options).map_err(Failure::of_session)?;
    if done == CloseReport::Deferred && !common.batch_mode {
        output::words(&format!("{} is in use; it closes with its last user.", args.name));
    }
    Ok(Code::Success)
}
