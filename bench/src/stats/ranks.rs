//! How far from the ends of the sorted values an interval begins: exact distributions of the signed-rank and the rank sum for
//! few rounds, the normal distribution for many.
//!
//! With `P(T <= k - 1) <= alpha / 2` under chance alone, the `k`-th value and the `k`-th from the end enclose the truth with
//! at least `1 - alpha`. Tails by the recurrences of Wilcoxon (1945) and of Mann and Whitney (Ann. Math. Stat. 18, 1947).

/// Up to this many rounds the signed-rank sum is counted out.
const SIGNED_RANK_EXACT_MAX: usize = 60;
/// Up to this many pairs the rank sum is counted out.
const RANK_SUM_EXACT_MAX: usize = 2500;

/// The rank for the means of two of `count` values; `None` where no interval is that sure.
pub(super) fn signed_rank(count: usize, alpha: f64) -> Option<usize> {
    let sums = count * (count + 1) / 2;
    if count > SIGNED_RANK_EXACT_MAX {
        let (count, sums) = (as_float(count), as_float(sums));
        return normal(sums / 2.0, (sums * (2.0 * count + 1.0) / 12.0).sqrt(), alpha);
    }
    // Each rank is in the sum or not, with a half.
    let mut chances = vec![0.0; sums + 1];
    chances[0] = 1.0;
    for rank in 1..=count {
        for sum in (0..=sums).rev() {
            let with = if sum >= rank { chances[sum - rank] } else { 0.0 };
            chances[sum] = f64::midpoint(chances[sum], with);
        }
    }
    within(&chances, alpha)
}

/// The rank for the differences of `before` and `after` values; `None` where no interval is that sure.
pub(super) fn rank_sum(before: usize, after: usize, alpha: f64) -> Option<usize> {
    let pairs = before.checked_mul(after)?;
    if pairs > RANK_SUM_EXACT_MAX {
        let all = as_float(before + after + 1);
        return normal(as_float(pairs) / 2.0, (as_float(pairs) * all / 12.0).sqrt(), alpha);
    }
    // chances[j][u]: of i values before and j after, u pairs in which the one after is less. The greatest of all is one of
    // those before, which adds j pairs, or one of those after, which adds none.
    let mut chances: Vec<Vec<f64>> = vec![vec![1.0]; after + 1];
    for i in 1..=before {
        for j in 1..=after {
            let mut next = vec![0.0; i * j + 1];
            let (from_before, from_after) = (as_float(i) / as_float(i + j), as_float(j) / as_float(i + j));
            for (pairs, chance) in chances[j].iter().enumerate() {
                next[pairs + j] += from_before * chance;
            }
            for (pairs, chance) in chances[j - 1].iter().enumerate() {
                next[pairs] += from_after * chance;
            }
            chances[j] = next;
        }
    }
    within(chances.last()?, alpha)
}

/// The greatest `k` with the chances below it together at most `alpha / 2`.
fn within(chances: &[f64], alpha: f64) -> Option<usize> {
    let mut below = 0.0;
    let fits = chances.iter().take_while(|chance| {
        below += **chance;
        below <= alpha / 2.0
    });
    Some(fits.count()).filter(|rank| *rank > 0)
}

#[allow(clippy::cast_possible_truncation)] // floored and not below 1
fn normal(mean: f64, deviation: f64, alpha: f64) -> Option<usize> {
    let rank = (mean - upper_quantile(alpha / 2.0) * deviation).floor();
    (rank >= 1.0).then_some(rank as usize)
}

/// What a standard normal value exceeds with that chance, within 4.5e-4: Abramowitz and Stegun, 26.2.23.
fn upper_quantile(chance: f64) -> f64 {
    let t = (-2.0 * chance.ln()).sqrt();
    let over = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let under = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    t - over / under
}

fn as_float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables of Hollander, Wolfe and Chicken (A.4 and A.6): the greatest T with a tail of at most 2.5%, plus one.
    #[test]
    fn ranks_are_those_of_the_tables() {
        let found: Vec<_> = [5, 6, 7, 8, 9, 10, 15, 20, 25].map(|count| signed_rank(count, 0.05)).into();
        let table = [None, Some(1), Some(3), Some(4), Some(6), Some(9), Some(26), Some(53), Some(90)];
        assert_eq!(found, table);
        let found: Vec<_> = [3, 4, 5, 6, 8, 10, 15, 20].map(|count| rank_sum(count, count, 0.05)).into();
        assert_eq!(found, [None, Some(1), Some(3), Some(6), Some(14), Some(24), Some(65), Some(128)]);
        assert_eq!(rank_sum(3, 8, 0.05), rank_sum(8, 3, 0.05));
        assert_eq!((rank_sum(0, 5, 0.05), signed_rank(0, 0.05)), (None, None));
    }

    /// Far out the normal distribution promises less than there is: its intervals are wider, never narrower.
    #[test]
    fn many_rounds_continue_where_few_end() {
        for alpha in [1e-3, 1e-4, 1e-5] {
            let approximate = |count: f64| {
                let sums = count * (count + 1.0) / 2.0;
                normal(sums / 2.0, (sums * (2.0 * count + 1.0) / 12.0).sqrt(), alpha).unwrap()
            };
            let (exact, normal) = (signed_rank(60, alpha).unwrap(), approximate(60.0));
            assert!(normal <= exact && exact <= normal + exact / 10, "{alpha}: {exact} {normal}");
            let (exact, normal) = (rank_sum(50, 50, alpha).unwrap(), rank_sum(50, 51, alpha).unwrap());
            assert!(normal.abs_diff(exact) <= 25 + exact / 10, "{alpha}: {exact} {normal}");
        }
        assert!((upper_quantile(0.025) - 1.96).abs() < 1e-3);
    }
}
