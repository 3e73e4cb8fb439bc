//! `token list|add|import|export|remove|assign|unassign`: where the passphrase of a keyslot may be found. cryptsetup's
//! arguments and options; what a token says is its handler's business and is neither judged nor changed.

mod add;
mod list;
mod text;
mod tie;

use clap::{Args, Subcommand};

pub(crate) use list::in_json;

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `token`.
#[derive(Debug, Args)]
pub(crate) struct TokenVerbArgs {
    /// What to do with the tokens.
    #[command(subcommand)]
    verb: TokenVerb,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Show the tokens
    List(list::ListArgs),
    /// Add a token that leads to a key in the kernel's keyring
    Add(add::AddArgs),
    /// Add a token from its JSON
    Import(text::ImportArgs),
    /// Print a token's JSON
    Export(text::ExportArgs),
    /// Remove a token; its keyslots stay
    Remove(tie::RemoveArgs),
    /// Have a token lead to one more keyslot
    Assign(tie::TieArgs),
    /// Have a token no longer lead to a keyslot
    Unassign(tie::TieArgs),
}

/// Runs the verb below `token`.
pub(crate) fn run(args: &TokenVerbArgs, _common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        TokenVerb::List(args) => list::run(args),
        TokenVerb::Add(args) => add::run(args),
        TokenVerb::Import(args) => text::import(args),
        TokenVerb::Export(args) => text::export(args),
        TokenVerb::Remove(args) => tie::remove(args),
        TokenVerb::Assign(args) => tie::assign(args),
        TokenVerb::Unassign(args) => tie::unassign(args),
    }
}
