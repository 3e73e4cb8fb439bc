//! `header backup|restore`: the header and its keyslots as a file, and back. cryptsetup's names are `luksHeaderBackup` and
//! `luksHeaderRestore`; the files are the same.

pub(crate) mod backup;
pub(crate) mod restore;

use std::path::{Path, PathBuf};

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

/// The backup: after the image, or named as in cryptsetup.
#[derive(Debug, Args)]
struct FileArgs {
    /// The header backup
    #[arg(value_name = "FILE", required_unless_present = "header_backup_file", conflicts_with = "header_backup_file")]
    file: Option<PathBuf>,
    /// The same, as an option
    #[arg(hide_short_help = true, long, value_name = "FILE")]
    header_backup_file: Option<PathBuf>,
}

impl FileArgs {
    fn path(&self) -> Result<&Path, Failure> {
        match self.file.as_deref().or(self.header_backup_file.as_deref()) {
            Some(path) if path == Path::new("-") => {
                Err(Failure::wrong("-: a header backup is a file, which is read back and looked at as a whole")
                    .with_hint("name a file; ./- for one of this name"))
            }
            Some(path) => Ok(path),
            None => Err(Failure::wrong("no FILE is given").with_hint("name the header backup after the image")),
        }
    }
}

/// Runs the verb below `header`.
pub(crate) fn run(args: &HeaderArgs, common: &Common) -> Result<Code, Failure> {
    match &args.verb {
        HeaderVerb::Backup(args) => backup::run(args, common),
        HeaderVerb::Restore(args) => restore::run(args, common),
    }
}
