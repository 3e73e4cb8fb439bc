//! Bad input as a user meets it: damaged copies that cryptsetup has to agree about, costs that no machine should pay, names
//! and paths of every kind, files that may not change. Each refusal has its exit code, and where nothing was asked to
//! change, no byte does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use promises::Rig;
use promises::leftovers;
use promises::rig::{run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};

const SMALL: [&str; 4] = ["--offset", "2048", "--luks2-keyslots-size", "992K"];
const COPY: usize = 0x4000;
const BINARY: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 0x1c0..0x200;

/// A rig with a container of 5 MiB, a header of 1 MiB in it.
fn rig() -> (Rig, PathBuf) {
    let rig = Rig::new("bad");
    let image = rig.path("image");
    rig.format_cheap(&image, "5M", &SMALL);
    (rig, image)
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Demands this exit code, these words, a hint, and no panic.
fn refused(output: &Output, code: i32, said: &str) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    assert!(words.contains(said), "{said:?} is not in: {words}");
    assert!(words.contains("\nhint: "), "no hint: {words}");
    assert!(!words.contains("panicked"), "{words}");
}

/// Every verb that only looks, and `open`, with the rig's key.
fn looking_verbs(rig: &Rig, image: &Path) -> Vec<Command> {
    let verbs: [&[&str]; 7] = [
        &["dump", "--json"],
        &["is-luks", "-v"],
        &["uuid", "--json"],
        &["label", "--json"],
        &["keyslot", "list", "--json"],
        &["repair", "--dry-run", "--json"],
        &["keyslot", "test", "--json"],
    ];
    let mut commands: Vec<Command> = verbs.iter().map(|verb| rig.luksctl(verb)).collect();
    commands[6].arg("--key-file").arg(rig.key());
    for command in &mut commands {
        command.arg(image);
    }
    commands
}

#[test]
fn one_damaged_copy_is_reported_used_and_mended() {
    let test = "bad_input: one_damaged_copy_is_reported_used_and_mended";
    let (rig, image) = rig();
    let whole = std::fs::read(&image).unwrap();
    let serves = needs_root(test) && needs_fuse(test);
    for (copy, at) in
        [("primary", BINARY + 100), ("secondary", COPY + BINARY + 100), ("primary", 0), ("secondary", COPY)]
    {
        let mut damaged = whole.clone();
        damaged[at..at + 8].copy_from_slice(b"\0DAMAGE\0");
        std::fs::write(&image, &damaged).unwrap();
        for mut command in looking_verbs(&rig, &image) {
            let reports = |argument: &std::ffi::OsStr| argument == "repair" || argument == "dump";
            let code = if command.get_args().any(reports) { 10 } else { 0 };
            let output = run(&mut command);
            assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
        }
        let tested = succeed(rig.luksctl(&["open", "--test-passphrase", "--key-file"]).arg(rig.key()).arg(&image));
        assert!(words(&tested).contains(copy) && words(&tested).contains("luksctl repair"), "{}", words(&tested));
        if serves {
            let device = rig.open(&image, "damaged");
            std::fs::read(device).unwrap();
            rig.close("damaged");
        }
        assert!(std::fs::read(&image).unwrap() == damaged, "looking and opening changed the image");
        succeed(rig.luksctl(&["repair", "-q"]).arg(&image));
        succeed(rig.luksctl(&["repair", "--dry-run"]).arg(&image));
        if needs_programs(test, &["cryptsetup"]) {
            succeed(Command::new("cryptsetup").args(["open", "--test-passphrase", "-d"]).arg(rig.key()).arg(&image));
            let dump = succeed(Command::new("cryptsetup").args(["luksDump"]).arg(&image));
            assert!(dump.stderr.is_empty(), "{}", words(&dump));
        }
        // Only the mended copy was written, and nothing behind the header.
        assert!(std::fs::read(&image).unwrap()[2 * COPY..] == whole[2 * COPY..]);
    }
    let mut damaged = whole;
    damaged[BINARY + 100] ^= 1;
    damaged[COPY + BINARY + 100] ^= 1;
    std::fs::write(&image, &damaged).unwrap();
    for verb in [["repair", "-q"], ["repair", "--dry-run"], ["dump", "--json"], ["uuid", "--json"]] {
        refused(&run(rig.luksctl(&verb).arg(&image)), 1, "no valid LUKS2 header");
    }
    refused(&run(rig.luksctl(&["open", "--key-file"]).arg(rig.key()).arg(&image).arg("x")), 1, "no valid LUKS2 header");
    assert!(std::fs::read(&image).unwrap() == damaged, "refusing changed the image");
    leftovers::demand_none(&rig, "refusals");
}

