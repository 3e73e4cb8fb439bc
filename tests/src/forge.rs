//! Forged headers: what somebody who can write to the disk makes of a LUKS2 header, checksums right.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;

use luks::HashAlg;
use serde_json::{Value, json};

const BINARY_HEADER: usize = 4096;
const UUID: std::ops::Range<usize> = 168..208;

/// Rewrites both header copies of `image` in place with `change` applied to their JSON.
///
/// # Panics
/// If the image cannot be read or written, or has no whole header.
pub fn rewrite(image: &Path, change: impl Fn(&mut Value)) {
    rewrite_copies(image, |_, area| {
        let end = area.iter().position(|byte| *byte == 0).unwrap();
        let mut json: Value = serde_json::from_slice(&area[..end]).unwrap();
        change(&mut json);
        let text = serde_json::to_vec(&json).unwrap();
        area.fill(0);
        area[..text.len()].copy_from_slice(&text);
    });
}

/// Gives both header copies another UUID.
///
/// # Panics
/// As [`rewrite`].
pub fn swap_uuid(image: &Path, uuid: &str) {
    rewrite_copies(image, |binary, _| {
        binary[UUID].fill(0);
        binary[UUID.start..UUID.start + uuid.len()].copy_from_slice(uuid.as_bytes());
    });
}

/// The JSON of the primary copy.
///
/// # Panics
/// As [`rewrite`].
#[must_use]
pub fn metadata(image: &Path) -> Value {
    let bytes = std::fs::read(image).unwrap();
    let end = bytes[BINARY_HEADER..].iter().position(|byte| *byte == 0).unwrap();
    serde_json::from_slice(&bytes[BINARY_HEADER..BINARY_HEADER + end]).unwrap()
}

fn rewrite_copies(image: &Path, change: impl Fn(&mut [u8], &mut [u8])) {
    let mut bytes = std::fs::read(image).unwrap();
    let copy_len = usize::try_from(u64::from_be_bytes(bytes[8..16].try_into().unwrap())).unwrap();
    for start in [0, copy_len] {
        let (binary, area) = bytes[start..start + copy_len].split_at_mut(BINARY_HEADER);
        change(binary, area);
        binary[448..512].fill(0);
        let name = std::str::from_utf8(&binary[72..104]).unwrap().trim_end_matches('\0');
        let hash = HashAlg::parse(name).unwrap();
        let mut sum = vec![0; hash.digest_len_bytes()];
        hash.digest(&[binary, area], &mut sum);
        binary[448..448 + sum.len()].copy_from_slice(&sum);
    }
    // In place: a server may have this very file open.
    let mut file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all(&bytes[..2 * copy_len]).unwrap();
    file.sync_all().unwrap();
}

/// CVE-2021-4122: makes a header say that a decryption was cut short after its first mebibyte.
pub fn forge_decryption(json: &mut Value) {
    const HOT_BYTES: u64 = 1 << 20;
    let crypt = json["segments"]["0"].clone();
    let offset: u64 = crypt["offset"].as_str().and_then(|offset| offset.parse().ok()).unwrap_or_default();
    let used = json["keyslots"].as_object().into_iter().flatten().map(|(_, slot)| {
        let number = |name: &str| slot["area"][name].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        number("offset") + number("size")
    });
    let free = used.max().unwrap_or(0);
    let mut rest = crypt.clone();
    rest["offset"] = (offset + HOT_BYTES).to_string().into();
    rest["iv_tweak"] = (HOT_BYTES / 512).to_string().into();
    let mut previous = crypt;
    previous["flags"] = json!(["backup-previous"]);
    let linear = |size: Value, flag: &str| json!({ "type": "linear", "offset": offset.to_string(), "size": size, "flags": [flag] });
    json["segments"] = json!({
        "0": linear(HOT_BYTES.to_string().into(), "in-reencryption"),
        "1": rest,
        "2": previous,
        "3": linear("dynamic".into(), "backup-final"),
    });
    json["digests"]["0"]["segments"] = json!(["1", "2"]);
    json["keyslots"]["7"] = json!({
        "type": "reencrypt", "key_size": 1, "mode": "decrypt", "direction": "forward",
        "area": { "type": "checksum", "hash": "sha1", "sector_size": 4096, "offset": free.to_string(), "size": "65536" },
    });
    json["config"]["requirements"] = json!({ "mandatory": ["online-reencrypt-v2"] });
}
