//! The audit log: what was done to the set, by whom, in a chain that cannot be changed afterwards without being seen.
//!
//! ```text
//! FOLDER/audit-2026-11.jsonl   records of one month, one line each; the chain runs on from file to file
//! FOLDER/audit.state           the key of the next record, how many there are, the last one's MAC; the lock of all writers
//! SEED                         the first key, which only verifying needs; in the key store once there is one
//! ```
//!
//! * Record n is authenticated by `k_n`; `k_{n+1} = HMAC-SHA256(k_n, label)`, and `k_n` is overwritten when record n is on
//!   the disk. Who takes the machine over learns the key of records to come, and of none that is written.
//! * Each record names the MAC of the one before, so one MAC stands for all before it. Count and last MAC also go to
//!   the system's journal: a log that was put back together with its state is found by what the journal remembers.
//! * A record is appended and flushed, then the state. A crash between leaves a record that the state does not count yet, or
//!   part of a line; the next writer takes the one over and names the other in a record of its own. Nothing is ever cut off.
//! * What a caller does is recorded before it counts as done: if the record cannot be written the caller gets an error.
//!
//! Source: forward integrity after Bellare and Yee (2003) and Schneier and Kelsey (1999). Format to the byte: `docs/audit.md`.

mod actor;
mod alert;
mod chain;
mod event;
mod folder;
mod heads;
mod journal;
mod line;
mod log;
mod medium;
mod moment;
mod order;
mod retention;
mod show;
mod state;
mod verify;
mod writer;

pub use actor::Actor;
pub use event::{Category, Event, Level, Outcome};
pub use heads::{Head, heads_of_journal};
pub use journal::{Announcement, Journal, NoJournal, SystemJournal};
pub(crate) use log::new_seed;
pub use log::{AuditLog, Recorded, chain_of, read_seed};
pub use moment::Moment;
pub use show::{Filter, Shown, shown};
pub use verify::{Fault, Kind, Report, Snapshot, verify};

/// Beginning and end of the names of the files of records.
const FILE_NAME: (&str, &str) = ("audit-", ".jsonl");
/// Name of the file with the state.
const STATE_NAME: &str = "audit.state";

/// The name of the file of a month, `2026-11`.
fn file_of(month: &str) -> String {
    format!("{}{month}{}", FILE_NAME.0, FILE_NAME.1)
}

/// The month of a file; `None` if the name is none of ours.
fn month_of(name: &str) -> Option<&str> {
    let month = name.strip_prefix(FILE_NAME.0)?.strip_suffix(FILE_NAME.1)?;
    let digits =
        |at: std::ops::Range<usize>| month.get(at).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    (month.len() == 7 && digits(0..4) && month.get(4..5) == Some("-") && digits(5..7)).then_some(month)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

/// The bytes of a hexadecimal text of exactly 32 bytes.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
