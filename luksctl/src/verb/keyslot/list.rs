//! `keyslot list IMAGE`: the keyslots, what unlocking them costs, and what they open.

use clap::Args;
use comfy_table::{Table, presets};
use luks::{Kdf, Keyslot, KeyslotId, Metadata, Priority, SlotName, Version};
use serde_json::{Value, json};

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;
use crate::verb::keyslot::name;

/// Arguments of `keyslot list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Prints the keyslots.
pub(crate) fn run(args: &ListArgs, _common: &Common) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::Read)?;
    let header = image.load(&image::limits(&LimitArgs::default()))?;
    image::advise(image.path(), header.advice());
    let (version, metadata) = (header.version(), header.metadata());
    let metadata = metadata.as_ref();
    if args.report.json {
        let slots: Vec<Value> =
            metadata.keyslots.sorted().into_iter().map(|(id, slot)| in_json(version, metadata, id, slot)).collect();
        output::json(&json!({ "image": output::path(image.path()), "keyslots": slots }))?;
        return Ok(Code::Success);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "slot",
        "type",
        "opens",
        "priority",
        "key",
        "unlocking costs",
        "name",
    ]);
    for (id, slot) in metadata.keyslots.sorted() {
        table.add_row([
            id.to_string(),
            type_name(version, slot).to_owned(),
            opens(metadata, id),
            priority(slot).to_owned(),
            format!("{} bits", u64::from(slot.key_size_bytes) * 8),
            cost(slot),
            SlotName::of(metadata, id).map(|name| name::in_words(&name)).unwrap_or_default(),
        ]);
    }
    for line in table.lines() {
        output::line(line.trim_end())?;
    }
    Ok(Code::Success)
}

/// One keyslot for machines; shared with `dump --json`.
pub(crate) fn in_json(version: Version, metadata: &Metadata, id: KeyslotId, slot: &Keyslot) -> Value {
    let digests: Vec<u32> = metadata
        .digests
        .iter()
        .filter(|(_, digest)| digest.keyslots.contains(&id))
        .map(|(digest, _)| digest.0)
        .collect();
    let kdf = slot.luks2().map(|luks2| match &luks2.kdf {
        Kdf::Pbkdf2 { hash, iterations, .. } => json!({ "type": "pbkdf2", "hash": hash, "iterations": iterations }),
        Kdf::Argon2 { variant, time, memory_kib, cpus, .. } => {
            json!({ "type": variant.name(), "passes": time, "memory_kib": memory_kib, "threads": cpus })
        }
        Kdf::Other { type_name, .. } => json!({ "type": type_name }),
    });
    json!({
        "id": id.0,
        "type": type_name(version, slot),
        "priority": priority(slot),
        "key_size_bits": u64::from(slot.key_size_bytes) * 8,
        "bound": is_bound(metadata, id),
        "digests": digests,
        "kdf": kdf,
        "name": SlotName::of(metadata, id).as_ref().map(name::in_json),
        "area": {
            "type": slot.area.type_name,
            "offset_bytes": slot.area.offset.0,
            "size_bytes": slot.area.size.0,
            "cipher": slot.area.encryption,
        },
    })
}

/// The keyslot's type; one of LUKS1 has none in its header.
fn type_name(version: Version, slot: &Keyslot) -> &str {
    match version {
        Version::Luks1 => "luks1",
        Version::Luks2 => &slot.type_name,
    }
}

/// The priority in cryptsetup's words.
pub(crate) fn priority(slot: &Keyslot) -> &'static str {
    match slot.priority {
        Some(Priority::Ignore) => "ignored",
        Some(Priority::Prefer) => "preferred",
        _ => "normal",
    }
}

/// Whether the keyslot's key opens a segment.
pub(crate) fn is_bound(metadata: &Metadata, id: KeyslotId) -> bool {
    metadata.digests.iter().any(|(_, digest)| digest.keyslots.contains(&id) && !digest.segments.is_empty())
}

fn opens(metadata: &Metadata, id: KeyslotId) -> String {
    if is_bound(metadata, id) { "the volume".to_owned() } else { "nothing (unbound)".to_owned() }
}

fn cost(slot: &Keyslot) -> String {
    match slot.luks2().map(|luks2| &luks2.kdf) {
        Some(Kdf::Pbkdf2 { hash, iterations, .. }) => format!("pbkdf2 {hash}, {iterations} iterations"),
        Some(Kdf::Argon2 { variant, time, memory_kib, cpus, .. }) => {
            format!("{}, {time} passes, {memory_kib} KiB, {cpus} threads", variant.name())
        }
        Some(Kdf::Other { type_name, .. }) => format!("{type_name} (unknown)"),
        None => "no passphrase".to_owned(),
    }
}
