//! Header policies through the real `luksctl`, its server and the library: forged headers are refused for their own reason before
//! any key derivation; pins go up and never down; damaged keyslot areas are found; each lesson has its test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use block::{BlockIo as _, Bytes, MemDisk};
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};
use luks::policy::PolicyRule;
use luks::{Container, Error, Limits, Policy, UnlockRequest};
use promises::Rig;
use promises::forge::{forge_decryption, metadata, rewrite, swap_uuid};
use promises::rig::{run, succeed};
use promises::skip::{needs_fuse, needs_programs};
use secret::Secret;
use serde_json::{Value, json};
use session::SystemEnv;

/// The cheapest keyslot that the strict policy accepts, plus a small header.
const STRICT_KDF: [&str; 12] = [
    "--pbkdf",
    "argon2id",
    "--pbkdf-force-iterations",
    "4",
    "--pbkdf-memory",
    "65536",
    "--pbkdf-parallel",
    "4",
    "--luks2-keyslots-size",
    "992K",
    "--size",
    "3M",
];

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A rig with a container that the strict policy accepts.
fn strict_rig(name: &str) -> (Rig, PathBuf) {
    let rig = Rig::new(name);
    let image = rig.path("image");
    succeed(
        rig.luksctl(&["format", "-q", "--policy", "strict"])
            .args(STRICT_KDF)
            .arg("--key-file")
            .arg(rig.key())
            .arg(&image),
    );
    (rig, image)
}

/// `check --json` of `image` with more arguments: exit code and report.
fn check(rig: &Rig, image: &Path, more: &[&str]) -> (i32, Value) {
    let output = run(rig.luksctl(&["check", "--json", "-q"]).args(more).arg(image));
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    (output.status.code().unwrap(), report)
}

fn write_pins(rig: &Rig, image: &Path, file: &Path) {
    succeed(rig.luksctl(&["check", "-q", "--write-pins"]).arg(file).arg(image));
}

/// What is done to a good header, and the rule that must find it.
struct Forgery {
    name: &'static str,
    rule: PolicyRule,
    make: fn(&Rig, &Path),
}

const FORGERIES: [Forgery; 5] = [
    Forgery {
        name: "cipher_null",
        rule: PolicyRule::NullCipher,
        make: |_, image| rewrite(image, |json| json["segments"]["0"]["encryption"] = "cipher_null-ecb".into()),
    },
    Forgery {
        name: "4 GiB of Argon2",
        rule: PolicyRule::KdfCeiling,
        make: |_, image| rewrite(image, |json| json["keyslots"]["0"]["kdf"]["memory"] = (4 << 20).into()),
    },
    Forgery {
        name: "a swapped UUID",
        rule: PolicyRule::PinnedUuid,
        make: |_, image| swap_uuid(image, "11111111-2222-4333-8444-555555555555"),
    },
    Forgery {
        name: "a re-encryption plan",
        rule: PolicyRule::Reencryption,
        make: |_, image| rewrite(image, forge_decryption),
    },
    Forgery {
        name: "a rolled-back epoch",
        rule: PolicyRule::PinnedEpoch,
        // The header as it was before the label was set, put back byte for byte.
        make: |rig, image| std::fs::copy(rig.path("before"), image).map(drop).unwrap(),
    },
];

/// A good container, an old copy of it, and a policy file: strict, with its pins.
fn pinned_rig(name: &str) -> (Rig, PathBuf, PathBuf) {
    let (rig, image) = strict_rig(name);
    std::fs::copy(&image, rig.path("before")).unwrap();
    succeed(rig.luksctl(&["label", "--label", "new"]).arg(&image));
    let pins = rig.path("pins.toml");
    write_pins(&rig, &image, &pins);
    std::fs::copy(&image, rig.path("good")).unwrap();
    (rig, image, pins)
}

