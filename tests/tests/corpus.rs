//! The fuzz corpora, replayed without a fuzzer: no input is a finding, and together they break every rule of the format.
//!
//! `LUKS_WRITE_SEEDS=1 cargo test -p promises --test corpus` writes the seeds first: one for each vector of
//! `luks/tests/vectors`, and those stated below, which no patch of JSON can express. Other files in the corpora stay.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

#[allow(dead_code, unreachable_pub, reason = "the library of the fuzz targets, in which all of this is public")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzzing;
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the format crate")]
#[path = "../../luks/tests/vectors/image.rs"]
mod image;
#[allow(unreachable_pub, reason = "shared with the tests of the format crate")]
#[path = "../../luks/tests/luks1/image.rs"]
mod luks1;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use luks::Rule;
use luks::binary::Position;
use serde_json::{Value, json};

/// One input of a corpus: the target, the file's name, the bytes.
type Seed = (&'static str, String, Vec<u8>);

/// All corpora together, so that they stay fit for a repository.
const CORPORA_BYTES_MAX: u64 = 1 << 20;

#[test]
fn no_input_is_a_finding_and_every_rule_is_broken() {
    if std::env::var_os("LUKS_WRITE_SEEDS").is_some() {
        write_seeds();
    }
    let (mut broken, mut total_bytes) = (BTreeSet::new(), 0);
    for (name, run) in fuzzing::TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "no corpus for {name}");
        for path in inputs {
            let input = fs::read(&path).unwrap();
            total_bytes += input.len() as u64;
            // A finding panics; the test's output then ends with the file it was in.
            println!("{}", path.display());
            broken.extend(run(&input));
        }
    }
    let missing: Vec<&Rule> = Rule::ALL.iter().filter(|rule| !broken.contains(rule)).collect();
    assert!(missing.is_empty(), "no input breaks {missing:?}: write the seeds anew, see the head of this file");
    assert!(total_bytes < CORPORA_BYTES_MAX, "{total_bytes} bytes");
}

