//! The statistics of a run: medians and quartiles, the ratio of two things measured in the same rounds, the shift between
//! two runs; each with an interval.
//!
//! A ratio is estimated from the logarithms of the ratios inside each round, so that what moves the whole machine falls
//! away. Estimate and interval are those of ranks, after Hodges and Lehmann ("Estimates of location based on rank tests",
//! Ann. Math. Stat. 34, 1963): of one sample the median of all means of two values, and the interval that Wilcoxon's
//! signed-rank test inverts to; of two samples the median of all differences, and the interval of the rank-sum test (Hollander,
//! Wolfe, Chicken: Nonparametric Statistical Methods, sections 3.3 and 4.3). They need no normal distribution, a round that
//! stood still moves them little, they have no random numbers in them, and their coverage is exact for few rounds, at
//! least what is asked for. The first assumes that the logarithms spread evenly to both sides, which two things disturbed
//! alike do. Under six rounds no interval of 95% exists, and none is given.

mod ranks;
#[cfg(test)]
pub(crate) mod simulated;

use serde::Serialize;

use crate::run::Sample;

/// What an interval misses the true value by, at most, unless said otherwise: 5%.
pub const ALPHA: f64 = 0.05;

/// A number and where it may truly lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The best guess.
    pub value: f64,
    /// `None` where there are too few rounds for one.
    pub interval: Option<Interval>,
    /// Rounds that it was made from; of two samples the lesser.
    pub rounds: usize,
}

/// From a value to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    /// The same through a function that never decreases or never increases.
    #[must_use]
    pub fn map(self, function: impl Fn(f64) -> f64) -> Estimate {
        let interval = self.interval.map(|interval| {
            let ends = (function(interval.low), function(interval.high));
            Interval { low: ends.0.min(ends.1), high: ends.0.max(ends.1) }
        });
        Estimate { value: function(self.value), interval, rounds: self.rounds }
    }

    /// Whether the value is at or above `bound`; `None` where that is too noisy to decide: no interval, or one that has
    /// the bound inside and is wider than `widest`.
    #[must_use]
    pub fn reaches(&self, bound: f64, widest: f64) -> Option<bool> {
        let interval = self.interval?;
        let inside = interval.low < bound && bound < interval.high;
        if inside && interval.high - interval.low > widest { None } else { Some(self.value >= bound) }
    }
}

/// The middle value; the mean of the middle two. `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(&sorted(values), 0.5)
}

/// A quarter below, the median, a quarter above; between two values by their distance.
#[must_use]
pub fn quartiles(values: &[f64]) -> Option<(f64, f64, f64)> {
    let sorted = sorted(values);
    Some((quantile(&sorted, 0.25)?, quantile(&sorted, 0.5)?, quantile(&sorted, 0.75)?))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

#[allow(clippy::cast_possible_truncation)] // an index
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = sorted.len().checked_sub(1)? as f64 * share;
    let (below, above) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

/// The centre of one sample and its interval of `1 - alpha`. `None` of nothing.
#[must_use]
pub fn centre(values: &[f64], alpha: f64) -> Option<Estimate> {
    let mut means = Vec::with_capacity(values.len() * (values.len() + 1) / 2);
    for (at, one) in values.iter().enumerate() {
        means.extend(values[at..].iter().map(|other| f64::midpoint(*one, *other)));
    }
    from_ranked(&means, ranks::signed_rank(values.len(), alpha), values.len())
}

/// By how much the second sample lies above the first, and the interval of `1 - alpha`. `None` if one is empty.
#[must_use]
pub fn shift(before: &[f64], after: &[f64], alpha: f64) -> Option<Estimate> {
    let differences: Vec<f64> =
        after.iter().flat_map(|after| before.iter().map(move |before| after - before)).collect();
    let rank = ranks::rank_sum(before.len(), after.len(), alpha);
    from_ranked(&differences, rank, before.len().min(after.len()))
}

/// The median of the values, and the interval from the `rank`-th to the `rank`-th from the end.
fn from_ranked(values: &[f64], rank: Option<usize>, rounds: usize) -> Option<Estimate> {
    let sorted = sorted(values);
    let value = quantile(&sorted, 0.5)?;
    let interval = rank.and_then(|rank| {
        let low = *sorted.get(rank.checked_sub(1)?)?;
        let high = *sorted.get(sorted.len().checked_sub(rank)?)?;
        Some(Interval { low, high })
    });
    Some(Estimate { value, interval, rounds })
}

/// Logarithms of the ratios of the rates in the rounds that both have. A sample in which nothing was moved counts as one byte.
#[must_use]
pub fn log_ratios(of: &[Sample], to: &[Sample]) -> Vec<f64> {
    paired(of, to).map(|(of, to)| log_rate(of) - log_rate(to)).collect()
}

/// The logarithm of a sample's bytes per second.
#[must_use]
pub fn log_rate(sample: &Sample) -> f64 {
    (sample.bytes.max(1) as f64 * 1e9 / sample.elapsed_ns.max(1) as f64).ln()
}

/// The samples of the same rounds.
pub fn paired<'a>(of: &'a [Sample], to: &'a [Sample]) -> impl Iterator<Item = (&'a Sample, &'a Sample)> {
    of.iter().filter_map(|of| to.iter().find(|to| to.round == of.round).map(|to| (of, to)))
}

