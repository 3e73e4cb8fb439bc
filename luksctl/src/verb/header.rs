//! `header backup|restore`: the header and its keyslots as a file, and back. cryptsetup's names are `luksHeaderBackup` and
//! `luksHeaderRestore`; the files are the same.

pub(crate) mod backup;
pub(crate) mod restore;

use clap::{Args, Subcommand};

use crate::args::Common;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `header`.
#[derive(Debug, Args)]
pub(crate) struct HeaderArgs {
    /// What to do with the header.
    #[command(subcommand)]
    verb: HeaderVerb,
}

/// What can be done with a whole header.
#[derive(Debug, Subcommand)]
enum HeaderVerb {
    /// Copy header and keyslots into a new file
    Backup(backup::BackupArgs),
    /// Replace header and keyslots by those of a backup
    Restore(restore::RestoreArgs),
}

/// Runs the verb below `header`.
pub(crate) fn run(args: &HeaderArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        HeaderVerb::Backup(args) => backup::run(args, common),
        HeaderVerb::Restore(args) => restore::run(args, common),
    }
}