#[test]
fn every_target_has_a_program() {
    let programs = fuzz_folder().join("fuzz_targets");
    let mut found: Vec<String> = fs::read_dir(programs)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let mut expected: Vec<&str> = fuzzing::TARGETS.iter().map(|(name, _)| *name).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// The patches of an untouched image lead to a volume: without this, [`fuzzing::open_path`] would try nothing.
#[test]
fn a_changed_byte_is_seen() {
    for (flags, patches) in [(0, patch(24, b"x")), (2, patch(200_000, b"x"))] {
        let input = [&[flags][..], &patches].concat();
        let broken = fuzzing::TARGETS[4].1(&input);
        assert_eq!(broken.contains(&Rule::Csum), flags == 0, "{broken:?}");
    }
}

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz")
}

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = fuzz_folder().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn write_seeds() {
    let seeds = [
        json_seeds(),
        binary_seeds(),
        af_seeds(),
        key_file_seeds(),
        open_path_seeds(),
        luks1_seeds(),
        round_trip_seeds(),
        edits_seeds(),
        nbd_seeds(),
    ];
    for (target, name, bytes) in seeds.concat() {
        let folder = fuzz_folder().join("corpus").join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

fn json_seeds() -> Vec<Seed> {
    let mut texts: Vec<(String, Vec<u8>)> = [image::RULES, image::VALID]
        .into_iter()
        .flat_map(image::vectors)
        .map(|vector| (vector.name.replace('/', "--"), vector.json.into_bytes()))
        .collect();
    for (name, base) in image::BASES {
        texts.push((format!("base--{name}"), base.trim_end().as_bytes().to_vec()));
    }
    let plain = image::base("plain").to_string();
    let patched = |patch: Value| image::patched("plain", &patch).to_string();
    let deep = format!("{}1{}", "{\"x\":".repeat(32), "}".repeat(32));
    let mut full = plain.clone().into_bytes();
    full.resize(0x3000, b' ');
    // Each number is longer when it is written again.
    let growing = patched(json!({"growing": vec!["@"; 1500]})).replace("\"@\"", "1e9");
    let larger = json!({
        "config/json_size": "28672", "config/keyslots_size": "16711680",
        "keyslots/0/area/offset": "65536", "keyslots/1/area/offset": "323584"
    });
    let long = json!({"config/keyslots_size": "134217728", "segments/0/offset": "1073741824"});
    let small = json!({
        "keyslots/0/key_size": 4, "keyslots/1/key_size": 4,
        "keyslots/0/kdf/iterations": 100, "digests/0/iterations": 100
    });
    texts.extend([
        ("json-start--space".to_owned(), format!(" {plain}").into_bytes()),
        ("json-end--no-zero".to_owned(), full),
        ("json-tail--stray-byte".to_owned(), format!("{plain}\0x").into_bytes()),
        ("json-depth--33-levels".to_owned(), deep.into_bytes()),
        ("json-syntax--equals-sign".to_owned(), plain.replace(':', "=").into_bytes()),
        ("json-fits--numbers-that-grow".to_owned(), growing.into_bytes()),
        ("device-size--long-keyslots-area".to_owned(), patched(long).into_bytes()),
        ("valid--larger-copy".to_owned(), format!("{}\n", patched(larger)).into_bytes()),
        ("valid--keys-that-are-tried".to_owned(), patched(small).into_bytes()),
    ]);
    texts.into_iter().map(|(name, text)| ("json_area", name, text)).collect()
}

/// Headers that are valid.
fn round_trip_seeds() -> Vec<Seed> {
    let valid = image::vectors(image::VALID).into_iter().map(|vector| (vector.name.replace('/', "--"), vector.json));
    let bases = image::BASES.map(|(name, base)| (format!("base--{name}"), base.trim_end().to_owned()));
    valid.chain(bases).map(|(name, text)| ("round_trip", name, text.into_bytes())).collect()
}

/// Steps as the table in `fuzz/src/edits.rs` reads them: operation and two choices.
#[rustfmt::skip]
const EDITS: [(&str, &[[u8; 3]]); 28] = [
    ("nothing", &[]),
    ("full", &[[0, 1, 0], [0, 2, 0], [0, 3, 0], [0, 4, 0], [5, 6, 0], [3, 1, 0], [5, 6, 0], [5, 6, 16]]),
    ("named-ids", &[[0, 1, 159], [0, 2, 133], [0, 2, 133], [0, 3, 161], [3, 5, 0], [0, 3, 0]]),
    ("last", &[[3, 0, 0], [4, 0, 0], [3, 0, 1], [0, 1, 0], [4, 0, 1], [4, 1, 1], [0, 0, 0]]),
    ("change", &[[5, 5, 0], [5, 5, 0], [5, 11, 8], [5, 17, 9], [5, 2, 64]]),
    ("change-moves", &[[11, 0, 17], [16, 0, 1], [5, 5, 133], [5, 1, 131], [15, 0, 3]]),
    ("convert", &[[5, 0, 64], [5, 0, 80], [0, 1, 64], [5, 6, 88], [5, 6, 25]]),
    ("same-passphrase-twice", &[[0, 0, 0], [0, 0, 0], [4, 0, 0], [4, 0, 0], [4, 0, 0], [5, 0, 0]]),
    ("unbound", &[[2, 1, 0], [2, 5, 0], [2, 10, 0], [5, 6, 0], [19, 0, 0], [3, 1, 0]]),
    ("unbound-digests", &[
        [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [3, 3, 0],
        [2, 1, 0], [4, 1, 0],
    ]),
    ("texts", &[[7, 1, 0], [7, 2, 0], [7, 3, 0], [7, 0, 0], [7, 1, 1], [7, 2, 1], [7, 1, 2], [7, 0, 2]]),
    ("tokens", &[
        [11, 0, 1], [11, 0, 17], [11, 0, 33], [11, 0, 49], [11, 0, 65], [11, 0, 81], [11, 0, 97], [11, 0, 113],
    ]),
    ("tokens-fill-the-metadata", &[
        [11, 0, 97], [11, 0, 97], [11, 0, 97], [11, 0, 97], [11, 0, 97], [0, 1, 0], [0, 2, 0], [18, 127, 0],
        [17, 0, 1],
    ]),
    ("tokens-change", &[[11, 131, 16], [11, 131, 0], [11, 161, 0], [13, 3, 33], [13, 4, 0], [14, 3, 0], [14, 3, 0]]),
    ("tokens-tie", &[
        [11, 0, 17], [0, 1, 0], [15, 0, 1], [15, 0, 128], [15, 0, 128], [3, 1, 0], [15, 0, 6], [15, 5, 0],
    ]),
    ("tokens-of-a-missing-keyslot", &[[11, 0, 18], [0, 1, 0], [11, 0, 18], [3, 1, 0], [13, 0, 34]]),
    ("names", &[
        [16, 0, 1], [16, 0, 194], [16, 0, 3], [16, 0, 4], [16, 7, 1], [0, 1, 0], [16, 1, 1], [3, 1, 0], [16, 0, 0],
    ]),
    ("names-shared", &[[0, 1, 0], [11, 0, 51], [11, 0, 49], [16, 0, 1], [11, 0, 48], [5, 0, 0]]),
    ("priorities", &[[0, 0, 0], [0, 1, 0], [17, 1, 1], [17, 0, 2], [4, 0, 0], [17, 5, 0], [17, 0, 0]]),
    ("priorities-hide-all", &[[17, 0, 2], [4, 0, 1], [5, 5, 0], [5, 5, 8], [0, 2, 97]]),
    ("flags", &[[18, 127, 0], [18, 0, 0], [18, 85, 0]]),
    ("stale", &[[10, 0, 0], [0, 1, 0], [10, 0, 0], [3, 0, 0], [9, 0, 0], [4, 1, 0], [10, 0, 0]]),
    ("erase", &[[0, 1, 0], [20, 0, 0], [16, 0, 1], [19, 0, 0], [19, 0, 0], [21, 0, 0], [3, 0, 0]]),
    ("restore", &[[0, 1, 0], [20, 0, 0], [3, 0, 0], [21, 0, 1], [21, 0, 0], [4, 1, 0]]),
    ("restore-other-uuid", &[[20, 0, 0], [7, 1, 2], [21, 0, 1], [7, 1, 2], [21, 0, 0]]),
    ("restore-behind-a-handle", &[[20, 0, 0], [0, 1, 0], [7, 1, 0], [21, 0, 2], [3, 1, 0], [21, 0, 3]]),
    ("damage", &[
        [22, 0, 0], [22, 1, 0], [22, 2, 1], [22, 3, 1], [22, 4, 2], [22, 5, 2], [22, 6, 3], [22, 7, 3], [22, 8, 4],
        [22, 9, 4], [22, 10, 5], [22, 11, 5], [22, 12, 6], [22, 13, 6], [22, 14, 7], [22, 15, 7],
    ]),
    ("half-removed", &[[0, 1, 0], [16, 1, 1], [23, 1, 0], [23, 1, 0], [2, 1, 0], [23, 1, 0], [23, 0, 0]]),
];

fn edits_seeds() -> Vec<Seed> {
    EDITS.iter().map(|(name, steps)| ("edits", (*name).to_owned(), steps.concat())).collect()
}

/// Conversations as [`fuzzing::nbd`] takes them.
fn nbd_seeds() -> Vec<Seed> {
    let seed =
        |name: &str, flags: u8, said: &[Vec<u8>]| ("nbd", name.to_owned(), [vec![flags], said.concat()].concat());
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length, data].concat()
    };
    let request = |command: u16, flags: u16, offset: u64, len_bytes: u32| {
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        [&head[..], &[7; 8], &offset.to_be_bytes(), &len_bytes.to_be_bytes()].concat()
    };
    let hello = || vec![0, 0, 0, 3];
    let long_write = || [request(1, 1, 100, 5000), vec![9; 5000]].concat();
    let all = [
        long_write(),
        request(0, 0, 50, 6000),
        request(3, 0, 0, 0),
        request(4, 1, 512, 2048),
        request(6, 3, 1000, 3000),
        request(6, 0, 4096, 8192),
        request(6, 16, 4096, 8192),
        request(7, 8, 0, 65536),
        request(0, 4, 0, 512),
        request(0, 0, 65535, 2),
        request(5, 0, 0, 1),
        request(2, 0, 0, 0),
    ];
    let contexts = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5][..], b"base:"].concat();
    let info = [0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 3, 0, 1, 0, 2, 0, 3];
    vec![
        seed("every-command", 2, &all),
        seed("every-command-read-only", 3, &all),
        seed("a-write-that-breaks-off", 2, &[long_write()[..4000].to_vec()]),
        seed("a-length-that-lies", 2, &[request(1, 0, 0, u32::MAX)]),
        seed("simple-replies", 0, &[hello(), option(7, &[0; 6]), request(0, 0, 0, 65536), long_write()]),
        seed("oldest-way", 0, &[vec![0, 0, 0, 1], option(1, b"disk"), request(0, 0, 1, 1)]),
        seed(
            "haggling",
            0,
            &[
                hello(),
                option(3, &[]),
                option(5, &[]),
                option(8, &[]),
                option(9, &contexts),
                option(6, &info),
                option(11, &[]),
                option(2, &[]),
            ],
        ),
        seed("an-option-that-lies", 0, &[hello(), [b"IHAVEOPT", &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff][..]].concat()]),
    ]
}

