//! Keys stay where they belong. The volume key of a live volume is known to this test (cryptsetup dumps it); the server's
//! memory may hold it, and each half of it, only in mappings that are locked and left out of core dumps; after suspend and
//! after close nowhere; and never in output, logs, files of the run directory, command lines or environments.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use keystore::KeyName;
use promises::Rig;
use promises::managed_set::ManagedSet;
use promises::memory::{positions, search};
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root};

/// Key, first half, second half.
fn needles(key: &[u8]) -> [Vec<u8>; 3] {
    let half = key.len() / 2;
    [key.to_vec(), key[..half].to_vec(), key[half..].to_vec()]
}

/// The process that holds the volume, as `status` reports it.
fn server(rig: &Rig, name: &str) -> u32 {
    let output = succeed(&mut rig.luksctl(&["status", "--json", name]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    u32::try_from(status["pid"].as_u64().expect("status --json has a pid")).unwrap()
}

fn volume_key(rig: &Rig, image: &Path) -> Vec<u8> {
    let file = rig.path("volume-key");
    drop(std::fs::remove_file(&file));
    succeed(
        Command::new("cryptsetup")
            .args(["luksDump", "-q", "--dump-volume-key", "--volume-key-file"])
            .arg(&file)
            .arg("--key-file")
            .arg(rig.key())
            .arg(image),
    );
    let key = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    key
}

/// The ways in which bytes get printed.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{secret:?}");
    vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes(), list[1..list.len() - 1].into()]
}

fn assert_absent(place: &str, bytes: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        for spelling in spellings(secret) {
            assert_eq!(positions(bytes, &spelling).next(), None, "a secret stands in {place}");
        }
    }
}

fn assert_absent_in_output(output: &Output, secrets: &[Vec<u8>]) {
    assert_absent("stdout", &output.stdout, secrets);
    assert_absent("stderr", &output.stderr, secrets);
}

fn assert_absent_in_processes(secrets: &[Vec<u8>]) {
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            if let Ok(bytes) = std::fs::read(process.path().join(file)) {
                assert_absent(&format!("{}/{file}", process.path().display()), &bytes, secrets);
            }
        }
    }
}

/// Every regular file below `folder`, the FUSE mount (the plaintext disk itself) left out.
fn assert_absent_in_files(folder: &Path, secrets: &[Vec<u8>]) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && entry.file_name() != "fuse" {
            assert_absent_in_files(&entry.path(), secrets);
        } else if kind.is_file() {
            assert_absent(&entry.path().display().to_string(), &std::fs::read(entry.path()).unwrap(), secrets);
        }
    }
}

/// Looks through the server's memory; returns how often the key or a half of it stands there.
fn scan(pid: u32, secrets: &[Vec<u8>]) -> usize {
    let needles: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
    let (findings, searched_bytes) = search(pid, &needles).unwrap();
    assert!(searched_bytes > 1 << 20, "only {searched_bytes} bytes of the server were readable");
    for finding in &findings {
        assert!(
            finding.mapping.locked && finding.mapping.undumped,
            "needle {} (0 key, 1 and 2 its halves, then passphrases) lies unprotected: {finding:x?}",
            finding.needle
        );
    }
    findings.len()
}

fn canary(test: &str, options: &[&str]) {
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let rig = Rig::new("canary");
    let image = rig.path("image");
    let format = {
        let mut command = rig.luksctl(&["format", "-q", "--size", "24M", "--key-file"]);
        succeed(command.arg(rig.key()).args(options).arg(&image))
    };
    let key = volume_key(&rig, &image);
    let mut secrets = needles(&key).to_vec();
    secrets.push(std::fs::read(rig.key()).unwrap());
    assert_absent_in_output(&format, &secrets);

    let open = succeed(
        rig.luksctl(&["open", "-v", "--backend", "fuse", "--key-file"]).arg(rig.key()).arg(&image).arg("canary"),
    );
    assert_absent_in_output(&open, &secrets);
    let pid = server(&rig, "canary");
    // Traffic through the ciphers, so that worker stacks have seen the round keys.
    let device = rig.run_dir().join("canary").join("device");
    succeed(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=6", "conv=fsync"]).arg({
        let mut of = std::ffi::OsString::from("of=");
        of.push(&device);
        of
    }));
    succeed(Command::new("cmp").args(["-n", "6291456"]).arg(&device).arg(&device));
    assert!(scan(pid, &secrets) > 0, "the scan finds no key in a server that has one: it proves nothing");
    assert_absent_in_processes(&secrets);
    assert_absent_in_files(&rig.run_dir(), &secrets);
    server_cannot_dump(pid);

    let suspend = succeed(&mut rig.luksctl(&["suspend", "canary"]));
    assert_absent_in_output(&suspend, &secrets);
    assert_eq!(scan(pid, &secrets), 0, "the key is still there after suspend");
    let resume = succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("canary"));
    assert_absent_in_output(&resume, &secrets);
    assert!(scan(pid, &secrets) > 0, "resumed without a key?");

    let wrong = rig.path("wrong");
    std::fs::write(&wrong, "a wrong passphrase that must not be printed").unwrap();
    let failed =
        rig.luksctl(&["open", "-v", "--test-passphrase", "--key-file"]).arg(&wrong).arg(&image).output().unwrap();
    assert_eq!(failed.status.code(), Some(2));
    assert_absent_in_output(&failed, &[std::fs::read(&wrong).unwrap()]);

    rig.close("canary");
    // A zombie's memory is gone; so is all that could be searched.
    let searched_bytes = search(pid, &[b"x"]).map_or(0, |(_, searched_bytes)| searched_bytes);
    assert_eq!(searched_bytes, 0, "the server's memory outlived close");
    assert_absent_in_processes(&secrets);
    assert_absent_in_files(&rig.run_dir(), &secrets);
}

