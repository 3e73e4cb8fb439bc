//! Segments among each other: ids, backups, overlaps, digests. Format notes 2.5 step 4.

use std::collections::BTreeSet;

use block::Bytes;

use crate::metadata::digest::Digest;
use crate::metadata::segment::{Segment, SegmentSize};
use crate::metadata::{ById, DigestId, SegmentId};
use crate::rule::{Rule, Violation};

/// Ids run from 0 without a gap, regular segments first; regular segments do not overlap.
pub(crate) fn check_order(segments: &ById<SegmentId, Segment>) -> Result<(), Violation> {
    if segments.is_empty() {
        return Err(Violation::new(Rule::SegmentsNone, "segments", "{}"));
    }
    let mut by_id: Vec<(SegmentId, &Segment)> = segments.iter().collect();
    by_id.sort_by_key(|(id, _)| *id);
    for (expected, (id, segment)) in (0u32..).zip(&by_id) {
        if id.0 != expected {
            return Err(Violation::new(Rule::SegmentIdsContiguous, "segments", format_args!("no segment {expected}")));
        }
        if expected == 0 && segment.is_backup() {
            return Err(Violation::new(Rule::SegmentFirstRegular, "segments.0.flags", segment.flags.join(", ")));
        }
    }
    let regular = by_id.iter().take_while(|(_, segment)| !segment.is_backup()).count();
    if let Some((id, _)) = by_id[regular..].iter().find(|(_, segment)| !segment.is_backup()) {
        return Err(Violation::new(Rule::SegmentBackupsLast, format!("segments.{id}"), "regular after a backup"));
    }
    check_overlap(&by_id[..regular])
}

/// Only the last regular segment is dynamic; every other one ends before the next begins on the device.
fn check_overlap(regular: &[(SegmentId, &Segment)]) -> Result<(), Violation> {
    let mut extents = Vec::with_capacity(regular.len());
    for (at, (id, segment)) in regular.iter().enumerate() {
        let len = match segment.size {
            SegmentSize::Fixed(size) => size,
            SegmentSize::Dynamic if at + 1 == regular.len() => Bytes(u64::MAX),
            SegmentSize::Dynamic => {
                return Err(Violation::new(Rule::SegmentDynamicLast, format!("segments.{id}.size"), "dynamic"));
            }
        };
        extents.push(Extent { id: *id, start: segment.offset, len });
    }
    match first_overlap(&mut extents) {
        Some((one, other)) => Err(Violation::new(
            Rule::SegmentOverlap,
            format!("segments.{}", one.id),
            format_args!("offset {} lies in segment {}", one.start.0, other.id),
        )),
        None => Ok(()),
    }
}

/// A stretch of a device that belongs to one object.
#[derive(Clone, Copy)]
pub(crate) struct Extent<I> {
    pub(crate) id: I,
    pub(crate) start: Bytes,
    pub(crate) len: Bytes,
}

/// Two extents that overlap: the later one and the earlier one. Sorts by start, so it is no square work.
pub(crate) fn first_overlap<I: Copy>(extents: &mut [Extent<I>]) -> Option<(Extent<I>, Extent<I>)> {
    extents.sort_by_key(|extent| extent.start);
    extents.windows(2).find_map(|pair| {
        let (one, other) = (pair[0], pair[1]);
        // The next one starts no earlier, so the distance cannot underflow; ends are never computed, so none overflows.
        (other.start.0.saturating_sub(one.start.0) < one.len.0).then_some((other, one))
    })
}

/// A segment whose volume key matters belongs to a digest.
pub(crate) fn check_digests(
    segments: &ById<SegmentId, Segment>,
    digests: &ById<DigestId, Digest>,
) -> Result<(), Violation> {
    let listed: BTreeSet<SegmentId> = digests.iter().flat_map(|(_, digest)| digest.segments.iter().copied()).collect();
    for (id, segment) in segments.iter() {
        if segment.type_name == "crypt" && !listed.contains(&id) {
            return Err(Violation::new(Rule::SegmentInDigest, format!("segments.{id}"), "in no digest"));
        }
    }
    Ok(())
}
