//! The targets of a run, a TOML file that the user may change, and the judgement of a run by them.
//!
//! Judged is the layer that `luksctl open` would take. A rate counts as reached if the middle of the rounds reaches it; where
//! the 95% interval has the bound inside and is wider than [`RATE_WIDEST`], [`OVERHEAD_WIDEST`] or [`ADDED_WIDEST_US`], it is
//! "too noisy to decide". A rate that the plain file misses too is the disk's and not ours.

use std::ops::RangeInclusive;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::run::{Job, Layer, PLAIN, Run, Sample};
use crate::stats::{self, Estimate};

/// The targets that come with the program.
pub const DEFAULT: &str = include_str!("targets.toml");
/// A longer file is none of ours.
pub const MAX_FILE_BYTES: usize = 64 << 10;

/// Widest interval of a rate around a bound, as a share of the bound.
pub const RATE_WIDEST: f64 = 0.2;
/// Widest interval of an overhead around a bound: five points of a percentage.
pub const OVERHEAD_WIDEST: f64 = 0.05;
/// Widest interval of added microseconds around a bound.
pub const ADDED_WIDEST_US: f64 = 10.0;

/// What a run is judged by.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Targets {
    seq_read: Option<Rate>,
    seq_write: Option<Rate>,
    rand_read: Option<Rate>,
    rand_write: Option<Rate>,
    mixed: Option<Rate>,
    overhead: Option<Overhead>,
    added_latency: Option<AddedLatency>,
}

/// The rate of one job, and how the job must have been run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rate {
    block_bytes: Spanned<u32>,
    depth: Spanned<u32>,
    threads: Spanned<u32>,
    met_mb_per_s: Spanned<f64>,
    better_mb_per_s: Spanned<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Overhead {
    met_percent: Spanned<f64>,
    better_percent: Spanned<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct AddedLatency {
    met_us: Option<Spanned<f64>>,
    better_us: Option<Spanned<f64>>,
}

/// What a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Bytes per second of a job.
    Rate,
    /// Share of the plain rate that is lost.
    Overhead,
    /// Microseconds added to the median latency at depth 1.
    AddedLatency,
}

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The better bound, too.
    Better,
    /// The bound.
    Met,
    /// Not the bound.
    Missed,
    /// Not the bound, and the plain file does not reach it either.
    DiskCannot,
    /// Too noisy to decide.
    TooNoisy,
    /// The job, the layer or plain is not in the run.
    NotMeasured,
    /// No bound was given.
    Shown,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::DiskCannot => "the disk itself can't",
            Verdict::TooNoisy => "too noisy to decide",
            Verdict::NotMeasured => "not measured",
            Verdict::Shown => "not judged",
        }
    }
}

/// One target and how it came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// Name of the job.
    pub job: String,
    /// Of what.
    pub subject: Subject,
    /// What is asked for: bytes per second, a share (0.15), or microseconds; met and better.
    pub bounds: Option<(f64, f64)>,
    /// What came out, in the same unit.
    pub found: Option<Estimate>,
    /// The answer.
    pub verdict: Verdict,
    /// What the answer needs to be understood; may be empty.
    pub why: String,
}

/// The targets that come with the program.
///
/// # Errors
/// None: a test reads them.
pub fn compiled_in() -> Result<Targets> {
    parse(DEFAULT)
}

/// Reads a targets file.
///
/// # Errors
/// Names the line: a key that is not known or missing, a value of another type, or one that cannot be.
pub fn parse(text: &str) -> Result<Targets> {
    if text.len() > MAX_FILE_BYTES {
        bail!("targets: {} bytes, more than {MAX_FILE_BYTES}", text.len());
    }
    let targets: Targets = match toml::from_str(text) {
        Ok(targets) => targets,
        Err(error) => bail!("targets: {}", error.to_string().trim_end()),
    };
    let rates = [&targets.seq_read, &targets.seq_write, &targets.rand_read, &targets.rand_write, &targets.mixed];
    for rate in rates.into_iter().flatten() {
        within(text, "block-bytes", &rate.block_bytes, 512.0..=f64::from(1 << 30))?;
        within(text, "depth", &rate.depth, 1.0..=4096.0)?;
        within(text, "threads", &rate.threads, 1.0..=1024.0)?;
        within(text, "met-mb-per-s", &rate.met_mb_per_s, 0.001..=1e9)?;
        within(text, "better-mb-per-s", &rate.better_mb_per_s, *rate.met_mb_per_s.get_ref()..=1e9)?;
    }
    if let Some(overhead) = &targets.overhead {
        within(text, "met-percent", &overhead.met_percent, 0.0..=100.0)?;
        within(text, "better-percent", &overhead.better_percent, 0.0..=*overhead.met_percent.get_ref())?;
    }
    if let Some(added) = &targets.added_latency {
        let met = added.met_us.as_ref();
        if let Some(met) = met {
            within(text, "met-us", met, 0.0..=1e9)?;
        }
        if let Some(better) = &added.better_us {
            let Some(met) = met else {
                bail!("targets: line {}: better-us without met-us", line(text, better.span().start));
            };
            within(text, "better-us", better, 0.0..=*met.get_ref())?;
        }
    }
    Ok(targets)
}

