//! Attacks that once worked, or that must never: a header changed behind a suspended volume, a file swapped under
//! `format`, a device that hides who uses its file, control characters in a header, a PATH through sudo, strangers and
//! garbage on the control socket, secrets in the memory of the client, a cipher that is a whole table of the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::Rig;
use promises::forge::rewrite;
use promises::memory::search;
use promises::rig::{run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};
use serde_json::Value;

/// Something that a terminal would obey: C0, C1, a mark of direction, and a line of ours.
const HOSTILE: &str = "x\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\nhint: forged";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_refused(output: &Output, code: i32, words: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_resumed_volume_lies_where_it_lay() {
    let test = "attacks: a_resumed_volume_lies_where_it_lay";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("resume");
    let image = rig.path("image");
    rig.format_cheap(&image, "24M", &["--sector-size", "512"]);
    let device = rig.open(&image, "resume");
    let head = || {
        let mut bytes = vec![0; 8192];
        std::fs::File::open(&device).unwrap().read_exact(&mut bytes).unwrap();
        bytes
    };
    let before = head();
    for (member, value) in [("offset", "16781312"), ("encryption", "aes-xts-plain"), ("size", "4194304")] {
        succeed(&mut rig.luksctl(&["suspend", "resume"]));
        let kept = std::fs::read(&image).unwrap();
        rewrite(&image, |json| json["segments"]["0"][member] = value.into());
        let resume = || run(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("resume"));
        assert_refused(&resume(), 1, "its segments lie elsewhere");
        std::fs::OpenOptions::new().write(true).open(&image).unwrap().write_all(&kept).unwrap();
        assert!(resume().status.success());
    }
    assert!(head() == before);
    rig.close("resume");
}

/// `format` with a passphrase that has not come yet, once it has looked at everything and waits.
fn format_that_waits(rig: &Rig, image: &Path) -> Child {
    let mut command = rig.luksctl(&["format", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    let child = command.args(["--key-file", "-"]).arg(image).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap();
    let system_call = format!("/proc/{}/syscall", child.id());
    // read(0, …): 0 on x86-64, 63 on aarch64.
    let reads = |line: String| line.starts_with("0 0x0 ") || line.starts_with("63 0x0 ");
    wait_for("the question for a passphrase", || std::fs::read_to_string(&system_call).is_ok_and(reads));
    child
}

fn answer(mut child: Child) -> Output {
    child.stdin.take().unwrap().write_all(b"a passphrase").unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn format_destroys_only_what_it_looked_at() {
    let test = "attacks: format_destroys_only_what_it_looked_at";
    if !(needs_root(test) && needs_programs(test, &["mke2fs"])) {
        return;
    }
    let rig = Rig::new("swap");
    let make = |name: &str, with_file_system: bool| {
        let path = rig.path(name);
        std::fs::File::create(&path).unwrap().set_len(24 << 20).unwrap();
        if with_file_system {
            succeed(Command::new("mke2fs").args(["-q", "-F"]).arg(&path));
        }
        path
    };
    let (image, victim) = (make("image", false), make("victim", true));
    let content = std::fs::read(&victim).unwrap();
    let child = format_that_waits(&rig, &image);
    std::fs::remove_file(&image).unwrap();
    std::os::unix::fs::symlink(&victim, &image).unwrap();
    assert_refused(&answer(child), 5, "changed in the meantime");
    assert!(std::fs::read(&victim).unwrap() == content, "the file behind the link was formatted");

    let image = make("other", false);
    let child = format_that_waits(&rig, &image);
    succeed(Command::new("mke2fs").args(["-q", "-F"]).arg(&image));
    let content = std::fs::read(&image).unwrap();
    assert_refused(&answer(child), 5, "changed in the meantime");
    assert!(std::fs::read(&image).unwrap() == content, "the new file system was formatted");
}

/// A loop device by losetup, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Loop {
        let output = succeed(Command::new("losetup").args(["-f", "--show"]).arg(file));
        Loop(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").arg("-d").arg(&self.0).status());
    }
}

#[test]
fn a_loop_device_does_not_hide_an_open_image() {
    let test = "attacks: a_loop_device_does_not_hide_an_open_image";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["losetup"])) {
        return;
    }
    let rig = Rig::new("loop");
    let image = rig.path("image");
    rig.format_cheap(&image, "24M", &[]);
    let data = rig.path("data");
    std::fs::write(&data, [7; 5000]).unwrap();
    let key = rig.key();
    let key = ["-q", "--key-file", key.to_str().unwrap()];
    let copy_in = |device: &Path| run(rig.luksctl(&["copy-in", "--force"]).args(key).arg(device).arg(&data));
    let _open = rig.open(&image, "first");
    let device = Loop::attach(&image);
    assert_refused(&run(rig.luksctl(&["format", "--force"]).args(key).arg(&device.0)), 5, "has it open");
    assert_refused(&copy_in(&device.0), 5, "has it open");
    assert_refused(&run(rig.luksctl(&["open"]).args(key).arg(&device.0).arg("second")), 5, "has it open");
    drop(device);
    rig.close("first");
    // The control: a device of its own takes data.
    let device = Loop::attach(&image);
    let copied = copy_in(&device.0);
    assert!(copied.status.success(), "{}", text(&copied));
}

#[test]
fn the_detached_header_of_an_open_volume_is_not_formatted() {
    let test = "attacks: the_detached_header_of_an_open_volume_is_not_formatted";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("detached");
    let (image, header) = (rig.path("image"), rig.path("header"));
    let header_option = ["--header", header.to_str().unwrap()];
    rig.format_cheap(&image, "20M", &header_option);
    let before = std::fs::read(&header).unwrap();
    succeed(
        rig.luksctl(&["open", "-q", "--backend", "fuse", "--key-file"])
            .arg(rig.key())
            .args(header_option)
            .arg(&image)
            .arg("detached"),
    );
    let over = || {
        let mut command = rig.luksctl(&["format", "--force", "-q", "--size", "20M", "--key-file"]);
        run(command.arg(rig.key()).args(header_option).arg(rig.path("other")))
    };
    assert_refused(&over(), 5, "has it open");
    assert!(std::fs::read(&header).unwrap() == before);
    // A label is no harm: the volume keeps its key.
    succeed(rig.luksctl(&["label", "--label", "new"]).args(header_option).arg(&image));
    rig.close("detached");
    assert!(over().status.success());
}

#[test]
fn a_header_sends_no_commands_to_the_terminal() {
    let rig = Rig::new("terminal");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let clean = std::fs::read(&image).unwrap();
    let changes: [fn(&mut Value); 6] = [
        |json| json["tokens"] = serde_json::json!({ "0": { "type": HOSTILE, "keyslots": ["0"] } }),
        |json| json["config"]["requirements"] = serde_json::json!({ "mandatory": [HOSTILE] }),
        |json| json["segments"]["0"]["type"] = HOSTILE.into(),
        |json| json["segments"]["0"]["encryption"] = HOSTILE.into(),
        |json| json["segments"]["0"]["offset"] = HOSTILE.into(),
        |json| json["keyslots"][HOSTILE] = serde_json::json!({}),
    ];
    for (number, change) in changes.iter().enumerate() {
        std::fs::write(&image, &clean).unwrap();
        rewrite(&image, change);
        for verb in [
            &["dump"][..],
            &["dump", "--json"],
            &["dump", "--dump-json-metadata"],
            &["is-luks", "-v"],
            &["keyslot", "list"],
            &["copy-out", "--key-file", "/dev/null", "-"],
            &["repair"],
        ] {
            let mut arguments: Vec<&str> = verb.to_vec();
            let place = if verb[0] == "copy-out" { 1 } else { verb.len() };
            arguments.insert(place, image.to_str().unwrap());
            let said = text(&run(&mut rig.luksctl(&arguments)));
            let obeyed = |symbol: char| (symbol.is_control() && !"\n\t".contains(symbol)) || symbol == '\u{202e}';
            assert!(!said.chars().any(obeyed), "change {number}, {verb:?}: {said:?}");
            assert!(!said.contains("\nhint: forged"), "change {number}, {verb:?}: {said:?}");
        }
    }
}

#[test]
fn plaintext_does_not_go_to_a_terminal() {
    let test = "attacks: plaintext_does_not_go_to_a_terminal";
    if !needs_programs(test, &["script"]) {
        return;
    }
    let rig = Rig::new("plaintext");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let line = |image: &Path| {
        let luksctl = promises::bins::luksctl();
        let (key, length) = (rig.key(), "--length 10");
        format!("{} copy-out {length} --key-file {} {} -", luksctl.display(), key.display(), image.display())
    };
    let on_a_terminal = run(Command::new("script").args(["-qec", &line(&image), "/dev/null"]).stdin(Stdio::null()));
    assert_refused(&on_a_terminal, 1, "the plaintext would go to the terminal");
    let into_a_pipe = succeed(Command::new("sh").args(["-c", &line(&image)]).stdin(Stdio::null()));
    assert_eq!(into_a_pipe.stdout.len(), 10);
}

#[test]
fn root_does_not_run_the_programs_of_a_callers_path() {
    let test = "attacks: root_does_not_run_the_programs_of_a_callers_path";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("path");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let (evil, marker, point) = (rig.path("evil"), rig.path("marker"), rig.path("point"));
    std::fs::create_dir(&evil).unwrap();
    std::fs::create_dir(&point).unwrap();
    for program in ["mount", "systemd-run"] {
        std::fs::write(evil.join(program), format!("#!/bin/sh\ntouch {}\nexit 1\n", marker.display())).unwrap();
        std::fs::set_permissions(evil.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!(":{}:{}", evil.display(), std::env::var("PATH").unwrap());
    // No file system: the real mount(8) refuses.
    let mount = |path: &str| {
        run(rig
            .luksctl(&["mount", "-q", "--backend", "fuse", "--key-file"])
            .arg(rig.key())
            .arg(&image)
            .arg(&point)
            .env("PATH", path))
    };
    assert_refused(&mount(&path), 1, "mount failed");
    assert!(!marker.exists(), "a program of the caller's PATH ran as root");
}

fn control(rig: &Rig, name: &str) -> PathBuf {
    rig.run_dir().join(name).join("control")
}

#[test]
fn a_stranger_at_the_control_socket_is_turned_away() {
    let test = "attacks: a_stranger_at_the_control_socket_is_turned_away";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["perl", "setpriv"])) {
        return;
    }
    let rig = Rig::new("stranger");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let device = rig.open(&image, "mine");
    let socket = control(&rig, "mine");
    let ask = r#"use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or do { print "no way\n"; exit };
        print $s "{\"v\":1,\"verb\":\"stop\"}\n"; $s->flush; my $l = <$s>; print defined $l ? $l : "hung up\n";"#;
    let stranger = |program: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(program);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let asks = || stranger(&["perl", "-e", ask, socket.to_str().unwrap()]);
    assert_eq!(asks(), "no way\n");
    // Even with every door left open on the way.
    for folder in [rig.path(""), rig.run_dir(), rig.run_dir().join("mine")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(asks(), "hung up\n");
    let disk = rig.run_dir().join("mine/fuse/disk");
    assert_eq!(stranger(&["head", "-c", "1", disk.to_str().unwrap()]), "");
    assert!(std::fs::File::open(device).unwrap().read_exact(&mut [0; 512]).is_ok());
    rig.close("mine");
}

#[test]
fn garbage_and_a_crowd_at_the_control_socket_harm_nobody() {
    let test = "attacks: garbage_and_a_crowd_at_the_control_socket_harm_nobody";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("garbage");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let _device = rig.open(&image, "busy");
    let path = control(&rig, "busy");
    let long = "x".repeat(70_000);
    let deep = format!("{}\n", "[".repeat(60_000));
    for sent in [
        &b"\n"[..],
        b"\0\xff\xfe\n",
        b"{\"v\":1,\"secret\":true,\"verb\":\"stop\"}\n\xff\xff\xff\xff",
        b"{\"v\":1,\"secret\":true,\"verb\":\"resume\"}\n\x04\x00\x00\x00four",
        b"{\"v\":1,\"verb\":\"unlock\",\"image\":\"/etc/passwd\"}\n",
        b"{\"v\":4294967297,\"verb\":\"stop\"}\n",
        long.as_bytes(),
        deep.as_bytes(),
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The server may have had enough before the end.
        drop(stream.write_all(sent));
        let mut answer = [0; 400];
        let len = stream.read(&mut answer).unwrap_or(0);
        let said = String::from_utf8_lossy(&answer[..len]);
        assert!(len == 0 || said.contains("\"reply\":\"failed\""), "{said}");
    }
    let crowd: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    drop(crowd);
    wait_for("an answer after the crowd has left", || {
        rig.luksctl(&["status", "busy"]).output().unwrap().status.success()
    });
    rig.close("busy");
}

/// Stops `child` again and again until it ends, and looks through its memory: a secret may stand only in mappings that are
/// locked and left out of dumps. Returns how often one was found.
fn watch(mut child: Child, secrets: &[&[u8]]) -> usize {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut found = 0;
    while child.try_wait().unwrap().is_none() {
        kill(pid, Signal::SIGSTOP).unwrap();
        let searched = search(child.id(), secrets);
        kill(pid, Signal::SIGCONT).unwrap();
        // It may have ended before the stop.
        let (findings, _) = searched.unwrap_or_default();
        for finding in &findings {
            assert!(finding.mapping.locked && finding.mapping.undumped, "unprotected in the client: {finding:x?}");
        }
        found += findings.len();
        std::thread::sleep(Duration::from_millis(30));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    found
}

#[test]
fn the_client_keeps_secrets_in_protected_memory() {
    let test = "attacks: the_client_keeps_secrets_in_protected_memory";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("client");
    let (image, new_key) = (rig.path("image"), rig.path("new-key"));
    let slow = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1500000"];
    let (old, new) = (std::fs::read(rig.key()).unwrap(), b"another passphrase, 0123456789".to_vec());
    std::fs::write(&new_key, &new).unwrap();
    let secrets = [&old[..], &old[5..], &new[..], &new[5..]];
    let start = |arguments: &[&str], key_file: bool, input: &[u8]| {
        let mut command = rig.luksctl(arguments);
        if key_file {
            command.arg("--key-file").arg(rig.key());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child
    };
    let both = [&old[..], b"\n", &new, b"\n"].concat();
    let image = image.to_str().unwrap();
    let with_slow = |words: &[&'static str]| [words, &slow[..]].concat();
    for (arguments, key_file, input) in [
        ([&with_slow(&["format", "-q", "--size", "20M"])[..], &[image]].concat(), true, &b""[..]),
        (vec!["open", "--test-passphrase", image], true, b""),
        (vec!["open", "--test-passphrase", image], false, &both),
        ([&with_slow(&["keyslot", "add", "--key-slot", "3"])[..], &[image]].concat(), false, &both),
        (vec!["open", "-q", image, "client"], false, &both),
    ] {
        let found = watch(start(&arguments, key_file, input), &secrets);
        assert!(found > 0, "{arguments:?}: the scan finds no passphrase in a client that has one: it proves nothing");
    }
    rig.close("client");
}

/// The kernel gets the cipher as a word of a table. With blanks in it, a forged header would name a key that its maker knows,
/// or another disk, and the owner's own passphrase would open that.
#[test]
fn a_cipher_is_never_more_than_one_word_of_the_kernels_table() {
    let rig = Rig::new("words");
    let known_key = "00".repeat(64);
    let words = format!("aes-xts-plain64 {known_key} 0 7:0 32768 1 allow_discards");
    let passphrase = secret::Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    let opened = |image: &Path| {
        let bytes = std::fs::read(image).unwrap();
        let disk = block::MemDisk::from_bytes(&bytes);
        let container = luks::AnyContainer::open(&disk, &disk, luks::Limits::default()).unwrap();
        let key = container.unlock(&session::SystemEnv.env(), &luks::UnlockRequest::default(), &passphrase).unwrap();
        container.opened_segment(&key).map(drop)
    };
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    opened(&image).unwrap();
    for cipher in [words.as_str(), "aes-xts-plain64\\", "aes-xts-plain64\n"] {
        rewrite(&image, |json| json["segments"]["0"]["encryption"] = cipher.into());
        let refused = opened(&image).expect_err(cipher).to_string();
        assert!(refused.contains("ciphers of more than one word"), "{refused}");
    }
    let old = rig.path("old");
    rig.format_cheap(&old, "20M", &["--type", "luks1"]);
    opened(&old).unwrap();
    let mut bytes = std::fs::read(&old).unwrap();
    // Two fields of 32 bytes: the name of the cipher, its mode. The keyslots use them, too, and do not open any more.
    let mode = b"xts-plain64 - 0 8:0 0";
    bytes[40..40 + mode.len()].copy_from_slice(mode);
    let disk = block::MemDisk::from_bytes(&bytes);
    let container = luks::Luks1Container::open(&disk, &disk, luks::Limits::default()).unwrap();
    let refused = container.opened_segment().expect_err("two words").to_string();
    assert!(refused.contains("ciphers of more than one word"), "{refused}");
}
