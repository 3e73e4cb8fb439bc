//! `close NAME`: flush, detach, unmount the export, wipe the keys; returns when all of that is done. Also cleans up after
//! a server that died.

use clap::Args;

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `close`.
#[derive(Debug, Args)]
pub(crate) struct CloseArgs {
    /// Name given to `open`
    #[arg(value_name = "NAME")]
    name: String,
}

/// Closes a volume.
pub(crate) fn run(args: &CloseArgs, _common: &Common) -> Result<Code, Failure> {
    let runs = super::run_dir()?;
    session::close(&runs, &args.name, &session::CloseOptions::default()).map_err(Failure::of_session)?;
    Ok(Code::Success)
}
