//! Whether a later measurement is slower than an earlier one by more than their noise.
//!
//! Compared are series: one for each job and layer, its values the logarithms of the rate over the plain file's in the same
//! round, and one for each case of the cipher, over the machine's AES limit. So what the machine does on another day falls away
//! as far as it can; the plain file itself and the limit are shown and never judged.
//!
//! The shift between two series and its interval are those of the rank sum ([`stats::shift`]). Many series are compared at
//! once, so each gets its part of [`FAMILY_ALPHA`] (Bonferroni), and only an interval that lies beyond a margin as a whole counts:
//! two runs of one build differ a little in truth, by where their memory lies and what runs beside.

use anyhow::{Result, bail};
use serde::Serialize;

use crate::baseline::CryptoSeries;
use crate::run::{Machine, PLAIN, Run};
use crate::stats::{self, Estimate};

/// The chance that any of all intervals misses the truth: 5%. Calling two alike different is far rarer, since the interval must
/// miss it by the margin.
pub const FAMILY_ALPHA: f64 = 0.05;
/// Changes up to this share are none, unless said otherwise.
pub const MARGIN: f64 = 0.03;
/// A slow-down of this share is to be found; where it cannot be excluded, the answer is "too noisy".
pub const TO_BE_FOUND: f64 = 0.10;

/// Values that can be compared with those of another time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is of; the same in both measurements.
    pub name: String,
    /// What its values are ratios to; `None` is a rate, which is shown and not judged.
    pub against: Option<String>,
    /// Logarithms, one for each round.
    pub values: Vec<f64>,
    /// Median of the rates, bytes per second.
    pub bytes_per_s: f64,
}

/// How a series changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// By more than the noise and the margin.
    Slower,
    /// By more than the noise and the margin.
    Faster,
    /// A slow-down of [`TO_BE_FOUND`] would have been seen.
    Same,
    /// It would not.
    TooNoisy,
    /// What others are compared with: the disk's or the machine's matter.
    Reference,
}

impl Change {
    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Change::Slower => "slower",
            Change::Faster => "faster",
            Change::Same => "same",
            Change::TooNoisy => "too noisy to decide",
            Change::Reference => "not judged",
        }
    }
}

/// One series then and now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Of what.
    pub name: String,
    /// What the compared values are ratios to.
    pub against: Option<String>,
    /// Median rate then, bytes per second.
    pub before_bytes_per_s: f64,
    /// Median rate now.
    pub after_bytes_per_s: f64,
    /// Of the ratio: 0.9 is 10% slower than before. Its interval holds for all series together.
    pub factor: Option<Estimate>,
    /// The answer.
    pub change: Change,
}

/// Compares the series that both have.
#[must_use]
pub fn compare(before: &[Series], after: &[Series], margin: f64) -> Vec<Comparison> {
    let both: Vec<(&Series, &Series)> = before
        .iter()
        .filter_map(|before| Some((before, after.iter().find(|after| after.name == before.name)?)))
        .collect();
    let judged = both.iter().filter(|(before, _)| before.against.is_some()).count();
    #[allow(clippy::cast_precision_loss)] // some series
    let alpha = FAMILY_ALPHA / judged.max(1) as f64;
    let compared = both.into_iter().map(|(before, after)| {
        let factor = stats::shift(&before.values, &after.values, alpha).map(|shift| shift.map(f64::exp));
        Comparison {
            name: before.name.clone(),
            against: before.against.clone(),
            before_bytes_per_s: before.bytes_per_s,
            after_bytes_per_s: after.bytes_per_s,
            change: if before.against.is_none() { Change::Reference } else { change(factor, margin) },
            factor,
        }
    });
    compared.collect()
}

fn change(factor: Option<Estimate>, margin: f64) -> Change {
    let Some(interval) = factor.and_then(|factor| factor.interval) else { return Change::TooNoisy };
    match interval {
        interval if interval.high < 1.0 - margin => Change::Slower,
        interval if interval.low > 1.0 / (1.0 - margin) => Change::Faster,
        interval if interval.low > 1.0 - TO_BE_FOUND => Change::Same,
        _ => Change::TooNoisy,
    }
}

