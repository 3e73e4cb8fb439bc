//! Welch's t-test on differences, with cropping.
//!
//! Times of one batch share whatever the machine did in that moment, so they are not independent. Two batches are: each
//! yields one difference of class means, and the test asks whether the differences of all batches have a mean other
//! than zero: t = mean / (standard deviation / √batches). Long times (interrupts, another tenant of the core) would drown
//! a leak, so the test is repeated with times above a percentile of the batch, both classes together, taken for that
//! percentile. (Leaving them out, as the paper does, would hide a leak that makes one class long more often.)
//!
//! Source: Reparaz, Balasch, Verbauwhede, "Dude, is my code constant time?" (2017), sections 3.2 and 3.3.

/// Parts of a batch, fastest first, whose times are taken as they are.
const KEPT: [f64; 5] = [0.25, 0.5, 0.75, 0.95, 1.0];

/// Running mean and variance of the differences under one crop.
#[derive(Clone, Copy, Default)]
struct Differences {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Differences {
    fn push(&mut self, difference: f64) {
        self.count += 1.0;
        let away = difference - self.mean;
        self.mean += away / self.count;
        self.squares += away * (difference - self.mean);
    }

    fn t(&self) -> f64 {
        if self.count < 2.0 || self.squares == 0.0 {
            // All alike: no leak if all are zero, else one without any noise.
            return if self.mean == 0.0 { 0.0 } else { f64::INFINITY };
        }
        self.mean / (self.squares / (self.count - 1.0) / self.count).sqrt()
    }
}

/// The test over a campaign of batches.
#[derive(Default)]
pub(crate) struct Comparison {
    crops: [Differences; KEPT.len()],
}

impl Comparison {
    /// Takes one batch: class (false or true) and time of each call.
    pub(crate) fn push_batch(&mut self, times: &mut [(bool, u64)]) {
        times.sort_unstable_by_key(|&(_, time)| time);
        for (crop, kept) in self.crops.iter_mut().zip(KEPT) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a part of a small count
            let at = ((times.len() as f64 * kept) as usize).clamp(1, times.len()) - 1;
            let limit = times[at].1;
            let mut sums = [(0.0, 0.0); 2];
            for &(class, time) in times.iter() {
                let (sum, count) = &mut sums[usize::from(class)];
                *sum += time.min(limit) as f64;
                *count += 1.0;
            }
            if sums.iter().all(|&(_, count)| count > 0.0) {
                crop.push(sums[0].0 / sums[0].1 - sums[1].0 / sums[1].1);
            }
        }
    }

    /// The largest |t| of all crops.
    pub(crate) fn largest_t(&self) -> f64 {
        self.crops.iter().map(|crop| crop.t().abs()).fold(0.0, f64::max)
    }
}

#[test]
fn a_shift_is_seen_and_noise_is_not() {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state >> 33
    };
    let mut largest_t = |shift: u64| {
        let mut comparison = Comparison::default();
        for _ in 0..200 {
            let mut batch: Vec<(bool, u64)> = (0..512)
                .map(|_| {
                    let class = random() & 1 == 1;
                    // One call in 16 is interrupted.
                    let delay = if random() % 16 == 0 { random() % 5000 } else { random() % 20 };
                    (class, 100 + delay + if class { shift } else { 0 })
                })
                .collect();
            comparison.push_batch(&mut batch);
        }
        comparison.largest_t()
    };
    assert!(largest_t(0) < 6.0);
    assert!(largest_t(1) > 10.0);
}
