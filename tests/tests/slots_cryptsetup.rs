//! Keyslot operations with cryptsetup, both ways: priority, unbound keys, conversion, volume keys in files, names, flags, the
//! change in place. What one of us writes the other one shows, opens and edits; what is refused changes no byte.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::needs_programs;
use serde_json::Value;

const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// A rig with an image and the key files `key` (keyslot 0) and `other`.
struct Bench {
    rig: Rig,
}

impl Bench {
    fn new(name: &str, options: &[&str]) -> Option<Bench> {
        if !needs_programs(&format!("slots_cryptsetup {name}"), &["cryptsetup"]) {
            return None;
        }
        let rig = Rig::new(name);
        rig.format_cheap(&rig.path("image"), "17M", options);
        fs::write(rig.path("other"), b"another passphrase").unwrap();
        Some(Bench { rig })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }

    fn image(&self) -> PathBuf {
        self.path("image")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.image()).unwrap()
    }

    /// luksctl in the rig's folder.
    fn ours(&self, arguments: &[&str]) -> Command {
        let mut command = self.rig.luksctl(arguments);
        command.current_dir(self.path("."));
        command
    }

    /// cryptsetup in the rig's folder.
    fn theirs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("cryptsetup");
        command.arg("-q").args(arguments).current_dir(self.path(".")).stdin(Stdio::null());
        command
    }

    fn dump(&self) -> String {
        text(&succeed(&mut self.theirs(&["luksDump", "image"])))
    }

    fn slot(&self, id: u64) -> Value {
        let json = text(&succeed(&mut self.ours(&["keyslot", "list", "--json", "image"])));
        let list: Value = serde_json::from_str(&json).unwrap();
        list["keyslots"].as_array().unwrap().iter().find(|slot| slot["id"] == id).cloned().unwrap_or_default()
    }

    /// Whether the key file opens, by cryptsetup and by us; both must say the same.
    fn opens(&self, key: &str, more: &[&str]) -> bool {
        let arguments = [&["open", "--test-passphrase", "image", "--key-file", key][..], more].concat();
        let answers = [run(&mut self.theirs(&arguments)), run(&mut self.ours(&arguments))];
        let [theirs, ours] = answers.map(|output| output.status.code());
        // Version 2.6.1 has 1 instead of 2 for a wrong passphrase where a keyslot for nothing came last.
        assert_eq!(theirs == Some(0), ours == Some(0), "{arguments:?}");
        ours == Some(0)
    }

    /// The verb ends with `code` and leaves every byte as it was.
    fn refused(&self, arguments: &[&str], code: i32) {
        let before = self.bytes();
        let output = run(&mut self.ours(arguments));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(self.bytes() == before, "{arguments:?} changed the image");
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn joined<'a>(verb: &[&'a str]) -> Vec<&'a str> {
    [verb, &CHEAP].concat()
}

fn lines_of<'a>(dump: &'a str, slot: &str) -> Vec<&'a str> {
    let from = dump.lines().skip_while(|line| !line.starts_with(slot));
    from.take(1)
        .chain(
            dump.lines().skip_while(|line| !line.starts_with(slot)).skip(1).take_while(|line| line.starts_with('\t')),
        )
        .collect()
}

#[test]
fn priorities_are_the_same_for_both() {
    let Some(bench) = Bench::new("priority", &[]) else { return };
    for (word, shown) in [("prefer", "preferred"), ("ignore", "ignored"), ("normal", "normal")] {
        succeed(&mut bench.ours(&["keyslot", "priority", "image", "0", word]));
        assert!(bench.dump().contains(&format!("Priority:   {shown}")), "{word}");
        succeed(&mut bench.theirs(&["config", "image", "--priority", "prefer", "-S", "0"]));
        assert_eq!(bench.slot(0)["priority"], "preferred");
        succeed(&mut bench.ours(&["config", "image", "--priority", word, "-S", "0"]));
        assert_eq!(bench.slot(0)["priority"], shown);
        assert_eq!(bench.opens("key", &[]), word != "ignore", "{word}");
    }
    bench.refused(&["keyslot", "priority", "image", "5", "prefer"], 1);
    bench.refused(&["keyslot", "priority", "image", "32", "prefer"], 1);
    bench.refused(&["config", "image", "--priority", "prefer"], 1);
}