/// The series of a run, in the order of its jobs and layers.
#[must_use]
pub fn series_of_run(run: &Run) -> Vec<Series> {
    let mut all = Vec::new();
    for job in &run.jobs {
        for layer in &run.layers {
            let (samples, plain) = (run.samples(&job.name, &layer.name), run.samples(&job.name, PLAIN));
            if samples.is_empty() {
                continue;
            }
            let judged = layer.name != PLAIN && !plain.is_empty();
            let rates: Vec<f64> = samples.iter().map(stats::log_rate).collect();
            all.push(Series {
                name: format!("{} {}", job.name, layer.name),
                against: judged.then(|| PLAIN.to_owned()),
                bytes_per_s: stats::median(&rates).map_or(0.0, f64::exp),
                values: if judged { stats::log_ratios(samples, plain) } else { rates },
            });
        }
    }
    all
}

/// The series of the cipher.
#[must_use]
pub fn series_of_crypto(crypto: &[CryptoSeries]) -> Vec<Series> {
    let series = |crypto: &CryptoSeries| Series {
        name: crypto.name(),
        against: Some(crypto.reference.clone()),
        values: sweeps(crypto),
        bytes_per_s: stats::median(&crypto.own).unwrap_or_default(),
    };
    crypto.iter().map(series).collect()
}

/// The median logarithm of the share of the limit in each sweep.
fn sweeps(crypto: &CryptoSeries) -> Vec<f64> {
    let shares: Vec<f64> = crypto.own.iter().zip(&crypto.limit).map(|(own, limit)| (own / limit).ln()).collect();
    shares.chunks(crypto.sweep_rounds.max(1)).filter_map(stats::median).collect()
}

/// Refuses to compare what cannot be, and says what makes a comparison doubtful.
///
/// # Errors
/// Another processor, storage, size, sector size or queue, page cache or not, or a job of that name that does something else.
pub fn comparable(before: &Run, after: &Run) -> Result<Vec<String>> {
    let mut doubts = comparable_machines(&before.machine, &after.machine)?;
    let (then, now) = (&before.settings, &after.settings);
    let must = [
        ("storage", before.machine.storage.clone(), after.machine.storage.clone()),
        ("file size in bytes", then.size_bytes.to_string(), now.size_bytes.to_string()),
        ("direct I/O", then.direct.to_string(), now.direct.to_string()),
        ("sector size", then.sector_bytes.to_string(), now.sector_bytes.to_string()),
        ("queue", then.queue.clone(), now.queue.clone()),
    ];
    for (what, then, now) in must {
        if then != now {
            bail!("the runs cannot be compared: {what} was {then:?} and is {now:?}");
        }
    }
    for job in &before.jobs {
        if let Some(other) = after.jobs.iter().find(|other| other.name == job.name)
            && other != job
        {
            bail!("the runs cannot be compared: job {:?} was another: {job:?} and {other:?}", job.name);
        }
    }
    let may = [
        ("time of a piece in ms", then.piece_ms.to_string(), now.piece_ms.to_string()),
        ("warm-up in ms", then.warm_up_ms.to_string(), now.warm_up_ms.to_string()),
        ("target", then.target.clone(), now.target.clone()),
    ];
    doubts.extend(may.into_iter().filter(|(_, then, now)| then != now).map(changed));
    if before.interrupted || after.interrupted {
        doubts.push("a run was ended early".into());
    }
    Ok(doubts)
}

