//! The strict policy through every verb of the real `luksctl` that reads a header: with the header before its data, on its own,
//! in the second copy when the first is broken, and in LUKS1. Nothing is unlocked, shown, exported or written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use promises::Rig;
use promises::forge::rewrite;
use promises::rig::{run, succeed};

/// Verbs, in words; behind `|` what follows the image. `KEY` and the like are files of the rig.
const VERBS: [&str; 41] = [
    "open --test-passphrase --key-file KEY",
    "open --test-passphrase --volume-key-file VOLUME-KEY",
    "open --test-passphrase --token-only",
    "open --backend fuse --no-loop --key-file KEY | refused",
    "open --backend fuse --no-loop --volume-key-file VOLUME-KEY | refused",
    "open --backend dm --key-file KEY | refused",
    "mount --key-file KEY | FOLDER",
    "copy-out --key-file KEY | NEW",
    "copy-in --force --key-file KEY | OTHER",
    "keyslot test --key-file KEY",
    "keyslot add --key-file KEY | OTHER",
    "keyslot add --volume-key-file VOLUME-KEY | OTHER",
    "keyslot add --unbound --key-size 256 | OTHER",
    "keyslot remove -q --key-file KEY",
    "keyslot kill -q | 0",
    "keyslot change --key-file KEY | OTHER",
    "keyslot change --in-place --key-file KEY | OTHER",
    "keyslot convert --key-file KEY",
    "keyslot priority | 0 prefer",
    "keyslot name | 0 text",
    "keyslot list",
    "token list",
    "token add --key-description key",
    "token import --json-file TOKEN",
    "token export --token-id 0",
    "token remove --token-id 0",
    "token assign --token-id 0 -S 0",
    "token unassign --token-id 0 -S 0",
    "key export -q --key-file KEY | NEW",
    "flags",
    "flags --allow-discards",
    "label --label text",
    "uuid -q --uuid 11111111-2222-4333-8444-555555555555",
    "erase -q",
    "repair -q",
    "dump",
    "dump --json",
    "is-luks",
    "header backup | NEW",
    "convert -q --no-recovery-file --type luks1",
    "convert -q --no-recovery-file --type luks2",
];

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Words with the names of files put in.
fn words(rig: &Rig, verb: &str) -> Vec<PathBuf> {
    let files = [("KEY", "key"), ("OTHER", "other"), ("TOKEN", "token"), ("FOLDER", "folder"), ("NEW", "new")];
    let files: BTreeMap<&str, &str> = files.into_iter().chain([("VOLUME-KEY", "volume-key")]).collect();
    let word = |word: &str| match files.get(word) {
        Some(&"key") => rig.key().to_path_buf(),
        Some(file) => rig.path(file),
        None => PathBuf::from(word),
    };
    verb.split_whitespace().map(word).collect()
}

/// Every verb says no for the policy's reason, and neither `header` nor anything else is written.
fn every_verb_refuses(rig: &Rig, what: &str, image: &Path, detached: Option<&Path>) {
    let header = detached.unwrap_or(image);
    let before = std::fs::read(header).unwrap();
    for verb in VERBS {
        let (verb, behind) = verb.split_once('|').unwrap_or((verb, ""));
        let mut command = rig.luksctl(&words(rig, verb));
        command.args(["--policy", "strict"]);
        detached.map(|header| command.arg("--header").arg(header));
        let output = run(command.arg(image).args(words(rig, behind)));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {verb}: {said}");
        // What LUKS1 does not have at all is told before anything else.
        let refused = said.contains("refuses this header") || said.contains("LUKS1 has no ");
        assert!(refused, "{what}: {verb}: {said}");
        assert!(!said.contains("LUKS1 has no ") || what == "LUKS1", "{what}: {verb}: {said}");
        assert!(std::fs::read(header).unwrap() == before, "{what}: {verb} wrote to the header");
        assert!(!rig.path("new").exists(), "{what}: {verb} made a file");
    }
    assert_eq!(std::fs::read_dir(rig.run_dir()).unwrap().count(), 0, "{what}: something was opened");
}

#[test]
fn no_verb_lets_a_header_through_that_strict_refuses() {
    let rig = Rig::new("policyverbs");
    for (name, content) in [("other", "another passphrase"), ("token", r#"{"type":"x","keyslots":[]}"#)] {
        std::fs::write(rig.path(name), content).unwrap();
    }
    std::fs::write(rig.path("volume-key"), [7; 64]).unwrap();
    std::fs::create_dir(rig.path("folder")).unwrap();
    let cheap =
        ["format", "-q", "--pbkdf-force-iterations", "1000", "--pbkdf", "pbkdf2", "--size", "20M", "--key-file"];
    let format = |name: &str, version: &str| {
        let image = rig.path(name);
        succeed(rig.luksctl(&cheap).arg(rig.key()).args(["--type", version]).arg(&image));
        image
    };
    // Everything that costs an attacker is in order, but the machine would have to find 4 GiB.
    let costly = |json: &mut serde_json::Value| {
        json["keyslots"]["0"]["kdf"] = serde_json::json!({
            "type": "argon2id", "time": 4, "memory": 4 << 20, "cpus": 4, "salt": json["keyslots"]["0"]["kdf"]["salt"]
        });
    };
    let image = format("image", "luks2");
    rewrite(&image, costly);
    every_verb_refuses(&rig, "LUKS2", &image, None);

    let header = rig.path("header");
    std::fs::copy(&image, &header).unwrap();
    let data = rig.path("data");
    std::fs::write(&data, vec![0; 1 << 20]).unwrap();
    rewrite(&header, |json| json["segments"]["0"]["offset"] = "0".into());
    every_verb_refuses(&rig, "a detached header", &data, Some(&header));

    let mut bytes = std::fs::read(&image).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    every_verb_refuses(&rig, "the second copy", &image, None);

    every_verb_refuses(&rig, "LUKS1", &format("old", "luks1"), None);
}
