//! `refresh NAME [flags]`: gives a mapping other flags while it is in use. Those not given are gone afterwards, but for those
//! that the header keeps.

use std::path::PathBuf;

use clap::Args;
use session::{MappingFlags, RunDir};

use crate::args::Common;
use crate::args::again::AgainArgs;
use crate::args::flags::FlagArgs;
use crate::args::target::TargetArgs;
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
    /// Have the header keep these flags for every opening, and no others
    #[arg(long)]
    persistent: bool,
    #[command(flatten)]
    again: AgainArgs,
}

/// Reloads the table.
pub(crate) fn run(args: &RefreshArgs, _common: &Common) -> Result<Code, Failure> {
    crate::harden::keep_in_memory();
    let runs = super::run_dir()?;
    let (mut source, again) = args.again.source(&runs, &args.name)?;
    let flags = MappingFlags { instead_of_kept: args.persistent, ..args.flags.flags() };
    session::refresh(&runs, &args.name, &flags, &again, &mut source).map_err(Failure::of_session)?;
    if args.persistent {
        keep(&runs, args, again.header)?;
    }
    Ok(Code::Success)
}

/// Has the header of the open volume keep the flags, under the policy that was named.
fn keep(runs: &RunDir, args: &RefreshArgs, header: Option<PathBuf>) -> Result<(), Failure> {
    let name = &args.name;
    let status = session::status(runs, name).map_err(Failure::of_session)?;
    let Some(image) = status.image else {
        return Err(Failure::wrong(format!("{name}: the flags are in force, but where its header lies is not known"))
            .with_hint("luksctl flags IMAGE --allow-discards …"));
    };
    let (header, policy) = (header.or(status.header), args.again.policy.clone());
    super::flags::keep(&TargetArgs { image, header, policy, kind: None }, args.flags)
}
