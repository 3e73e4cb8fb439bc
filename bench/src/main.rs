//! `luksbench`: what encryption costs on this machine, always measured against another implementation in one run.
//!
//! Machines are shared and GB/s move by a third, so contenders are interleaved in rounds, medians are reported, and the
//! number to quote is the ratio.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command's output

mod crypto;
mod exports;
mod queue;
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
    /// AES-256-XTS in memory, one thread: each kernel against the machine's limit and the aes and xts-mode crates
    Crypto(crypto::Args),
    /// The data plane on one file: io_uring against pread, without and with the cipher
    Queue(queue::Args),
    /// Each export, FUSE, loop over FUSE, NBD, with and without the cipher, against the ceiling of transport and cipher
    Exports(exports::Args),
    /// One server of `exports`
    #[command(hide = true)]
    ServeExport(exports::ServeArgs),
    /// Time to unlock an image: luksctl against cryptsetup, both as processes, with the image's own key derivation
    Unlock(unlock::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Crypto(args) => crypto::run(&args),
        Verb::Queue(args) => queue::run(&args),
        Verb::Exports(args) => exports::run(&args),
        Verb::ServeExport(args) => exports::serve(&args),
        Verb::Unlock(args) => unlock::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("luksbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
