//! A header in re-encryption: its backup segments and its keyslot. Format notes 2.5 steps 5 and 10, and 3.8.

use crate::json::{Fields, u32_of, u64_of};
use crate::metadata::config::Config;
use crate::metadata::keyslot::Keyslot;
use crate::metadata::segment::Segment;
use crate::metadata::{ById, KeyslotId, SegmentId};
use crate::rule::{Rule, Violation};

/// Where the segments stand in which a re-encryption keeps the old and the new layout.
const BACKUP_FINAL: &str = "backup-final";
const BACKUP_PREVIOUS: &str = "backup-previous";
const HOT: &str = "in-reencryption";

/// Every regular segment is encrypted as the old or the new layout says; the hot one as the new.
pub(crate) fn check_segments(segments: &ById<SegmentId, Segment>) -> Result<(), Violation> {
    let last = backup(segments, BACKUP_FINAL, Rule::ReencryptBackupFinal)?;
    let previous = backup(segments, BACKUP_PREVIOUS, Rule::ReencryptBackupPrevious)?;
    for (id, segment) in segments.iter().filter(|(_, segment)| !segment.is_backup()) {
        let path = format!("segments.{id}");
        if segment.has_flag(HOT) {
            if !same_encryption(segment, last) {
                return Err(Violation::new(Rule::ReencryptHotSegment, path, "not encrypted as backup-final"));
            }
        } else if !same_encryption(segment, last) && !same_encryption(segment, previous) {
            let value = "encrypted neither as backup-final nor as backup-previous";
            return Err(Violation::new(Rule::ReencryptOtherSegment, path, value));
        }
    }
    Ok(())
}

fn backup<'a>(segments: &'a ById<SegmentId, Segment>, flag: &str, rule: Rule) -> Result<&'a Segment, Violation> {
    let mut flagged = segments.iter().filter(|(_, segment)| segment.has_flag(flag));
    match (flagged.next(), flagged.next()) {
        (Some((_, segment)), None) => Ok(segment),
        (None, _) => Err(Violation::missing(rule, "segments")),
        (Some(_), Some((id, _))) => {
            Err(Violation::new(rule, format!("segments.{id}.flags"), format_args!("a second {flag}")))
        }
    }
}

fn same_encryption(one: &Segment, other: &Segment) -> bool {
    let cipher = |segment: &Segment| segment.crypt.as_ref().map(|crypt| (crypt.sector_size, crypt.encryption.clone()));
    one.type_name == other.type_name && cipher(one) == cipher(other)
}

/// The re-encryption keyslot is well formed, and there is one exactly when the requirement says so.
pub(crate) fn check_keyslots(keyslots: &ById<KeyslotId, Keyslot>, config: &Config) -> Result<(), Violation> {
    let mut count = 0;
    for (id, keyslot) in keyslots.iter().filter(|(_, keyslot)| keyslot.type_name == "reencrypt") {
        count += 1;
        check_keyslot(keyslot, &format!("keyslots.{id}"))?;
    }
    let value = format_args!("{count} keyslots of type reencrypt");
    match (count, config.online_reencrypt()) {
        (0, None) | (1, Some(_)) => Ok(()),
        (0, Some(_)) => Err(Violation::new(Rule::ReencryptNeedsKeyslot, "config.requirements.mandatory", value)),
        (1, None) => Err(Violation::new(Rule::ReencryptNeedsRequirement, "keyslots", value)),
        _ => Err(Violation::new(Rule::ReencryptOneKeyslot, "keyslots", value)),
    }
}

fn check_keyslot(keyslot: &Keyslot, path: &str) -> Result<(), Violation> {
    if keyslot.key_size_bytes != 1 {
        let path = format!("{path}.key_size");
        return Err(Violation::new(Rule::ReencryptKeySize, path, keyslot.key_size_bytes));
    }
    let mut fields = Fields::resume(keyslot.extra.clone(), path);
    let one_of = |names: &'static [&'static str]| {
        move |value: &serde_json::Value| value.as_str().filter(|name| names.contains(name)).map(drop)
    };
    fields.read("mode", Rule::ReencryptMode, one_of(&["reencrypt", "encrypt", "decrypt"]))?;
    fields.read("direction", Rule::ReencryptDirection, one_of(&["forward", "backward"]))?;

    let mut area = Fields::resume(keyslot.area.extra.clone(), format!("{path}.area"));
    let (checksum, shift) = match keyslot.area.type_name.as_str() {
        "checksum" | "datashift-checksum" => (true, false),
        "datashift" | "datashift-journal" => (false, true),
        // `none`, `journal`, and what nobody knows yet: an unknown resilience cannot be resumed, but the header is valid.
        _ => (false, false),
    };
    if checksum {
        area.name("hash", Rule::ReencryptAreaHash)?;
        area.read("sector_size", Rule::ReencryptAreaSectorSize, |value| {
            u32_of(value).filter(|size| *size >= 512 && size.is_power_of_two())
        })?;
    }
    if shift {
        area.read("shift_size", Rule::ReencryptAreaShift, |value| {
            u64_of(value).filter(|size| *size != 0 && size.is_multiple_of(512))
        })?;
    }
    Ok(())
}