/// Refuses another processor; says what else is another.
///
/// # Errors
/// Another processor.
pub fn comparable_machines(before: &Machine, after: &Machine) -> Result<Vec<String>> {
    if (&before.cpu, before.cpus) != (&after.cpu, after.cpus) {
        bail!(
            "the runs cannot be compared: they were measured on {} × {:?} and {} × {:?}",
            before.cpus,
            before.cpu,
            after.cpus,
            after.cpu
        );
    }
    let mut all = vec![
        ("Linux", before.kernel.clone(), after.kernel.clone()),
        ("AES kernel", before.aes_kernel.clone(), after.aes_kernel.clone()),
    ];
    for (name, version) in &before.versions {
        let now = after.versions.get(name).cloned().unwrap_or_else(|| "none".into());
        all.push((name, version.clone(), now));
    }
    Ok(all.into_iter().filter(|(_, then, now)| then != now).map(changed).collect())
}

fn changed((what, then, now): (&str, String, String)) -> String {
    format!("{what} was {then:?} and is {now:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::{Noise, Random, run};

    fn slower(before: &[Series], after: &[Series]) -> Vec<String> {
        let all = compare(before, after, MARGIN).into_iter();
        all.filter(|one| one.change == Change::Slower).map(|one| one.name).collect()
    }

    /// Shares of the limit, as `baseline` measures them: with the noise of a shared machine, some that
    /// stays for a sweep, and one sweep of ten a third slower.
    fn crypto(seed: u64, factor: f64) -> Vec<Series> {
        const SWEEPS: usize = 16;
        const SWEEP_ROUNDS: usize = 41;
        let mut random = Random::new(seed);
        let cases = [("encrypt", 512), ("decrypt", 512), ("encrypt", 4096), ("decrypt", 4096)];
        let series = cases.map(|(direction, sector_bytes)| {
            let mut noise = Noise::of_a_shared_machine(&mut random);
            let (mut own, mut limit) = (Vec::new(), Vec::new());
            for _ in 0..SWEEPS {
                let unlucky = if random.uniform() < 0.1 { 0.65 } else { 1.0 };
                let sweep = unlucky * (0.01 * random.heavy()).exp();
                for _ in 0..SWEEP_ROUNDS {
                    let common = noise.of_round(&mut random);
                    limit.push(17e9 * common * noise.of_piece(&mut random));
                    own.push(15e9 * common * sweep * noise.of_piece(&mut random) * factor);
                }
            }
            let (direction, reference) = (direction.to_owned(), "vaesenc zmm".to_owned());
            let call_bytes = 64 << 10;
            CryptoSeries { direction, sector_bytes, call_bytes, reference, sweep_rounds: SWEEP_ROUNDS, own, limit }
        });
        series_of_crypto(&series)
    }

    #[test]
    fn a_tenth_in_the_cipher_is_found_and_nothing_where_nothing_is() {
        let (mut found, mut different, mut undecided) = (0, 0, 0);
        for seed in 0..40 {
            found += u32::from(!slower(&crypto(seed, 1.0), &crypto(seed + 1000, 0.9)).is_empty());
            let again = compare(&crypto(seed, 1.0), &crypto(seed + 2000, 1.0), MARGIN);
            different += again.iter().filter(|one| matches!(one.change, Change::Slower | Change::Faster)).count();
            undecided += again.iter().filter(|one| one.change == Change::TooNoisy).count();
        }
        assert!(found >= 36, "{found} of 40");
        assert_eq!(different, 0, "of 40 × 4");
        assert!(undecided <= 16, "{undecided} of 40 × 4");
    }

    /// Runs of 30 rounds, six jobs on three layers: one layer a tenth slower in one job is found, and only that one.
    #[test]
    fn a_tenth_in_one_layer_of_one_job_is_found() {
        let slowed = |job: &str, layer: &str| if (job, layer) == ("rand-read", "fuse") { 0.9 } else { 1.0 };
        let (mut found, mut different, mut undecided) = (0, 0, 0);
        for seed in 0..20 {
            let before = series_of_run(&run(seed, 30, |_, _| 1.0));
            let after = slower(&before, &series_of_run(&run(seed + 5000, 30, slowed)));
            found += u32::from(after == ["rand-read fuse"]);
            let again = compare(&before, &series_of_run(&run(seed + 9000, 30, |_, _| 1.0)), MARGIN);
            assert_eq!(again.iter().filter(|one| one.change == Change::Reference).count(), 6, "plain is not judged");
            different += again.iter().filter(|one| matches!(one.change, Change::Slower | Change::Faster)).count();
            undecided += again.iter().filter(|one| one.change == Change::TooNoisy).count();
        }
        assert!(found >= 18, "{found} of 20");
        assert_eq!(different, 0, "of 20 × 18");
        assert!(undecided <= 4, "{undecided} of 20 × 18");
    }

    /// Seven rounds, as `luksbench io` has them unless told otherwise: a tenth may be missed, a third is not, and nothing is invented.
    #[test]
    fn seven_rounds_find_a_third() {
        let slowed = |_: &str, layer: &str| if layer == "fuse" { 0.67 } else { 1.0 };
        for seed in 0..20 {
            let before = series_of_run(&run(seed, 7, |_, _| 1.0));
            let found = slower(&before, &series_of_run(&run(seed + 5000, 7, slowed)));
            assert!(!found.is_empty() && found.iter().all(|name| name.ends_with(" fuse")), "{seed}: {found:?}");
            let again = compare(&before, &series_of_run(&run(seed + 9000, 7, |_, _| 1.0)), MARGIN);
            assert!(
                again.iter().all(|one| !matches!(one.change, Change::Slower | Change::Faster)),
                "{seed}: {again:?}"
            );
        }
    }

    /// The disk twice as fast as at the other time, for all: no layer is to blame.
    #[test]
    fn what_moves_the_whole_machine_is_nobodys_change() {
        let before = series_of_run(&run(1, 30, |_, _| 1.0));
        for factor in [0.5, 2.0] {
            let after = series_of_run(&run(2, 30, |_, _| factor));
            let changes = compare(&before, &after, MARGIN);
            assert!(changes.iter().all(|one| matches!(one.change, Change::Same | Change::Reference)), "{changes:?}");
        }
    }

    #[test]
    fn each_answer_by_hand() {
        let of = |value: f64, low, high| {
            change(Some(Estimate { value, interval: Some(stats::Interval { low, high }), rounds: 9 }), 0.03)
        };
        assert_eq!(of(0.9, 0.85, 0.96), Change::Slower);
        assert_eq!(of(0.95, 0.92, 0.98), Change::Same, "a little slower, within the margin perhaps, and no tenth");
        assert_eq!(of(0.95, 0.88, 0.98), Change::TooNoisy);
        assert_eq!(of(1.2, 1.1, 1.3), Change::Faster);
        assert_eq!(of(1.02, 1.01, 1.03), Change::Same);
        assert_eq!(change(None, 0.03), Change::TooNoisy);
    }

    #[test]
    fn too_few_rounds_decide_nothing() {
        let (before, after) = (run(1, 5, |_, _| 1.0), run(2, 5, |_, _| 0.5));
        let all = compare(&series_of_run(&before), &series_of_run(&after), MARGIN);
        assert!(all.iter().all(|one| matches!(one.change, Change::TooNoisy | Change::Reference)));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let before = run(1, 6, |_, _| 1.0);
        let refused = |change: &dyn Fn(&mut Run)| {
            let mut after = before.clone();
            change(&mut after);
            comparable(&before, &after).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&|_| ()), Ok(vec![]));
        assert!(refused(&|run| run.machine.cpu = "another".into()).unwrap_err().contains("another"));
        assert!(refused(&|run| run.machine.storage = "tmpfs".into()).unwrap_err().contains("storage was \"ext4"));
        assert!(refused(&|run| run.settings.direct = false).unwrap_err().contains("direct I/O"));
        assert!(refused(&|run| run.settings.size_bytes = 1).unwrap_err().contains("file size"));
        assert!(refused(&|run| run.jobs[0].depth = 9).unwrap_err().contains("job \"seq-read\" was another"));
        let doubts = refused(&|run| {
            run.machine.kernel = "6.13.0".into();
            run.settings.piece_ms = 1;
            run.interrupted = true;
        });
        assert_eq!(doubts.unwrap().len(), 3);
    }
}