/// The ratio of the rates in the same rounds. `None` if there is no round that both have.
#[must_use]
pub fn ratio(of: &[Sample], to: &[Sample]) -> Option<Estimate> {
    Some(centre(&log_ratios(of, to), ALPHA)?.map(f64::exp))
}

/// The overhead of a layer: the share of the plain file's rate that it loses. 0.15 is 15% slower, below zero is faster.
#[must_use]
pub fn overhead(layer: &[Sample], plain: &[Sample]) -> Option<Estimate> {
    Some(ratio(layer, plain)?.map(|ratio| 1.0 - ratio))
}

/// The rate in bytes per second.
#[must_use]
pub fn rate(samples: &[Sample]) -> Option<Estimate> {
    Some(centre(&samples.iter().map(log_rate).collect::<Vec<_>>(), ALPHA)?.map(f64::exp))
}

/// What `layer` adds to the plain file's median latency, in microseconds, from the same rounds.
#[must_use]
pub fn added_us(layer: &[Sample], plain: &[Sample]) -> Option<Estimate> {
    let median = |sample: &Sample| sample.latency.percentiles_ns.get("50").map(|ns| *ns as f64 / 1e3);
    let added: Vec<f64> =
        paired(layer, plain).filter_map(|(layer, plain)| Some(median(layer)? - median(plain)?)).collect();
    centre(&added, ALPHA)
}

#[cfg(test)]
mod tests {
    use super::simulated::{Noise, Random, sample};
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(quartiles(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some((2.0, 3.0, 4.0)));
        assert_eq!(quartiles(&[1.0, 2.0, 3.0, 4.0]), Some((1.75, 2.5, 3.25)));
    }

    /// By hand: of -1, 0, 2, 3, 5, 9 the 21 means of two, sorted, are -1 -0.5 0 0.5 1 1 1.5 2 2 2.5 2.5 3 3.5 4 4 4.5 5 5.5 6 7 9;
    /// the eleventh is 2.5. Of six, the signed-rank sum is 0 in one case of 64, so the whole range covers 1 - 2/64.
    #[test]
    fn the_centre_of_six_values() {
        let centre = centre(&[9.0, -1.0, 0.0, 2.0, 5.0, 3.0], ALPHA).unwrap();
        assert_eq!(centre.value, 2.5);
        assert_eq!(centre.interval, Some(Interval { low: -1.0, high: 9.0 }));
        assert_eq!(super::centre(&[1.0, 2.0, 3.0, 4.0, 5.0], ALPHA).unwrap().interval, None, "1 - 2/32 is under 95%");
    }

