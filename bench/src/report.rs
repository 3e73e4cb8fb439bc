//! A run for people: the table on the terminal and the page.
//!
//! What comes from outside (a run may be anybody's file) is shown without control characters and, in the page, escaped.

mod html;
mod plot;
mod table;

use std::io::IsTerminal as _;

use crate::run::{Job, Pattern};
use crate::stats::Estimate;

pub use html::{MARK, html, utc};
pub use table::table;

/// How a table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns that a line may have; it is made for 80 to 100.
    pub width: usize,
    /// Colours the verdicts.
    pub colour: bool,
}

impl Look {
    /// Widest table.
    pub const WIDEST: usize = 100;

    /// For standard output: colour only on a terminal, and not against `NO_COLOR` (no-color.org).
    #[must_use]
    pub fn of_stdout() -> Look {
        let stdout = std::io::stdout();
        let wish = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let columns = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        let width = columns.filter(|columns| *columns > 0).unwrap_or(Look::WIDEST).min(Look::WIDEST);
        Look { width, colour: stdout.is_terminal() && !wish && !dumb }
    }
}

/// Text from outside without what moves a terminal's cursor or turns the direction of reading.
#[must_use]
pub fn shown(text: &str) -> String {
    let odd = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if odd(c) { '\u{fffd}' } else { c }).collect()
}

/// "sequential read, 1 MiB, depth 8, 1 thread".
#[must_use]
pub fn words_of_job(job: &Job) -> String {
    let pattern = match job.pattern {
        Pattern::SequentialRead => "sequential read",
        Pattern::SequentialWrite => "sequential write",
        Pattern::RandomRead => "random read",
        Pattern::RandomWrite => "random write",
        Pattern::RandomMixed => "random, 70% read and 30% written",
    };
    let threads = if job.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", job.threads) };
    format!("{pattern}, {}, depth {}, {threads}", size(u64::from(job.block_bytes)), job.depth)
}

/// A size in the largest unit that it is a whole number of.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fits = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{} {name}", bytes / unit))
}

/// Three digits that count, at most two after the point.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        under if under < 9.995 => format!("{value:.2}"),
        under if under < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// "2.8% (1.9 to 3.7)".
#[must_use]
pub fn percent(share: &Estimate) -> String {
    let one = |share: f64| {
        let text = format!("{:.1}", share * 100.0);
        if text == "-0.0" { "0.0".to_owned() } else { text }
    };
    match share.interval {
        Some(interval) => format!("{}% ({} to {})", one(share.value), one(interval.low), one(interval.high)),
        None => format!("{}%", one(share.value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Interval;

    #[test]
    fn numbers_for_people() {
        let numbers = [0.0, 1.234, 9.996, 12.34, 99.96, 1234.5].map(number);
        assert_eq!(numbers, ["0.00", "1.23", "10.0", "12.3", "100", "1234"]);
        assert_eq!([512, 4096, 1 << 20, 3 << 30, 1536].map(size), ["512 B", "4 KiB", "1 MiB", "3 GiB", "1536 B"]);
        let share = Estimate { value: 0.0284, interval: Some(Interval { low: -0.0001, high: 0.037 }), rounds: 9 };
        assert_eq!(percent(&share), "2.8% (0.0 to 3.7)");
        assert_eq!(percent(&Estimate { interval: None, ..share }), "2.8%");
    }

    #[test]
    fn no_control_character_gets_through() {
        assert_eq!(shown("a\u{1b}[2Jb\u{202e}c\r\né"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\u{fffd}é");
    }
}
