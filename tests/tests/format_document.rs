//! `docs/format.md` says what the code does: its byte maps have no gap and are those of the code, its list of rules is
//! `Rule::ALL`. With `LUKS_WRITE_DOCS=1` the list is written anew from `luks/src/rule.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use luks::Rule;
use luks::binary::{BinaryHeader, Position, SALT_LEN};

const RULES_START: &str =
    "<!-- rules, written by LUKS_WRITE_DOCS=1 cargo test -p promises --test format_document -->\n";
const RULES_END: &str = "<!-- end of rules -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn document() -> (PathBuf, String) {
    let path = root().join("docs/format.md");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

/// What the code says of each rule above its variant, by name.
fn meaning(source: &str, rule: Rule) -> String {
    let variant = format!("= \"{}\" in ", rule.name());
    let lines: Vec<&str> = source.lines().collect();
    let at = lines.iter().position(|line| line.contains(&variant)).unwrap();
    let above = lines[..at].iter().rev().map(|line| line.trim());
    let mut words: Vec<&str> = above.map_while(|line| line.strip_prefix("/// ")).collect();
    words.reverse();
    words.join(" ").trim_end_matches('.').replace('|', "\\|")
}

fn rules_table() -> String {
    let source = fs::read_to_string(root().join("luks/src/rule.rs")).unwrap();
    let mut table = "| rule | section | what it says |\n|---|---|---|\n".to_owned();
    for rule in Rule::ALL {
        table.push_str(&format!("| `{}` | {} | {} |\n", rule.name(), rule.section(), meaning(&source, *rule)));
    }
    table
}

#[test]
fn every_rule_is_in_the_document() {
    let (path, text) = document();
    let start = text.find(RULES_START).unwrap() + RULES_START.len();
    let end = text.find(RULES_END).unwrap();
    let table = rules_table();
    if std::env::var_os("LUKS_WRITE_DOCS").is_some() {
        fs::write(path, [&text[..start], &table, &text[end..]].concat()).unwrap();
        return;
    }
    assert!(
        text[start..end] == table,
        "the rules have changed: LUKS_WRITE_DOCS=1 cargo test -p promises --test format_document"
    );
    assert!(Rule::ALL.len() > 100 && table.lines().count() == Rule::ALL.len() + 2);
}

/// Offset, length and name of each field of a map.
fn map(name: &str, size: usize) -> Vec<(usize, usize, String)> {
    let (_, text) = document();
    let start = text.find(&format!("<!-- map {name} {size} -->\n")).unwrap_or_else(|| panic!("no map {name}"));
    let rows = text[start..].lines().skip(3).take_while(|line| line.starts_with('|'));
    let fields: Vec<_> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].parse().unwrap(), cells[2].parse().unwrap(), cells[3].trim_matches('`').to_owned())
        })
        .collect();
    let mut expected = 0;
    for (offset, len, field) in &fields {
        assert_eq!(*offset, expected, "{name}: a gap or an overlap before {field}");
        expected += len;
    }
    assert_eq!(expected, size, "{name} has another length");
    fields
}

#[test]
fn the_map_of_the_luks2_header_is_that_of_the_code() {
    let fields = map("luks2", luks::limits::BINARY_HEADER);
    let header = BinaryHeader {
        position: Position::Secondary,
        hdr_size: block::Bytes(0x1_0000),
        seqid: 0x0102_0304_0506_0708,
        label: vec![b'L'; 47],
        csum_alg: vec![b'A'; 31],
        salt: [b'S'; SALT_LEN],
        uuid: vec![b'U'; 39],
        subsystem: vec![b'Y'; 47],
        hdr_offset: block::Bytes(0x1_0000),
        csum: [b'C'; 64],
    };
    let bytes = header.to_bytes();
    // The last byte of a text is the NUL that ends it.
    let ended = |text: &[u8]| [text, &[0]].concat();
    for (offset, len, field) in fields {
        let found = &bytes[offset..offset + len];
        let expected = match field.as_str() {
            "magic" => b"SKUL\xba\xbe".to_vec(),
            "version" => vec![0, 2],
            "hdr_size" | "hdr_offset" => 0x1_0000_u64.to_be_bytes().to_vec(),
            "seqid" => header.seqid.to_be_bytes().to_vec(),
            "label" => ended(&header.label),
            "csum_alg" => ended(&header.csum_alg),
            "salt" => header.salt.to_vec(),
            "uuid" => ended(&header.uuid),
            "subsystem" => ended(&header.subsystem),
            "csum" => header.csum.to_vec(),
            "padding" => vec![0; len],
            other => panic!("no field {other} in the code"),
        };
        assert_eq!(found, expected, "{field} at {offset}");
    }
}

#[test]
fn the_map_of_the_luks1_header_is_that_of_the_code() {
    let header_map = map("luks1", luks::luks1::HEADER_BYTES);
    let slot_map = map("luks1-keyslot", 48);
    let mut bytes = [0; luks::luks1::HEADER_BYTES];
    let mut put = |start: usize, fields: &[(usize, usize, String)], name: &str, value: &[u8]| {
        let (offset, len, _) = fields.iter().find(|(.., field)| field == name).unwrap();
        assert!(value.len() <= *len, "{name}");
        bytes[start + offset..][..value.len()].copy_from_slice(value);
    };
    let numbers = [("payload_offset", 40_000_u32), ("key_bytes", 32), ("mk_digest_iter", 77)];
    put(0, &header_map, "magic", b"LUKS\xba\xbe");
    put(0, &header_map, "version", &[0, 1]);
    for (name, value) in [("cipher_name", "aes"), ("cipher_mode", "cbc-plain"), ("hash_spec", "sha1"), ("uuid", "u")] {
        put(0, &header_map, name, value.as_bytes());
    }
    for (name, value) in numbers {
        put(0, &header_map, name, &value.to_be_bytes());
    }
    put(0, &header_map, "mk_digest", &[1; 20]);
    put(0, &header_map, "mk_digest_salt", &[2; 32]);
    for slot in 0..8_u32 {
        let start = 208 + slot as usize * 48;
        put(start, &slot_map, "active", &[0x00, 0xac, 0x71, 0xf3]);
        put(start, &slot_map, "iterations", &(1000 + slot).to_be_bytes());
        put(start, &slot_map, "salt", &[3; 32]);
        put(start, &slot_map, "key_material_offset", &(8 + slot * 1000).to_be_bytes());
        put(start, &slot_map, "stripes", &4000_u32.to_be_bytes());
    }
    let header = luks::Luks1Header::parse(&bytes).unwrap();
    assert_eq!((header.payload_offset_sectors, header.key_bytes, header.digest_iterations), (40_000, 32, 77));
    assert_eq!((header.digest, header.digest_salt), ([1; 20], [2; 32]));
    for (number, slot) in (0..).zip(&header.slots) {
        assert!(slot.enabled && slot.salt == [3; 32] && slot.stripes == 4000, "{slot:?}");
        assert_eq!((slot.iterations, slot.key_material_offset_sectors), (1000 + number, 8 + number * 1000));
    }
}
