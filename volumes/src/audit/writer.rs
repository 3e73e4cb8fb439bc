//! Appending: settle what a crash left, write the record, flush it, then the state.
//!
//! | a crash | leaves | the next writer |
//! |---|---|---|
//! | before the line is whole | part of a line behind what the state counts | writes a record that names its length and hash |
//! | before the state is durable | a whole record that the state does not count | counts it |
//! | after that | the old key in the other slot | overwrites it with its own state |
//!
//! Bytes that are no beginning of the next record are called foreign, kept, and named in a record of level HIGH.

use sha2::{Digest as _, Sha256};

use super::chain::KEY_BYTES;
use super::event::{Place, beginning};
use super::line::{Claim, line};
use super::medium::Medium;
use super::state::State;
use super::{Actor, Category, Event, Level, Moment, file_of, hex};
use crate::VolumesError;

/// Most bytes behind the state that are looked at.
const TAIL_BYTES_MAX: u64 = 64 << 20;
/// Digits of a hash in a record about bytes that are none.
pub(super) const HASH_DIGITS: usize = 32;
/// Action of a record about bytes that are no record.
pub(super) const RECOVERED: &str = "audit-recovered";
/// Action of a record about a file that became shorter.
const SHORTENED: &str = "audit-shortened";
/// What [`RECOVERED`] says about the beginning of a record.
pub(super) const TORN: &str = "torn";
const FOREIGN: &str = "foreign";

/// What a record has from outside.
pub(super) struct Stamp<'a> {
    pub(super) actor: &'a Actor,
    pub(super) environment: &'a str,
    pub(super) now: Moment,
}

/// Adds a record. Whether it begins a month, in which case the file before it is closed.
pub(super) fn append<M: Medium>(
    medium: &mut M,
    state: &mut State,
    event: &Event,
    stamp: &Stamp<'_>,
) -> Result<bool, VolumesError> {
    let month = file_of(&stamp.now.month());
    settle(medium, state, &month, stamp)?;
    // A clock that was set back does not reopen an older file.
    let file = month.max(state.file.clone());
    let before = state.file.clone();
    put(medium, state, &file, b"", event, stamp)?;
    let begins = before != file && !before.is_empty();
    if begins {
        medium.close(&before).map_err(VolumesError::io("close", &before))?;
    }
    Ok(begins)
}

/// Writes one record behind `lead` and then the state.
pub(super) fn put<M: Medium>(
    medium: &mut M,
    state: &mut State,
    file: &str,
    lead: &[u8],
    event: &Event,
    stamp: &Stamp<'_>,
) -> Result<(), VolumesError> {
    let prev = state.head;
    let Stamp { actor, environment, now } = *stamp;
    let body = event.body(&Place { n: state.count, prev: &prev, time: now, actor, environment });
    let mac = state.key.mac(body.as_bytes());
    let bytes = [lead, line(&body, &mac).as_bytes()].concat();
    let failed = |source| VolumesError::Io { what: "write", path: file.into(), source };
    let before = medium.len(file).map_err(failed)?;
    let mut written = medium.append(file, &bytes).and_then(|()| medium.sync(file));
    if file != state.file {
        written = written.and_then(|()| medium.sync_folder());
    }
    if let Err(error) = written {
        // A full disk took part of it. If it stays, the next writer names it.
        if let Err(other) = medium.truncate(file, before) {
            log::warn!("part of a record stays in {file}: {other}");
        }
        return Err(failed(error));
    }
    count(state, file, before + bytes.len() as u64, mac);
    // From here on the record stands, whatever happens to the state: it is never taken back.
    state.write(medium)
}

fn count(state: &mut State, file: &str, len: u64, mac: [u8; KEY_BYTES]) {
    file.clone_into(&mut state.file);
    (state.count, state.len, state.head) = (state.count.saturating_add(1), len, mac);
    state.key.advance();
}