fn within<T: Copy + Into<f64>>(text: &str, key: &str, value: &Spanned<T>, range: RangeInclusive<f64>) -> Result<()> {
    let number: f64 = (*value.get_ref()).into();
    if range.contains(&number) {
        return Ok(());
    }
    let line = line(text, value.span().start);
    bail!("targets: line {line}: {key} = {number} is not between {} and {}", range.start(), range.end());
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Judges a run; in the order of its jobs.
#[must_use]
pub fn judge(run: &Run, targets: &Targets) -> Vec<Judgement> {
    let chosen = run.layers.iter().find(|layer| layer.chosen_by_open);
    let mut found = Vec::new();
    for job in &run.jobs {
        let of = OfJob { run, job, chosen };
        if let Some(target) = targets.rate(&job.name) {
            found.push(of.rate(target));
            found.extend(targets.overhead.as_ref().map(|overhead| of.overhead(overhead)));
        }
        if let Some(target) = targets.added_latency.as_ref().filter(|_| job.depth == 1 && job.threads == 1) {
            found.push(of.added_latency(target));
        }
    }
    found
}

impl Targets {
    fn rate(&self, job: &str) -> Option<&Rate> {
        match job {
            "seq-read" => self.seq_read.as_ref(),
            "seq-write" => self.seq_write.as_ref(),
            "rand-read" => self.rand_read.as_ref(),
            "rand-write" => self.rand_write.as_ref(),
            "mixed" => self.mixed.as_ref(),
            _ => None,
        }
    }

    /// The bounds of the overhead as shares, met and better: for the lines of a plot.
    #[must_use]
    pub fn overhead_bounds(&self) -> Option<(f64, f64)> {
        self.overhead
            .as_ref()
            .map(|overhead| (overhead.met_percent.get_ref() / 100.0, overhead.better_percent.get_ref() / 100.0))
    }
}

/// One job of a run and the layer to be judged.
struct OfJob<'a> {
    run: &'a Run,
    job: &'a Job,
    chosen: Option<&'a Layer>,
}

