//! The keyslots area and the areas of the keyslots in it. Format notes 2.5 steps 7 and 8.

use crate::metadata::config::Config;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::segment::Segment;
use crate::metadata::{ById, KeyslotId, SegmentId};
use crate::rule::{Rule, Violation};
use crate::validate::segments::{Extent, first_overlap};

/// Data starts behind the keyslots area, or at 0, which says that the header is detached.
pub(crate) fn check_config(config: &Config, segments: &ById<SegmentId, Segment>) -> Result<(), Violation> {
    let regular = segments.iter().filter(|(_, segment)| !segment.is_backup());
    let Some(data) = regular.map(|(_, segment)| segment.offset).min() else { return Ok(()) };
    if data.0 != 0 && data < config.keyslots_end() {
        let value = format_args!("data at {}, keyslots area ends at {}", data.0, config.keyslots_end().0);
        return Err(Violation::new(Rule::ConfigDataOffset, "config.keyslots_size", value));
    }
    Ok(())
}

/// Each area lies inside the keyslots area and touches no other.
pub(crate) fn check_areas(keyslots: &ById<KeyslotId, Keyslot>, config: &Config) -> Result<(), Violation> {
    let mut extents = Vec::with_capacity(keyslots.len());
    for (id, keyslot) in keyslots.iter() {
        let area = &keyslot.area;
        let path = |member: &str| format!("keyslots.{id}.area.{member}");
        if area.offset < config.keyslots_offset() {
            return Err(Violation::new(Rule::AreaAfterMetadata, path("offset"), area.offset.0));
        }
        if area.size.0 == 0 {
            return Err(Violation::new(Rule::AreaNotEmpty, path("size"), 0));
        }
        match area.offset.checked_add(area.size) {
            Some(end) if end <= config.keyslots_end() => {}
            _ => return Err(Violation::new(Rule::AreaInside, path("size"), area.size.0)),
        }
        extents.push(Extent { id, start: area.offset, len: area.size });
    }
    match first_overlap(&mut extents) {
        Some((one, other)) => Err(Violation::new(
            Rule::AreaOverlap,
            format!("keyslots.{}.area", one.id),
            format_args!("offset {} lies in the area of keyslot {}", one.start.0, other.id),
        )),
        None => Ok(()),
    }
}
