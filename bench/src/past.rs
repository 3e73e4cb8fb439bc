//! `luksbench report`, `compare`, `baseline` and `targets`: what is done with runs that were saved.
//!
//! Exit codes: 0, 1 for what cannot be read or compared, [`SLOWER`] for a slow-down beyond the noise.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use luksbench::baseline::{self, Baseline, CryptoSeries, default_path, write_whole};
use luksbench::compare::{self, Change, Comparison, FAMILY_ALPHA, MARGIN, Series};
use luksbench::report::{self, Look, number, shown, utc};
use luksbench::run::{Machine, Run};
use luksbench::saved::{self, Saved, read, read_run};
use luksbench::targets::{self, Judgement, Targets};
use serde::Serialize;

/// A report found something: slower than before.
const SLOWER: u8 = 10;

/// Rounds of a run that is made for a baseline: what finds a tenth.
const RUN_ROUNDS: u32 = 30;
/// Measurements of the cipher in one check, at most.
const ATTEMPTS: usize = 3;

/// Options of `luksbench report`.
#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// A run that luksbench io saved
    run: PathBuf,
    /// Write a page, too: one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Judge by these targets (see luksbench targets)
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,
    /// Print the judgement and the overheads as JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Options of `luksbench targets`.
#[derive(clap::Args)]
pub(crate) struct TargetsArgs {
    /// Check this file instead of printing the targets that come with the program
    file: Option<PathBuf>,
}

/// Options of `luksbench compare`.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The earlier run or baseline
    before: PathBuf,
    /// The later one
    after: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How to compare.
#[derive(clap::Args)]
struct How {
    /// Changes up to this many percent are none, however sure they are
    #[arg(long, value_name = "PERCENT", default_value_t = MARGIN * 100.0, value_parser = percent)]
    margin: f64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Options of `luksbench baseline`.
#[derive(clap::Args)]
pub(crate) struct BaselineArgs {
    #[command(subcommand)]
    verb: BaselineVerb,
}

#[derive(Subcommand)]
enum BaselineVerb {
    /// Measure the cipher against the machine's AES limit and keep it, with a run of luksbench io if one is given
    Save {
        /// A run that luksbench io saved
        run: Option<PathBuf>,
        /// Make a run now, by luksbench io on this folder, or on this file to make
        #[arg(long, value_name = "TARGET", conflicts_with = "run")]
        target: Option<PathBuf>,
        /// Where [default: $XDG_STATE_HOME/luksbench/baseline.json, or in ~/.local/state]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Measure again and compare: exit code 10 for slower than the baseline by more than its noise
    Check {
        /// A new run that luksbench io saved, to be compared with the one in the baseline; without it, one is made with the same
        /// settings
        run: Option<PathBuf>,
        /// Compare the cipher only
        #[arg(long, conflicts_with = "run")]
        cipher_only: bool,
        /// Where the baseline is [default: as for save]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The control: slow the cipher down by this many percent, which the check must find
        #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
        slow_down: u32,
        #[command(flatten)]
        how: How,
    },
}

/// Options of `luksbench baseline-sweep`.
#[derive(clap::Args)]
pub(crate) struct SweepArgs {
    /// Slow the cipher down by this many percent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=90))]
    slow_down: u32,
}

/// What `report --json` prints.
#[derive(Serialize)]
struct Judged {
    layer: Option<String>,
    targets: Vec<Judgement>,
    overheads: Vec<Overhead>,
}

#[derive(Serialize)]
struct Overhead {
    job: String,
    layer: String,
    share: luksbench::stats::Estimate,
}

/// What `compare --json` and `baseline check --json` print.
#[derive(Serialize)]
struct Compared<'a> {
    margin: f64,
    family_alpha: f64,
    doubts: &'a [String],
    comparisons: &'a [Comparison],
    slower: bool,
}

/// Prints a saved run, and writes its page.
pub(crate) fn report(args: &ReportArgs) -> Result<ExitCode> {
    let run = read_run(&args.run)?;
    let targets = read_targets(args.targets.as_deref())?;
    if let Some(path) = &args.html {
        write_page(path, &run, &targets)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&judged(&run, &targets))?);
    } else {
        print!("{}", report::table(&run, &targets, Look::of_stdout()));
    }
    Ok(ExitCode::SUCCESS)
}

