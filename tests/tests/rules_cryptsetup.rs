//! The rules of the format, held against the real cryptsetup: what it makes is read, what breaks a rule it rejects too.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "../../luks/tests/vectors/image.rs"]
mod image;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use block::{BlockIo, Bytes, Direct, FileDisk, MemDisk, OpenMode};
use image::{METADATA_LEN, METADATA_SIZE, area, binary, copy, vectors};
use luks::binary::Position;
use luks::env::{EnvError, Rng};
use luks::repair::{ForeignSignature, plan, repair};
use luks::{Limits, Metadata, load, load_unlocked};
use promises::skip::needs_programs;

const DISK: u64 = 32 << 20;

/// Whether cryptsetup takes the image for LUKS2. It may rewrite a broken copy, so it gets a file of its own.
fn cryptsetup_accepts(folder: &Path, head: &[u8]) -> bool {
    let path = folder.join("vector.img");
    std::fs::write(&path, head).expect("write image");
    File::options().write(true).open(&path).expect("open image").set_len(DISK).expect("grow image");
    let mut command = Command::new("cryptsetup");
    command.args(["luksDump", "--disable-locks"]).arg(&path).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run cryptsetup").success()
}

fn we_accept(head: &[u8]) -> bool {
    let disk = MemDisk::new(Bytes(DISK));
    disk.write_at(Bytes(0), head, false).expect("write");
    load_unlocked(&disk, &Limits::default()).is_ok()
}

