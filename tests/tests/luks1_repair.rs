//! Damaged LUKS1 headers: what cryptsetup repairs is repaired here to the same bytes; what only we repair, cryptsetup opens.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::needs_programs;
use serde_json::Value;

const COST: [&str; 2] = ["--pbkdf-force-iterations", "1000"];
const SIZE: u64 = 4 << 20;
/// Byte offsets of a keyslot's fields.
const STATE: usize = 0;
const PLACE: usize = 40;
const STRIPES: usize = 44;
const REPORT: i32 = 10;

/// An image of cryptsetup's, with keyslots 0 (`first`), 1 and 6 (`second`).
struct Sample {
    rig: Rig,
    image: PathBuf,
    sound: Vec<u8>,
}

impl Sample {
    fn new(name: &str) -> Sample {
        let rig = Rig::new(name);
        for (file, passphrase) in [("first", "one"), ("second", "two")] {
            fs::write(rig.path(file), passphrase).unwrap();
        }
        let image = rig.path("image");
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let (first, second) = (rig.path("first"), rig.path("second"));
        succeed(cryptsetup(&["luksFormat", "--type", "luks1"]).args(COST).arg(&image).arg(&first));
        for id in ["1", "6"] {
            let add = ["luksAddKey", "-S", id, "--key-file"];
            succeed(cryptsetup(&add).arg(&first).args(COST).arg(&image).arg(&second));
        }
        let sound = fs::read(&image).unwrap();
        Sample { rig, image, sound }
    }

    /// The image with one number of a keyslot changed.
    fn damaged(&self, slot: usize, field: usize, value: u32) -> Vec<u8> {
        let mut bytes = self.sound.clone();
        let at = 208 + 48 * slot + field;
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    fn repair(&self, options: &[&str]) -> (Option<i32>, Value) {
        let output = run(self.rig.luksctl(&["repair", "--json"]).args(options).arg(&self.image));
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    fn opens(&self, key: &str, slot: &str) -> bool {
        let mut command = cryptsetup(&["open", "--test-passphrase", "-S", slot, "--key-file"]);
        run(command.arg(self.rig.path(key)).arg(&self.image)).status.success()
    }
}

fn cryptsetup(arguments: &[&str]) -> Command {
    let mut command = Command::new("cryptsetup");
    command.arg("-q").args(arguments);
    command
}

fn repaired_by_cryptsetup(folder: &Path, damaged: &[u8]) -> Vec<u8> {
    let copy = folder.join("theirs");
    fs::write(&copy, damaged).unwrap();
    succeed(cryptsetup(&["repair"]).arg(&copy));
    fs::read(&copy).unwrap()
}

#[test]
fn unused_keyslots_are_repaired_as_cryptsetup_does() {
    let name = "unused_keyslots_are_repaired_as_cryptsetup_does";
    if !needs_programs(name, &["cryptsetup"]) {
        return;
    }
    let sample = Sample::new(name);
    // 520 lies inside the key material of keyslot 1.
    for (slot, field, value) in
        [(3, PLACE, 0), (3, PLACE, 999_999), (3, PLACE, 520), (7, PLACE, 1), (2, STRIPES, 0), (7, STRIPES, 3999)]
    {
        let damaged = sample.damaged(slot, field, value);
        fs::write(&sample.image, &damaged).unwrap();
        let refused = run(sample.rig.luksctl(&["dump"]).arg(&sample.image));
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("luksctl repair --dry-run"), "{refused:?}");
        let (code, planned) = sample.repair(&["--dry-run"]);
        assert_eq!((code, &planned["needs_repair"]), (Some(REPORT), &Value::Bool(true)), "{planned}");
        assert_eq!(fs::read(&sample.image).unwrap(), damaged, "a dry run wrote");
        let (code, done) = sample.repair(&["-q"]);
        assert_eq!((code, &done["repaired"]), (Some(0), &Value::Bool(true)), "{done}");
        assert_eq!(done["fields"][0]["keyslot"], slot, "{done}");
        let ours = fs::read(&sample.image).unwrap();
        assert!(ours == repaired_by_cryptsetup(&sample.rig.path(""), &damaged), "{slot} {field} {value}");
        assert!(ours == sample.sound, "{slot} {field} {value}");
        assert_eq!(sample.repair(&["--dry-run"]).0, Some(0));
    }
}

#[test]
fn used_keyslots_get_back_what_is_known_of_them() {
    let name = "used_keyslots_get_back_what_is_known_of_them";
    if !needs_programs(name, &["cryptsetup"]) {
        return;
    }
    let sample = Sample::new(name);
    for (slot, key, field, value) in [
        (1, "second", STRIPES, 0),
        (6, "second", STRIPES, 12_000),
        (0, "first", STATE, 0x00ac_71f2),
        (6, "second", STATE, 0),
        (1, "second", PLACE, 0),
        (1, "second", PLACE, 9),
        (6, "second", PLACE, u32::MAX),
    ] {
        let damaged = sample.damaged(slot, field, value);
        fs::write(&sample.image, &damaged).unwrap();
        assert!(!sample.opens(key, &slot.to_string()), "cryptsetup opens {slot} {field} {value} as it is");
        let (code, done) = sample.repair(&["-q"]);
        assert_eq!((code, &done["fields"][0]["keyslot"]), (Some(0), &Value::from(slot)), "{done}");
        assert!(fs::read(&sample.image).unwrap() == sample.sound, "{slot} {field} {value}");
        assert!(sample.opens(key, &slot.to_string()));
    }
}

#[test]
fn what_is_not_known_is_left_alone() {
    let name = "what_is_not_known_is_left_alone";
    if !needs_programs(name, &["cryptsetup"]) {
        return;
    }
    let sample = Sample::new(name);
    let key_bytes = [&sample.sound[..108], &[0xff; 4], &sample.sound[112..]].concat();
    let version = [&sample.sound[..6], &[0, 3], &sample.sound[8..]].concat();
    for damaged in [key_bytes, version, vec![0; 1 << 20]] {
        fs::write(&sample.image, &damaged).unwrap();
        assert_eq!(sample.repair(&["-q"]).0, Some(1));
        assert!(fs::read(&sample.image).unwrap() == damaged);
    }
}
