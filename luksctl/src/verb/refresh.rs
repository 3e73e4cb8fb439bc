//! `refresh NAME [flags]`: gives a mapping other flags while it is in use. Those not given are gone afterwards, but for those
//! that the header keeps.

use clap::Args;

use crate::args::Common;
use crate::args::again::AgainArgs;
use crate::args::flags::FlagArgs;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `refresh`.
#[derive(Debug, Args)]
pub(crate) struct RefreshArgs {
    /// Name given to `open`, or to cryptsetup
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    flags: FlagArgs,
    #[command(flatten)]
    again: AgainArgs,
}

/// Reloads the table.
pub(crate) fn run(args: &RefreshArgs, _common: &Common) -> Result<Code, Failure> {
    let (mut source, again) = args.again.source()?;
    crate::harden::keep_in_memory();
    session::refresh(&super::run_dir()?, &args.name, &args.flags.flags(), &again, &mut source)
        .map_err(Failure::of_session)?;
    Ok(Code::Success)
}