impl OfJob<'_> {
    fn samples(&self) -> &[Sample] {
        self.chosen.map_or(&[], |layer| self.run.samples(&self.job.name, &layer.name))
    }

    fn plain(&self) -> &[Sample] {
        self.run.samples(&self.job.name, PLAIN)
    }

    /// Why there is nothing to judge.
    fn nothing(&self) -> String {
        let Some(layer) = self.chosen else {
            return "the layer that luksctl open would take here is not in the run".into();
        };
        match &layer.absent {
            Some(why) => format!("{}: {why}", layer.name),
            None if self.samples().is_empty() => format!("{} was not measured in this job", layer.name),
            None => "the plain file was not measured in the same rounds".into(),
        }
    }

    fn rate(&self, target: &Rate) -> Judgement {
        let bounds = (target.met_mb_per_s.get_ref() * 1e6, target.better_mb_per_s.get_ref() * 1e6);
        let asked = (*target.block_bytes.get_ref(), *target.depth.get_ref(), *target.threads.get_ref());
        if asked != (self.job.block_bytes, self.job.depth, self.job.threads) {
            let why = format!("the target is for {} bytes, depth {}, {} threads", asked.0, asked.1, asked.2);
            return self.judgement(Subject::Rate, Some(bounds), None, Verdict::NotMeasured, why);
        }
        let found = stats::rate(self.samples());
        // Over the bound, so that one width fits all.
        let reaches = |bound: f64| found?.map(|rate| rate / bound).reaches(1.0, RATE_WIDEST);
        let mut verdict = decided(found, reaches(bounds.0), || reaches(bounds.1));
        let mut why = self.why(verdict, found);
        if verdict == Verdict::Missed
            && let Some(plain) = stats::rate(self.plain()).filter(|plain| plain.value < bounds.0)
        {
            verdict = Verdict::DiskCannot;
            why = format!("the plain file: {:.0} MB/s", plain.value / 1e6);
        }
        self.judgement(Subject::Rate, Some(bounds), found, verdict, why)
    }

    fn overhead(&self, target: &Overhead) -> Judgement {
        let bounds = (target.met_percent.get_ref() / 100.0, target.better_percent.get_ref() / 100.0);
        let found = stats::overhead(self.samples(), self.plain());
        self.at_most(Subject::Overhead, Some(bounds), found, OVERHEAD_WIDEST)
    }

    fn added_latency(&self, target: &AddedLatency) -> Judgement {
        let better = |met: f64| target.better_us.as_ref().map_or(met, |better| *better.get_ref());
        let bounds = target.met_us.as_ref().map(|met| (*met.get_ref(), better(*met.get_ref())));
        let found = stats::added_us(self.samples(), self.plain());
        self.at_most(Subject::AddedLatency, bounds, found, ADDED_WIDEST_US)
    }

    /// Judges what shall not be above its bounds.
    fn at_most(&self, subject: Subject, bounds: Option<(f64, f64)>, found: Option<Estimate>, widest: f64) -> Judgement {
        let stays_below = |bound: f64| found?.map(|value| -value).reaches(-bound, widest);
        let verdict = match bounds {
            Some(bounds) => {
                decided(found, stays_below(bounds.0), || if bounds.1 < bounds.0 { stays_below(bounds.1) } else { None })
            }
            None if found.is_some() => Verdict::Shown,
            None => Verdict::NotMeasured,
        };
        let why = self.why(verdict, found);
        self.judgement(subject, bounds, found, verdict, why)
    }

    fn why(&self, verdict: Verdict, found: Option<Estimate>) -> String {
        match (verdict, found) {
            (Verdict::NotMeasured, _) => self.nothing(),
            (Verdict::TooNoisy, Some(Estimate { interval: None, rounds, .. })) => {
                format!("{rounds} rounds; an interval takes 6")
            }
            _ => String::new(),
        }
    }

    fn judgement(
        &self,
        subject: Subject,
        bounds: Option<(f64, f64)>,
        found: Option<Estimate>,
        verdict: Verdict,
        why: String,
    ) -> Judgement {
        Judgement { job: self.job.name.clone(), subject, bounds, found, verdict, why }
    }
}

