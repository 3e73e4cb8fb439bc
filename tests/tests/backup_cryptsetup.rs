//! Header backup, restore and erase with cryptsetup on the other side: the same file byte for byte, each restores the
//! other's, and cryptsetup opens what we restored and nothing of what we erased.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip::needs_programs;

const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// A rig with a second key and an image of cryptsetup's, 8 MiB of header in it.
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

    /// A container of cryptsetup's, made with `options`.
    fn formatted(&self, image: &str, options: &[&str]) {
        std::fs::File::create(self.path(image)).unwrap().set_len(10 << 20).unwrap();
        let mut arguments = vec!["luksFormat", "--offset", "8192"];
        arguments.extend(options);
        arguments.extend(CHEAP);
        arguments.extend([image, "key"]);
        succeed(&mut self.cryptsetup(&arguments));
    }

    /// Whether cryptsetup opens the image with this key file.
    fn opens(&self, image: &str, key: &str) -> bool {
        run(&mut self.cryptsetup(&["open", "--test-passphrase", "-d", key, image])).status.success()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::write(self.path(to), self.bytes(from)).unwrap();
    }

    /// The command fails with this code, says `words` and a hint, and `image` stays as it is.
    fn refused(&self, image: &str, arguments: &[&str], code: i32, words: &str) {
        let before = self.bytes(image);
        let output = run(&mut self.ours(arguments));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && said.contains("\nhint: "), "{arguments:?}: {words:?} is missing in {said}");
        assert!(self.bytes(image) == before, "{arguments:?} changed the image");
        assert_eq!(left_over(&self.path(".")), Vec::<PathBuf>::new(), "{arguments:?}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Recovery files in a folder.
fn left_over(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    listed.filter(|path| path.to_string_lossy().contains("recovery")).collect()
}

/// Whether the test can run here.
fn can(test: &str) -> bool {
    needs_programs(test, &["cryptsetup"])
}

const LUKS2: [&str; 2] = ["--type", "luks2"];

#[test]
fn our_backup_is_cryptsetups_and_each_restores_the_others() {
    if !can("our_backup_is_cryptsetups_and_each_restores_the_others") {
        return;
    }
    let bench = Bench::new("backup");
    for (kind, options) in [("luks2", &LUKS2[..]), ("large", &["--luks2-metadata-size", "64k"])] {
        let image = format!("{kind}.img");
        let (image, theirs, ours) = (image.as_str(), format!("{kind}.theirs"), format!("{kind}.ours"));
        bench.formatted(image, options);
        succeed(&mut bench.cryptsetup(&["luksHeaderBackup", image, "--header-backup-file", &theirs]));
        succeed(&mut bench.ours(&["header", "backup", image, &ours]));
        assert!(bench.bytes(&ours) == bench.bytes(&theirs), "{kind}: another backup than cryptsetup's");
        assert_eq!(bench.path(&ours).metadata().unwrap().permissions().mode() & 0o777, 0o400);
        succeed(&mut bench.ours(&["luksHeaderBackup", image, "--header-backup-file", &format!("{kind}.alias")]));
        assert!(bench.bytes(&format!("{kind}.alias")) == bench.bytes(&theirs));

        // Ours back with cryptsetup, cryptsetup's back with us, after a change of the passphrase.
        let original = bench.bytes(image);
        for by_us in [false, true] {
            let mut change = vec!["luksChangeKey", image, "key2", "-d", "key"];
            change.extend(CHEAP);
            succeed(&mut bench.cryptsetup(&change));
            assert!(!bench.opens(image, "key") && bench.opens(image, "key2"));
            if by_us {
                succeed(&mut bench.ours(&["-q", "header", "restore", image, &theirs]));
            } else {
                succeed(&mut bench.cryptsetup(&["luksHeaderRestore", image, "--header-backup-file", &ours]));
            }
            assert!(bench.bytes(image) == original, "{kind}, by us {by_us}: not what it was");
            assert!(bench.opens(image, "key") && !bench.opens(image, "key2"));
        }
        assert_eq!(left_over(&bench.path(".")), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_header_that_is_gone_comes_back_with_its_data() {
    if !can("a_header_that_is_gone_comes_back_with_its_data") {
        return;
    }
    let bench = Bench::new("gone");
    bench.formatted("image", &LUKS2);
    let plaintext: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(bench.path("plain"), &plaintext).unwrap();
    succeed(&mut bench.ours(&["copy-in", "image", "plain", "-d", "key"]));
    succeed(&mut bench.ours(&["header", "backup", "image", "backup"]));
    let mut bytes = bench.bytes("image");
    bytes[..1 << 20].fill(0);
    std::fs::write(bench.path("image"), &bytes).unwrap();
    assert!(!bench.opens("image", "key"));
    let plan = succeed(&mut bench.ours(&["header", "restore", "--dry-run", "--json", "image", "backup"])).stdout;
    let plan: serde_json::Value = serde_json::from_slice(&plan).unwrap();
    assert!(plan["concerns"][0].as_str().unwrap().contains("no LUKS header"), "{plan}");
    assert_eq!((plan["grave"].as_bool(), plan["restored"].as_bool()), (Some(false), Some(false)));
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "backup"]));
    assert!(bench.opens("image", "key"));
    succeed(&mut bench.ours(&["copy-out", "image", "out", "-d", "key"]));
    assert!(bench.bytes("out").starts_with(&plaintext));
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    if !can("what_is_wrong_is_named_and_changes_nothing") {
        return;
    }
    let bench = Bench::new("wrong");
    bench.formatted("image", &LUKS2);
    bench.formatted("other", &LUKS2);
    bench.formatted("large", &["--luks2-metadata-size", "64k"]);
    for image in ["image", "other", "large"] {
        succeed(&mut bench.ours(&["header", "backup", image, &format!("{image}.bak")]));
    }
    let restore = |file: &'static str| ["-q", "header", "restore", "image", file];
    // A backup of another device; one that is forced to be taken.
    bench.refused("image", &restore("other.bak"), 1, "another container");
    bench.refused("image", &restore("large.bak"), 1, "another container");
    let good = bench.bytes("image.bak");
    let made = |name: &str, bytes: &[u8]| std::fs::write(bench.path(name), bytes).unwrap();
    made("short.bak", &good[..good.len() - 4096]);
    made("tiny.bak", &good[..1000]);
    made("long.bak", &[&good[..], &[0; 512]].concat());
    made("text.bak", b"this is no backup");
    made("empty.bak", b"");
    for (name, at) in [("primary.bak", 5000), ("secondary.bak", 16384 + 5000), ("magic.bak", 1)] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        made(name, &flipped);
    }
    for (name, words) in [
        ("short.bak", "cut short"),
        ("tiny.bak", ""),
        ("long.bak", "bytes long"),
        ("text.bak", "no LUKS header"),
        ("empty.bak", "no LUKS header"),
        ("primary.bak", "primary header copy"),
        ("secondary.bak", "secondary header copy"),
        ("magic.bak", "primary header copy"),
    ] {
        bench.refused("image", &["-q", "header", "restore", "image", name], 1, words);
    }
    bench.refused("image", &["-q", "header", "restore", "image", "missing.bak"], 4, "missing.bak");
    bench.refused("image", &["-q", "header", "restore", "image", "."], 1, "no regular file");
    // Nobody can be asked, and nobody said that nothing shall be asked.
    bench.refused("image", &["header", "restore", "image", "image.bak"], 1, "nothing was changed");
    bench.refused("image", &["erase", "image"], 1, "nothing was changed");
    // The file of a backup is never one that exists, and never written through a link.
    std::os::unix::fs::symlink(bench.path("elsewhere"), bench.path("link")).unwrap();
    for name in ["image.bak", "link", "image"] {
        bench.refused("image", &["header", "backup", "image", name], 5, "exists");
    }
    assert!(!bench.path("elsewhere").exists());
    bench.refused("image", &["header", "backup", "image", "no-folder/file"], 4, "no-folder");
    bench.refused("image", &["header", "backup", "image", "/sys/backup"], 4, "/sys/backup");
    // The recovery file cannot be written where it is wanted.
    let nowhere = ["-q", "header", "restore", "image", "image.bak", "--recovery-file", "no-folder/file"];
    bench.refused("image", &nowhere, 1, "could not be kept aside");
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "image.bak", "--no-recovery-file"]));
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "other.bak", "--force"]));
    assert!(bench.bytes("image")[..good.len()] == bench.bytes("other.bak"));
    // What a crash left is a backup like any other, and is neither overwritten nor removed by the run that restores it.
    made("image.luks-recovery", &good);
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "image.luks-recovery", "--force"]));
    assert!(bench.bytes("image")[..good.len()] == good && bench.bytes("image.luks-recovery") == good);
    assert_eq!(left_over(&bench.path(".")).len(), 1);
}

