//! Latencies: recorded in an HdrHistogram of three significant digits, kept whole.
//!
//! The encoding is V2 of HdrHistogram without deflate: cookie, length, index offset, digits, least and greatest value, ratio,
//! big-endian; then the counts as LEB128 of zig-zag numbers (nine bytes at most), in which a negative one is a run of zeros.
//! Source: `V2EncodingFormat` in HdrHistogram's Java library, whose logs all its ports read.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use base64ct::{Base64, Encoding as _};
use hdrhistogram::Histogram;

use crate::run::Latency;

/// The longest that is told from longer ones: a minute.
const MOST_NS: u64 = 60_000_000_000;
const DIGITS: u8 = 3;
/// V2, with the sign that counts are LEB128.
const COOKIE: u32 = 0x1c84_9303 | 0x10;
/// The percentiles of a [`Latency`].
const PERCENTILES: [(&str, f64); 5] = [("50", 50.0), ("90", 90.0), ("99", 99.0), ("99.9", 99.9), ("99.99", 99.99)];

/// Latencies of one thread, or of several after [`Latencies::add`].
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet. All the memory that it will need is there.
    ///
    /// # Errors
    /// None in practice: the bounds are constants.
    pub fn new() -> Result<Latencies> {
        Ok(Latencies(Histogram::new_with_bounds(1, MOST_NS, DIGITS).map_err(|error| anyhow!("{error}"))?))
    }

    /// One more, in nanoseconds; what is longer than a minute counts as a minute.
    pub fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    /// Those of another thread.
    ///
    /// # Errors
    /// None in practice: both have the same bounds.
    pub fn add(&mut self, other: &Latencies) -> Result<()> {
        self.0.add(&other.0).map_err(|error| anyhow!("{error}"))
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// For the sample.
    #[must_use]
    pub fn summary(&self) -> Latency {
        let percentiles_ns: BTreeMap<String, u64> =
            PERCENTILES.map(|(name, percentile)| (name.to_owned(), self.0.value_at_percentile(percentile))).into();
        Latency {
            min_ns: self.0.min(),
            mean_ns: self.0.mean(),
            max_ns: self.0.max(),
            percentiles_ns,
            histogram: self.encoded(),
        }
    }

    fn encoded(&self) -> String {
        let mut counts = Vec::new();
        let mut zeros = 0_i64;
        if !self.0.is_empty() {
            for step in self.0.iter_all() {
                let count = step.count_at_value();
                if count == 0 {
                    zeros += 1;
                    continue;
                }
                if zeros > 0 {
                    put(&mut counts, -zeros);
                    zeros = 0;
                }
                put(&mut counts, count.try_into().unwrap_or(i64::MAX));
                if step.value_iterated_to() >= self.0.max() {
                    break;
                }
            }
        }
        let mut bytes = Vec::with_capacity(40 + counts.len());
        bytes.extend(COOKIE.to_be_bytes());
        bytes.extend(u32::try_from(counts.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(u32::from(DIGITS).to_be_bytes());
        bytes.extend(1_u64.to_be_bytes());
        bytes.extend(MOST_NS.to_be_bytes());
        bytes.extend(1.0_f64.to_be_bytes());
        bytes.extend(counts);
        Base64::encode_string(&bytes)
    }
}

/// Appends a number: zig-zag, then seven bits a byte, the ninth byte whole.
fn put(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    for _ in 0..8 {
        let low = rest.to_le_bytes()[0];
        if rest < 0x80 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the counts back: index to count.
    fn decoded(bytes: &[u8]) -> Vec<(usize, i64)> {
        let (mut at, mut index, mut found) = (40, 0, Vec::new());
        while at < bytes.len() {
            let (mut number, mut shift) = (0_u64, 0);
            loop {
                let byte = bytes[at];
                at += 1;
                if shift == 56 {
                    number |= u64::from(byte) << 56;
                    break;
                }
                number |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let number = (number >> 1).cast_signed() ^ -((number & 1).cast_signed());
            if number < 0 {
                index += usize::try_from(-number).unwrap();
            } else {
                found.push((index, number));
                index += 1;
            }
        }
        found
    }

    #[test]
    fn a_histogram_is_encoded_whole() {
        let mut latencies = Latencies::new().unwrap();
        for _ in 0..300 {
            latencies.record(5);
        }
        latencies.record(2047);
        latencies.record(2050);
        latencies.record(0);
        let summary = latencies.summary();
        let bytes = Base64::decode_vec(&summary.histogram).unwrap();
        assert_eq!(bytes[..4], [0x1c, 0x84, 0x93, 0x13]);
        assert_eq!(usize::try_from(u32::from_be_bytes(bytes[4..8].try_into().unwrap())).unwrap(), bytes.len() - 40);
        // Below 2048 each number has its own place, from there on two share one.
        assert_eq!(decoded(&bytes), [(1, 1), (5, 300), (2047, 1), (2049, 1)]);
        assert_eq!((summary.min_ns, summary.percentiles_ns["50"], summary.max_ns), (1, 5, 2051));
    }

    #[test]
    fn numbers_of_any_size_come_back() {
        for number in [0, 1, -1, 63, 64, -64, -65, 8191, 1 << 40, i64::MAX, i64::MIN] {
            let mut bytes = vec![0; 40];
            put(&mut bytes, number);
            assert!(bytes.len() <= 49);
            if number >= 0 {
                assert_eq!(decoded(&bytes), [(0, number)]);
            }
        }
    }

    #[test]
    fn threads_are_added_and_nothing_is_nothing() {
        let (mut one, mut other) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        assert_eq!((one.summary().max_ns, Base64::decode_vec(&one.summary().histogram).unwrap().len()), (0, 40));
        one.record(100);
        other.record(300);
        one.add(&other).unwrap();
        assert_eq!((one.count(), one.summary().min_ns, one.summary().max_ns), (2, 100, 300));
        one.clear();
        assert_eq!(one.count(), 0);
    }
}
