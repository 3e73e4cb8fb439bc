//! The header as one JSON object: sizes in bytes with the unit in the name, both copies' health.

use std::path::Path;

use luks::{Header, Metadata, SegmentSize, Version};
use serde_json::{Value, json};

use crate::verb::keyslot::list;
use crate::verb::token;

/// The whole report.
pub(super) fn of(image: &Path, header: &Header) -> Value {
    let metadata = header.metadata();
    let keyslots: Vec<Value> = metadata
        .keyslots
        .sorted()
        .into_iter()
        .map(|(id, slot)| list::in_json(Version::Luks2, metadata, id, slot))
        .collect();
    let tokens: Vec<Value> =
        metadata.tokens.sorted().into_iter().map(|(id, token)| token::in_json(id, token)).collect();
    json!({
        "image": crate::output::path(image),
        "version": 2,
        "epoch": header.seqid(),
        "uuid": header.uuid(),
        "label": given(header.label()),
        "subsystem": given(header.subsystem()),
        "metadata_size_bytes": header.metadata_size().0,
        "keyslots_size_bytes": metadata.config.keyslots_size.0,
        "flags": metadata.config.flags,
        "requirements": metadata.config.mandatory,
        "health": health(header),
        "segments": segments(metadata),
        "keyslots": keyslots,
        "tokens": tokens,
        "digests": digests(metadata),
    })
}

/// The health of both copies; shared with `is-luks` and `repair`.
fn health(header: &Header) -> Value {
    let health = header.health();
    json!({
        "healthy": health.is_healthy(),
        "primary": health.primary.to_string(),
        "secondary": health.secondary.to_string(),
        "ignored_members": health.ignored_members,
        "advice": health.advice(),
    })
}

/// The segments; shared with LUKS1.
pub(super) fn segments(metadata: &Metadata) -> Vec<Value> {
    let one = |(id, segment): (luks::SegmentId, &luks::Segment)| {
        let size_bytes = match segment.size {
            SegmentSize::Dynamic => None,
            SegmentSize::Fixed(size) => Some(size.0),
        };
        let crypt = segment.crypt.as_ref();
        json!({
            "id": id.0,
            "type": segment.type_name,
            "offset_bytes": segment.offset.0,
            "size_bytes": size_bytes,
            "cipher": crypt.map(|crypt| &crypt.encryption),
            "sector_size_bytes": crypt.map(|crypt| crypt.sector_size),
            "iv_tweak_sectors": crypt.map(|crypt| crypt.iv_tweak.0),
            "integrity": crypt.and_then(|crypt| crypt.integrity.as_ref()),
            "flags": segment.flags,
        })
    };
    metadata.segments.sorted().into_iter().map(one).collect()
}

/// The digests; shared with LUKS1.
pub(super) fn digests(metadata: &Metadata) -> Vec<Value> {
    let one = |(id, digest): (luks::DigestId, &luks::Digest)| {
        let segments: Vec<u32> = digest.segments.iter().map(|segment| segment.0).collect();
        json!({
            "id": id.0,
            "type": digest.type_name,
            "hash": digest.hash,
            "iterations": digest.iterations,
            "keyslots": numbers(&digest.keyslots),
            "segments": segments,
        })
    };
    metadata.digests.sorted().into_iter().map(one).collect()
}

fn numbers(ids: &[luks::KeyslotId]) -> Vec<u32> {
    ids.iter().map(|id| id.0).collect()
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
