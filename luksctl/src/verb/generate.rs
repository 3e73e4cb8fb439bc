//! `generate man|completions`: manual pages and shell completions, made from the same definitions that parse the arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::Shell;

use crate::args::{self, Common};
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What to make.
    #[command(subcommand)]
    what: What,
}

/// What can be made.
#[derive(Debug, Subcommand)]
enum What {
    /// Manual pages: luksctl(1) to standard output, or one page for each verb into a folder
    Man {
        /// Folder for the pages
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Completions for a shell, to standard output
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL", value_enum)]
        shell: Shell,
    },
}

/// Prints what was asked for.
pub(crate) fn run(args: &GenerateArgs, _common: &Common) -> Result<Code, Failure> {
    match &args.what {
        What::Man { folder: None } => output::data(&page(explained(args::command()))?)?,
        What::Man { folder: Some(folder) } => clap_mangen::generate_to(explained(args::command()), folder)
            .map_err(|error| Failure::from_write("writing manual pages into", folder, &error))?,
        What::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut args::command(), "luksctl", &mut script);
            output::data(&script)?;
        }
    }
    Ok(Code::Success)
}

/// The same with every text where clap_mangen looks for it: it leaves out what the short help does not show.
fn explained(command: clap::Command) -> clap::Command {
    let told = |argument: clap::Arg| match argument.get_help().cloned() {
        Some(help) if argument.get_long_help().is_none() => argument.long_help(help),
        _ => argument,
    };
    command.mut_args(told).mut_subcommands(explained)
}

/// One page.
fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::wrong(format!("making the manual page: {error}")))?;
    Ok(page)
}