/// Every key that the set has now: each one's bytes and halves, the volume key, the recovery key, the master secret.
fn secrets_of(set: &ManagedSet) -> Vec<Vec<u8>> {
    let opened = set.set();
    let store = opened.store().unwrap();
    let mut secrets = Vec::new();
    for (name, record) in &store.metadata().keys {
        for generation in record.live() {
            secrets.extend(needles(store.key_of(name, generation.number).unwrap().expose()));
        }
    }
    let key_file = set.key_file("of-the-volume-key", &store.key(&KeyName::new("data").unwrap()).unwrap());
    let dumped = set.rig().path("volume-key");
    let mut dump = Command::new("cryptsetup");
    dump.args(["luksDump", "-q", "--dump-volume-key", "--volume-key-file"])
        .arg(&dumped)
        .arg("--key-file")
        .arg(key_file);
    succeed(dump.arg(set.image("data")));
    secrets.extend(needles(&std::fs::read(&dumped).unwrap()));
    std::fs::remove_file(&dumped).unwrap();
    secrets.push(set.recovery().to_vec());
    secrets.extend(needles(&std::fs::read(set.path("keys/master.key")).unwrap()));
    secrets
}

/// Every file of the set, but for the one that is the master secret.
fn assert_absent_in_set(set: &ManagedSet, secrets: &[Vec<u8>]) {
    let (master, aside) = (set.path("keys/master.key"), set.rig().path("master.aside"));
    std::fs::rename(&master, &aside).unwrap();
    assert_absent_in_files(&set.path(""), secrets);
    std::fs::rename(&aside, &master).unwrap();
}

#[test]
fn keys_and_secrets_of_a_managed_set_stay_sealed() {
    let test = "canary: keys_and_secrets_of_a_managed_set_stay_sealed";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let set = ManagedSet::new("canary-set", &["data"], "");
    let value = b"a secret of a program, which nobody prints";
    let mut secrets = secrets_of(&set);
    secrets.push(value.to_vec());
    // The search finds what is there: the master secret in its own file.
    let own = std::fs::read(set.path("keys/master.key")).unwrap();
    assert!(secrets.iter().any(|secret| positions(&own, secret).next().is_some()));
    let mut put = set.luksctl(&["-v", "secret", "set", "api"]);
    let output = promises::rig::run_with_input(&mut put, value);
    assert!(output.status.success(), "{output:?}");
    assert_absent_in_output(&output, &secrets);
    for words in [
        &["key", "report"][..],
        &["key", "report", "--json"],
        &["key", "check-age", "--json"],
        &["key", "rotate", "data"],
        &["key", "rotate", "data", "--keep-old", "--json"],
        &["key", "rotate-backup"],
        &["key", "rotate-all", "--due"],
        &["key", "rotate-master"],
        &["key", "export-set"],
        &["key", "verify", "--json"],
        &["secret", "list", "--json"],
        &["audit", "show", "--json"],
    ] {
        let output = succeed(&mut set.luksctl(&[&["-v"], words].concat()));
        // Those that the command made, too.
        secrets.extend(secrets_of(&set));
        secrets.sort();
        secrets.dedup();
        assert_absent_in_output(&output, &secrets);
    }

    // A program that has a secret, but for the environment, which is said to be the weakest.
    let mut command = set.luksctl(&["-v", "secret", "run", "--descriptor", "API=api", "--credential", "api"]);
    command.args(["--", "sh", "-c", "echo ready; read -r end"]);
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_absent_in_processes(&secrets);
    assert_absent_in_files(&set.rig().run_dir(), &secrets);
    assert_absent_in_set(&set, &secrets);
    drop(program.stdin.take());
    program.wait().unwrap();
}

/// No core dump, no ptrace by its own user: the limit is zero and the process is not dumpable.
fn server_cannot_dump(pid: u32) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // A process that is not dumpable belongs to root:root in /proc whatever its user; as root, the memory owner check is
    // the one that shows: /proc/PID/mem is not readable by a process without CAP_SYS_PTRACE.
    let reader = Command::new("setpriv")
        .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "head", "-c", "0"])
        .arg(format!("/proc/{pid}/mem"))
        .output()
        .unwrap();
    assert!(!reader.status.success(), "a process without CAP_SYS_PTRACE opened the server's memory");
}

#[test]
fn xts_key_with_argon2id_stays_in_locked_memory() {
    canary(
        "canary: xts_key_with_argon2id_stays_in_locked_memory",
        &["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536", "--pbkdf-parallel", "2"],
    );
}

#[test]
fn xts_key_with_pbkdf2_stays_in_locked_memory() {
    canary(
        "canary: xts_key_with_pbkdf2_stays_in_locked_memory",
        &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512"],
    );
}

#[test]
fn cbc_essiv_key_stays_in_locked_memory() {
    canary(
        "canary: cbc_essiv_key_stays_in_locked_memory",
        &[
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--cipher",
            "aes-cbc-essiv:sha256",
            "--key-size",
            "256",
        ],
    );
}
