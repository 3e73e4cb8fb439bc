//! Reading what was saved: runs and baselines, which may be anybody's files.
//!
//! A file is bounded before it is parsed, its format is looked at before its fields, and what parses is held against what the
//! statistics and reports take for granted: names that are unique and refer to something, rounds that rise, times that passed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::baseline::{self, Baseline};
use crate::run::{self, Run};

/// A longer file is refused.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_JOBS: usize = 64;
const MAX_LAYERS: usize = 32;
const MAX_ROUNDS: usize = 1000;
const MAX_REMARKS: usize = 1000;
const MAX_TEXT_BYTES: usize = 4096;
const MAX_PERCENTILES: usize = 32;

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Saved {
    /// Of `luksbench io`.
    Run(Box<Run>),
    /// Of `luksbench baseline save`.
    Baseline(Box<Baseline>),
}

/// Which of them it is.
#[derive(Deserialize)]
struct Head {
    format: Option<u64>,
    baseline_format: Option<u64>,
}

/// Reads a run or a baseline.
///
/// # Errors
/// The file cannot be read, is too long, no JSON, of another program or version, or says what cannot be.
pub fn read(path: &Path) -> Result<Saved> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no run and no baseline of luksbench", path.display()))
}

/// Reads a run.
///
/// # Errors
/// As [`read`], and a baseline is refused.
pub fn read_run(path: &Path) -> Result<Run> {
    match read(path)? {
        Saved::Run(run) => Ok(*run),
        Saved::Baseline(_) => bail!("{} is a baseline: a run of luksbench io is asked for", path.display()),
    }
}

/// The same from a text.
///
/// # Errors
/// As [`read`], but for the file.
pub fn parse(text: &str) -> Result<Saved> {
    if text.len() as u64 > MAX_FILE_BYTES {
        bail!("it is longer than {} MiB", MAX_FILE_BYTES >> 20);
    }
    let head: Head = serde_json::from_str(text)?;
    match (head.format, head.baseline_format) {
        (Some(format), None) if format == u64::from(run::FORMAT) => {
            let run: Run = serde_json::from_str(text)?;
            check(&run)?;
            Ok(Saved::Run(Box::new(run)))
        }
        (None, Some(format)) if format == u64::from(baseline::FORMAT) => {
            let saved: Baseline = serde_json::from_str(text)?;
            saved.check()?;
            if let Some(run) = &saved.run {
                check(run)?;
            }
            Ok(Saved::Baseline(Box::new(saved)))
        }
        (None, None) => bail!("it has neither a \"format\" nor a \"baseline_format\""),
        (Some(format), _) => bail!("its format is {format}; this program reads {}", run::FORMAT),
        (None, Some(format)) => bail!("its baseline_format is {format}; this program reads {}", baseline::FORMAT),
    }
}

/// Holds a run against what everything else takes for granted.
///
/// # Errors
/// Says what does not fit.
pub fn check(run: &Run) -> Result<()> {
    if run.format != run::FORMAT {
        bail!("the run's format is {}; this program reads {}", run.format, run::FORMAT);
    }
    let counts = [
        ("jobs", run.jobs.len(), MAX_JOBS),
        ("layers", run.layers.len(), MAX_LAYERS),
        ("measurements", run.measurements.len(), MAX_JOBS * MAX_LAYERS),
        ("remarks", run.remarks.len(), MAX_REMARKS),
        ("versions", run.machine.versions.len(), MAX_REMARKS),
    ];
    for (what, count, most) in counts {
        if count > most {
            bail!("{count} {what}, more than {most}");
        }
    }
    texts(run)?;
    let jobs = unique("job", run.jobs.iter().map(|job| job.name.as_str()))?;
    let layers = unique("layer", run.layers.iter().map(|layer| layer.name.as_str()))?;
    if run.layers.iter().filter(|layer| layer.chosen_by_open).count() > 1 {
        bail!("more than one layer is the one that luksctl open would take");
    }
    let mut seen = BTreeSet::new();
    for measured in &run.measurements {
        let (job, layer) = (measured.job.as_str(), measured.layer.as_str());
        if !jobs.contains(job) || !layers.contains(layer) {
            bail!("a measurement of job {job:?} on layer {layer:?}, which are not both in the run");
        }
        if !seen.insert((job, layer)) {
            bail!("job {job:?} on layer {layer:?} was measured twice");
        }
        samples(measured).with_context(|| format!("job {job:?} on layer {layer:?}"))?;
    }
    Ok(())
}