#[test]
fn each_forged_header_is_refused_by_strict_for_its_own_reason() {
    let (rig, image, pins) = pinned_rig("forged");
    std::fs::write(rig.path("data"), "data").unwrap();
    let verbs: [&[&str]; 6] = [
        &["open", "--test-passphrase"],
        &["keyslot", "test"],
        &["open", "--backend", "fuse"],
        &["copy-out", "--length", "1K"],
        &["keyslot", "add"],
        &["keyslot", "kill", "-q"],
    ];
    let ask = |verb: &[&str]| {
        let mut command = rig.luksctl(verb);
        command.arg("--policy").arg(&pins).arg("--key-file").arg(rig.key()).arg(&image);
        match verb[0..2] {
            ["open", "--backend"] => command.arg("forged"),
            ["copy-out", _] => command.arg(rig.path("out")),
            ["keyslot", "kill"] => command.arg("0"),
            _ => &mut command,
        };
        command
    };
    succeed(&mut ask(verbs[0]));
    for forgery in FORGERIES {
        std::fs::copy(rig.path("good"), &image).unwrap();
        (forgery.make)(&rig, &image);
        let before = std::fs::read(&image).unwrap();
        for verb in verbs {
            let begun = Instant::now();
            let output = run(&mut ask(verb));
            eprintln!("{}: {} refused in {:?}", forgery.name, verb.join(" "), begun.elapsed());
            let said = text(&output);
            assert_eq!(output.status.code(), Some(1), "{}: {verb:?}: {said}", forgery.name);
            assert!(said.contains("refuses this header"), "{said}");
            assert!(said.contains(&format!(": {} is ", forgery.rule)), "{}: {said}", forgery.name);
            assert!(said.contains("hint: `luksctl check"), "{said}");
        }
        assert!(std::fs::read(&image).unwrap() == before, "{}: the image was changed", forgery.name);
        assert_eq!(std::fs::read_dir(rig.run_dir()).unwrap().count(), 0, "{}: a server was started", forgery.name);
        let (code, report) = check(&rig, &image, &["--policy", pins.to_str().unwrap()]);
        let rules: Vec<&str> =
            report["breaches"].as_array().unwrap().iter().map(|b| b["rule"].as_str().unwrap()).collect();
        assert!(code == 10 && rules.contains(&forgery.rule.name()), "{}: {report}", forgery.name);
    }
}

/// The system's surroundings, counting what only a derivation or a write asks for.
#[derive(Default)]
struct Counted(AtomicU32);