fn binary_seeds() -> Vec<Seed> {
    let primary = image::binary(Position::Primary, 3).to_bytes();
    let secondary = image::binary(Position::Secondary, 3).to_bytes();
    let seed = |name: &str, flags: u8, offset: u64, bytes: &[u8]| {
        let used = &bytes[..512];
        ("binary_header", name.to_owned(), [&[flags][..], &offset.to_be_bytes(), used].concat())
    };
    let bent = |at: usize, byte: u8| {
        let mut bytes = primary;
        bytes[at] ^= byte;
        bytes
    };
    let mut texts = primary;
    for (at, len) in [(24, 48), (72, 32), (168, 40), (208, 48)] {
        texts[at..at + len].fill(b'x');
    }
    vec![
        seed("valid--primary", 0, 0, &primary),
        seed("valid--secondary", 1, 0x4000, &secondary),
        seed("valid--own-offset", 3, 0, &secondary),
        seed("valid--texts-without-end", 0, 0, &texts),
        seed("magic--of-the-other-copy", 1, 0x4000, &primary),
        seed("version--3", 0, 0, &bent(7, 1)),
        seed("hdr-offset--elsewhere", 1, 0x8000, &secondary),
        seed("hdr-size--too-large", 0, 0, &bent(12, 1)),
        seed("hdr-size--no-sector", 0, 0, &bent(15, 1)),
        seed("secondary-offset--larger-than-its-place", 1, 0x4000, &{
            let mut bytes = secondary;
            bytes[14] = 0x80;
            bytes
        }),
    ]
}

