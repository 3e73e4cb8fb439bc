//! Bad input: a clear message, the right code, a hint, and not one changed byte.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::desk::{CHEAP, Desk, skip};

/// Every verb that reads or changes an image, refused on it, leaves its bytes alone.
fn refused_by_all(desk: &Desk, image: &str, code: i32, words: &str) {
    let before = std::fs::read(desk.path(image)).unwrap();
    let verbs: [&[&str]; 20] = [
        &["dump", image],
        &["uuid", image],
        &["label", image, "new"],
        &["keyslot", "list", image],
        &["keyslot", "test", image, "-d", "key"],
        &["keyslot", "add", image, "key2", "-d", "key"],
        &["keyslot", "change", image, "key2", "-d", "key"],
        &["keyslot", "remove", image, "key"],
        &["keyslot", "kill", "-q", image, "0"],
        &["copy-out", image, "out", "-d", "key"],
        &["copy-in", image, "key2", "-d", "key"],
        &["repair", "-q", image],
        &["keyslot", "convert", image, "-d", "key"],
        &["keyslot", "priority", image, "0", "prefer"],
        &["keyslot", "name", image, "0", "text"],
        &["token", "list", image],
        &["token", "add", image, "--key-description", "text"],
        &["token", "remove", image, "--token-id", "0"],
        &["flags", image, "--none"],
        &["key", "export", image, "out", "-d", "key"],
    ];
    for verb in verbs {
        desk.run(verb).fails(code, words);
    }
    desk.run(&["open", image, "name", "-d", "key"]).fails(code, words);
    assert!(std::fs::read(desk.path(image)).unwrap() == before, "{image} changed");
    assert!(!desk.path("out").exists() && !desk.path("out.part").exists());
    assert!(!desk.path("run").join("name").exists(), "open left something behind");
}

#[test]
fn no_container_at_all() {
    let desk = Desk::new();
    std::fs::write(desk.path("text"), "this is no container\n".repeat(5000)).unwrap();
    refused_by_all(&desk, "text", 1, "not a LUKS device");
    std::fs::write(desk.path("empty"), "").unwrap();
    refused_by_all(&desk, "empty", 1, "luksctl: ");
}

#[test]
fn both_copies_damaged() {
    let desk = Desk::with_image();
    let mut bytes = std::fs::read(desk.path("image")).unwrap();
    bytes[5000] ^= 1;
    bytes[0x4000 + 5000] ^= 1;
    std::fs::write(desk.path("image"), bytes).unwrap();
    refused_by_all(&desk, "image", 1, "no valid LUKS2 header");
}

#[test]
fn a_truncated_image() {
    for len_bytes in [100, 5000, 0x4000, 0x9000, 16 << 20] {
        let desk = Desk::with_image();
        let file = std::fs::File::options().write(true).open(desk.path("image")).unwrap();
        file.set_len(len_bytes).unwrap();
        let before = std::fs::read(desk.path("image")).unwrap();
        for verb in [&["copy-out", "image", "out", "-d", "key"], &["open", "image", "name", "-d", "key"]] {
            desk.run(verb).ends(1);
        }
        assert!(!desk.path("out").exists());
        assert!(std::fs::read(desk.path("image")).unwrap() == before);
    }
}

#[test]
fn a_hostile_key_derivation_is_refused_before_any_work() {
    let desk = Desk::new();
    let argon = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024"];
    let mut format = vec!["format", "-q", "-d", "key", "image", "--size", "20M", "--pbkdf-parallel", "1"];
    format.extend(argon);
    desk.run(&format).ends(0);
    let test = ["keyslot", "test", "image", "-d", "key"];
    desk.run(&test).ends(0);
    for bound in [["--max-kdf-memory", "512K"], ["--max-kdf-time", "3"]] {
        let done = desk.run(&[&test[..], &bound].concat()).fails(1, "allowed are");
        assert!(done.stderr.contains("--max-kdf-"), "{done:?}");
        desk.run(&[&["open", "image", "name", "-d", "key"][..], &bound].concat()).ends(1);
    }
    desk.format("image2", &["--size", "20M"]).ends(0);
    desk.run(&["keyslot", "test", "image2", "-d", "key", "--max-kdf-iterations", "999"]).fails(1, "allowed are");
}

