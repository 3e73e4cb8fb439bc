//! Whether 512 bytes look uniformly random.
//!
//! Three tests; a sector that fails any one of them is no ciphertext.
//!
//! * **Equal pairs.** C = Σ nᵥ(nᵥ−1)/2 over the counts nᵥ of the 256 byte values, which is the chi-square statistic but for a
//!   constant (χ² = C − 256). For uniform bytes its mean is 511. Accepted are 371 to 759: P(C ≥ 760) = 5.8·10⁻¹⁵,
//!   P(C ≤ 370) = 1.3·10⁻¹⁶, both from the exact distribution (256 bins, 512 balls, convolved bin by bin), not from its normal
//!   approximation, which is wrong by orders of magnitude out there.
//! * **A run of 8 equal bytes**: at most 505 · 256⁻⁷ = 7.1·10⁻¹⁵.
//! * **A run of 40 printable characters** (97 of 256 byte values): at most 473 · (97/256)⁴⁰ = 6.7·10⁻¹⁵.
//!
//! Together a false alarm has a probability below [`FALSE_ALARM_PER_SECTOR`] = 2·10⁻¹⁴ per sector: 10⁻¹¹ for an area of a
//! 512-bit key (500 sectors), 3.2·10⁻¹⁰ for a header with 32 of them.

/// Bound on the probability that 512 uniformly random bytes are taken for something else.
pub const FALSE_ALARM_PER_SECTOR: f64 = 2e-14;
/// Length of what is judged.
pub const SECTOR_LEN: usize = 512;
/// Equal pairs that are accepted.
const PAIRS_MIN: u32 = 371;
const PAIRS_MAX: u32 = 759;
/// Lengths of runs that are not accepted.
const EQUAL_RUN: usize = 8;
const PRINTABLE_RUN: usize = 40;

/// Why a sector is no noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNoise {
    /// One byte throughout.
    Constant(u8),
    /// Text: a long run of printable characters.
    Text,
    /// Byte values too unevenly spread, or a run of one value.
    Uneven,
    /// Byte values spread more evenly than chance does it: counters, tables.
    TooEven,
}

/// Judges one sector; `None` for noise. A shorter piece than 512 bytes is not judged.
pub fn judge(sector: &[u8]) -> Option<NotNoise> {
    if sector.len() != SECTOR_LEN {
        return None;
    }
    let first = sector[0];
    if sector[1..] == sector[..SECTOR_LEN - 1] {
        return Some(NotNoise::Constant(first));
    }
    let (pairs, runs) = (equal_pairs(sector), Runs::of(sector));
    let (text, run) = (runs.printable >= PRINTABLE_RUN, runs.equal >= EQUAL_RUN);
    match () {
        () if text => Some(NotNoise::Text),
        () if run || pairs > PAIRS_MAX => Some(NotNoise::Uneven),
        () if pairs < PAIRS_MIN => Some(NotNoise::TooEven),
        () => None,
    }
}

/// The number of pairs of equal bytes.
pub fn equal_pairs(bytes: &[u8]) -> u32 {
    let mut counts = [0u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum()
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\n' | b'\t')
}

/// The longest runs.
struct Runs {
    equal: usize,
    printable: usize,
}

impl Runs {
    fn of(bytes: &[u8]) -> Runs {
        let mut longest = Runs { equal: 0, printable: 0 };
        let (mut equal, mut printable, mut before) = (0, 0, None);
        for byte in bytes {
            equal = if before == Some(*byte) { equal + 1 } else { 1 };
            printable = if is_printable(*byte) { printable + 1 } else { 0 };
            longest.equal = longest.equal.max(equal);
            longest.printable = longest.printable.max(printable);
            before = Some(*byte);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted() {
        assert_eq!(equal_pairs(&[0; 512]), 512 * 511 / 2);
        assert_eq!(equal_pairs(&[1, 2, 1, 2, 1]), 3 + 1);
        let even: Vec<u8> = (0..=255u8).chain(0..=255).collect();
        assert_eq!(equal_pairs(&even), 256);
    }

    #[test]
    fn the_stated_bound_covers_its_three_parts() {
        let (pairs, equal) = (5.76e-15 + 1.21e-16, 505.0 * 256f64.powi(-7));
        let printable = 473.0 * (97.0f64 / 256.0).powi(40);
        let sum = pairs + equal + printable;
        assert!(sum < FALSE_ALARM_PER_SECTOR, "{sum:e}");
        assert_eq!((0..=255u8).filter(|byte| is_printable(*byte)).count(), 97);
    }
}
