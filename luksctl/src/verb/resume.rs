//! `resume NAME`: unlocks a suspended volume again; its waiting I/O goes on.

use clap::Args;
use secret::Purpose;
use session::{FailureKind, SessionError};

use crate::args::Common;
use crate::args::again::AgainArgs;
use crate::exit::Code;
use crate::failure::Failure;

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Name given to `open`
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    again: AgainArgs,
}

/// Resumes a volume.
pub(crate) fn run(args: &ResumeArgs, _common: &Common) -> Result<Code, Failure> {
    crate::harden::keep_in_memory();
    let runs = super::run_dir()?;
    let (mut source, again) = args.again.source(&runs, &args.name)?;
    for attempt in 1.. {
        let passphrase = source.passphrase(&args.name, Purpose::Unlock, attempt)?;
        let error = match session::resume(&runs, &args.name, &passphrase, &again) {
            Ok(()) => return Ok(Code::Success),
            Err(error) => error,
        };
        let wrong = matches!(&error, SessionError::NoKey { .. })
            || matches!(&error, SessionError::Refused(failure) if failure.kind == FailureKind::NoKey);
        if !wrong || attempt >= source.tries() {
            return Err(Failure::of_session(error));
        }
    }
    Err(Failure::wrong("asked too often"))
}
