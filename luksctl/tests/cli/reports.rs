//! Every verb that reports has `--json`, and it is JSON; secrets are in no argument list and no environment.

use crate::desk::{CHEAP, Desk, skip};

#[test]
fn json_is_json_on_every_verb_that_reports() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("plain"), "plain").unwrap();
    desk.format("convertible", &["--size", "20M", "--sector-size", "512"]).ends(0);
    let verbs: [&[&str]; 20] = [
        &["check", "--policy", "default", "image"],
        &["format", "--dry-run", "new", "--size", "20M"],
        &["dump", "image"],
        &["is-luks", "image"],
        &["uuid", "image"],
        &["label", "image"],
        &["keyslot", "list", "image"],
        &["keyslot", "test", "image", "-d", "key"],
        &["open", "--test-passphrase", "image", "-d", "key"],
        &["copy-in", "image", "plain", "-d", "key"],
        &["copy-out", "image", "out", "-d", "key"],
        &["repair", "--dry-run", "image"],
        &["repair", "-q", "image"],
        &["list"],
        &["header", "backup", "image", "backup"],
        &["header", "restore", "--dry-run", "image", "backup"],
        &["header", "restore", "-q", "image", "backup"],
        &["convert", "--dry-run", "--type", "luks1", "convertible"],
        &["erase", "-q", "convertible"],
        &["keyslot", "add", "image", "key2", "-d", "key", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
    ];
    for verb in verbs {
        let done = desk.run(&[verb, &["--json"]].concat()).ends(0);
        let json = done.json();
        assert!(json.is_object() || json.is_array(), "{verb:?}: {json}");
    }
    let made = desk.format("made", &["--size", "20M", "--json"]).ends(0).json();
    assert_eq!(made["written"], true);
    assert_eq!(desk.run(&["uuid", "made"]).ends(0).stdout.trim(), made["uuid"].as_str().unwrap());
    let no_luks = desk.run(&["is-luks", "--json", "plain"]).ends(1).json();
    assert_eq!(no_luks["luks"], false);
    let raw = desk.run(&["dump", "--dump-json-metadata", "image"]).ends(0).json();
    assert_eq!(raw["keyslots"]["0"]["type"], "luks2");
}

#[test]
fn copying_to_standard_output_is_the_volume() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("plain"), "the plaintext of this volume").unwrap();
    desk.run(&["copy-in", "-q", "image", "plain", "-d", "key", "--offset", "1000"]).ends(0);
    let out = desk.run(&["copy-out", "image", "-", "-d", "key", "--offset", "1000", "--length", "28"]).ends(0);
    assert_eq!(out.stdout, "the plaintext of this volume");
    desk.run_with_input(&["copy-in", "-q", "image", "-", "-d", "key"], b"from a pipe").ends(0);
    let out = desk.run(&["copy-out", "image", "-", "-d", "key", "--length", "11"]).ends(0);
    assert_eq!(out.stdout, "from a pipe");
}

#[test]
fn a_server_and_its_client_show_no_secret() {
    let desk = Desk::with_image();
    let passphrase = "xyzzy-the-canary-passphrase";
    let add = [&["keyslot", "add", "image", "-d", "key"][..], &CHEAP].concat();
    let added = desk.run_with_input(&add, format!("{passphrase}\n").as_bytes()).ends(0);
    let opened =
        desk.run_with_input(&["open", "-v", "image", "volume", "--no-loop"], format!("{passphrase}\n").as_bytes());
    if opened.code != Some(0) {
        skip(
            "a_server_and_its_client_show_no_secret",
            &format!("no volume can be opened here: {}", opened.stderr.trim()),
        );
        assert!(opened.stderr.contains("\nhint: "), "{opened:?}");
        return;
    }
    let status = desk.run(&["status", "volume", "--json"]);
    let pid = status.json()["pid"].as_u64().unwrap();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let again = desk.run(&["open", "image", "volume", "-d", "key"]);
    let refused = desk.format("image", &["--force"]);
    let closed = desk.run(&["close", "volume"]);
    let shown = format!("{added:?}{opened:?}{status:?}{again:?}{refused:?}{closed:?}");
    assert!(!shown.contains("xyzzy"), "{shown}");
    for bytes in [arguments, environment] {
        assert!(!String::from_utf8_lossy(&bytes).contains("xyzzy"));
    }
    status.ends(0);
    again.fails(5, "already open");
    refused.fails(5, "in use");
    closed.ends(0);
    desk.run(&["status", "volume"]).fails(4, "no volume named volume");
}
