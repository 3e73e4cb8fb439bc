//! `__serve RUN NAME`: the body of the process behind an open volume. `open` starts it; a person never does.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

/// Arguments of `__serve`: between this program and itself.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The run directory and the name of the volume
    #[arg(value_name = "ARGUMENT", num_args = 0..)]
    arguments: Vec<OsString>,
}

/// Serves one volume until it is closed. To be called before this process opens a file or starts a thread.
pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    session::serve(&args.arguments)
}
