//! Verifying: every fault of a log, found and located.
//!
//! 1. Each line claims a number; the key of that number, from the seed, says whether the line is that record ("good").
//! 2. The longest run of good records in ascending order is the backbone. A good record off it is a copy, or was moved.
//! 3. Between two neighbours of the backbone numbers may be missing and lines may be no records: a line in the place of a
//!    missing record is a changed one, one too many was inserted, a number too many was deleted. Bytes that a crash left are
//!    named, with length and hash, by the good record behind them.
//! 4. The beginning is what records about retention say; the end is what the state counts; both and every head that somebody
//!    outside remembers have to fit.

mod gaps;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use secret::Secret;
use serde::Serialize;

use super::chain::ChainKey;
use super::heads::Head;
use super::line::{self, Claim};
use super::order::in_order;
use super::retention::RETENTION;
use crate::VolumesError;

pub use snapshot::Snapshot;
#[cfg(test)]
pub(super) use snapshot::StateSays;

/// Numbers beyond what the state counts and the lines can be are not computed: each costs two HMACs.
const RECORDS_MAX: u64 = 1 << 27;

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A record is not what was written.
    Changed,
    /// Records are gone.
    Deleted,
    /// A record stands at another place than where it was written.
    Swapped,
    /// A line is no record of this place, or a copy of one.
    Inserted,
    /// The last records are gone.
    Cut,
    /// An older copy of log, state or both is in their place.
    RolledBack,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Changed => "changed",
            Kind::Deleted => "deleted",
            Kind::Swapped => "swapped",
            Kind::Inserted => "inserted",
            Kind::Cut => "cut at the end",
            Kind::RolledBack => "rolled back",
        })
    }
}

/// One fault, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// The file.
    pub file: String,
    /// The line, from 1; of what is missing, the line that it stood before.
    pub line: u64,
    /// The first record that it is about; of an inserted line, the one that it stands before.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// What is seen there.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = if self.first == self.last {
            format!("record {}", self.first)
        } else {
            format!("records {} to {}", self.first, self.last)
        };
        write!(f, "{}:{}: {records}: {}: {}", self.file, self.line, self.kind, self.what)
    }
}

/// What verifying gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The chain's name, as the journal has it.
    pub chain: String,
    /// How many good records there are.
    pub records: u64,
    /// Number of the first record that is still there by right.
    pub first: u64,
    /// Count and MAC to remember elsewhere, `COUNT:HEX`; none of a log without records.
    pub head: Option<String>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What is not wrong and worth knowing: what crashes left.
    pub notes: Vec<String>,
}

/// A line of the log.
pub(super) struct Line<'s> {
    pub(super) file: &'s str,
    /// From 1.
    pub(super) line: u64,
    /// Without its newline.
    pub(super) bytes: &'s [u8],
    pub(super) has_end: bool,
    pub(super) claim: Option<Claim>,
    pub(super) is_good: bool,
}

impl Line<'_> {
    /// The number of a good record.
    fn n(&self) -> Option<u64> {
        self.claim.as_ref().filter(|_| self.is_good).map(|claim| claim.n)
    }
}

/// Verifies a log from the first key of its chain; `heads` are what somebody outside of the log remembers.
///
/// # Errors
/// [`VolumesError`] for a seed of another length or without memory for a key. What is wrong with the log is no error, it is in
/// the report.
pub fn verify(snapshot: &Snapshot, seed: &Secret, heads: &[Head]) -> Result<Report, VolumesError> {
    let mut lines = snapshot.lines();
    let claimed = snapshot.state.as_ref().map_or(RECORDS_MAX, |state| state.count);
    // No line of this log can have a larger number.
    let bound = claimed.saturating_add(lines.len() as u64).min(RECORDS_MAX);
    let mut key = ChainKey::of(seed.expose())?;
    let chain = key.chain();
    prove(&mut lines, &mut key, bound);
    let state = snapshot.state.as_ref();
    let state_fits = match state {
        Some(state) if state.count <= RECORDS_MAX => {
            let mut key = ChainKey::of(seed.expose())?;
            key.advance_by(state.count);
            state.key.ct_eq(key.bytes())
        }
        _ => true,
    };
    let mut report = Report { chain, records: 0, first: 0, head: None, faults: Vec::new(), notes: Vec::new() };
    let good: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].is_good).collect();
    let numbers: Vec<u64> = good.iter().filter_map(|at| lines[*at].n()).collect();
    let backbone: Vec<usize> = in_order(&numbers).into_iter().map(|at| good[at]).collect();
    let mut judge = gaps::Judge::new(&lines, &backbone, state, &mut report);
    judge.first(removed_until(&lines));
    judge.strays();
    judge.gaps();
    judge.end(state_fits);
    judge.predecessors();
    judge.heads(heads);
    report.faults.sort_by(|a, b| (&a.file, a.line, a.first, a.kind).cmp(&(&b.file, b.line, b.first, b.kind)));
    Ok(report)
}

/// Finds out which lines are good, with the keys in ascending order: each is computed once.
fn prove(lines: &mut [Line<'_>], key: &mut ChainKey, bound: u64) {
    let mut claimed: Vec<(u64, usize)> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| line.claim.as_ref().map(|claim| (claim.n, at)))
        .filter(|(n, _)| *n <= bound)
        .collect();
    claimed.sort_unstable();
    key.for_each(&claimed, |at, mac| {
        let Some(line) = lines.get_mut(*at) else { return };
        line.is_good =
            line.has_end && line.claim.as_ref().is_some_and(|claim| mac(claim.body(line.bytes)) == claim.mac);
    });
}

/// The first record that no record about retention accounts for.
fn removed_until(lines: &[Line<'_>]) -> u64 {
    let of = |line: &Line<'_>| {
        let words = line::words(line.bytes).filter(|words| words.action == RETENTION)?;
        words.details.last?.parse::<u64>().ok()?.checked_add(1)
    };
    lines.iter().filter(|line| line.is_good).filter_map(of).max().unwrap_or(0)
}

/// Numbers as ranges.
pub(super) fn ranges(numbers: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

/// Positions of good records by number; of several the first.
pub(super) fn by_number(lines: &[Line<'_>]) -> BTreeMap<u64, usize> {
    let mut found = BTreeMap::new();
    for (at, n) in lines.iter().enumerate().filter_map(|(at, line)| line.n().map(|n| (at, n))) {
        found.entry(n).or_insert(at);
    }
    found
}