#[test]
fn cryptsetup_rejects_what_breaks_a_rule() {
    if !needs_programs("cryptsetup_rejects_what_breaks_a_rule", &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut differ = Vec::new();
    for vector in vectors(image::RULES).into_iter().filter(|vector| !vector.stricter) {
        let head = image::image(vector.json.as_bytes());
        let (ours, theirs) = (we_accept(&head), cryptsetup_accepts(folder.path(), &head));
        if ours != theirs || ours == vector.recovered.is_empty() {
            let rule = vector.rule.as_deref().unwrap_or("none");
            differ.push(format!("{}: rule {rule}: we accept {ours}, cryptsetup {theirs}", vector.name));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn cryptsetup_accepts_what_keeps_the_rules_also_after_our_rewrite() {
    if !needs_programs("cryptsetup_accepts_what_keeps_the_rules_also_after_our_rewrite", &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut differ = Vec::new();
    for vector in vectors(image::VALID) {
        let rewritten = Metadata::parse(&vector.json, Bytes(METADATA_SIZE)).expect("valid").to_text();
        for (text, kind) in [(&vector.json, "as it is"), (&rewritten, "rewritten")] {
            let head = image::image(text.as_bytes());
            let (ours, theirs) = (we_accept(&head), cryptsetup_accepts(folder.path(), &head));
            if !(ours && theirs) {
                differ.push(format!("{} {kind}: we accept {ours}, cryptsetup {theirs}", vector.name));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn json_text_at_the_edge_is_judged_alike() {
    if !needs_programs("json_text_at_the_edge_is_judged_alike", &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let text = image::base("plain").to_string();
    let nested = |levels: usize, inner: &str| {
        let nest = format!("{}{inner}{}", "{\"x\":".repeat(levels), "}".repeat(levels));
        format!("{},\"x\":{nest}}}", &text[..text.len() - 1])
    };
    let wrong_tokens = text.replace("\"tokens\":{}", "\"tokens\":5");
    let room = METADATA_LEN - 4096 - text.len();
    let cases = [
        ("space before", format!(" {text}"), false),
        ("space behind", format!("{text} \n\t"), true),
        ("text twice", format!("{text}{text}"), false),
        ("letter behind", format!("{text}x"), false),
        ("pretty", serde_json::to_string_pretty(&image::base("plain")).expect("text"), true),
        ("one NUL", format!("{text}{}", " ".repeat(room - 1)), true),
        ("no NUL", format!("{text}{}", " ".repeat(room)), false),
        ("31 levels and a number", nested(30, "1"), true),
        ("32 levels, empty", nested(30, "{}"), true),
        ("32 levels and a number", nested(31, "1"), false),
        ("33 levels, empty", nested(31, "{}"), false),
        ("last duplicate wins", format!("{},\"tokens\":{{}}}}", &wrong_tokens[..wrong_tokens.len() - 1]), true),
    ];
    let mut differ = Vec::new();
    for (name, text, valid) in &cases {
        let head = image::image(text.as_bytes());
        let (ours, theirs) = (we_accept(&head), cryptsetup_accepts(folder.path(), &head));
        if (ours, theirs) != (*valid, *valid) {
            differ.push(format!("{name}: we accept {ours}, cryptsetup {theirs}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn one_broken_or_stale_copy_is_no_loss_for_either() {
    if !needs_programs("one_broken_or_stale_copy_is_no_loss_for_either", &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let area = area(image::base("plain").to_string().as_bytes());
    let primary = |seqid| copy(&binary(Position::Primary, seqid), &area);
    let secondary = |seqid| copy(&binary(Position::Secondary, seqid), &area);
    let broken = |mut copy: Vec<u8>| {
        copy[448] ^= 1;
        copy
    };
    let cases = [
        ("both well", [primary(3), secondary(3)]),
        ("primary newer", [primary(4), secondary(3)]),
        ("secondary newer", [primary(3), secondary(4)]),
        ("primary broken", [broken(primary(3)), secondary(3)]),
        ("secondary broken", [primary(3), broken(secondary(3))]),
        ("both broken", [broken(primary(3)), broken(secondary(3))]),
        ("no primary", [vec![0; METADATA_LEN], secondary(3)]),
    ];
    for (name, copies) in cases {
        let head = copies.concat();
        assert_eq!(we_accept(&head), cryptsetup_accepts(folder.path(), &head), "{name}");
    }
}

struct Counted;

impl Rng for Counted {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        for (at, byte) in buf.iter_mut().enumerate() {
            *byte = at.to_le_bytes()[0];
        }
        Ok(())
    }
}

#[test]
fn cryptsetup_images_of_every_size_are_read_and_repaired() {
    let test = "cryptsetup_images_of_every_size_are_read_and_repaired";
    if !needs_programs(test, &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let (path, key) = (folder.path().join("made.img"), folder.path().join("key"));
    std::fs::write(&key, "correct horse").expect("key");
    for metadata_kib in [16u64, 32, 64, 128, 256, 512, 1024, 2048, 4096] {
        File::create(&path).expect("image").set_len(DISK).expect("image");
        let size = format!("--luks2-metadata-size={metadata_kib}k");
        cryptsetup(
            &["luksFormat", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "-q", &size],
            &[&path, &key],
        );
        let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
        let disk = FileDisk::open(&path, &mode).expect("open");
        let header = load(&disk, &Limits::default()).expect("load");
        assert!(header.health().is_healthy(), "{:?}", header.health());
        assert_eq!(header.metadata_size(), Bytes::from_kib(metadata_kib));
        assert_eq!(header.seqid(), 3);

        disk.write_at(Bytes(0), &[0; 4096], false).expect("wipe the primary");
        let header = load(&disk, &Limits::default()).expect("found by its offset");
        assert_eq!(header.position(), Position::Secondary);
        assert!(header.health().advice().expect("advice").starts_with("primary copy broken: run `luksctl repair`"));
        let planned = plan(&header);
        assert_eq!((planned.source, planned.seqid), (Position::Secondary, 3));
        repair(&disk, &Counted, &Limits::default(), ForeignSignature::Refuse, &planned).expect("repair");
        assert!(load(&disk, &Limits::default()).expect("load").health().is_healthy());
        drop(disk);
        cryptsetup(&["open", "--test-passphrase", "--key-file"], &[&key, &path]);
    }
}

fn cryptsetup(arguments: &[&str], paths: &[&Path]) {
    let output = Command::new("cryptsetup").args(arguments).args(paths).output().expect("run cryptsetup");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
