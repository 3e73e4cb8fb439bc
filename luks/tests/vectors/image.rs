//! Builds header images from JSON: a base, a patch, two binary headers and their checksums.
#![allow(clippy::expect_used, clippy::panic, reason = "test data that is wrong stops the test")]

use luks::binary::{BinaryHeader, Position, SALT_LEN};
use luks::hash::HashAlg;
use serde_json::Value;

pub(crate) const BASES: [(&str, &str); 2] =
    [("plain", include_str!("plain.json")), ("reencrypt", include_str!("reencrypt.json"))];
pub(crate) const RULES: &str = include_str!("rules.json");
pub(crate) const VALID: &str = include_str!("valid.json");
/// Size of one copy in every image made here.
pub(crate) const METADATA_SIZE: u64 = METADATA_LEN as u64;
/// The same as a length in memory.
pub(crate) const METADATA_LEN: usize = 0x4000;

/// One test vector: a base and what is changed in it.
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) rule: Option<String>,
    /// Why this crate rejects what cryptsetup 2.6.1 accepts.
    pub(crate) stricter: bool,
    /// Members that are ignored so that the header can be used.
    pub(crate) recovered: Vec<String>,
    pub(crate) json: String,
}

/// The vectors in `text`.
pub(crate) fn vectors(text: &str) -> Vec<Vector> {
    let list: Vec<Value> = serde_json::from_str(text).expect("vector file");
    list.iter().map(vector).collect()
}

fn vector(entry: &Value) -> Vector {
    let text = |name: &str| entry[name].as_str().map(str::to_owned);
    let base = entry["base"].as_str().expect("base");
    let rule = text("rule");
    let recovered = entry["recovered"].as_array().into_iter().flatten();
    Vector {
        name: format!("{}/{}", rule.as_deref().unwrap_or("valid"), text("case").expect("case")),
        rule,
        stricter: text("stricter").is_some(),
        recovered: recovered.map(|name| name.as_str().expect("member").to_owned()).collect(),
        json: patched(base, &entry["patch"]).to_string(),
    }
}

/// The JSON of a base.
pub(crate) fn base(name: &str) -> Value {
    let (_, text) = BASES.iter().find(|(has, _)| *has == name).expect("known base");
    serde_json::from_str(text).expect("base")
}

/// A base with the members of `patch` set, or deleted where the value is `"$delete"`.
pub(crate) fn patched(base_name: &str, patch: &Value) -> Value {
    let mut root = base(base_name);
    for (path, value) in patch.as_object().expect("patch") {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = &mut root;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            at = &mut at[parent];
        }
        let map = at.as_object_mut().unwrap_or_else(|| panic!("{path}: no object"));
        if value == "$delete" {
            map.shift_remove(name).unwrap_or_else(|| panic!("{path}: nothing to delete"));
        } else {
            map.insert(name.to_owned(), value.clone());
        }
    }
    root
}

/// The JSON area that holds `text`.
pub(crate) fn area(text: &[u8]) -> Vec<u8> {
    let mut area = text.to_vec();
    area.resize(METADATA_LEN - 4096, 0);
    area
}

/// The binary header of a copy, ready to be bent.
pub(crate) fn binary(position: Position, seqid: u64) -> BinaryHeader {
    let offset = if position == Position::Primary { 0 } else { METADATA_SIZE };
    BinaryHeader {
        position,
        hdr_size: block::Bytes(METADATA_SIZE),
        seqid,
        label: b"vector".to_vec(),
        csum_alg: b"sha256".to_vec(),
        salt: [if position == Position::Primary { 1 } else { 2 }; SALT_LEN],
        uuid: b"01234567-89ab-cdef-0123-456789abcdef".to_vec(),
        subsystem: Vec::new(),
        hdr_offset: block::Bytes(offset),
        csum: [0; 64],
    }
}

/// One copy: 4096 bytes of binary header with a right checksum, and the area.
pub(crate) fn copy(header: &BinaryHeader, area: &[u8]) -> Vec<u8> {
    let mut header = header.clone();
    header.csum = [0; 64];
    let alg = HashAlg::parse(std::str::from_utf8(&header.csum_alg).expect("name")).expect("hash");
    let len = alg.digest_len_bytes();
    let mut csum = [0; 64];
    alg.digest(&[&header.to_bytes(), area], &mut csum[..len]);
    header.csum = csum;
    [&header.to_bytes()[..], area].concat()
}

/// Both copies with the same text.
pub(crate) fn image(text: &[u8]) -> Vec<u8> {
    let area = area(text);
    [Position::Primary, Position::Secondary].map(|position| copy(&binary(position, 3), &area)).concat()
}