fn samples(measured: &run::Measurement) -> Result<()> {
    if measured.samples.len() > MAX_ROUNDS {
        bail!("{} rounds, more than {MAX_ROUNDS}", measured.samples.len());
    }
    let mut last = None;
    for sample in &measured.samples {
        let round = sample.round;
        if last.is_some_and(|last| last >= round) {
            bail!("round {round} is not after the one before");
        }
        last = Some(round);
        if sample.elapsed_ns == 0 {
            bail!("round {round} took no time");
        }
        if !sample.latency.mean_ns.is_finite() || sample.latency.mean_ns < 0.0 {
            bail!("round {round} has a mean latency of {}", sample.latency.mean_ns);
        }
        if sample.latency.percentiles_ns.len() > MAX_PERCENTILES {
            bail!("round {round} has {} percentiles, more than {MAX_PERCENTILES}", sample.latency.percentiles_ns.len());
        }
    }
    Ok(())
}

fn texts(run: &Run) -> Result<()> {
    let (machine, settings) = (&run.machine, &run.settings);
    let fixed =
        [&machine.cpu, &machine.kernel, &machine.aes_kernel, &machine.storage, &settings.target, &settings.queue];
    let layers = run.layers.iter().flat_map(|layer| [Some(&layer.name), Some(&layer.title), layer.absent.as_ref()]);
    let versions = machine.versions.iter().flat_map(|(name, version)| [name, version]);
    let all = fixed.into_iter().chain(layers.flatten()).chain(versions).chain(&run.remarks);
    for text in all.chain(run.jobs.iter().map(|job| &job.name)) {
        if text.len() > MAX_TEXT_BYTES {
            bail!("a text of {} bytes, more than {MAX_TEXT_BYTES}", text.len());
        }
    }
    Ok(())
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&'a str>> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || !seen.insert(name) {
            bail!("two {what}s are called {name:?}, or one has no name");
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::run;

    #[test]
    fn a_run_comes_back_as_it_was() {
        let run = run(1, 6, |_, _| 1.0);
        let Saved::Run(read) = parse(&serde_json::to_string(&run).unwrap()).unwrap() else { panic!("no run") };
        assert_eq!(*read, run);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let good = run(1, 6, |_, _| 1.0);
        let refused = |change: &dyn Fn(&mut Run)| {
            let mut run = good.clone();
            change(&mut run);
            format!("{:#}", parse(&serde_json::to_string(&run).unwrap()).unwrap_err())
        };
        assert_eq!(refused(&|run| run.format = 2), "its format is 2; this program reads 1");
        assert!(refused(&|run| run.jobs[1].name = "seq-read".into()).starts_with("two jobs are called \"seq-read\""));
        assert!(refused(&|run| run.layers[0].name = "tape".into()).contains("on layer \"plain\", which are not both"));
        assert!(refused(&|run| run.measurements[1].layer = "plain".into()).contains("was measured twice"));
        assert!(refused(&|run| run.layers[0].chosen_by_open = true).contains("more than one layer"));
        assert!(refused(&|run| run.measurements[0].samples[3].elapsed_ns = 0).contains("round 3 took no time"));
        assert!(refused(&|run| run.measurements[0].samples[3].round = 2).contains("round 2 is not after"));
        assert!(refused(&|run| run.measurements[0].samples[3].latency.mean_ns = -1.0).contains("mean latency of -1"));
        assert!(refused(&|run| run.remarks = vec!["x".repeat(5000)]).contains("a text of 5000 bytes"));
        assert!(refused(&|run| run.jobs = vec![run.jobs[0].clone(); 65]).contains("65 jobs, more than 64"));
    }

    #[test]
    fn what_is_foreign_is_refused() {
        let refused = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(refused("").contains("EOF"));
        assert!(refused("{}").contains("neither a \"format\""));
        assert!(refused("[\"a\"]").contains("line 1"));
        assert!(refused(r#"{"format": 1}"#).contains("missing field"));
        assert!(refused(r#"{"format": -1}"#).contains("invalid value"));
        assert!(refused(r#"{"baseline_format": 9}"#).contains("its baseline_format is 9"));
        assert!(refused(&"[".repeat(1 << 20)).contains("invalid type"));
        let deep = format!(r#"{{"format": 1, "remarks": {}"#, "[".repeat(1 << 20));
        assert!(refused(&deep).contains("EOF"));
    }
}
