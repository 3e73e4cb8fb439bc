//! `bench-crypto`: AES-256-XTS by dmcrypt's kernels, aes + xts-mode, OpenSSL and aws-lc, interleaved in one run with the
//! machine's own limit. First all of them must give the same bytes; no time is ever a failure.
#![deny(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command's output

#[allow(unsafe_code)]
mod aws_lc;
mod cases;
mod evp;
#[allow(unsafe_code)]
mod openssl;
mod report;
mod table;
mod targets;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use dmcrypt::Kernel;
use luksbench::contender::{self, Entry};
use luksbench::limit::Limit;
use luksbench::rounds::{Case, Plan, interleaved};

use report::{Measured, Report};

const AWS_LC: &str = "aws-lc";
const OPENSSL: &str = "OpenSSL";
/// How often a disturbed case is measured at most.
const ATTEMPTS: usize = 4;

/// AES-256-XTS against aes + xts-mode, OpenSSL, aws-lc and the machine's own limit, interleaved in one run.
#[derive(Parser)]
#[command(name = "bench-crypto", max_term_width = 100)]
struct Cli {
    /// Fewer and shorter rounds, and no 64 MiB buffers: some ten seconds, for a first look
    #[arg(long)]
    quick: bool,
    /// Only this kernel of ours, beside the others; may be given several times
    #[arg(long, value_name = "NAME", value_parser = |name: &str| name.parse::<Kernel>())]
    kernel: Vec<Kernel>,
    /// Only cases with this in their name, as "4096 B", "64 KiB", "encrypt", "2 threads" or "single"; all of several
    #[arg(long, value_name = "TEXT")]
    case: Vec<String>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-crypto: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let cases = cases::chosen(cli.quick, &cli.case);
    ensure!(!cases.is_empty(), "no case has {:?} in its name; --quick leaves out 64 MiB", cli.case);
    let entries = entries(&cli.kernel)?;
    let mut checked = Vec::new();
    for case in &cases {
        let shape = (case.sector_size, case.call_bytes);
        if !checked.contains(&shape) {
            contender::check(&entries, case.sector_size, case.call_bytes)?;
            checked.push(shape);
        }
    }
    let plan = match cli.quick {
        true => Plan { rounds: 15, piece: Duration::from_micros(100) },
        false => Plan { rounds: 61, piece: Duration::from_micros(300) },
    };
    let mut report = Report::new(&entries, plan, checked.len());
    if !cli.json {
        table::opening(&report);
    }
    for case in cases {
        // Medians of many rounds cost seconds where one call takes a good part of one.
        let rounds = if case.call_bytes > 1 << 20 { plan.rounds.min(31) } else { plan.rounds };
        let measured = undisturbed(case, &entries, Plan { rounds, ..plan })?;
        if !cli.json {
            table::case(&measured);
        }
        report.cases.push(measured);
    }
    report.targets = targets::judged(&report.cases);
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        table::targets(&report.targets);
    }
    Ok(())
}

/// The case, measured again where the limits say that somebody else was at work; the calmest attempt is what counts.
/// Only the limits decide, never what a contender reached.
fn undisturbed(case: Case, entries: &[Entry], plan: Plan) -> Result<Measured> {
    let mut calmest = Measured::new(case, entries, &interleaved(case, entries, plan)?);
    let mut attempts = 1;
    while calmest.is_disturbed() && attempts < ATTEMPTS {
        let again = Measured::new(case, entries, &interleaved(case, entries, plan)?);
        attempts += 1;
        if again.limit_spread() < calmest.limit_spread() {
            calmest = again;
        }
    }
    Ok(Measured { attempts, ..calmest })
}

/// Ours, fastest first, then the rivals.
fn entries(asked: &[Kernel]) -> Result<Vec<Entry>> {
    for kernel in asked {
        ensure!(kernel.is_available(), "{kernel} needs {}", kernel.lacking().join(", "));
    }
    let mut entries: Vec<Entry> = Kernel::ALL
        .into_iter()
        .rev()
        .filter(|kernel| if asked.is_empty() { kernel.is_available() } else { asked.contains(kernel) })
        .map(contender::kernel)
        .collect();
    entries.push(contender::xts_mode());
    entries.push(Entry::new(OPENSSL, Limit::widest(), openssl::build));
    entries.push(Entry::new(AWS_LC, Limit::widest(), aws_lc::build));
    Ok(entries)
}
