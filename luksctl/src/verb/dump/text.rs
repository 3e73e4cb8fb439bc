//! The header as text, line by line with the labels, tabs and units of cryptsetup's luksDump, because scripts grep them.
//! Source: format notes §11.5 and dumps of cryptsetup 2.6.1. Names from the header are shown with control characters
//! escaped: a header is hostile input and a terminal obeys what it is sent.

use luks::{Header, Kdf, Keyslot, KeyslotId, KeyslotKind, Metadata, Segment, SegmentSize, SlotName};

use crate::terminal;
use crate::verb::keyslot::{list, name};

/// AF stripes are fixed, whatever the header says.
const STRIPES: u32 = 4000;
/// Bytes of a salt or digest on one line.
const HEX_ROW: usize = 16;

/// The whole dump.
pub(super) fn of(header: &Header) -> String {
    let metadata = header.metadata();
    let config = &metadata.config;
    let mut lines = vec![
        "LUKS header information".to_owned(),
        "Version:       \t2".to_owned(),
        format!("Epoch:         \t{}", header.seqid()),
        format!("Metadata area: \t{} [bytes]", header.metadata_size().0),
        format!("Keyslots area: \t{} [bytes]", config.keyslots_size.0),
        format!("UUID:          \t{}", clean(&header.uuid())),
        format!("Label:         \t{}", or_none(&header.label(), "(no label)")),
        format!("Subsystem:     \t{}", or_none(&header.subsystem(), "(no subsystem)")),
        format!("Flags:       \t{}", or_none(&config.flags.join(" "), "(no flags)")),
    ];
    if !config.mandatory.is_empty() {
        lines.push(format!("Requirements:\t{}", clean(&config.mandatory.join(" "))));
    }
    lines.push(String::new());
    lines.push("Data segments:".to_owned());
    for (id, segment) in metadata.segments.sorted().into_iter().filter(|(_, segment)| !segment.is_backup()) {
        lines.push(format!("  {id}: {}", clean(&segment.type_name)));
        segment_lines(segment, &mut lines);
        lines.push(String::new());
    }
    lines.push("Keyslots:".to_owned());
    for (id, slot) in metadata.keyslots.sorted() {
        keyslot_lines(metadata, id, slot, &mut lines);
    }
    lines.push("Tokens:".to_owned());
    for (id, token) in metadata.tokens.sorted() {
        lines.push(format!("  {id}: {}", clean(&token.type_name)));
        push(&mut lines, "Key description: ", token.key_description());
        lines.extend(token.keyslots.iter().map(|keyslot| format!("\tKeyslot:    {keyslot}")));
    }
    lines.push("Digests:".to_owned());
    for (id, digest) in metadata.digests.sorted() {
        lines.push(format!("  {id}: {}", clean(&digest.type_name)));
        push(&mut lines, "Hash:       ", digest.hash.as_deref());
        push(&mut lines, "Iterations: ", digest.iterations.map(|count| count.to_string()).as_deref());
        hex_lines(&mut lines, "Salt:       ", digest.salt.as_deref());
        hex_lines(&mut lines, "Digest:     ", digest.digest.as_deref());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn segment_lines(segment: &Segment, lines: &mut Vec<String>) {
    lines.push(format!("\toffset: {} [bytes]", segment.offset.0));
    lines.push(match segment.size {
        SegmentSize::Dynamic => "\tlength: (whole device)".to_owned(),
        SegmentSize::Fixed(size) => format!("\tlength: {} [bytes]", size.0),
    });
    if let Some(crypt) = &segment.crypt {
        lines.push(format!("\tcipher: {}", clean(&crypt.encryption)));
        lines.push(format!("\tsector: {} [bytes]", crypt.sector_size));
        if let Some(integrity) = &crypt.integrity {
            let name = integrity.get("type").and_then(|name| name.as_str()).unwrap_or("unknown");
            lines.push(format!("\tintegrity: {}", clean(name)));
        }
    }
    if !segment.flags.is_empty() {
        lines.push(format!("\tflags : {}", clean(&segment.flags.join(", "))));
    }
}

fn keyslot_lines(metadata: &Metadata, id: KeyslotId, slot: &Keyslot, lines: &mut Vec<String>) {
    let unbound = if list::is_bound(metadata, id) || slot.luks2().is_none() { "" } else { " (unbound)" };
    lines.push(format!("  {id}: {}{unbound}", clean(&slot.type_name)));
    push(lines, "Key:        ", Some(&format!("{} bits", u64::from(slot.key_size_bytes) * 8)));
    push(lines, "Priority:   ", Some(list::priority(slot)));
    push(lines, "Cipher:     ", slot.area.encryption.as_deref());
    push(
        lines,
        "Cipher key: ",
        slot.area.key_size_bytes.map(|bytes| format!("{} bits", u64::from(bytes) * 8)).as_deref(),
    );
    match &slot.kind {
        KeyslotKind::Luks2(luks2) => {
            kdf_lines(&luks2.kdf, lines);
            push(lines, "AF stripes: ", Some(&STRIPES.to_string()));
            push(lines, "AF hash:    ", Some(&luks2.af.hash));
        }
        _ => reencrypt_lines(slot, lines),
    }
    push(lines, "Area offset:", Some(&format!("{} [bytes]", slot.area.offset.0)));
    push(lines, "Area length:", Some(&format!("{} [bytes]", slot.area.size.0)));
    let digest = metadata.digests.iter().find(|(_, digest)| digest.keyslots.contains(&id));
    push(lines, "Digest ID:  ", digest.map(|(digest, _)| digest.to_string()).as_deref());
    push(lines, "Name:       ", SlotName::of(metadata, id).map(|name| name::in_words(&name)).as_deref());
}

fn kdf_lines(kdf: &Kdf, lines: &mut Vec<String>) {
    match kdf {
        Kdf::Pbkdf2 { hash, iterations, salt, .. } => {
            push(lines, "PBKDF:      ", Some("pbkdf2"));
            push(lines, "Hash:       ", Some(hash));
            push(lines, "Iterations: ", Some(&iterations.to_string()));
            hex_lines(lines, "Salt:       ", Some(salt));
        }
        Kdf::Argon2 { variant, time, memory_kib, cpus, salt, .. } => {
            push(lines, "PBKDF:      ", Some(variant.name()));
            push(lines, "Time cost:  ", Some(&time.to_string()));
            push(lines, "Memory:     ", Some(&memory_kib.to_string()));
            push(lines, "Threads:    ", Some(&cpus.to_string()));
            hex_lines(lines, "Salt:       ", Some(salt));
        }
        Kdf::Other { type_name, .. } => push(lines, "PBKDF:      ", Some(type_name)),
    }
}

/// A keyslot of another type; what a re-encryption slot says of itself.
fn reencrypt_lines(slot: &Keyslot, lines: &mut Vec<String>) {
    let text = |map: &luks::JsonMap, member: &str| map.get(member).and_then(|value| value.as_str()).map(str::to_owned);
    push(lines, "Mode:       ", text(&slot.extra, "mode").as_deref());
    push(lines, "Direction:  ", text(&slot.extra, "direction").as_deref());
    if slot.type_name == "reencrypt" {
        push(lines, "Resilience: ", Some(&slot.area.type_name));
    }
    push(lines, "Hash:       ", text(&slot.area.extra, "hash").as_deref());
    let sector_size = slot.area.extra.get("sector_size").map(ToString::to_string);
    push(lines, "Hash data:  ", sector_size.map(|size| format!("{size} [bytes]")).as_deref());
    push(lines, "Shift size: ", text(&slot.area.extra, "shift_size").map(|size| format!("{size} [bytes]")).as_deref());
}

fn push(lines: &mut Vec<String>, label: &str, value: Option<&str>) {
    lines.extend(value.map(|value| format!("\t{label}{}", clean(value))));
}

/// Base64 as rows of hexadecimal bytes; what is no base64 is shown as it is.
fn hex_lines(lines: &mut Vec<String>, label: &str, base64: Option<&str>) {
    let Some(text) = base64 else { return };
    let Some(bytes) = luks::json::decode_base64(text) else {
        return push(lines, label, Some(text));
    };
    for (index, row) in bytes.chunks(HEX_ROW).enumerate() {
        let hex: String = row.iter().map(|byte| format!("{byte:02x} ")).collect();
        let label = if index == 0 { label } else { "            " };
        lines.push(format!("\t{label}{hex}"));
    }
}

fn or_none(text: &str, none: &str) -> String {
    if text.is_empty() { none.to_owned() } else { clean(text) }
}

/// Without what a terminal would obey.
fn clean(text: &str) -> String {
    terminal::plain(text).into_owned()
}