#[test]
fn folders_missing_files_and_devices_that_are_none() {
    let desk = Desk::new();
    for image in [".", "missing", "/dev/null"] {
        for verb in [&["dump", image][..], &["open", image, "name", "-d", "key"], &["uuid", image]] {
            let done = desk.run(verb).ends(4);
            assert!(done.stderr.starts_with("luksctl: "), "{done:?}");
        }
    }
    desk.run(&["format", "missing", "-d", "key"]).fails(4, "does not exist");
    desk.run(&["format", "UUID=00000000-0000-0000-0000-000000000000", "-d", "key"]).ends(4);
    desk.run(&["format", "missing/image", "--size", "20M", "-d", "key"]).ends(4);
    assert!(!desk.path("missing").exists());
}

#[test]
fn a_file_of_somebody_else() {
    let desk = Desk::with_image();
    // Modes do not stop root, so root tries as nobody, with a luksctl that nobody can reach.
    let everybody = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::copy(env!("CARGO_BIN_EXE_luksctl"), desk.path("luksctl")).unwrap();
    std::fs::set_permissions(desk.path(""), everybody(0o755)).unwrap();
    std::fs::set_permissions(desk.path("image"), everybody(0o444)).unwrap();
    std::fs::create_dir(desk.path("run-nobody")).unwrap();
    let before = std::fs::read(desk.path("image")).unwrap();
    let nobody = |arguments: &[&str]| {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(desk.path("luksctl"));
            command
        } else {
            Command::new(desk.path("luksctl"))
        };
        command.args(arguments).current_dir(desk.path("")).output()
    };
    let dump = match nobody(&["dump", "image"]) {
        Ok(output) => output,
        Err(error) => return skip("a_file_of_somebody_else", &format!("needs setpriv: {error}")),
    };
    assert_eq!(dump.status.code(), Some(0), "a readable image can be read: {dump:?}");
    for verb in
        [&["label", "image", "new"][..], &["repair", "-q", "image"], &["format", "-q", "--force", "image", "-d", "key"]]
    {
        let output = nobody(verb).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{verb:?}: {stderr}");
        assert!(stderr.contains("ermission denied") && stderr.contains("\nhint: "), "{verb:?}: {stderr}");
    }
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
}

#[test]
fn a_full_disk_in_the_middle() {
    let desk = Desk::new();
    // A limit on the size of files is a disk that is full for this process alone.
    let limited = |blocks: u32, arguments: &str| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" {arguments}");
        let luksctl = env!("CARGO_BIN_EXE_luksctl");
        let mut command = Command::new("sh");
        command.args(["-c", &script, luksctl]).current_dir(desk.path("")).env("LUKSCTL_RUN_DIR", desk.path("run"));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let cheap = CHEAP.join(" ");
    let before = desk.names();
    let (code, stderr) = limited(1000, &format!("format -q -d key {cheap} image --size 20M"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("hint: free space"), "{stderr}");
    let (code, stderr) = limited(1000, &format!("format -q -d key {cheap} image --sparse --size 20M"));
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(desk.names(), before, "a failed format left a file");

    desk.format("image", &["--size", "20M"]).ends(0);
    let (code, stderr) = limited(20000, "copy-out -q image out -d key");
    assert_eq!(code, Some(0), "the volume of 4 MiB fits: {stderr}");
    let (code, stderr) = limited(1000, "copy-out -q image out2 -d key");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("hint: free space"), "{stderr}");
    assert!(!desk.path("out2").exists() && !desk.path("out2.part").exists());
    std::fs::write(desk.path("plain"), vec![7; 3 << 20]).unwrap();
    let (code, stderr) = limited(36000, "copy-in -q image plain -d key");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("stopped after"), "{stderr}");
    desk.run(&["copy-in", "-q", "--force", "image", "plain", "-d", "key"]).ends(0);
    desk.run(&["copy-out", "-q", "image", "out2", "-d", "key", "--length", "3M"]).ends(0);
    assert!(std::fs::read(desk.path("out2")).unwrap() == std::fs::read(desk.path("plain")).unwrap());
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_byte() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("large"), vec![7; 5 << 20]).unwrap();
    let before = std::fs::read(desk.path("image")).unwrap();
    desk.run(&["copy-in", "image", "large", "-d", "key"]).fails(1, "the volume ends at");
    desk.run(&["copy-in", "image", "key2", "-d", "key", "--offset", "5M"]).fails(1, "the volume ends at");
    desk.run(&["copy-out", "image", "out", "-d", "key", "--offset", "5M"]).fails(1, "beyond the volume");
    desk.run(&["copy-in", "image", "-", "-d", "-"]).fails(1, "standard input is the data");
    desk.run(&["copy-in", "image", ".", "-d", "key"]).fails(1, "is a folder");
    desk.run(&["copy-out", "image", "large", "-d", "key"]).fails(5, "exists already");
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
    assert_eq!(std::fs::metadata(desk.path("large")).unwrap().len(), 5 << 20);
}
