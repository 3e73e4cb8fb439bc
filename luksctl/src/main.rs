//! `luksctl`: LUKS2 containers from the command line. stdout is data, stderr is words, the terminal is prompts.
//! `main` is the plan: read the arguments, harden the process, run one verb, say how it ended.
#![forbid(unsafe_code)]

mod args;
mod confirm;
mod exit;
mod failure;
mod harden;
mod hint;
mod image;
mod interrupt;
mod kdf;
mod keys;
mod logging;
mod new_file;
mod occupied;
mod output;
mod part_file;
mod progress;
mod recovery_file;
mod size;
mod terminal;
mod token_keys;
mod unlock;
mod unused;
mod verb;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(code) => return code.into(),
    };
    // A server logs and hardens by itself, and in its own order.
    if let args::Verb::Serve(order) = &cli.verb {
        return verb::serve::run(order);
    }
    logging::start(cli.common.verbose);
    harden::before_any_secret();
    let result = match session::obey_cpu_variable() {
        Ok(()) => verb::run(&cli),
        Err(error) => Err(failure::Failure::wrong(format!("{}: {error}", session::CPU_VARIABLE))),
    };
    exit::report(&cli.common, result).into()
}
