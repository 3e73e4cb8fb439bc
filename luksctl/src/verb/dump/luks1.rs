//! A LUKS1 header as text, line by line as cryptsetup's luksDump prints it, and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use luks::{KeyslotId, Luks1Header, Luks1Slot, Version};
use serde_json::{Value, json};

use super::json::{digests, segments};
use crate::terminal;
use crate::verb::keyslot::list;

/// Bytes of a salt on one line.
const HEX_ROW: usize = 16;

/// The whole dump.
pub(super) fn text(image: &Path, header: &Luks1Header) -> String {
    let clean = |text: &str| terminal::plain(text).into_owned();
    let mut lines = vec![
        format!("LUKS header information for {}", clean(&image.to_string_lossy())),
        String::new(),
        "Version:       \t1".to_owned(),
        format!("Cipher name:   \t{}", clean(&header.cipher_name.to_text())),
        format!("Cipher mode:   \t{}", clean(&header.cipher_mode.to_text())),
        format!("Hash spec:     \t{}", clean(&header.hash_spec.to_text())),
        format!("Payload offset:\t{}", header.payload_offset_sectors),
        format!("MK bits:       \t{}", u64::from(header.key_bytes) * 8),
        format!("MK digest:     \t{}", hex(&header.digest)),
    ];
    hex_lines(&mut lines, "MK salt:       \t", "               \t", &header.digest_salt);
    lines.push(format!("MK iterations: \t{}", header.digest_iterations));
    lines.push(format!("UUID:          \t{}", clean(&header.uuid.to_text())));
    lines.push(String::new());
    for (id, slot) in header.slots.iter().enumerate() {
        slot_lines(id, slot, &mut lines);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn slot_lines(id: usize, slot: &Luks1Slot, lines: &mut Vec<String>) {
    if !slot.enabled {
        lines.push(format!("Key Slot {id}: DISABLED"));
        return;
    }
    lines.push(format!("Key Slot {id}: ENABLED"));
    lines.push(format!("\tIterations:         \t{}", slot.iterations));
    hex_lines(lines, "\tSalt:               \t", "\t                      \t", &slot.salt);
    lines.push(format!("\tKey material offset:\t{}", slot.key_material_offset_sectors));
    lines.push(format!("\tAF stripes:            \t{}", slot.stripes));
}

fn hex_lines(lines: &mut Vec<String>, first: &str, next: &str, bytes: &[u8]) {
    for (index, row) in bytes.chunks(HEX_ROW).enumerate() {
        lines.push(format!("{}{}", if index == 0 { first } else { next }, hex(row)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x} ");
        text
    })
}

/// The whole report, with the members of a LUKS2 one where they mean something.
pub(super) fn json(image: &Path, header: &Luks1Header) -> Value {
    let metadata = header.metadata();
    let slot = |(id, slot)| list::in_json(Version::Luks1, &metadata, id, slot);
    let keyslots: Vec<Value> = metadata.keyslots.iter().map(slot).collect();
    let disabled = (0..).zip(&header.slots).filter(|(_, slot)| !slot.enabled).map(|(id, _)| KeyslotId(id).0);
    json!({
        "image": crate::output::path(image),
        "version": 1,
        "uuid": header.uuid.to_text(),
        "cipher": header.cipher(),
        "hash": header.hash_spec.to_text(),
        "key_size_bits": u64::from(header.key_bytes) * 8,
        "data_offset_bytes": header.payload_offset().0,
        "keyslots_end_bytes": header.keyslots_end().0,
        "segments": segments(&metadata),
        "keyslots": keyslots,
        "free_keyslots": disabled.collect::<Vec<u32>>(),
        "digests": digests(&metadata),
    })
}
