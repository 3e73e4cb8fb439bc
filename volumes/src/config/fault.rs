//! [`Fault`]: one thing that is wrong with a configuration, and where it stands in the file.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// Longest part of a value that a fault repeats.
const VALUE_CHARS_MAX: usize = 60;

/// One fault of a configuration file. Prints as `12:8: volumes.data.size = "5X": what is wrong`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key with its tables, `volumes.data.size`; empty where the text is no TOML.
    pub key: String,
    /// The value as the file has it; empty for what is missing.
    pub value: String,
    /// What is wrong, and what it may be.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        match (self.key.is_empty(), self.value.is_empty()) {
            (true, _) => f.write_str(&self.what),
            (false, true) => write!(f, "{}: {}", self.key, self.what),
            (false, false) => write!(f, "{} = {}: {}", self.key, self.value, self.what),
        }
    }
}

/// Collects the faults of one text.
pub(crate) struct Faults<'t> {
    text: &'t str,
    found: RefCell<Vec<Fault>>,
}

impl<'t> Faults<'t> {
    /// None yet.
    pub(crate) fn of(text: &'t str) -> Faults<'t> {
        Faults { text, found: RefCell::new(Vec::new()) }
    }

    /// Notes one about `key`, whose value (or name, for `shown` false) stands at `span`.
    pub(crate) fn add(&self, key: &str, span: Option<Range<usize>>, shown: bool, what: impl Into<String>) {
        let start = span.as_ref().map_or(0, |span| span.start);
        let before = self.text.get(..start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let raw = span.filter(|_| shown).and_then(|span| self.text.get(span)).unwrap_or_default();
        let words = raw.split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = words.chars().take(VALUE_CHARS_MAX).collect();
        self.found.borrow_mut().push(Fault {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            key: key.to_owned(),
            value: if cut.len() < words.len() { format!("{cut}…") } else { cut },
            what: what.into(),
        });
    }

    /// All of them, in the order of the file.
    pub(crate) fn sorted(self) -> Vec<Fault> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|fault| (fault.line, fault.column));
        found
    }
}
