//! `token remove`, `token assign`, `token unassign`: which keyslots a token leads to, and its end.

use clap::Args;
use luks::{KeyslotId, TokenId};

use crate::args::target::{LimitArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, FileContainer, Image};

/// Arguments of `token remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the token
    #[arg(long, value_name = "N")]
    token_id: u32,
}

/// Arguments of `token assign` and `token unassign`.
#[derive(Debug, Args)]
pub(crate) struct TieArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the token
    #[arg(long, value_name = "N")]
    token_id: u32,
    /// Number of the keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: u32,
}

/// Removes a token.
pub(super) fn remove(args: &RemoveArgs) -> Result<Code, Failure> {
    change(&args.target, |container| container.token_remove(TokenId(args.token_id)))
}

/// Ties a token to a keyslot.
pub(super) fn assign(args: &TieArgs) -> Result<Code, Failure> {
    change(&args.target, |container| container.token_assign(TokenId(args.token_id), KeyslotId(args.key_slot)))
}

/// Unties a token from a keyslot.
pub(super) fn unassign(args: &TieArgs) -> Result<Code, Failure> {
    change(&args.target, |container| container.token_unassign(TokenId(args.token_id), KeyslotId(args.key_slot)))
}

fn change(
    target: &TargetArgs,
    change: impl FnOnce(&mut FileContainer) -> Result<(), luks::Error>,
) -> Result<Code, Failure> {
    let image = Image::open(target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), "tokens")?;
    change(&mut container).map_err(|error| Failure::of_luks(image.path(), error))?;
    Ok(Code::Success)
}
