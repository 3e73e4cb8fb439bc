//! Conversions with cryptsetup on the other side: the same metadata as its own `convert` makes, its dump and its test of the
//! passphrases after ours, ours after its, and the data as it was; what cannot be converted is refused by both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::needs_programs;

const COST: [&str; 2] = ["--pbkdf-force-iterations", "1000"];
const PLAIN: [&str; 6] = ["--type", "luks2", "--sector-size", "512", "--pbkdf", "pbkdf2"];

struct Bench {
    rig: Rig,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let rig = Rig::new(name);
        std::fs::write(rig.path("key2"), b"the second key of this rig").unwrap();
        Bench { rig }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }

    fn cryptsetup<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("cryptsetup");
        command.arg("-q").args(arguments).current_dir(self.path(".")).stdin(Stdio::null());
        command
    }

    fn ours<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.rig.luksctl(arguments);
        command.current_dir(self.path("."));
        command
    }

    /// A container of cryptsetup's that `key` opens in keyslot 0 and `key2` in keyslot 5.
    fn formatted(&self, image: &str, options: &[&str]) {
        std::fs::File::create(self.path(image)).unwrap().set_len(8 << 20).unwrap();
        let mut arguments = vec!["luksFormat", image, "key"];
        arguments.extend(COST);
        arguments.extend(options);
        succeed(&mut self.cryptsetup(&arguments));
        let mut add = vec!["luksAddKey", "-S", "5", image, "key2", "-d", "key"];
        add.extend(COST);
        if options.contains(&"luks2") {
            add.extend(["--pbkdf", "pbkdf2"]);
        }
        succeed(&mut self.cryptsetup(&add));
    }

    fn opens(&self, image: &str) -> bool {
        ["key", "key2"]
            .iter()
            .all(|key| run(&mut self.cryptsetup(&["open", "--test-passphrase", "-d", key, image])).status.success())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::write(self.path(to), self.bytes(from)).unwrap();
    }

    /// cryptsetup's dump without the name of the image.
    fn dump(&self, image: &str) -> String {
        let text = String::from_utf8(succeed(&mut self.cryptsetup(&["luksDump", image])).stdout).unwrap();
        text.replace(&format!(" for {image}"), "")
    }

    fn json(&self, image: &str) -> serde_json::Value {
        let dumped = succeed(&mut self.cryptsetup(&["luksDump", "--dump-json-metadata", image])).stdout;
        serde_json::from_slice(&dumped).unwrap()
    }

    fn plaintext(&self, image: &str) -> Vec<u8> {
        let mut out = self.ours(&["copy-out", image, "-", "-d", "key"]);
        succeed(&mut out).stdout
    }
}

fn can(test: &str) -> bool {
    needs_programs(test, &["cryptsetup"])
}

#[test]
fn both_make_the_same_of_a_luks1_header() {
    if !can("both_make_the_same_of_a_luks1_header") {
        return;
    }
    let bench = Bench::new("up");
    let table: [(&str, &[&str]); 3] = [
        ("default", &["--type", "luks1"]),
        ("small-key", &["--type", "luks1", "-s", "256", "-h", "sha512"]),
        ("cbc", &["--type", "luks1", "-c", "aes-cbc-essiv:sha256", "-s", "256"]),
    ];
    for (name, options) in table {
        bench.formatted(name, options);
        let end = 4 << 20;
        let original = bench.bytes(name);
        let theirs = format!("{name}.theirs");
        bench.copy(name, &theirs);
        succeed(&mut bench.cryptsetup(&["convert", "--type", "luks2", &theirs]));
        let report = succeed(&mut bench.ours(&["-q", "convert", "--type", "luks2", "--json", name])).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["keyslots"], serde_json::json!([0, 5]), "{report}");
        assert_eq!(bench.dump(name), bench.dump(&theirs), "{name}");
        assert_eq!(bench.json(name), bench.json(&theirs), "{name}");
        assert!(bench.opens(name), "{name}: cryptsetup does not open it");
        assert!(bench.bytes(name)[end..] == original[end..], "{name}: the data changed");
        // Each takes the other's back; header and key material are then what they were.
        let keyslots_end = 4096 + 8 * 131_072;
        bench.copy(name, &theirs);
        succeed(&mut bench.cryptsetup(&["convert", "--type", "luks1", &theirs]));
        succeed(&mut bench.ours(&["-q", "convert", "--type", "luks1", name]));
        for image in [name, &theirs] {
            assert!(
                bench.bytes(image)[..keyslots_end] == original[..keyslots_end],
                "{image}: not the same LUKS1 header"
            );
            assert!(bench.opens(image), "{image}");
        }
    }
}

#[test]
fn both_make_the_same_of_a_luks2_header_and_the_data_stays() {
    if !can("both_make_the_same_of_a_luks2_header_and_the_data_stays") {
        return;
    }
    let bench = Bench::new("down");
    let options = [&PLAIN[..], &["--offset", "8192"]].concat();
    bench.formatted("image", &options);
    let plain: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(bench.path("plain"), &plain).unwrap();
    succeed(&mut bench.ours(&["copy-in", "image", "plain", "-d", "key"]));
    let before = bench.plaintext("image");
    bench.copy("image", "theirs");
    succeed(&mut bench.cryptsetup(&["convert", "--type", "luks1", "theirs"]));
    succeed(&mut bench.ours(&["-q", "convert", "--type", "luks1", "image"]));
    assert_eq!(bench.dump("image"), bench.dump("theirs"));
    assert!(bench.bytes("image")[..592] == bench.bytes("theirs")[..592], "the headers differ");
    assert!(bench.opens("image"));
    // Ours of cryptsetup's, cryptsetup's of ours.
    succeed(&mut bench.ours(&["-q", "convert", "--type", "luks2", "theirs"]));
    succeed(&mut bench.cryptsetup(&["convert", "--type", "luks2", "image"]));
    for image in ["image", "theirs"] {
        assert!(bench.opens(image), "{image}");
        assert!(bench.plaintext(image) == before && before.starts_with(&plain), "{image}: other data");
    }
}

