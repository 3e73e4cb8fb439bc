//! [`Judge`]: what is wrong, from which lines are good, which of them are in order, and what should be there.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::snapshot::StateSays;
use super::{Fault, Head, Kind, Line, Report, by_number, line, ranges};
use crate::audit::hex;
use crate::audit::writer::{HASH_DIGITS, RECOVERED, TORN, is_beginning};

/// More records missing at the end are named as one range, without a look at each: the state's count is anybody's number.
const MISSING_MAX: u64 = 1 << 20;

/// Judges the lines of a log.
pub(super) struct Judge<'l, 's> {
    lines: &'l [Line<'s>],
    /// Positions of the good records that are in order.
    backbone: &'l [usize],
    /// Where each good record is.
    found: BTreeMap<u64, usize>,
    state: Option<&'l StateSays>,
    /// Number of the first record that should be there.
    first: u64,
    report: &'l mut Report,
}

impl<'l, 's> Judge<'l, 's> {
    pub(super) fn new(
        lines: &'l [Line<'s>],
        backbone: &'l [usize],
        state: Option<&'l StateSays>,
        report: &'l mut Report,
    ) -> Judge<'l, 's> {
        let found = by_number(lines);
        report.records = found.len() as u64;
        Judge { lines, backbone, found, state, first: 0, report }
    }

    fn number(&self, at: usize) -> u64 {
        self.lines.get(at).and_then(Line::n).unwrap_or(0)
    }

    /// Notes a fault at the line at this position; behind the last line for one that is not there.
    fn fault(&mut self, kind: Kind, at: usize, (first, last): (u64, u64), what: impl Into<String>) {
        let (file, line) = match (self.lines.get(at), self.lines.last()) {
            (Some(line), _) => (line.file, line.line),
            (None, Some(last)) => (last.file, last.line + 1),
            (None, None) => ("-", 1),
        };
        self.report.faults.push(Fault { kind, file: file.to_owned(), line, first, last, what: what.into() });
    }

    /// Records before this one may be gone.
    pub(super) fn first(&mut self, first: u64) {
        self.first = first;
        self.report.first = first;
        let kept = self.backbone.first().map_or(first, |at| self.number(*at));
        if kept < first {
            self.report
                .notes
                .push(format!("records {kept} to {} should have been removed by age and are there", first - 1));
            self.first = kept;
        }
    }

    /// Good records off the backbone.
    pub(super) fn strays(&mut self) {
        let places: BTreeSet<usize> = self.backbone.iter().copied().collect();
        let numbers: BTreeSet<u64> = self.backbone.iter().map(|at| self.number(*at)).collect();
        for at in 0..self.lines.len() {
            let Some(n) = self.lines[at].n().filter(|_| !places.contains(&at)) else { continue };
            if numbers.contains(&n) || self.found.get(&n) != Some(&at) {
                self.fault(Kind::Inserted, at, (n, n), format!("a copy of record {n}"));
            } else {
                self.fault(Kind::Swapped, at, (n, n), "it stands out of order");
            }
        }
    }

    /// What is between neighbours of the backbone, and before the first.
    pub(super) fn gaps(&mut self) {
        let (mut from, mut next) = (0, self.first);
        let backbone = self.backbone;
        for at in backbone.iter().copied() {
            let n = self.number(at);
            let mut broken: Vec<usize> = (from..at).filter(|at| !self.lines[*at].is_good).collect();
            self.crash_before(at, from, &mut broken);
            let missing = self.missing(next, n);
            self.match_up(broken, missing, at, n, Kind::Deleted);
            (from, next) = (at + 1, n + 1);
        }
    }

    /// Numbers from `next` up to `end` of which there is no good record anywhere.
    fn missing(&self, next: u64, end: u64) -> BTreeSet<u64> {
        (next..end).filter(|n| !self.found.contains_key(n)).collect()
    }

    /// Takes lines out that the good record at `at` names as what a crash left.
    fn crash_before(&mut self, at: usize, from: usize, broken: &mut Vec<usize>) {
        let named = line::words(self.lines[at].bytes).filter(|words| words.action == RECOVERED);
        let Some(details) = named.map(|words| words.details) else { return };
        let Some(first) = broken.first().copied() else { return };
        // What was named stood right before it, in one piece.
        if broken.len() != at - first || first < from || self.lines[first].file != self.lines[at].file {
            return;
        }
        let mut bytes = Vec::new();
        for line in &self.lines[first..at] {
            bytes.extend_from_slice(line.bytes);
            bytes.push(b'\n');
        }
        let len = details.bytes.and_then(|len| len.parse::<usize>().ok()).unwrap_or(0);
        let fits = |bytes: &[u8]| {
            let hash: String = hex(&Sha256::digest(bytes)).chars().take(HASH_DIGITS).collect();
            bytes.len() == len && details.sha256.as_ref() == Some(&hash)
        };
        let without_end = bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default();
        if !fits(&bytes) && !fits(without_end) {
            return;
        }
        let n = self.number(at);
        if details.found.as_deref() == Some(TORN) {
            let (file, line) = (self.lines[first].file, self.lines[first].line);
            self.report.notes.push(format!("{file}:{line}: {len} bytes that a crash left, named by record {n}"));
        } else {
            self.fault(
                Kind::Inserted,
                first,
                (n, n),
                format!("{len} bytes of somebody else, found when record {n} was written"),
            );
        }
        broken.clear();
    }

    /// Lines that are no records against numbers that are missing, up to the good record `n` at `at`.
    fn match_up(&mut self, broken: Vec<usize>, mut missing: BTreeSet<u64>, at: usize, n: u64, gone: Kind) {
        let mut left = Vec::new();
        for broken in broken {
            // One that still claims a number which is missing is that record.
            match self.lines[broken].claim.as_ref().map(|claim| claim.n).filter(|n| missing.remove(n)) {
                Some(n) => self.fault(Kind::Changed, broken, (n, n), "its MAC does not hold"),
                None => left.push(broken),
            }
        }
        for broken in left {
            match missing.pop_first() {
                Some(n) => self.fault(Kind::Changed, broken, (n, n), "its line is no record any more"),
                None => self.fault(
                    Kind::Inserted,
                    broken,
                    (n, n),
                    format!("a line that is no record stands before record {n}"),
                ),
            }
        }
        for (first, last) in ranges(&missing) {
            let what = if gone == Kind::Cut {
                "the state counts it, the log ends before"
            } else {
                "it is missing before this line"
            };
            self.fault(gone, at, (first, last), what);
        }
    }

    /// What is behind the last record of the backbone, and what the state says.
    pub(super) fn end(&mut self, state_fits: bool) {
        let end = self.lines.len();
        let from = self.backbone.last().map_or(0, |at| at + 1);
        let next = self.backbone.last().map_or(self.first, |at| self.number(*at) + 1);
        let mut broken: Vec<usize> = (from..end).filter(|at| !self.lines[*at].is_good).collect();
        let last = self.found.last_key_value().map(|(_, at)| *at);
        let mac = last.and_then(|at| self.lines[at].claim.as_ref()).map_or([0; 32], |claim| claim.mac);
        self.report.head = last.map(|_| Head { count: next, mac }.to_string());
        let Some(state) = self.state else {
            if end > 0 {
                self.fault(
                    Kind::RolledBack,
                    end,
                    (next, next),
                    "the state is gone: whether the log ends here is not known",
                );
            }
            return self.match_up(broken, BTreeSet::new(), end, next, Kind::Cut);
        };
        if !state_fits {
            self.fault(Kind::RolledBack, end, (state.count, state.count), "the state's key is none of this chain");
        }
        if state.count < next {
            self.beyond(state.count, next);
        } else if state.count == next && next > 0 && state.head != mac && last.is_some() {
            let what = "the state ends with another record than the log";
            self.fault(Kind::RolledBack, last.unwrap_or(end), (next - 1, next - 1), what);
        }
        // The beginning of a record that the state does not count was torn off by a crash, not by a person.
        if state.count == next && !broken.is_empty() {
            let tail: Vec<&[u8]> = broken.iter().map(|at| self.lines[*at].bytes).collect();
            if is_beginning(&tail.join(&b'\n'), next, &state.head) {
                let (file, line) = (self.lines[broken[0]].file, self.lines[broken[0]].line);
                self.report.notes.push(format!("{file}:{line}: the beginning of record {next}, which a crash left"));
                broken.clear();
            }
        }
        if state.count.saturating_sub(next) > MISSING_MAX {
            self.fault(Kind::Cut, end, (next, state.count - 1), "the state counts them, the log ends before");
            return self.match_up(broken, BTreeSet::new(), end, next, Kind::Cut);
        }
        let missing = self.missing(next, state.count);
        // Half a last line of a record that the state counts was cut, not changed.
        if let Some(at) = broken.last().copied().filter(|at| !self.lines[*at].has_end && !missing.is_empty()) {
            broken.pop();
            return self.match_up(broken, missing, at, next, Kind::Cut);
        }
        self.match_up(broken, missing, end, next, Kind::Cut);
    }

    /// Records that the state does not count: one is a crash's, more are not.
    fn beyond(&mut self, count: u64, next: u64) {
        if next - count == 1 {
            self.report
                .notes
                .push(format!("record {count} was written right before a crash; the next record takes it over"));
            return;
        }
        let at = self.found.get(&count).copied().unwrap_or(self.lines.len());
        self.fault(Kind::RolledBack, at, (count, next - 1), "the state does not count them: it is an older one");
    }

    /// Each good record names the MAC of the one before.
    pub(super) fn predecessors(&mut self) {
        let mut wrong = Vec::new();
        for (n, at) in &self.found {
            let Some(claim) = &self.lines[*at].claim else { continue };
            let before = n.checked_sub(1).and_then(|n| self.found.get(&n));
            let mac = match before {
                Some(before) => self.lines[*before].claim.as_ref().map(|claim| claim.mac),
                None if *n == 0 => Some([0; 32]),
                None => None,
            };
            if mac.is_some_and(|mac| mac != claim.prev) {
                wrong.push((*at, *n));
            }
        }
        for (at, n) in wrong {
            self.fault(Kind::RolledBack, at, (n, n), "it follows another record than the one before it");
        }
    }

    /// What somebody outside of the log remembers.
    pub(super) fn heads(&mut self, heads: &[Head]) {
        let mut sorted = heads.to_vec();
        sorted.sort_unstable();
        let end = self.found.last_key_value().map_or(self.first, |(n, _)| n + 1);
        if let Some(most) = sorted.last().filter(|head| head.count > end) {
            let what = format!("outside of the log {} records are remembered", most.count);
            self.fault(Kind::RolledBack, self.lines.len(), (end, most.count - 1), what);
        }
        let differs = sorted.iter().find_map(|head| {
            let at = *self.found.get(&head.count.checked_sub(1)?)?;
            let claim = self.lines[at].claim.as_ref()?;
            (claim.mac != head.mac).then_some((at, claim.n))
        });
        if let Some((at, n)) = differs {
            self.fault(
                Kind::RolledBack,
                at,
                (n, n),
                "outside of the log another record with this number is remembered",
            );
        }
    }
}