#[test]
fn unbound_keys_are_kept_for_both() {
    let Some(bench) = Bench::new("unbound", &[]) else { return };
    fs::write(bench.path("own"), b"an own key of thirty-two bytes..").unwrap();
    let add = ["keyslot", "add", "image", "--unbound", "other", "-S", "3", "--volume-key-file", "own"];
    succeed(&mut bench.ours(&joined(&add)));
    let random = ["luksAddKey", "image", "--unbound", "other", "-S", "4", "--key-size", "256"];
    succeed(&mut bench.theirs(&joined(&random)));
    succeed(&mut bench.ours(&joined(&[
        "luksAddKey",
        "image",
        "--unbound",
        "-d",
        "other",
        "-S",
        "5",
        "--key-size",
        "128",
    ])));
    let dump = bench.dump();
    assert!(
        ["  3: luks2 (unbound)", "  4: luks2 (unbound)", "  5: luks2 (unbound)"].iter().all(|line| dump.contains(line))
    );
    assert_eq!((bench.slot(3)["bound"].as_bool(), bench.slot(0)["bound"].as_bool()), (Some(false), Some(true)));
    assert!(!bench.opens("other", &[]) && bench.opens("other", &["--unbound"]));
    for id in ["3", "4", "5"] {
        let file = |who: &str| format!("{who}-{id}");
        let theirs = ["luksDump", "image", "--unbound", "-S", id, "-d", "other", "--volume-key-file", &file("theirs")];
        succeed(&mut bench.theirs(&theirs));
        succeed(&mut bench.ours(&["key", "export", "image", &file("ours"), "--keyslot", id, "-d", "other"]));
        let mut as_theirs = theirs;
        let third = file("third");
        as_theirs[8] = &third;
        succeed(&mut bench.ours(&as_theirs));
        let [one, two, three] = [file("theirs"), file("ours"), third].map(|name| fs::read(bench.path(&name)).unwrap());
        assert!(one == two && two == three, "keyslot {id}");
    }
    assert_eq!(fs::read(bench.path("ours-3")).unwrap(), fs::read(bench.path("own")).unwrap());
    assert_eq!(fs::read(bench.path("ours-5")).unwrap().len(), 16);
    bench.refused(&["luksDump", "image", "--unbound", "-S", "0", "-d", "key", "--volume-key-file", "x"], 1);
    bench.refused(&joined(&["keyslot", "add", "image", "--unbound", "other"]), 1);
    bench.refused(&joined(&["keyslot", "add", "image", "--unbound", "other", "-S", "3", "-s", "256"]), 1);
    // The passphrase of a key that opens nothing is no proof that the volume still can be opened.
    succeed(&mut bench.ours(&joined(&["keyslot", "add", "image", "-d", "key", "--new-keyfile", "key", "-S", "1"])));
    bench.refused(&["keyslot", "kill", "image", "0", "-d", "other"], 2);
    bench.refused(&["keyslot", "kill", "-q", "image", "32"], 1);
    succeed(&mut bench.ours(&["keyslot", "kill", "image", "3", "-d", "key"]));
    succeed(&mut bench.theirs(&["luksKillSlot", "image", "5", "-d", "key"]));
    assert_eq!([3, 5, 4].map(|id| bench.slot(id).is_null()), [true, true, false]);
}

