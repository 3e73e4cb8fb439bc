//! `luksbench unlock`: one passphrase check of an image by luksctl and by cryptsetup, as processes, in turns.
//!
//! Both read the header, derive the key with the image's own cost and check the digest; neither opens a device.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use luksbench::rounds::median;

/// Options of `luksbench unlock`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// LUKS2 image or device
    image: PathBuf,
    /// File with the passphrase
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// How often each side unlocks
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The luksctl to measure; the one beside this program if not given
    #[arg(long, value_name = "PROGRAM")]
    luksctl: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    rounds: u32,
    luksctl_ms: f64,
    /// None when cryptsetup is not installed.
    cryptsetup_ms: Option<f64>,
    /// luksctl's time over cryptsetup's: below 1 is faster.
    ratio: Option<f64>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let luksctl = match &args.luksctl {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("luksctl"),
    };
    let cryptsetup = find_cryptsetup();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        ours.push(timed(&luksctl, args)?);
        if let Some(cryptsetup) = &cryptsetup {
            theirs.push(timed(cryptsetup, args)?);
        }
    }
    let milliseconds = |times: Vec<Duration>| median(times).as_secs_f64() * 1e3;
    let luksctl_ms = milliseconds(ours);
    let cryptsetup_ms = cryptsetup.map(|_| milliseconds(theirs));
    let ratio = cryptsetup_ms.map(|theirs| luksctl_ms / theirs);
    let report = Report { rounds: args.rounds, luksctl_ms, cryptsetup_ms, ratio };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    println!("median of {} rounds, process start included", report.rounds);
    println!("luksctl    {:>8.1} ms", report.luksctl_ms);
    match (report.cryptsetup_ms, report.ratio) {
        (Some(cryptsetup_ms), Some(ratio)) => {
            println!("cryptsetup {cryptsetup_ms:>8.1} ms");
            println!("ratio      {ratio:>8.2}    (luksctl / cryptsetup: below 1 is faster)");
        }
        _ => println!("cryptsetup is not installed: nothing to compare with"),
    }
}

/// cryptsetup on the PATH or where Debian has it (an ordinary user's PATH lacks sbin).
fn find_cryptsetup() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join("cryptsetup"))
        .find(|program| program.is_file())
}

/// One unlock by `program`; an error if it does not accept the passphrase.
fn timed(program: &Path, args: &Args) -> Result<Duration> {
    let start = Instant::now();
    let output = Command::new(program)
        .args(["open", "--test-passphrase", "--key-file"])
        .arg(&args.key_file)
        .arg(&args.image)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let elapsed = start.elapsed();
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{} did not unlock the image ({}): {}", program.display(), output.status, words.trim());
    }
    Ok(elapsed)
}
