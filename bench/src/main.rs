//! `luksbench`: what encryption costs on this machine, always measured against another implementation in one run.
//!
//! Machines are shared and GB/s move by a third, so contenders are interleaved in rounds, medians are reported, and the
//! number to quote is the ratio.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command's output

mod crypto;
mod exports;
mod image;
mod io;
mod kdf;
mod past;
mod queue;
mod served;
mod unlock;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Performance baselines for LUKS2 volumes.
#[derive(Parser)]
#[command(name = "luksbench", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// AES-256-XTS in memory: each kernel against the machine's limit and the aes and xts-mode crates
    Crypto(crypto::Args),
    /// What encryption costs on a disk: five jobs on a plain file and on every layer above it, in turns
    Io(io::Args),
    /// The data plane on one file: io_uring against pread, without and with the cipher
    Queue(queue::Args),
    /// Each export, FUSE, loop over FUSE, NBD, with and without the cipher, against the ceiling of transport and cipher
    Exports(exports::Args),
    /// One server of `exports`
    #[command(hide = true)]
    ServeExport(exports::ServeArgs),
    /// Time to unlock an image: luksctl against cryptsetup, both as processes, with the image's own key derivation
    Unlock(unlock::Args),
    /// What each key derivation costs here, and what luksctl format would choose and why
    Kdf(kdf::Args),
    /// A saved run as a table, and as a page
    Report(past::ReportArgs),
    /// The targets that a run is judged by, as a file to change
    Targets(past::TargetsArgs),
    /// Two saved runs: exit code 10 if the later one is slower by more than the noise
    Compare(past::CompareArgs),
    /// Keep what this machine reaches, and see later whether it got slower
    Baseline(past::BaselineArgs),
    /// One sweep of `baseline`
    #[command(hide = true)]
    BaselineSweep(past::SweepArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Crypto(args) => crypto::run(&args),
        Verb::Io(args) => io::run(&args),
        Verb::Queue(args) => queue::run(&args),
        Verb::Exports(args) => exports::run(&args),
        Verb::ServeExport(args) => exports::serve(&args),
        Verb::Unlock(args) => unlock::run(&args),
        Verb::Kdf(args) => kdf::run(&args),
        Verb::Report(args) => return ended(past::report(&args)),
        Verb::Targets(args) => return ended(past::targets(&args)),
        Verb::Compare(args) => return ended(past::compare(&args)),
        Verb::Baseline(args) => return ended(past::baseline(&args)),
        Verb::BaselineSweep(args) => return ended(past::sweep(&args)),
    };
    ended(done.map(|()| ExitCode::SUCCESS))
}

/// The exit code, after a word on what went wrong.
fn ended(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("luksbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