#[test]
fn a_converted_keyslot_opens_for_both_and_keeps_what_is_tied_to_it() {
    let Some(bench) = Bench::new("convert", &[]) else { return };
    succeed(&mut bench.ours(&["keyslot", "priority", "image", "0", "prefer"]));
    succeed(&mut bench.ours(&["keyslot", "name", "image", "0", "mine"]));
    let argon =
        ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32", "--pbkdf-parallel", "1"];
    let cipher = ["--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "256"];
    succeed(bench.ours(&["keyslot", "convert", "image", "-d", "key"]).args(argon).args(cipher));
    let dump = bench.dump();
    for said in [
        "PBKDF:      argon2id",
        "Cipher:     aes-cbc-essiv:sha256",
        "Priority:   preferred",
        "0: luksctl-slot\n\tKeyslot:    0",
    ] {
        assert!(dump.contains(said), "{said}: {dump}");
    }
    assert!(bench.opens("key", &["-S", "0"]));
    succeed(&mut bench.theirs(&joined(&["luksConvertKey", "image", "-d", "key"])));
    assert_eq!((&bench.slot(0)["kdf"]["type"], &bench.slot(0)["name"]["text"]), (&"pbkdf2".into(), &"mine".into()));
    assert!(bench.opens("key", &["-S", "0"]));
    succeed(bench.ours(&["luksConvertKey", "image", "-d", "key", "-S", "0"]).args(argon));
    assert!(bench.opens("key", &["-S", "0"]));
    bench.refused(&joined(&["keyslot", "convert", "image", "-d", "other"]), 2);
    bench.refused(&joined(&["keyslot", "convert", "image", "-d", "key", "-S", "7"]), 1);
}

#[test]
fn a_volume_key_in_a_file_serves_both() {
    let Some(bench) = Bench::new("volume-key", &[]) else { return };
    succeed(&mut bench.ours(&["key", "export", "image", "ours", "-d", "key"]));
    let dump = ["luksDump", "image", "--dump-volume-key", "-d", "key", "--volume-key-file"];
    succeed(bench.theirs(&dump).arg("theirs"));
    succeed(bench.ours(&dump).arg("third"));
    let key = fs::read(bench.path("ours")).unwrap();
    assert!(key == fs::read(bench.path("theirs")).unwrap() && key == fs::read(bench.path("third")).unwrap());
    assert_eq!(fs::metadata(bench.path("ours")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        run(&mut bench.ours(&["key", "export", "image", "ours", "-d", "key"])).status.code(),
        Some(5),
        "overwritten"
    );
    assert_eq!(run(&mut bench.ours(&["key", "export", "image", "no", "-d", "other"])).status.code(), Some(2));
    assert!(!bench.path("no").exists());
    let piped = succeed(&mut bench.ours(&["key", "export", "image", "-", "-d", "key"]));
    assert!(piped.stdout == key);

    // With every keyslot gone the key still opens, and makes a keyslot; theirs and ours.
    succeed(&mut bench.ours(&["keyslot", "kill", "-q", "--force", "image", "0"]));
    assert!(!bench.opens("key", &[]));
    fs::write(bench.path("short"), &key[..63]).unwrap();
    let test = ["open", "--test-passphrase", "image", "--volume-key-file"];
    succeed(bench.ours(&test).arg("ours"));
    assert_eq!(run(bench.ours(&test).arg("short")).status.code(), Some(2));
    let add = |new: &'static str, volume_key: &'static str| {
        joined(&["luksAddKey", "image", new, "--volume-key-file", volume_key])
    };
    bench.refused(&add("other", "short"), 2);
    succeed(&mut bench.ours(&add("other", "ours")));
    assert!(bench.opens("other", &["-S", "0"]));
    succeed(&mut bench.theirs(&add("key", "ours")));
    assert!(bench.opens("key", &["-S", "1"]));

    // A new container for an old key.
    let format = ["format", "-q", "copy", "--size", "17M", "-d", "key", "--volume-key-file"];
    assert_eq!(run(bench.ours(&joined(&format)).arg("short")).status.code(), Some(1));
    assert!(!bench.path("copy").exists());
    let mut format = joined(&format);
    format.insert(8, "ours");
    succeed(&mut bench.ours(&format));
    succeed(bench.theirs(&["luksDump", "copy", "--dump-volume-key", "-d", "key", "--volume-key-file"]).arg("again"));
    assert!(fs::read(bench.path("again")).unwrap() == key);
}

#[test]
fn names_and_flags_are_kept_and_shown_by_both() {
    let Some(bench) = Bench::new("names", &[]) else { return };
    succeed(&mut bench.ours(&joined(&["keyslot", "add", "image", "-d", "key", "other", "--name", "the safe"])));
    let name = bench.slot(1)["name"].clone();
    assert!(name["text"] == "the safe" && name["made_by"].is_string() && name["made_unix_s"].is_u64(), "{name}");
    let dump = text(&succeed(&mut bench.ours(&["dump", "image"])));
    assert!(lines_of(&dump, "  1: luks2").iter().any(|line| line.starts_with("\tName:       the safe (")), "{dump}");
    assert!(bench.dump().contains("  0: luksctl-slot\n\tKeyslot:    1"));
    // A name that another hand wrote is shown without what a terminal would obey.
    let hostile = r#"{"type":"luksctl-slot","keyslots":["0"],"name":"a\u001b]0;x\u0007\nb"}"#;
    let import = promises::rig::run_with_input(&mut bench.theirs(&["token", "import", "image"]), hostile.as_bytes());
    assert!(import.status.success());
    let list = succeed(&mut bench.ours(&["keyslot", "list", "image"]));
    assert!(!list.stdout.contains(&0x1b) && text(&list).contains(r"a\u{1b}]0;x"), "{list:?}");
    for bad in ["a\nb", &"x".repeat(101)] {
        bench.refused(&["keyslot", "name", "image", "1", bad], 1);
        bench.refused(&joined(&["keyslot", "add", "image", "-d", "key", "other", "--name", bad]), 1);
    }
    bench.refused(&["keyslot", "name", "image", "9", "x"], 1);
    // Whoever kills the keyslot takes it out of the token.
    succeed(&mut bench.theirs(&["luksKillSlot", "image", "1", "-d", "key"]));
    succeed(&mut bench.ours(&["keyslot", "name", "image", "0", "renamed"]));
    assert_eq!(bench.slot(0)["name"]["text"], "renamed");
    assert_eq!(bench.dump().matches("luksctl-slot").count(), 1, "a name of nothing stays");
    succeed(&mut bench.ours(&["keyslot", "name", "image", "0", ""]));
    assert!(!bench.dump().contains("luksctl-slot"));

    succeed(&mut bench.ours(&["flags", "image", "--allow-discards", "--perf-high_priority"]));
    assert!(bench.dump().contains("Flags:       \tallow-discards"), "{}", bench.dump());
    assert_eq!(text(&succeed(&mut bench.ours(&["flags", "image"]))), "allow-discards\nhigh_priority\n");
    succeed(&mut bench.theirs(&["config", "image", "--label", "x"]));
    assert_eq!(text(&succeed(&mut bench.ours(&["flags", "image"]))), "allow-discards\nhigh_priority\n");
    succeed(&mut bench.ours(&["flags", "image", "--none"]));
    assert!(bench.dump().contains("(no flags)"));
    bench.refused(&["flags", "image", "--none", "--allow-discards"], 1);
}

#[test]
fn a_change_without_room_is_refused_or_in_place() {
    let Some(bench) = Bench::new("in-place", &["--luks2-keyslots-size", "256K"]) else { return };
    let change = joined(&["keyslot", "change", "image", "other", "-d", "key"]);
    bench.refused(&change, 1);
    bench.refused(&joined(&["keyslot", "change", "image", "other", "-d", "other", "--in-place"]), 2);
    let changed = succeed(bench.ours(&change).arg("--in-place"));
    assert!(String::from_utf8_lossy(&changed.stderr).contains("overwritten"), "no warning");
    assert!(bench.opens("other", &["-S", "0"]) && !bench.opens("key", &[]));
    // With room there is nothing to warn of, and theirs goes on with it.
    succeed(&mut bench.theirs(&joined(&["luksChangeKey", "image", "key", "-d", "other"])));
    assert!(bench.opens("key", &["-S", "0"]));
}

#[test]
fn a_requirement_is_shown_kept_and_refused() {
    let Some(bench) = Bench::new("requirement", &[]) else { return };
    let image = block::FileDisk::open(
        &bench.image(),
        &block::OpenMode { read_only: true, direct: block::Direct::Never, exclusive: false },
    );
    let mut header = luks::load(&image.unwrap(), &luks::Limits::default()).unwrap().metadata().clone();
    header.config.mandatory.push("time-travel".into());
    patch(&bench.image(), &header.to_text());
    assert!(bench.dump().contains("time-travel"));
    assert!(text(&succeed(&mut bench.ours(&["dump", "image"]))).contains("Requirements:\ttime-travel"));
    for refused in [
        &["keyslot", "priority", "image", "0", "prefer"][..],
        &["keyslot", "name", "image", "0", "x"],
        &["token", "add", "image", "--key-description", "x"],
        &["flags", "image", "--allow-discards"],
        &joined(&["keyslot", "convert", "image", "-d", "key"]),
        &joined(&["keyslot", "add", "image", "-d", "key", "other"]),
    ] {
        bench.refused(refused, 1);
    }
}

/// Writes other JSON into both copies of the header, with checksums that fit.
fn patch(image: &Path, json: &str) {
    use sha2::{Digest as _, Sha256};
    const COPY: usize = 16 << 10;
    let mut bytes = fs::read(image).unwrap();
    for copy in [0, COPY] {
        let copy = &mut bytes[copy..copy + COPY];
        copy[4096..].fill(0);
        copy[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        copy[448..512].fill(0);
        let sum = Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&sum);
    }
    fs::write(image, bytes).unwrap();
}