/// Rewrites the JSON of both copies with a true checksum: what a hostile image looks like.
fn with_json(image: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let mut bytes = std::fs::read(image).unwrap();
    for copy in [0, COPY] {
        let area = copy + BINARY..copy + COPY;
        let text: Vec<u8> = bytes[area.clone()].iter().copied().take_while(|byte| *byte != 0).collect();
        let mut json = serde_json::from_slice(&text).unwrap();
        edit(&mut json);
        let mut text = serde_json::to_vec(&json).unwrap();
        text.resize(COPY - BINARY, 0);
        bytes[area].copy_from_slice(&text);
        bytes[copy + CHECKSUM.start..copy + CHECKSUM.end].fill(0);
        let mut checksum = [0; 32];
        luks::HashAlg::parse("sha256").unwrap().digest(&[&bytes[copy..copy + COPY]], &mut checksum);
        bytes[copy + CHECKSUM.start..copy + CHECKSUM.start + 32].copy_from_slice(&checksum);
    }
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn hostile_costs_are_refused_with_the_bound_they_break() {
    let (rig, image) = rig();
    let pristine = std::fs::read(&image).unwrap();
    let argon2 = |time: u64, memory: u64| {
        serde_json::json!({ "type": "argon2id", "time": time, "memory": memory, "cpus": 4,
        "salt": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" })
    };
    let pbkdf2 = serde_json::json!({ "type": "pbkdf2", "hash": "sha256", "iterations": 4_294_967_295_u64,
        "salt": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" });
    let cases = [
        (argon2(4, 4 << 20), "memory", ["--max-kdf-memory", "1G"]),
        (argon2(4, 4_294_967_295), "memory", ["--max-kdf-time", "5"]),
        (argon2(4_294_967_295, 32), "time", ["--max-kdf-memory", "1G"]),
        (argon2(6, 32), "time", ["--max-kdf-time", "5"]),
        (pbkdf2, "iterations", ["--max-kdf-memory", "1G"]),
    ];
    for (kdf, bound, option) in cases {
        std::fs::write(&image, &pristine).unwrap();
        with_json(&image, |json| json["keyslots"]["0"]["kdf"] = kdf.clone());
        let before = std::fs::read(&image).unwrap();
        for verb in [&["open", "--test-passphrase"][..], &["open"], &["copy-out"], &["keyslot", "test"]] {
            let mut command = rig.luksctl(verb);
            command.args(option).arg("--key-file").arg(rig.key()).arg(&image);
            match verb {
                ["open"] => command.arg("hostile"),
                ["copy-out"] => command.arg(rig.path("out")),
                _ => &mut command,
            };
            refused(&run(&mut command), 1, bound);
        }
        // Looking at it costs nothing and works.
        succeed(rig.luksctl(&["dump"]).arg(&image));
        assert!(std::fs::read(&image).unwrap() == before);
        leftovers::demand_none(&rig, "a hostile header");
    }
}

#[test]
fn an_image_may_have_any_name() {
    let test = "bad_input: an_image_may_have_any_name";
    let (rig, image) = rig();
    let serves = needs_root(test) && needs_fuse(test);
    for name in
        [&b"with space"[..], b"new\nline", b"not\xffutf8", b"-dash", b"quo'te\"$x`", b"UUID=none", b"\xf0\x9f\x94\x91"]
    {
        let path = rig.path("").join(OsStr::from_bytes(name));
        std::fs::copy(&image, &path).unwrap();
        let mut commands = looking_verbs(&rig, &path);
        let mut copied = path.clone().into_os_string();
        copied.push(".out");
        commands.push(rig.luksctl(&["copy-out", "--json", "--key-file"]));
        commands[7].arg(rig.key()).arg(&path).arg(&copied);
        commands.push(rig.luksctl(&["copy-in", "--json", "--key-file"]));
        commands[8].arg(rig.key()).arg(&path).arg(&copied);
        if serves {
            commands.push(rig.luksctl(&["open", "--json", "--key-file"]));
            commands[9].arg(rig.key()).arg(&path).arg("named");
            commands.push(rig.luksctl(&["status", "--json", "named"]));
            commands.push(rig.luksctl(&["list", "--json"]));
        }
        for mut command in commands {
            let output = succeed(&mut command);
            let is_luks = command.get_args().any(|argument| argument == "is-luks");
            let json = serde_json::from_slice::<serde_json::Value>(&output.stdout);
            assert!(json.is_ok() || is_luks, "{command:?} prints no JSON: {output:?}");
        }
        if serves {
            assert_eq!(succeed(&mut rig.luksctl(&["status", "named"])).status.code(), Some(0));
            let again = rig.luksctl(&["open", "--key-file"]).arg(rig.key()).arg(&path).arg("other").output().unwrap();
            refused(&again, 5, "named");
            rig.close("named");
        }
    }
}

#[test]
fn volume_names_and_key_files_out_of_bounds() {
    let (rig, image) = rig();
    let long = "x".repeat(101);
    for name in ["", ".", "..", "a/b", "../x", "-x", "a b", "ä", "a\nb", long.as_str()] {
        for verb in ["open", "close", "status", "suspend"] {
            let mut command = rig.luksctl(&[verb]);
            if verb == "open" {
                command.arg("--key-file").arg(rig.key()).arg(&image);
            }
            refused(&run(command.args(["--", name])), 1, "cannot name a volume");
        }
    }
    let largest = rig.path("largest");
    std::fs::write(&largest, vec![b'k'; 8 << 20]).unwrap();
    succeed(
        rig.luksctl(&["keyslot", "add", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
            .arg(rig.key())
            .arg(&image)
            .arg(&largest),
    );
    let mut test = rig.luksctl(&["open", "--test-passphrase", "--key-file"]);
    succeed(test.arg(&largest).arg(&image));
    std::fs::write(rig.path("larger"), vec![b'k'; (8 << 20) + 1]).unwrap();
    let refused_file = |file: &Path, code: i32, said: &str| {
        let output = run(rig.luksctl(&["open", "--test-passphrase", "--key-file"]).arg(file).arg(&image));
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(words(&output).contains(said), "{output:?}");
    };
    refused_file(&rig.path("larger"), 1, "holds more than 8388608 bytes");
    refused_file(&rig.path("missing"), 1, "missing");
    refused_file(&rig.path(""), 1, "cannot be a key file");
    refused_file(Path::new("/dev/zero"), 1, "size");
    std::fs::write(rig.path("empty"), b"").unwrap();
    refused_file(&rig.path("empty"), 2, "No key available");
}

#[test]
fn what_may_not_be_written_is_refused_and_stays() {
    let test = "bad_input: what_may_not_be_written_is_refused_and_stays";
    if !(needs_root(test) && needs_programs(test, &["unshare", "mount"])) {
        return;
    }
    let (rig, image) = rig();
    let folder = rig.path("read-only");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(&image, folder.join("image")).unwrap();
    std::fs::write(rig.path("plain"), b"plain").unwrap();
    let before = std::fs::read(&image).unwrap();
    // A mount of its own: root may write to a file of mode 0444.
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && cd \"$0\" && exec \"$@\"";
    let verbs: [&[&str]; 9] = [
        &["format", "-q", "--force", "--key-file", "../key", "image"],
        &["format", "-q", "--size", "20M", "--key-file", "../key", "new"],
        &["keyslot", "add", "--key-file", "../key", "image", "../plain"],
        &["keyslot", "kill", "-q", "image", "0", "--force"],
        &["label", "--label", "x", "image"],
        &["uuid", "-q", "--uuid", "11111111-2222-3333-4444-555555555555", "image"],
        &["copy-in", "--key-file", "../key", "image", "../plain"],
        &["copy-out", "--key-file", "../key", "image", "out"],
        &["open", "--key-file", "../key", "image", "writable"],
    ];
    let luksctl = promises::bins::luksctl();
    for verb in verbs {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(&folder).arg(&luksctl).args(verb);
        command.env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null());
        let output = run(&mut command);
        assert!(matches!(output.status.code(), Some(1 | 4)), "{verb:?}: {output:?}");
        assert!(words(&output).to_lowercase().contains("read-only"), "{verb:?}: {output:?}");
    }
    assert!(std::fs::read(folder.join("image")).unwrap() == before);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    leftovers::demand_none(&rig, "refusals");
}

#[test]
fn a_tag_finds_the_loop_device_that_holds_the_container() {
    let test = "bad_input: a_tag_finds_the_loop_device_that_holds_the_container";
    if !(needs_root(test) && needs_programs(test, &["losetup"])) {
        return;
    }
    let (rig, image) = rig();
    let label = format!("tag-{}", std::process::id());
    succeed(rig.luksctl(&["label", "--label", &label]).arg(&image));
    let uuid = String::from_utf8(succeed(rig.luksctl(&["uuid"]).arg(&image)).stdout).unwrap();
    let device = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&image)).stdout;
    let device = String::from_utf8(device).unwrap().trim().to_owned();
    let tags = [format!("UUID={}", uuid.trim()), format!("LABEL={label}"), format!("LABEL=\"{label}\"")];
    let outputs: Vec<Output> = tags.iter().map(|tag| run(&mut rig.luksctl(&["dump", "--json", tag]))).collect();
    let in_use =
        run(rig.luksctl(&["format", "-q", "--force"]).args(SMALL).arg("--key-file").arg(rig.key()).arg(&image));
    succeed(Command::new("losetup").args(["--detach", &device]));
    for output in outputs {
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(json["image"], device.as_str(), "{output:?}");
    }
    refused(&in_use, 5, &device);
    for tag in ["UUID=", "LABEL=", "UUID=../x", "LABEL=there is no such label"] {
        assert_eq!(run(&mut rig.luksctl(&["dump", tag])).status.code(), Some(4), "{tag}");
    }
}

#[test]
fn outputs_that_take_nothing_are_errors() {
    let (rig, image) = rig();
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let verbs: [&[&str]; 5] =
        [&["dump"], &["dump", "--json"], &["uuid"], &["keyslot", "list"], &["repair", "--dry-run", "--json"]];
    for verb in verbs {
        let output = run(rig.luksctl(verb).arg(&image).stdout(full()));
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {output:?}");
        assert!(words(&output).contains("standard output"), "{verb:?}: {output:?}");
    }
    let copied = run(rig.luksctl(&["copy-out", "--key-file"]).arg(rig.key()).arg(&image).arg("-").stdout(full()));
    assert_eq!(copied.status.code(), Some(1), "{copied:?}");
    // Closed descriptors: what is opened next must not take their numbers.
    let script = "exec \"$0\" dump \"$1\" <&- >&- 2>&-";
    let before = std::fs::read(&image).unwrap();
    let mut closed = Command::new("sh");
    run(closed.args(["-c", script]).arg(promises::bins::luksctl()).arg(&image));
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn a_container_is_never_copied_over_itself_or_over_one_in_use() {
    let test = "bad_input: a_container_is_never_copied_over_itself_or_over_one_in_use";
    let (rig, image) = rig();
    let before = std::fs::read(&image).unwrap();
    std::fs::hard_link(&image, rig.path("link")).unwrap();
    std::os::unix::fs::symlink(&image, rig.path("symlink")).unwrap();
    for name in ["image", "link", "symlink"] {
        for verb in ["copy-out", "copy-in"] {
            let mut command = rig.luksctl(&[verb, "--force", "--key-file"]);
            refused(&run(command.arg(rig.key()).arg(&image).arg(rig.path(name))), 1, "the container itself");
        }
    }
    if needs_root(test) && needs_fuse(test) {
        let other = rig.path("other");
        std::fs::copy(&image, &other).unwrap();
        let _device = rig.open(&other, "other");
        let mut command = rig.luksctl(&["copy-out", "--force", "--key-file"]);
        refused(&run(command.arg(rig.key()).arg(&image).arg(&other)), 5, "in use");
        rig.close("other");
        assert!(std::fs::read(&other).unwrap() == before);
    }
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn a_plan_refuses_what_format_would_refuse() {
    let (rig, image) = rig();
    // Large enough for everything else that is a default.
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(20 << 20).unwrap();
    let before = std::fs::read(&image).unwrap();
    for (options, said) in [
        (["-S", "32"], "ids are 0 to 31"),
        (["--key-size", "320"], "256 or 384 or 512 bits"),
        (["--cipher", "aes-ecb"], "aes-ecb"),
        (["--hash", "md5"], "md5"),
        (["--label", "a label of forty-eight bytes, which is one too many"], "at most 47 bytes"),
        (["--uuid", "nonsense"], "nonsense"),
        (["--luks2-metadata-size", "20K"], "20480 bytes"),
        (["--offset", "7"], "3584 bytes"),
    ] {
        for dry in [&["--dry-run"][..], &["-q"]] {
            let mut command = rig.luksctl(&["format", "--force"]);
            command.args(dry).args(options).arg("--key-file").arg(rig.key()).arg(&image);
            let output = run(&mut command);
            assert_eq!(output.status.code(), Some(1), "{options:?}: {output:?}");
            assert!(words(&output).contains(said), "{options:?}: {output:?}");
        }
    }
    assert!(std::fs::read(&image).unwrap() == before);
}