/// From whether the bounds are kept; `None` is too noisy.
fn decided(found: Option<Estimate>, met: Option<bool>, better: impl FnOnce() -> Option<bool>) -> Verdict {
    match met {
        _ if found.is_none() => Verdict::NotMeasured,
        None => Verdict::TooNoisy,
        Some(false) => Verdict::Missed,
        Some(true) if better() == Some(true) => Verdict::Better,
        Some(true) => Verdict::Met,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::{run, sample};

    fn verdicts(run: &Run, targets: &Targets) -> Vec<(String, Subject, Verdict)> {
        judge(run, targets).into_iter().map(|judged| (judged.job, judged.subject, judged.verdict)).collect()
    }

    /// A run whose layers have exactly these rates in seq-read.
    fn exact(plain: f64, fuse_loop: f64) -> Run {
        let mut run = run(1, 9, |_, _| 1.0);
        run.jobs.truncate(1);
        for measured in &mut run.measurements {
            let rate = if measured.layer == PLAIN { plain } else { fuse_loop };
            measured.samples = (0..9).map(|round| sample(round, rate)).collect();
        }
        run
    }

    #[test]
    fn each_verdict_by_hand() {
        let targets = compiled_in().unwrap();
        let of = |plain, ours| {
            let verdicts = verdicts(&exact(plain, ours), &targets);
            (verdicts[0].2, verdicts[1].2)
        };
        assert_eq!(of(700e6, 690e6), (Verdict::Better, Verdict::Better));
        assert_eq!(of(700e6, 600e6), (Verdict::Better, Verdict::Met), "14.3%");
        assert_eq!(of(700e6, 590e6), (Verdict::Met, Verdict::Missed), "15.7%");
        assert_eq!(of(700e6, 399e6), (Verdict::Missed, Verdict::Missed));
        assert_eq!(of(399e6, 395e6), (Verdict::DiskCannot, Verdict::Better));
    }

    #[test]
    fn noise_around_a_bound_is_said() {
        let mut run = exact(700e6, 600e6);
        for measured in run.measurements.iter_mut().filter(|measured| measured.layer == "fuse-loop") {
            for sample in &mut measured.samples {
                sample.bytes = if sample.round % 2 == 0 { 300_000_000 } else { 700_000_000 };
            }
        }
        let judged = judge(&run, &compiled_in().unwrap());
        assert_eq!([judged[0].verdict, judged[1].verdict], [Verdict::TooNoisy; 2], "{judged:?}");
        let mut run = exact(700e6, 690e6);
        run.measurements.iter_mut().for_each(|measured| measured.samples.truncate(5));
        let judged = judge(&run, &compiled_in().unwrap());
        assert_eq!((judged[0].verdict, judged[0].why.as_str()), (Verdict::TooNoisy, "5 rounds; an interval takes 6"));
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let targets = compiled_in().unwrap();
        let mut other_depth = exact(700e6, 690e6);
        other_depth.jobs[0].depth = 4;
        let judged = judge(&other_depth, &targets);
        assert_eq!(judged[0].verdict, Verdict::NotMeasured);
        assert_eq!(judged[0].why, "the target is for 1048576 bytes, depth 8, 1 threads");
        let mut none = exact(700e6, 690e6);
        none.layers.iter_mut().for_each(|layer| layer.chosen_by_open = false);
        assert!(judge(&none, &targets).iter().all(|judged| judged.verdict == Verdict::NotMeasured));
        let mut no_plain = exact(700e6, 690e6);
        no_plain.measurements.retain(|measured| measured.layer != PLAIN);
        let judged = judge(&no_plain, &targets);
        assert_eq!((judged[0].verdict, judged[1].verdict), (Verdict::Better, Verdict::NotMeasured));
    }

    #[test]
    fn added_latency_is_shown_and_judged_when_asked() {
        let run = run(3, 15, |_, _| 1.0);
        let last = judge(&run, &compiled_in().unwrap()).pop().unwrap();
        assert_eq!(
            (last.job.as_str(), last.subject, last.verdict),
            ("rand-read-qd1", Subject::AddedLatency, Verdict::Shown)
        );
        assert!(last.found.unwrap().value > 0.0);
        let of = |text: &str| judge(&run, &parse(text).unwrap()).pop().unwrap().verdict;
        assert_eq!(of("[added-latency]\nmet-us = 100000\n"), Verdict::Met);
        assert_eq!(of("[added-latency]\nmet-us = 200000\nbetter-us = 100000\n"), Verdict::Better);
        assert_eq!(of("[added-latency]\nmet-us = 1\n"), Verdict::Missed);
        assert!(judge(&run, &parse("").unwrap()).is_empty());
    }

    #[test]
    fn mistakes_name_their_line() {
        let wrong = |from: &str, to: &str| {
            assert!(DEFAULT.contains(from));
            parse(&DEFAULT.replacen(from, to, 1)).unwrap_err().to_string()
        };
        let error = wrong("met-mb-per-s = 400", "met-mb-per-s = 0");
        assert_eq!(error, "targets: line 9: met-mb-per-s = 0 is not between 0.001 and 1000000000");
        let error = wrong("better-mb-per-s = 600", "better-mb-per-s = 399");
        assert_eq!(error, "targets: line 10: better-mb-per-s = 399 is not between 400 and 1000000000");
        assert!(wrong("met-mb-per-s = 400", "met-mb-per-s = nan").contains("line 9: met-mb-per-s = NaN is not"));
        assert!(
            wrong("better-percent = 5", "better-percent = 16").contains("better-percent = 16 is not between 0 and 15")
        );
        assert!(wrong("depth = 8", "depth = 0").contains("line 7: depth = 0 is not between 1 and 4096"));
        assert!(wrong("depth = 8", "deepth = 8").contains("line 7"));
        assert!(wrong("depth = 8", "depth = \"8\"").contains("line 7"));
        assert!(wrong("[seq-read]", "[seq-raed]").contains("line 5"));
        assert!(wrong("# met-us = 30", "better-us = 5").contains("better-us without met-us"));
        assert!(wrong("depth = 8\n", "").contains("depth"));
        assert!(parse(&" ".repeat(MAX_FILE_BYTES + 1)).is_err());
    }
}
