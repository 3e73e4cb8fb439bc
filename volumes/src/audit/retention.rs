//! Old months go as whole files; the newest file always stays. A record in the chain says which was the last record of a
//! removed file, before the file goes: what is missing at the beginning is then accounted for by the chain itself.

use super::line::Claim;
use super::medium::Medium;
use super::state::State;
use super::writer::{Stamp, put};
use super::{Category, Event, Moment, month_of};
use crate::VolumesError;

/// Action of a record about a removed file.
pub(super) const RETENTION: &str = "audit-retention";
/// The last record of a file lies in so many bytes before its end, the first in so many behind its beginning.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Removes the files of months that ended more than `days` ago.
pub(super) fn remove_old<M: Medium>(
    medium: &mut M,
    state: &mut State,
    stamp: &Stamp<'_>,
    days: u32,
) -> Result<(), VolumesError> {
    let names = medium.names().map_err(VolumesError::io("list", "the audit log"))?;
    let old = |name: &&String| {
        let ended = month_of(name).and_then(Moment::end_of_month);
        ended.is_some_and(|ended| stamp.now.days_since(ended) > i64::from(days)) && **name < state.file
    };
    let old: Vec<String> = names.iter().filter(old).cloned().collect();
    for name in old {
        let failed = |source| VolumesError::Io { what: "remove", path: (&name).into(), source };
        let next = names.iter().find(|other| **other > name);
        let last = last_of(medium, &name).map_err(failed)?;
        let bound = match next {
            Some(next) => first_of(medium, next).map_err(failed)?.and_then(|first| first.checked_sub(1)),
            None => None,
        };
        let file = state.file.clone();
        let mut event = Event::new(Category::Security, RETENTION, &name).detail("days", days);
        // What neither file proves is not excused.
        if let Some(last) = last.into_iter().chain(bound).min().filter(|last| *last < state.count) {
            event = event.detail("last", last);
        }
        put(medium, state, &file, b"", &event, stamp)?;
        medium.remove(&name).and_then(|()| medium.sync_folder()).map_err(failed)?;
    }
    Ok(())
}

fn last_of<M: Medium>(medium: &mut M, name: &str) -> std::io::Result<Option<u64>> {
    let len = medium.len(name)?;
    let tail = medium.read(name, len.saturating_sub(LINE_BYTES_MAX as u64), LINE_BYTES_MAX)?;
    Ok(tail.rsplit(|byte| *byte == b'\n').find_map(Claim::of).map(|claim| claim.n))
}

fn first_of<M: Medium>(medium: &mut M, name: &str) -> std::io::Result<Option<u64>> {
    let beginning = medium.read(name, 0, LINE_BYTES_MAX)?;
    Ok(beginning.split(|byte| *byte == b'\n').find_map(Claim::of).map(|claim| claim.n))
}
