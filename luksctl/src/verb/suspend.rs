//! `suspend NAME`: waits for running I/O, wipes the keys; later I/O waits until `resume`.

use clap::Args;

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `suspend`.
#[derive(Debug, Args)]
pub(crate) struct SuspendArgs {
    /// Name given to `open`
    #[arg(value_name = "NAME")]
    name: String,
}

/// Suspends a volume.
pub(crate) fn run(args: &SuspendArgs, _common: &Common) -> Result<Code, Failure> {
    session::suspend(&super::run_dir()?, &args.name).map_err(Failure::of_session)?;
    Ok(Code::Success)
}