#[test]
fn a_luks1_backup_is_cryptsetups_too() {
    if !can("a_luks1_backup_is_cryptsetups_too") {
        return;
    }
    let bench = Bench::new("luks1-backup");
    bench.formatted("image", &["--type", "luks1"]);
    succeed(&mut bench.cryptsetup(&["luksHeaderBackup", "image", "--header-backup-file", "theirs"]));
    succeed(&mut bench.ours(&["header", "backup", "image", "ours"]));
    assert!(bench.bytes("ours") == bench.bytes("theirs"));
    let original = bench.bytes("image");
    for by_us in [false, true] {
        let mut bytes = original.clone();
        bytes[..1 << 20].fill(0);
        std::fs::write(bench.path("image"), bytes).unwrap();
        if by_us {
            succeed(&mut bench.ours(&["-q", "header", "restore", "image", "theirs"]));
        } else {
            succeed(&mut bench.cryptsetup(&["luksHeaderRestore", "image", "--header-backup-file", "ours"]));
        }
        assert!(bench.bytes("image") == original && bench.opens("image"), "by us {by_us}");
    }
    // Erased by both alike, but for the noise; brought back by the backup.
    bench.copy("image", "twin");
    succeed(&mut bench.ours(&["-q", "erase", "image"]));
    succeed(&mut bench.cryptsetup(&["luksErase", "twin"]));
    assert_eq!(bench.dump("image"), bench.dump("twin"));
    assert!(!bench.opens("image"));
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "theirs"]));
    assert!(bench.bytes("image") == original && bench.opens("image"));
    // The version of backup and device is the same, or nothing happens.
    bench.formatted("two", &[&PLAIN[..], &["--offset", "8192"]].concat());
    let before = bench.bytes("two");
    let refused = run(&mut bench.ours(&["-q", "header", "restore", "--force", "two", "ours"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("LUKS version 1"), "{said}");
    assert!(bench.bytes("two") == before);
}

#[test]
fn what_cannot_be_converted_is_refused_by_both() {
    if !can("what_cannot_be_converted_is_refused_by_both") {
        return;
    }
    let bench = Bench::new("refused");
    let plain = [&PLAIN[..], &["--offset", "8192"]].concat();
    bench.formatted("base", &plain);
    let with = |name: &'static str, arguments: &[&str]| {
        bench.copy("base", name);
        succeed(&mut bench.cryptsetup(&[arguments, &[name]].concat()));
        name
    };
    let argon2 = ["luksConvertKey", "-S", "5", "--pbkdf", "argon2id", "--pbkdf-force-iterations", "4"];
    let argon2 = [&argon2[..], &["--pbkdf-memory", "64", "--pbkdf-parallel", "1", "-d", "key2"]].concat();
    let other_hash = ["luksConvertKey", "-S", "5", "--pbkdf", "pbkdf2", "--hash", "sha512", "-d", "key2"];
    let other_hash = [&other_hash[..], &COST].concat();
    let cases = [
        (with("token", &["token", "add", "--key-description", "mine"]), "luks1", "token"),
        (with("argon2", &argon2), "luks1", "keyslot 5"),
        (with("hash", &other_hash), "luks1", "keyslot 5"),
    ];
    bench.formatted("one", &["--type", "luks1"]);
    bench.formatted("sectors", &["--type", "luks2", "--sector-size", "4096", "--pbkdf", "pbkdf2"]);
    bench.formatted("copies", &[&plain[..], &["--luks2-metadata-size", "64k"]].concat());
    let more = [
        ("base", "luks2", "already"),
        ("one", "luks1", "already"),
        ("sectors", "luks1", "512"),
        ("copies", "luks1", "metadata copies"),
    ];
    for (image, to, words) in cases.into_iter().chain(more) {
        let before = bench.bytes(image);
        // 2.6.1 converts larger copies, too, to places of which LUKS1 knows nothing.
        if image != "copies" {
            let theirs = run(&mut bench.cryptsetup(&["convert", "--type", to, image]));
            assert!(!theirs.status.success(), "{image}: cryptsetup does");
        }
        let refused = run(&mut bench.ours(&["-q", "convert", "--type", to, image]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{image}: {said}");
        assert!(said.contains(words) && said.contains("\nhint: "), "{image}: {words:?} is missing in {said}");
        assert!(bench.bytes(image) == before, "{image} changed");
    }
    // Nobody can be asked.
    let unasked = run(&mut bench.ours(&["convert", "--type", "luks1", "base"]));
    assert_eq!(unasked.status.code(), Some(1));
    let listed = std::fs::read_dir(bench.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!listed.into_iter().any(|name| name.to_string_lossy().contains("recovery")), "a recovery file stayed");
}