#[test]
fn a_device_in_use_is_not_restored() {
    if !can("a_device_in_use_is_not_restored") || !promises::skip::needs_fuse("a_device_in_use_is_not_restored") {
        return;
    }
    let bench = Bench::new("busy");
    bench.formatted("image", &LUKS2);
    // A backup is taken of an open volume, too.
    let device = bench.rig.open(&bench.path("image"), "busy");
    assert!(device.exists());
    succeed(&mut bench.ours(&["header", "backup", "image", "image.bak"]));
    bench.refused("image", &["-q", "header", "restore", "image", "image.bak"], 5, "open");
    bench.rig.close("busy");
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "image.bak"]));
}

#[test]
fn what_we_erase_cryptsetup_does_not_open() {
    if !can("what_we_erase_cryptsetup_does_not_open") {
        return;
    }
    let bench = Bench::new("erase");
    bench.formatted("image", &LUKS2);
    let mut add = vec!["luksAddKey", "image", "key2", "-d", "key"];
    add.extend(CHEAP);
    succeed(&mut bench.cryptsetup(&add));
    // A slot whose key belongs to no segment stays.
    let mut unbound = vec!["luksAddKey", "--unbound", "--key-size", "512", "-S", "7", "image", "key2", "-d", "key"];
    unbound.extend(CHEAP);
    succeed(&mut bench.cryptsetup(&unbound));
    succeed(&mut bench.ours(&["header", "backup", "image", "backup"]));
    bench.copy("image", "twin");
    let report = succeed(&mut bench.ours(&["-q", "erase", "--json", "image"])).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["destroyed"], serde_json::json!([0, 1]));
    succeed(&mut bench.cryptsetup(&["luksErase", "twin"]));
    for key in ["key", "key2"] {
        assert!(!bench.opens("image", key), "{key}");
    }
    let dump = |image: &str| {
        let dumped = succeed(&mut bench.cryptsetup(&["luksDump", "--dump-json-metadata", image])).stdout;
        serde_json::from_slice::<serde_json::Value>(&dumped).unwrap()
    };
    assert_eq!(dump("image"), dump("twin"), "another metadata than after cryptsetup's luksErase");
    assert_eq!(dump("image")["keyslots"].as_object().unwrap().keys().collect::<Vec<_>>(), ["7"]);
    succeed(&mut bench.cryptsetup(&["open", "--test-passphrase", "--unbound", "-S", "7", "-d", "key2", "image"]));
    // Once more finds nothing; the backup brings everything back.
    succeed(&mut bench.ours(&["-q", "luksErase", "image"]));
    succeed(&mut bench.ours(&["-q", "header", "restore", "image", "backup"]));
    assert!(bench.opens("image", "key") && bench.opens("image", "key2"));
}