fn judged(run: &Run, targets: &Targets) -> Judged {
    let pairs = run.jobs.iter().flat_map(|job| run.layers.iter().map(move |layer| (job, layer)));
    let overheads = pairs.filter(|(_, layer)| layer.name != luksbench::run::PLAIN).filter_map(|(job, layer)| {
        let of = |layer: &str| run.samples(&job.name, layer);
        let share = luksbench::stats::overhead(of(&layer.name), of(luksbench::run::PLAIN))?;
        Some(Overhead { job: job.name.clone(), layer: layer.name.clone(), share })
    });
    Judged {
        layer: run.layers.iter().find(|layer| layer.chosen_by_open).map(|layer| layer.name.clone()),
        overheads: overheads.collect(),
        targets: targets::judge(run, targets),
    }
}

/// Writes the page of a run in one step, over nothing but another page of ours.
pub(crate) fn write_page(path: &Path, run: &Run, targets: &Targets) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        let mut begin = vec![0; report::MARK.len()];
        let ours = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
        if ours.is_err() || begin != report::MARK.as_bytes() {
            bail!("{} exists and is no report of luksbench: it is left alone", path.display());
        }
    }
    write_whole(path, &report::html(run, targets))
}

/// The targets in a file, or those that come with the program.
pub(crate) fn read_targets(path: Option<&Path>) -> Result<Targets> {
    let Some(path) = path else { return targets::compiled_in() };
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    let read = file.take(targets::MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    targets::parse(&text).with_context(|| path.display().to_string())
}

/// Prints the targets, or checks a file of them.
pub(crate) fn targets(args: &TargetsArgs) -> Result<ExitCode> {
    match &args.file {
        None => print!("{}", targets::DEFAULT),
        Some(path) => {
            read_targets(Some(path))?;
            println!("{}: right", shown(&path.display().to_string()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares two files.
pub(crate) fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let (before, after) = (Measured::of(read(&args.before)?), Measured::of(read(&args.after)?));
    before.against(&after, &args.how)
}

/// Saves or checks a baseline.
pub(crate) fn baseline(args: &BaselineArgs) -> Result<ExitCode> {
    match &args.verb {
        BaselineVerb::Save { run, target, file } => {
            let path = file.clone().map_or_else(default_path, Ok)?;
            baseline::may_write(&path)?;
            let run = match (run, target) {
                (Some(run), _) => Some(read_run(run)?),
                (None, Some(target)) => Some(made(target.as_os_str(), &["--rounds".into(), RUN_ROUNDS.to_string()])?),
                (None, None) => None,
            };
            let baseline = Baseline::of(measured_crypto(0)?, run);
            if let (None, Some(folder)) = (file, path.parent()) {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            baseline.save(&path)?;
            let with = if baseline.run.is_some() { "the cipher and a run" } else { "the cipher" };
            println!("saved {with} in {}", shown(&path.display().to_string()));
            Ok(ExitCode::SUCCESS)
        }
        BaselineVerb::Check { run, cipher_only, file, slow_down, how } => {
            let path = file.clone().map_or_else(default_path, Ok)?;
            if !path.exists() {
                bail!("there is no baseline in {}: make one with luksbench baseline save", path.display());
            }
            let Saved::Baseline(before) = read(&path)? else { bail!("{} is a run, no baseline", path.display()) };
            let run = match (run, &before.run) {
                (Some(run), _) => Some(read_run(run)?),
                (None, Some(before)) if !cipher_only => Some(made(before.settings.target.as_ref(), &again(before))?),
                (None, _) => None,
            };
            if !how.json {
                println!("baseline of {}", utc(before.saved_unix_s));
            }
            let mut after = Baseline::of(measured_crypto(*slow_down)?, run);
            let before = Measured::of(Saved::Baseline(before));
            // What is slower or undecided is measured longer: a busy second is not the cipher.
            for _ in 1..ATTEMPTS {
                let earlier = compare::series_of_crypto(&before.crypto);
                let later = compare::series_of_crypto(&after.crypto);
                let all = compare::compare(&earlier, &later, how.margin / 100.0);
                if all.iter().all(|one| matches!(one.change, Change::Same | Change::Faster)) {
                    break;
                }
                baseline::add(&mut after.crypto, measured_crypto(*slow_down)?);
            }
            before.against(&Measured::of(Saved::Baseline(Box::new(after))), how)
        }
    }
}

/// Makes a run by `luksbench io`, whose words on standard error are shown.
fn made(target: &OsStr, options: &[String]) -> Result<Run> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(&program);
    command.args(["io", "--json", "-"]).args(options).arg("--").arg(target).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().context("cannot run this program again")?;
    if !output.status.success() {
        bail!("luksbench io ended with {}", output.status);
    }
    match saved::parse(&String::from_utf8_lossy(&output.stdout)).context("luksbench io")? {
        Saved::Run(run) => Ok(*run),
        Saved::Baseline(_) => bail!("luksbench io gave a baseline"),
    }
}

/// The options that make the same run again.
fn again(run: &Run) -> Vec<String> {
    let settings = &run.settings;
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let mut all = vec![
        ("--rounds", settings.rounds.to_string()),
        ("--duration", seconds(settings.piece_ms)),
        ("--warm-up", seconds(settings.warm_up_ms)),
        ("--size", settings.size_bytes.to_string()),
        ("--sector-size", settings.sector_bytes.to_string()),
    ];
    all.extend(run.jobs.iter().map(|job| ("--job", job.name.clone())));
    let there = run.layers.iter().filter(|layer| layer.absent.is_none() && layer.name != luksbench::run::PLAIN);
    all.extend(there.map(|layer| ("--layer", layer.name.clone())));
    // Where all jobs have the same, it may have been asked for; where they differ, it is the usual.
    let deep = run.jobs.iter().filter(|job| !job.name.ends_with("-qd1"));
    let alike = [
        ("--depth", deep.map(|job| job.depth).collect::<Vec<_>>()),
        ("--block-size", run.jobs.iter().map(|job| job.block_bytes).collect()),
        ("--threads", run.jobs.iter().map(|job| job.threads).collect()),
    ];
    for (option, values) in alike {
        if let Some(first) = values.first().filter(|first| values.iter().all(|value| value == *first)) {
            all.push((option, first.to_string()));
        }
    }
    let mut options: Vec<String> = all.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
    if !settings.direct {
        options.push("--buffered".to_owned());
    }
    options
}

/// Measures the cipher, each sweep in a process of its own.
fn measured_crypto(slow_down: u32) -> Result<Vec<CryptoSeries>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut all = Vec::new();
    for _ in 0..baseline::SWEEPS {
        let mut command = Command::new(&program);
        command.args(["baseline-sweep", "--slow-down", &slow_down.to_string()]).stdin(Stdio::null());
        let output = command.stderr(Stdio::inherit()).output().context("cannot run this program again")?;
        if !output.status.success() {
            bail!("a sweep over the cipher ended with {}", output.status);
        }
        baseline::add(&mut all, serde_json::from_slice(&output.stdout)?);
    }
    Ok(all)
}

/// One sweep, for the process that asked for it.
pub(crate) fn sweep(args: &SweepArgs) -> Result<ExitCode> {
    println!("{}", serde_json::to_string(&baseline::sweep(args.slow_down)?)?);
    Ok(ExitCode::SUCCESS)
}

/// What can be compared: a run, the cipher, or both.
struct Measured {
    machine: Machine,
    crypto: Vec<CryptoSeries>,
    run: Option<Run>,
}

impl Measured {
    fn of(saved: Saved) -> Measured {
        match saved {
            Saved::Run(run) => Measured { machine: run.machine.clone(), crypto: Vec::new(), run: Some(*run) },
            Saved::Baseline(baseline) => {
                let Baseline { machine, crypto, run, .. } = *baseline;
                Measured { machine, crypto, run }
            }
        }
    }

    fn series(&self) -> Vec<Series> {
        let mut all = compare::series_of_crypto(&self.crypto);
        all.extend(self.run.iter().flat_map(compare::series_of_run));
        all
    }

    /// Compares with a later one and prints.
    fn against(&self, after: &Measured, how: &How) -> Result<ExitCode> {
        let mut doubts = match (&self.run, &after.run) {
            (Some(before), Some(after)) => compare::comparable(before, after)?,
            _ => compare::comparable_machines(&self.machine, &after.machine)?,
        };
        let missing = self.run.as_ref().filter(|_| after.run.is_none());
        doubts.extend(missing.map(|run| {
            let target = &run.settings.target;
            format!("the earlier measurement has a run on {target}, too: give a new one to compare it with")
        }));
        let common = |measured: &Measured| {
            let mut all = measured.series();
            all.retain(|one| missing.is_none() || one.name.starts_with("cipher "));
            all
        };
        let (before, after) = (common(self), common(after));
        let references =
            before.iter().filter_map(|one| Some((one, after.iter().find(|other| other.name == one.name)?)));
        for (before, after) in references {
            if before.against != after.against {
                bail!("{}: was measured against {:?} and is against {:?}", before.name, before.against, after.against);
            }
        }
        for (these, others, when) in [(&before, &after, "earlier"), (&after, &before, "later")] {
            let alone = these.iter().filter(|one| !others.iter().any(|other| other.name == one.name));
            doubts.extend(alone.map(|one| format!("only the {when} measurement has {}", one.name)));
        }
        let comparisons = compare::compare(&before, &after, how.margin / 100.0);
        if comparisons.is_empty() {
            bail!("the two have nothing in common that could be compared");
        }
        let slower = comparisons.iter().any(|one| one.change == Change::Slower);
        if how.json {
            let all = Compared {
                margin: how.margin / 100.0,
                family_alpha: FAMILY_ALPHA,
                doubts: &doubts,
                comparisons: &comparisons,
                slower,
            };
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            print_compared(&comparisons, &doubts, how.margin);
        }
        Ok(if slower { ExitCode::from(SLOWER) } else { ExitCode::SUCCESS })
    }
}

fn print_compared(comparisons: &[Comparison], doubts: &[String], margin: f64) {
    let look = Look::of_stdout();
    println!("{:<30} {:>9} {:>9}  {:<24} ", "MB/s", "before", "after", "change");
    for one in comparisons {
        let name: String = shown(&one.name).chars().take(30).collect();
        let words = match one.change {
            Change::Slower if look.colour => format!("\u{1b}[31m{}\u{1b}[0m", one.change.words()),
            Change::Faster if look.colour => format!("\u{1b}[32m{}\u{1b}[0m", one.change.words()),
            change => change.words().to_owned(),
        };
        let change =
            one.factor.map_or_else(|| "-".to_owned(), |factor| report::percent(&factor.map(|factor| factor - 1.0)));
        let (before, after) = (number(one.before_bytes_per_s / 1e6), number(one.after_bytes_per_s / 1e6));
        println!("{name:<30} {before:>9} {after:>9}  {change:<24} {words}");
    }
    println!();
    println!(
        "change: of the ratio to the AES limit (cipher) or to the plain file of the same rounds; the intervals hold for all"
    );
    println!(
        "rows together with {:.0}%; beyond {margin}% counts, and the file itself is the disk's",
        (1.0 - FAMILY_ALPHA) * 100.0
    );
    for doubt in doubts {
        println!("note: {}", shown(doubt));
    }
    let count = |change| comparisons.iter().filter(|one| one.change == change).count();
    match (count(Change::Slower), count(Change::TooNoisy)) {
        (0, 0) => println!("nothing is slower"),
        (0, noisy) => println!(
            "nothing is slower for certain; {noisy} too noisy to see a tenth: measure more rounds, on a quieter machine"
        ),
        (slower, _) => println!("{slower} slower than before by more than the noise"),
    }
}

fn percent(text: &str) -> Result<f64> {
    let value: f64 = text.parse().with_context(|| format!("{text:?} is no number"))?;
    if !(0.0..=50.0).contains(&value) {
        bail!("{value} is not between 0 and 50 percent");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_have_bounds() {
        assert_eq!(percent("2.5").unwrap(), 2.5);
        for bad in ["", "-1", "51", "nan", "x"] {
            assert!(percent(bad).is_err(), "{bad:?}");
        }
    }
}
