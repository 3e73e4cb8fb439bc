//! Fuzz targets as plain functions: each takes any bytes, and panics only on a finding.
//!
//! | function | input | promise |
//! |---|---|---|
//! | [`binary_header()`] | a place and the bytes of a binary header | an accepted header survives being written and read |
//! | [`luks1_header()`] | the length of a device and the bytes of a LUKS1 header | an accepted header keeps every bound that later code relies on, and is written as it was read |
//! | [`json_area()`] | JSON text | both copies around it load or are refused by a rule; an accepted one keeps every bound that later code relies on, and survives a rewrite on the disk |
//! | [`af_merge()`] | hash, seed, key | merge undoes split; arbitrary stripes merge to one and the same key |
//! | [`key_file()`] | source, offset, size, content | the key is what a plain model of luks2-format §11.2 says |
//! | [`open_path()`] | patches to a small image | from loading to reading and writing blocks: nothing but an explicit write changes a byte, a wrong passphrase never opens, an untouched image always does |
//! | [`round_trip()`] | JSON text | metadata that are read are written back as they were |
//! | [`nbd()`] | what an NBD client sends | the server keeps to its memory, and the disk below does not depend on its buffers; read-only stays as it was |
//! | [`edits()`] | edits of a small container | a model says after each which keyslots, names and passphrases there are |
//!
//! [`TARGETS`] say which rules of the format an input broke: the corpora together break every one, which `tests/tests/corpus.rs` replays on a stable compiler. That test also writes the seeds, one for each vector of
//! `luks/tests/vectors` and the few that it states itself:
//!
//! ```text
//! LUKS_WRITE_SEEDS=1 cargo test -p promises --test corpus
//! tests/fuzz SECONDS      # every target; what the fuzzer adds goes below fuzz/target, a finding to fuzz/artifacts
//! ```
//!
//! To keep a finding, copy its input to `corpus/TARGET/` under a name that says what it found.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a fuzz target stops at a finding")]

use std::collections::BTreeSet;

use luks::{CopyState, Error, Health, Rule};

mod af_merge;
mod binary_header;
mod edits;
mod image;
mod json_area;
mod key_file;
mod luks1_header;
mod nbd;
mod open_path;
mod round_trip;
mod surroundings;

/// Rules of the format that an input broke.
pub type Rules = BTreeSet<Rule>;

/// Runs one target and says which rules its input broke.
pub type Target = fn(&[u8]) -> Rules;

/// Every target by its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("binary_header", binary_header::run),
    ("json_area", json_area::run),
    ("af_merge", af_merge::run),
    ("key_file", key_file::run),
    ("open_path", open_path::run),
    ("luks1_header", luks1_header::run),
    ("round_trip", round_trip::run),
    ("edits", edits::run),
    ("nbd", nbd::run),
];

/// Parses a binary header.
pub fn binary_header(input: &[u8]) {
    binary_header::run(input);
}

/// Loads both copies around a JSON text.
pub fn json_area(input: &[u8]) {
    json_area::run(input);
}

/// Splits and merges keys.
pub fn af_merge(input: &[u8]) {
    af_merge::run(input);
}

/// Reads a key file.
pub fn key_file(input: &[u8]) {
    key_file::run(input);
}

/// Parses a LUKS1 header.
pub fn luks1_header(input: &[u8]) {
    luks1_header::run(input);
}

/// Opens a patched image.
pub fn open_path(input: &[u8]) {
    open_path::run(input);
}

/// Reads metadata and writes them back.
pub fn round_trip(input: &[u8]) {
    round_trip::run(input);
}

/// Edits a container, beside a model of it.
pub fn edits(input: &[u8]) {
    edits::run(input);
}

/// Speaks NBD with a client.
pub fn nbd(input: &[u8]) {
    nbd::run(input);
}

/// The image that the input of [`open_path()`] patches: seeds are written with it at hand.
pub fn open_path_image(argon2: bool) -> &'static [u8] {
    open_path::template_image(argon2)
}

/// The rules that an error names.
fn rules_of(error: &Error) -> Rules {
    match error {
        Error::NoValidCopy { health } => rules_of_health(health),
        Error::Invalid(violation) | Error::InvalidLuks1(violation) => Rules::from([violation.rule]),
        _ => Rules::new(),
    }
}

/// The rules that broken copies break.
fn rules_of_health(health: &Health) -> Rules {
    let states = [&health.primary, &health.secondary].into_iter();
    states
        .filter_map(|state| match state {
            CopyState::Bad { reason } => Some(reason.rule),
            _ => None,
        })
        .collect()
}