fn luks1_seeds() -> Vec<Seed> {
    let seed = |vector: luks1::Vector| {
        let name = format!("{}--{}", vector.rule, vector.what.replace(' ', "-"));
        ("luks1_header", name, [&vector.device_sectors.to_be_bytes()[..], &vector.header()].concat())
    };
    luks1::vectors().into_iter().map(seed).collect()
}

fn af_seeds() -> Vec<Seed> {
    let key = |len: u8| (0..len).collect::<Vec<u8>>();
    let seed = |name: String, hash: u8, seed: u8, key: &[u8]| ("af_merge", name, [&[hash, seed][..], key].concat());
    let mut seeds: Vec<Seed> = (0u8..)
        .zip(luks::HashAlg::all())
        .map(|(number, hash)| seed(hash.name().to_owned(), number, number, &key(33)))
        .collect();
    seeds.extend([1u8, 20, 32, 64].map(|len| seed(format!("sha256-{len}-bytes"), 2, len, &key(len))));
    seeds.push(seed("no-key".to_owned(), 2, 0, &[]));
    seeds
}

fn key_file_seeds() -> Vec<Seed> {
    let limit = (8u64 << 20).to_be_bytes();
    let seed = |name: &str, parts: &[&[u8]]| ("key_file", name.to_owned(), parts.concat());
    vec![
        seed("whole", &[&[0, 0, 0], b"key\nwith newlines\n"]),
        seed("empty", &[&[0, 0, 0]]),
        seed("offset-and-size", &[&[2, 3, 4], b"0123456789"]),
        seed("offset-at-the-end", &[&[0, 10, 0], b"0123456789"]),
        seed("offset-behind-the-end", &[&[0, 11, 0], b"0123456789"]),
        seed("size-behind-the-end", &[&[2, 3, 8], b"0123456789"]),
        seed("size-zero", &[&[2, 0, 0], b"0123456789"]),
        seed("pipe-with-offset", &[&[3, 3, 4], b"0123456789"]),
        seed("pipe-too-short", &[&[1, 11, 0], b"0123456789"]),
        seed("offset-of-64-bits", &[&[4], &[0xff; 8], &[0; 8], b"0123456789"]),
        seed("size-of-64-bits", &[&[6], &[0; 8], &[0xff; 8], b"0123456789"]),
        seed("pipe-with-64-bits", &[&[7], &[0xff; 8], &[0xff; 8], b"0123456789"]),
        seed("exactly-the-limit", &[&[0xf8, 0, 0], b"0"]),
        seed("one-over-the-limit", &[&[0xf8, 0, 0], b"01"]),
        seed("one-over-the-limit-less-one", &[&[0xf8, 1, 0], b"01"]),
        seed("size-is-the-limit", &[&[0xfe], &[0; 8], &limit, b"01"]),
    ]
}

