//! `keyslot add|remove|kill|change|convert|priority|name|test|list`: who can unlock a container. cryptsetup's names for the
//! first five are `luksAddKey`, `luksRemoveKey`, `luksKillSlot`, `luksChangeKey` and `luksConvertKey`, with the same arguments.

pub(crate) mod add;
pub(crate) mod change;
pub(crate) mod convert;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod name;
pub(crate) mod priority;
pub(crate) mod remove;
pub(crate) mod test;

use clap::{Args, Subcommand};

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `keyslot`.
#[derive(Debug, Args)]
pub(crate) struct KeyslotArgs {
    /// What to do with the keyslots.
    #[command(subcommand)]
    verb: KeyslotVerb,
}

/// What can be done with keyslots.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // one value per run of the program
enum KeyslotVerb {
    /// Add a passphrase or key file
    Add(add::AddArgs),
    /// Remove the keyslot that a passphrase opens
    Remove(remove::RemoveArgs),
    /// Destroy a keyslot by its number
    Kill(kill::KillArgs),
    /// Replace a passphrase; the keyslot keeps its number
    Change(change::ChangeArgs),
    /// Give a keyslot another key derivation or cipher, for the same passphrase
    Convert(convert::ConvertArgs),
    /// Set when a keyslot is tried
    Priority(priority::PriorityArgs),
    /// Write down what a keyslot is for
    Name(name::NameArgs),
    /// Answer by exit code whether a passphrase unlocks
    Test(test::TestArgs),
    /// Show the keyslots
    List(list::ListArgs),
}

/// Runs the verb below `keyslot`.
pub(crate) fn run(args: &KeyslotArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        KeyslotVerb::Add(args) => add::run(args, common),
        KeyslotVerb::Remove(args) => remove::run(args, common),
        KeyslotVerb::Kill(args) => kill::run(args, common),
        KeyslotVerb::Change(args) => change::run(args, common),
        KeyslotVerb::Convert(args) => convert::run(args, common),
        KeyslotVerb::Priority(args) => priority::run(args),
        KeyslotVerb::Name(args) => name::run(args),
        KeyslotVerb::Test(args) => test::run(args, common),
        KeyslotVerb::List(args) => list::run(args, common),
    }
}