impl Counted {
    fn asked(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Rng for Counted {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        self.asked();
        SystemEnv.fill(buf)
    }
}

impl Clock for Counted {
    fn monotonic(&self) -> std::time::Duration {
        self.asked();
        SystemEnv.monotonic()
    }
    fn process_cpu(&self) -> std::time::Duration {
        self.asked();
        SystemEnv.process_cpu()
    }
}

impl MemoryBudget for Counted {
    fn total(&self) -> Bytes {
        SystemEnv.total()
    }
    fn available(&self) -> Bytes {
        self.asked();
        SystemEnv.available()
    }
    fn free_without_swap(&self) -> Option<Bytes> {
        SystemEnv.free_without_swap()
    }
    fn online_cpus(&self) -> u32 {
        self.asked();
        SystemEnv.online_cpus()
    }
}

#[test]
fn no_key_is_derived_from_a_forged_header() {
    let (rig, image, pins) = pinned_rig("derived");
    let policy = session::policy::load(&pins).unwrap();
    let passphrase = Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    let unlock = |image: &Path| {
        let bytes = std::fs::read(image).unwrap();
        let disk = MemDisk::new(Bytes(bytes.len() as u64));
        disk.write_at(Bytes(0), &bytes, false).unwrap();
        let disk = block::fault::FaultDisk::new(disk);
        let container = Container::open(&disk, &disk, Limits::default()).unwrap().with_policy(policy.clone());
        let (counted, reads, begun) = (Counted::default(), disk.counts().reads, Instant::now());
        let env = Env { rng: &counted, clock: &counted, memory: &counted };
        let outcome = container.unlock(&env, &UnlockRequest::default(), &passphrase);
        (outcome, counted.0.load(Ordering::Relaxed), disk.counts().reads - reads, begun.elapsed())
    };
    let (outcome, asked, reads, _) = unlock(&image);
    assert!(outcome.is_ok() && asked > 0 && reads > 0, "the control derives, and would be counted: {outcome:?}");
    for forgery in FORGERIES {
        std::fs::copy(rig.path("good"), &image).unwrap();
        (forgery.make)(&rig, &image);
        let (outcome, asked, reads, took) = unlock(&image);
        eprintln!("{}: refused in {took:?}", forgery.name);
        let Err(Error::Policy { breaches, .. }) = outcome else { panic!("{}: {outcome:?}", forgery.name) };
        assert!(breaches.iter().any(|breach| breach.rule == forgery.rule), "{}: {breaches:?}", forgery.name);
        assert_eq!((asked, reads), (0, 0), "{}: nothing is asked for and no area is read", forgery.name);
    }
}

#[test]
fn the_null_cipher_is_refused_without_any_policy_and_needs_its_own_words() {
    let (rig, image) = strict_rig("null");
    rewrite(&image, |json| json["segments"]["0"]["encryption"] = "cipher_null-ecb".into());
    let file = rig.path("null.toml");
    let ask = |policy: Option<&Path>| {
        let mut command = rig.luksctl(&["open", "--test-passphrase", "--key-file"]);
        command.arg(rig.key()).arg(&image);
        policy.map(|policy| command.arg("--policy").arg(policy));
        run(&mut command)
    };
    for policy in [None, Some(Path::new("default"))] {
        let output = ask(policy);
        assert!(output.status.code() == Some(1) && text(&output).contains("segment 0: null-cipher is cipher_null-ecb"));
    }
    std::fs::write(&file, "preset = \"default\"\nciphers = [\"cipher_null-ecb\"]\n").unwrap();
    let listed = text(&ask(Some(&file)));
    assert!(listed.contains("null.toml, line 2: cipher_null-ecb encrypts nothing"), "{listed}");
    std::fs::write(&file, "preset = \"default\"\nallow-null-cipher = true\n").unwrap();
    let asked = ask(Some(&file));
    assert!(asked.status.success(), "the passphrase is right: {}", text(&asked));
    // Looking at it is no use of it.
    succeed(rig.luksctl(&["dump"]).arg(&image));
    let shown = run(rig.luksctl(&["dump", "--policy", "default"]).arg(&image));
    assert!(shown.status.code() == Some(1) && text(&shown).contains("null-cipher"), "{}", text(&shown));
}

#[test]
fn a_server_holds_the_policy_that_it_was_opened_under() {
    let test = "policy: a_server_holds_the_policy_that_it_was_opened_under";
    if !needs_fuse(test) {
        return;
    }
    let (rig, image, pins) = pinned_rig("server");
    let open = ["open", "--backend", "fuse", "--no-loop", "--policy", pins.to_str().unwrap(), "--key-file"];
    succeed(rig.luksctl(&open).arg(rig.key()).arg(&image).arg("held"));
    succeed(&mut rig.luksctl(&["suspend", "held"]));
    let resume = |more: &[&str]| run(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).args(more).arg("held"));
    rewrite(&image, |json| json["keyslots"]["0"]["kdf"]["memory"] = (4 << 20).into());
    let refused = resume(&[]);
    let said = text(&refused);
    assert!(refused.status.code() == Some(1) && said.contains("kdf-ceiling"), "nobody said --policy this time: {said}");
    let good = std::fs::read(rig.path("good")).unwrap();
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().write_all(&good).unwrap();
    let other = rig.path("other.toml");
    std::fs::write(&other, "[pins]\nepoch = 1000\n").unwrap();
    let refused = resume(&["--policy", other.to_str().unwrap()]);
    assert!(refused.status.code() == Some(1) && text(&refused).contains("pinned-epoch"), "{}", text(&refused));
    let resumed = resume(&["--policy", "strict"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    rig.close("held");
}

#[test]
fn edits_obey_the_policy_too() {
    let (rig, image) = strict_rig("edits");
    let before = std::fs::read(&image).unwrap();
    let second = rig.path("second");
    std::fs::write(&second, "another key file").unwrap();
    let add = |kdf: &[&str]| {
        run(rig
            .luksctl(&["keyslot", "add", "--policy", "strict", "--key-file"])
            .arg(rig.key())
            .args(kdf)
            .arg(&image)
            .arg(&second))
    };
    let weak = add(&["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    assert!(weak.status.code() == Some(1) && text(&weak).contains("keyslot 1: kdf-floor"), "{}", text(&weak));
    assert!(std::fs::read(&image).unwrap() == before, "refused, and nothing written");
    let good = add(&STRICT_KDF[..8]);
    assert!(good.status.success(), "{}", text(&good));
    let pins = rig.path("pins.toml");
    write_pins(&rig, &image, &pins);
    let renamed = run(rig
        .luksctl(&["uuid", "--policy"])
        .arg(&pins)
        .args(["--uuid", "11111111-2222-4333-8444-555555555555"])
        .arg(&image));
    assert!(renamed.status.code() == Some(1) && text(&renamed).contains("pinned-uuid"), "{}", text(&renamed));
    let formatted = run(rig
        .luksctl(&["format", "-q", "--policy", "strict", "--size", "3M", "--luks2-keyslots-size", "992K"])
        .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
        .arg(rig.key())
        .arg(rig.path("weak")));
    assert!(formatted.status.code() == Some(1) && text(&formatted).contains("kdf-floor"), "{}", text(&formatted));
    assert!(!rig.path("weak").exists(), "no container was made");
}

#[test]
fn pins_are_written_raised_on_request_and_never_lowered() {
    let (rig, image, pins) = pinned_rig("pins");
    let epoch = || session::policy::load(&pins).unwrap().pins.epoch.unwrap();
    let first = epoch();
    assert_eq!(check(&rig, &image, &[]).1["epoch"], first);
    let own = std::fs::read_to_string(&pins).unwrap().replace("preset = ", "# my own words\npreset = ");
    std::fs::write(&pins, own).unwrap();
    // An edit under the pinned policy is accepted and leaves the file alone.
    succeed(rig.luksctl(&["label", "--label", "newer", "--policy"]).arg(&pins).arg(&image));
    assert_eq!(epoch(), first);
    write_pins(&rig, &image, &pins);
    assert_eq!(epoch(), first + 1);
    let raised = std::fs::read_to_string(&pins).unwrap();
    assert!(raised.contains("# my own words"), "{raised}");
    std::fs::copy(rig.path("good"), &image).unwrap();
    let lowered = run(rig.luksctl(&["check", "--write-pins"]).arg(&pins).arg(&image));
    let said = text(&lowered);
    assert!(
        lowered.status.code() == Some(10) && said.contains("pinned-epoch") && said.contains("was not written"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&pins).unwrap(), raised, "untouched");
    let both = run(rig.luksctl(&["check", "--policy", "default", "--write-pins"]).arg(&pins).arg(&image));
    assert!(both.status.code() == Some(1) && text(&both).contains("is the policy itself"), "{}", text(&both));
    // Another volume key: a container of its own, under the same UUID and a later epoch.
    let uuid = check(&rig, &image, &[]).1["uuid"].as_str().unwrap().to_owned();
    let other = rig.path("other");
    let mut format = rig.luksctl(&["format", "-q", "--uuid", &uuid]);
    succeed(format.args(STRICT_KDF).arg("--key-file").arg(rig.key()).arg(&other));
    (0..4).for_each(|n| drop(succeed(rig.luksctl(&["label", "--label", &n.to_string()]).arg(&other))));
    let (code, report) = check(&rig, &other, &["--policy", pins.to_str().unwrap()]);
    let rules: Vec<&str> = report["breaches"].as_array().unwrap().iter().map(|b| b["rule"].as_str().unwrap()).collect();
    assert_eq!((code, rules), (10, vec!["pinned-volume-key"]), "{report}");
}

#[test]
fn a_bad_policy_file_names_its_line_and_nothing_is_opened() {
    let rig = Rig::new("badpolicy");
    let (image, file) = (rig.path("image"), rig.path("bad.toml"));
    rig.format_cheap(&image, "20M", &[]);
    for (content, words) in [
        ("preset = \"default\"\nmin-key-bit = 256\n", "bad.toml, line 2: unknown field `min-key-bit`"),
        ("\n\n[kdf]\nargon2-passes = { min = 9, max = 4 }\n", "bad.toml, line 4: nothing is at least 9 and at most 4"),
        ("preset = \"lenient\"\n", "bad.toml, line 1: unknown name \"lenient\""),
    ] {
        std::fs::write(&file, content).unwrap();
        for verb in [&["check"][..], &["open", "--test-passphrase"], &["resume"], &["dump"]] {
            let output = run(rig.luksctl(verb).arg("--policy").arg(&file).arg(&image));
            let said = text(&output);
            assert!(output.status.code() == Some(1) && said.contains(words), "{verb:?}: {said}");
            assert!(said.contains("hint: docs/policy.md"), "{said}");
        }
    }
    let missing = run(rig.luksctl(&["check", "--policy", "no-such-preset"]).arg(&image));
    assert_eq!(missing.status.code(), Some(4), "{}", text(&missing));
}

#[test]
fn a_weak_passphrase_guard_is_named() {
    let rig = Rig::new("weak");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &["--hash", "sha1"]);
    let (code, report) = check(&rig, &image, &[]);
    let found = |rule: &str| {
        report["breaches"].as_array().unwrap().iter().any(|breach| breach["rule"] == rule && breach["keyslot"] == 0)
    };
    assert!(code == 10 && found("kdf-floor") && found("hash"), "{report}");
    assert_eq!(check(&rig, &image, &["--policy", "default"]).0, 0, "what cryptsetup makes is accepted by default");
    let refused =
        run(rig.luksctl(&["open", "--test-passphrase", "--policy", "strict", "--key-file"]).arg(rig.key()).arg(&image));
    assert!(
        refused.status.code() == Some(1) && text(&refused).contains("pbkdf2 iterations 1000"),
        "{}",
        text(&refused)
    );
}

/// Where the area of a keyslot lies.
fn area(image: &Path, id: u32) -> u64 {
    let metadata = metadata(image);
    metadata["keyslots"][id.to_string()]["area"]["offset"].as_str().unwrap().parse().unwrap()
}

fn write_at(image: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn check_names_what_went_over_a_keyslot() {
    let test = "policy: check_names_what_went_over_a_keyslot";
    if !needs_programs(test, &["mke2fs"]) {
        return;
    }
    let rig = Rig::new("areas");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let second = rig.path("second");
    std::fs::write(&second, "another key file").unwrap();
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    succeed(rig.luksctl(&["keyslot", "add", "--key-file"]).arg(rig.key()).args(cheap).arg(&image).arg(&second));
    let default = ["--policy", "default"];
    let (code, report) = check(&rig, &image, &default);
    assert_eq!((code, &report["clean"], &report["keyslots_examined"]), (0, &json!(true), &json!([0, 1])), "{report}");
    let file_system = rig.path("ext4");
    std::fs::File::create(&file_system).unwrap().set_len(8 << 20).unwrap();
    succeed(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&file_system));
    let superblock = std::fs::read(&file_system).unwrap()[1024..2048].to_vec();
    let good = std::fs::read(&image).unwrap();
    let ascii = "A page of text that somebody wrote in the wrong place. ".repeat(10);
    for (damage, bytes, len) in
        [("zeroed", vec![0; 512], 512), ("remains", superblock, 512), ("text", ascii.as_bytes()[..512].to_vec(), 512)]
    {
        std::fs::write(&image, &good).unwrap();
        let at = area(&image, 1) + 20 * 512;
        write_at(&image, at, &bytes);
        let (code, report) = check(&rig, &image, &default);
        let found = &report["areas"][0];
        assert_eq!((code, &found["keyslot"], &found["damage"]), (10, &json!(1), &json!(damage)), "{report}");
        assert_eq!((&found["offset_bytes"], &found["length_bytes"]), (&json!(at), &json!(len)), "{report}");
        let words = text(&run(rig.luksctl(&["check", "--policy", "default"]).arg(&image)));
        assert!(words.contains(&format!("keyslot: keyslot 1: {len} bytes at {at}: ")), "{words}");
        let dead = run(rig.luksctl(&["keyslot", "test", "--key-file"]).arg(&second).arg(&image));
        assert_eq!(dead.status.code(), Some(2), "it was right to say so: {}", text(&dead));
    }
}

#[test]
fn what_cryptsetup_makes_raises_no_alarm() {
    let test = "policy: what_cryptsetup_makes_raises_no_alarm";
    if !needs_programs(test, &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("alarm");
    let image = rig.path("image");
    for options in [&["-c", "aes-xts-plain64", "-s", "256"][..], &["-c", "aes-cbc-essiv:sha256", "-s", "192"], &[]] {
        std::fs::File::create(&image).unwrap().set_len(20 << 20).unwrap();
        let mut format = Command::new("cryptsetup");
        format.args(["luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
        succeed(format.args(options).arg("--key-file").arg(rig.key()).arg(&image));
        let (code, report) = check(&rig, &image, &["--policy", "default"]);
        assert_eq!(code, 0, "{options:?}: {report}");
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_damaged_copy_is_a_finding_of_check() {
    let rig = Rig::new("copies");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    write_at(&image, 16384 + 600, b"x");
    let (code, report) = check(&rig, &image, &["--policy", "default"]);
    assert_eq!((code, &report["header"]["healthy"]), (10, &json!(false)), "{report}");
    let words = text(&run(rig.luksctl(&["check", "--policy", "default"]).arg(&image)));
    assert!(words.contains("header:  secondary copy broken: run `luksctl repair`"), "{words}");
}

#[test]
fn luks1_is_judged_pinned_and_looked_at_like_luks2() {
    let rig = Rig::new("luks1");
    let (image, pins) = (rig.path("image"), rig.path("pins.toml"));
    rig.format_cheap(&image, "4M", &["--type", "luks1"]);
    let (code, report) = check(&rig, &image, &[]);
    let rules: Vec<&str> = report["breaches"].as_array().unwrap().iter().map(|b| b["rule"].as_str().unwrap()).collect();
    assert_eq!((code, rules, &report["version"]), (10, vec!["version", "kdf-floor"], &json!(1)), "{report}");
    let refused =
        run(rig.luksctl(&["open", "--test-passphrase", "--policy", "strict", "--key-file"]).arg(rig.key()).arg(&image));
    assert!(refused.status.code() == Some(1) && text(&refused).contains("header: version is 1"), "{}", text(&refused));
    std::fs::write(&pins, "preset = \"default\"\n").unwrap();
    write_pins(&rig, &image, &pins);
    let ask =
        || run(rig.luksctl(&["keyslot", "test", "--policy"]).arg(&pins).arg("--key-file").arg(rig.key()).arg(&image));
    assert!(ask().status.success(), "{}", text(&ask()));
    let pinned = std::fs::read_to_string(&pins).unwrap();
    std::fs::write(&pins, pinned.replace("[pins]\n", "[pins]\nepoch = 1\n")).unwrap();
    assert!(text(&ask()).contains("pinned-epoch is none: LUKS1 has no epoch"), "{}", text(&ask()));
    std::fs::write(&pins, &pinned).unwrap();
    // A salt of the digest changed: another volume key, for all that anybody can tell.
    let good = std::fs::read(&image).unwrap();
    write_at(&image, 132, &[good[132] ^ 1]);
    assert!(text(&ask()).contains("pinned-volume-key"), "{}", text(&ask()));
    std::fs::write(&image, &good).unwrap();
    write_at(&image, 4096 + 9 * 512, &[0; 512]);
    let (code, report) = check(&rig, &image, &["--policy", "default"]);
    let found = &report["areas"][0];
    assert_eq!(
        (code, &found["damage"], &found["offset_bytes"]),
        (10, &json!("zeroed"), &json!(4096 + 9 * 512)),
        "{report}"
    );
}

/// CVE-2020-14382: a segment's number that overflowed the size of an allocation.
#[test]
fn huge_segment_numbers_are_refused_by_name() {
    let (rig, image) = strict_rig("segments");
    let good = std::fs::read(&image).unwrap();
    for id in ["4294967295", "4294967296", "18446744073709551615"] {
        std::fs::write(&image, &good).unwrap();
        rewrite(&image, |json| {
            let only = json["segments"]["0"].clone();
            json["segments"] = json!({ "0": only.clone(), id: only });
        });
        for verb in ["dump", "check"] {
            let output = run(rig.luksctl(&[verb]).arg(&image));
            assert_eq!(output.status.code(), Some(1), "segment {id}: {}", text(&output));
            assert!(text(&output).contains("breaks rule segment"), "{}", text(&output));
        }
    }
}

#[test]
fn every_rule_of_a_policy_is_explained() {
    let documented = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md")).unwrap();
    for rule in PolicyRule::ALL {
        assert!(documented.contains(&format!("`{rule}`")), "docs/policy.md does not name {rule}");
    }
    let strict = session::policy::to_toml(&Policy::strict()).unwrap();
    let block = documented.split("```toml\n").find(|block| block.starts_with("# strict")).expect("strict in full");
    let shown = block.split("```").next().unwrap();
    assert_eq!(
        session::policy::parse(shown, "strict").unwrap(),
        Policy::strict(),
        "docs show another strict than:\n{strict}"
    );
}

/// Every test that `docs/lessons.md` names is there.
#[test]
fn every_lesson_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let lessons = std::fs::read_to_string(root.join("docs/lessons.md")).unwrap();
    let mut named = 0;
    for line in lessons.lines().filter(|line| line.starts_with("Test: ") || line.starts_with("Tests: ")) {
        for (number, reference) in line.split('`').enumerate().filter(|(number, _)| number % 2 == 1) {
            let (file, test) = reference.split_once("::").unwrap_or_else(|| panic!("part {number}: {line}"));
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {test}(")), "{file} has no test {test}");
            named += 1;
        }
    }
    let sections = lessons.lines().filter(|line| line.starts_with("## ")).count();
    assert!(named >= sections && sections >= 10, "{named} tests for {sections} lessons");
}