/// A patch as [`fuzzing::open_path`] reads it.
fn patch(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let offset = u32::try_from(offset).unwrap().to_be_bytes();
    let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&offset[1..], &len, bytes].concat()
}

/// Patches that put `to` in the place of `from` in the text of both copies; what follows moves.
fn replaced(argon2: bool, from: &str, to: &str) -> Vec<u8> {
    let area = &fuzzing::open_path_image(argon2)[0x1000..0x4000];
    let end = area.iter().position(|byte| *byte == 0).unwrap();
    let before = std::str::from_utf8(&area[..end]).unwrap();
    assert!(before.contains(from), "no {from} in {before}");
    let mut after = before.replace(from, to).into_bytes();
    after.resize(after.len().max(before.len()), 0);
    let same = before.bytes().zip(&after).take_while(|(one, other)| one == *other).count();
    [0x1000, 0x5000].map(|start| patch(start + same, &after[same..])).concat()
}

fn open_path_seeds() -> Vec<Seed> {
    const CUT: usize = 0xff_ffff;
    let seed = |name: &str, flags: u8, patches: &[Vec<u8>]| {
        ("open_path", name.to_owned(), [&[flags][..], &patches.concat()].concat())
    };
    let text = |name: &str, from: &str, to: &str| seed(name, 2, &[replaced(false, from, to)]);
    let no_primary = patch(0, b"gone");
    let offset_zero = replaced(false, "\"offset\":\"163840\"", "\"offset\":\"0\"");
    vec![
        seed("untouched--pbkdf2", 0, &[]),
        seed("untouched--argon2id", 1, &[]),
        seed("csum--one-byte", 0, &[patch(600, b"x")]),
        seed("csum-alg--unknown", 2, &[patch(72, b"sha257")]),
        seed("csum-alg--sha512", 2, &[patch(72, b"sha512")]),
        seed("magic--no-primary", 2, std::slice::from_ref(&no_primary)),
        seed("magic--no-copy", 2, &[no_primary.clone(), patch(0x4000, b"gone")]),
        seed("version--1", 2, &[patch(7, &[1])]),
        seed("copy-size--longer-than-the-device", 2, &[patch(13, &[0x40, 0, 0])]),
        seed("copy-size--cut-in-the-secondary", 2, &[patch(CUT, &[0, 40])]),
        seed("device-size--cut-in-the-keyslots-area", 2, &[patch(CUT, &[0, 100])]),
        seed("data--none", 2, &[patch(CUT, &[1, 64])]),
        seed("data--one-sector", 2, &[patch(CUT, &[1, 65])]),
        seed("data--one-byte", 0, &[patch(0x3_0000, b"x")]),
        seed("seqid--secondary-newer", 2, &[patch(0x4000 + 23, &[9])]),
        seed("keyslot-area--one-byte", 0, &[patch(0x9000, b"x")]),
        seed("segment-offset--zero", 2, std::slice::from_ref(&offset_zero)),
        seed("segment-offset--zero-without-primary", 2, &[offset_zero, no_primary]),
        seed("argon2--too-much-memory", 3, &[replaced(true, "\"memory\":32", "\"memory\":99")]),
        seed("argon2--no-lanes", 3, &[replaced(true, "\"cpus\":1", "\"cpus\":0")]),
        text("iterations--none", "\"iterations\":1000", "\"iterations\":0"),
        text("iterations--too-many", "\"iterations\":1000", "\"iterations\":9999"),
        text("sector-size--4096", "\"sector_size\":512", "\"sector_size\":4096"),
        text("sector-size--not-a-power", "\"sector_size\":512", "\"sector_size\":1536"),
    ]
}