/// Takes over or names what stands behind the state.
fn settle<M: Medium>(medium: &mut M, state: &mut State, month: &str, stamp: &Stamp<'_>) -> Result<(), VolumesError> {
    let names = medium.names().map_err(VolumesError::io("list", "the audit log"))?;
    let present = state.file.clone();
    for name in names.iter().filter(|name| **name >= present) {
        let failed = |source| VolumesError::Io { what: "read", path: name.into(), source };
        let from = if *name == present { state.len } else { 0 };
        let len = medium.len(name).map_err(failed)?;
        if len < from {
            shortened(medium, state, from - len, stamp)?;
        } else if len > from {
            if len - from > TAIL_BYTES_MAX {
                let what = format!("{name} has {} bytes that no record accounts for", len - from);
                return Err(VolumesError::AuditState { path: name.into(), what });
            }
            let most = usize::try_from(len - from).unwrap_or(0);
            let tail = medium.read(name, from, most).map_err(failed)?;
            // A later file that holds nothing of the chain is only an obstacle once its month is there.
            let matters =
                *name == present || *name == month || is_torn(&tail, state) || next_record(&tail, state).is_some();
            if matters {
                settle_tail(medium, state, name, &tail, len, stamp)?;
            }
        }
    }
    if !present.is_empty() && !names.contains(&present) {
        let missing = state.len;
        shortened(medium, state, missing, stamp)?;
    }
    Ok(())
}

/// Names that the file of the last record lost bytes.
fn shortened<M: Medium>(
    medium: &mut M,
    state: &mut State,
    missing: u64,
    stamp: &Stamp<'_>,
) -> Result<(), VolumesError> {
    let file = state.file.clone();
    let event = Event::new(Category::Security, SHORTENED, &file).level(Level::High).detail("missing_bytes", missing);
    // Its last line may have lost its end.
    let len = medium.len(&file).map_err(VolumesError::io("read", &file))?;
    let last = medium.read(&file, len.saturating_sub(1), 1).unwrap_or_default();
    let lead: &[u8] = if last.is_empty() || last == b"\n" { b"" } else { b"\n" };
    put(medium, state, &file, lead, &event, stamp)
}

fn settle_tail<M: Medium>(
    medium: &mut M,
    state: &mut State,
    name: &str,
    tail: &[u8],
    len: u64,
    stamp: &Stamp<'_>,
) -> Result<(), VolumesError> {
    if let Some(claim) = next_record(tail, state) {
        // Only its newline may be missing.
        let end: &[u8] = if tail.ends_with(b"\n") { b"" } else { b"\n" };
        let ended = if end.is_empty() { Ok(()) } else { medium.append(name, end) };
        let synced = ended.and_then(|()| medium.sync(name)).and_then(|()| medium.sync_folder());
        synced.map_err(VolumesError::io("write", name))?;
        count(state, name, len + end.len() as u64, claim.mac);
        return state.write(medium);
    }
    let is_torn = is_torn(tail, state);
    let hash: String = hex(&Sha256::digest(tail)).chars().take(HASH_DIGITS).collect();
    let event = Event::new(Category::Security, RECOVERED, name)
        .level(if is_torn { Level::Warning } else { Level::High })
        .detail("found", if is_torn { TORN } else { FOREIGN })
        .detail("bytes", tail.len())
        .detail("sha256", hash);
    let lead: &[u8] = if tail.ends_with(b"\n") { b"" } else { b"\n" };
    put(medium, state, name, lead, &event, stamp)
}

/// The record that the state does not count yet, if the last line is that; its newline may be missing.
fn next_record(tail: &[u8], state: &State) -> Option<Claim> {
    let lines = tail.strip_suffix(b"\n").unwrap_or(tail);
    let last = lines.rsplit(|byte| *byte == b'\n').next()?;
    let claim = Claim::of(last)?;
    (claim.n == state.count && claim.prev == state.head && claim.holds(last, &state.key)).then_some(claim)
}

/// Whether a crash while the next record was written can have left these bytes.
fn is_torn(tail: &[u8], state: &State) -> bool {
    is_beginning(tail, state.count, &state.head)
}

/// Whether each line is a beginning of record n, or of zeros that a power cut left where bytes were to be.
pub(super) fn is_beginning(tail: &[u8], n: u64, head: &[u8; KEY_BYTES]) -> bool {
    let begins = beginning(n, head);
    tail.split(|byte| *byte == b'\n').all(|piece| {
        let zeros = piece.iter().rev().take_while(|byte| **byte == 0).count();
        let piece = &piece[..piece.len() - zeros];
        piece.starts_with(begins.as_bytes()) || begins.as_bytes().starts_with(piece)
    })
}