    /// By hand: 4 and 4 values have 70 orders; a rank sum of 0 has one, so 1 - 2/70 is 97%, and rank 2 would be 94%.
    #[test]
    fn the_shift_between_four_and_four_values() {
        let shift = shift(&[0.0, 1.0, 2.0, 3.0], &[10.0, 11.0, 12.0, 13.0], ALPHA).unwrap();
        assert_eq!((shift.value, shift.rounds), (10.0, 4));
        assert_eq!(shift.interval, Some(Interval { low: 7.0, high: 13.0 }));
        assert_eq!(super::shift(&[0.0, 1.0, 2.0], &[3.0, 4.0, 5.0], ALPHA).unwrap().interval, None, "1 - 2/20");
        assert_eq!(super::shift(&[], &[1.0], ALPHA), None);
    }

    #[test]
    fn only_rounds_that_both_have_count() {
        let plain: Vec<_> = (0..8).map(|round| sample(round, 1000.0 * f64::from(round + 1))).collect();
        let layer: Vec<_> = (2..9).map(|round| sample(round, 900.0 * f64::from(round + 1))).collect();
        let overhead = overhead(&layer, &plain).unwrap();
        assert_eq!(overhead.rounds, 6);
        let interval = overhead.interval.unwrap();
        assert!((overhead.value - 0.1).abs() < 1e-3 && interval.high - interval.low < 1e-2, "{overhead:?}");
        assert_eq!(ratio(&layer[6..], &plain), None);
    }

    #[test]
    fn a_round_without_a_byte_is_no_infinity() {
        let plain: Vec<_> = (0..9).map(|round| sample(round, 1e9)).collect();
        let mut layer = plain.clone();
        layer[4].bytes = 0;
        let ratio = ratio(&layer, &plain).unwrap();
        assert!((ratio.value - 1.0).abs() < 1e-9 && ratio.interval.unwrap().low > 0.0, "{ratio:?}");
    }

    #[test]
    fn too_noisy_is_an_interval_that_is_wide_and_has_the_bound_inside() {
        let of = |low, high| Estimate { value: 0.10, interval: Some(Interval { low, high }), rounds: 9 };
        assert_eq!(of(0.0, 0.3).reaches(0.15, 0.1), None);
        assert_eq!(of(0.08, 0.16).reaches(0.15, 0.1), Some(false), "narrow: the value decides");
        assert_eq!(of(-0.5, 0.14).reaches(0.15, 0.1), Some(false), "wide, and all on one side");
        assert_eq!(of(0.0, 0.3).reaches(0.1, 0.5), Some(true));
        assert_eq!(Estimate { interval: None, ..of(0.0, 0.0) }.reaches(0.15, 0.1), None);
    }

    /// 3000 runs of noise that is common to a round, heavy-tailed in each layer, and drifts: the interval has the true ratio
    /// inside in at least 95% of them, less three standard deviations of such a count.
    #[test]
    fn the_interval_covers_what_it_says() {
        const TRIES: u32 = 3000;
        for rounds in [6, 15, 40] {
            let mut random = Random::new(0x5eed_0000 + u64::from(rounds));
            let mut inside = 0;
            for _ in 0..TRIES {
                let mut noise = Noise::of_a_shared_machine(&mut random);
                let (mut plain, mut layer) = (Vec::new(), Vec::new());
                for round in 0..rounds {
                    let common = noise.of_round(&mut random);
                    plain.push(sample(round, 1e9 * common * noise.of_piece(&mut random)));
                    layer.push(sample(round, 0.88e9 * common * noise.of_piece(&mut random)));
                }
                let interval = ratio(&layer, &plain).unwrap().interval.unwrap();
                inside += u32::from(interval.low <= 0.88 && 0.88 <= interval.high);
            }
            let share = f64::from(inside) / f64::from(TRIES);
            assert!(share >= 0.95 - 3.0 * (0.95_f64 * 0.05 / f64::from(TRIES)).sqrt(), "{rounds} rounds: {share}");
        }
    }
}
