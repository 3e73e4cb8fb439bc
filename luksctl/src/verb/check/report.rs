//! What `check` found, for people and for machines.

use std::path::Path;

use luks::Policy;
use luks::check::{AreaFinding, CheckReport};
use luks::policy::{Breach, Pins, Place};
use serde_json::{Value, json};

/// One line for each finding, and one that sums up.
pub(super) fn lines(image: &Path, policy: &Policy, found: &CheckReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(advice) = found.header.advice() {
        lines.push(format!("header:  {advice}"));
    }
    lines.extend(found.breaches.iter().map(|breach| format!("policy:  {breach}")));
    lines.extend(found.areas.iter().map(|area| format!("keyslot: {area}")));
    if !found.half_removed().is_empty() {
        lines.push(format!("keyslot: `luksctl repair {}` finishes a removal that was cut short", image.display()));
    }
    let examined = format!("policy {}, {} keyslot areas", policy.name, found.examined.len());
    let copies = found.header.health().map_or("the header", |_| "both header copies");
    lines.push(match lines.len() {
        0 => format!("Nothing found: {copies}, {examined}."),
        _ => format!("Looked at {copies}, {examined}."),
    });
    lines
}

/// The same as one object.
pub(super) fn in_json(image: &Path, policy: &Policy, found: &CheckReport, written: Option<&Path>) -> Value {
    let health = found.header.health();
    let pins = Pins::of_any(&found.header);
    json!({
        "image": crate::output::path(image),
        "clean": found.is_clean(),
        "policy": policy.name,
        "uuid": found.header.uuid(),
        "version": found.header.version().number(),
        "epoch": pins.epoch,
        "fingerprints": {
            "volume_keys": pins.volume_keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "segments": pins.segments.map(|print| print.to_string()),
        },
        "header": {
            "healthy": found.header.is_healthy(),
            "primary": health.map(|health| health.primary.to_string()),
            "secondary": health.map(|health| health.secondary.to_string()),
            "ignored_members": health.map(|health| &health.ignored_members),
            "advice": found.header.advice(),
        },
        "breaches": found.breaches.iter().map(breach).collect::<Vec<_>>(),
        "keyslots_examined": found.examined.iter().map(|id| id.0).collect::<Vec<_>>(),
        "areas": found.areas.iter().map(area).collect::<Vec<_>>(),
        "half_removed": found.half_removed().iter().map(|id| id.0).collect::<Vec<_>>(),
        "pins_written": written.map(crate::output::path),
    })
}

fn breach(breach: &Breach) -> Value {
    let (keyslot, segment, digest) = match breach.place {
        Place::Keyslot(id) => (Some(id.0), None, None),
        Place::Segment(id) => (None, Some(id.0), None),
        Place::Digest(id) => (None, None, Some(id.0)),
        _ => (None, None, None),
    };
    json!({
        "rule": breach.rule.name(),
        "where": breach.place.to_string(),
        "keyslot": keyslot,
        "segment": segment,
        "digest": digest,
        "value": breach.value,
        "allowed": breach.allowed,
    })
}

fn area(area: &AreaFinding) -> Value {
    json!({
        "keyslot": area.keyslot.0,
        "offset_bytes": area.offset.0,
        "length_bytes": area.len.0,
        "damage": area.damage.name(),
        "reason": area.damage.to_string(),
    })
}
