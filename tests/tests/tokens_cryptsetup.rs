//! Tokens with cryptsetup, both ways: what one of us writes the other one shows, exports and uses, byte for byte; keys in the
//! kernel's keyring open for both; and what cannot be a token changes no byte.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use promises::keyring::UserKey;
use promises::rig::{run, run_with_input, succeed};
use promises::skip::needs_programs;
use promises::{Rig, skip};
use serde_json::Value;

/// Member order, number spelling and escapes as no writer of ours would choose them.
const FOREIGN: &str = r#"{"b":1.50,"keyslots":["0"],"a":{"z":1e3,"y":[]},"type":"x","text":"A"}"#;

fn image(rig: &Rig) -> PathBuf {
    let image = rig.path("image");
    rig.format_cheap(&image, "17M", &[]);
    image
}

fn cryptsetup(arguments: &[&str], image: &Path) -> Command {
    let mut command = Command::new("cryptsetup");
    command.arg("-q").args(arguments).arg(image).stdin(Stdio::null());
    command
}

fn ours(rig: &Rig, arguments: &[&str], image: &Path) -> Command {
    let mut command = rig.luksctl(arguments);
    command.arg(image);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn exported(rig: &Rig, image: &Path, id: &str) -> [String; 2] {
    let theirs = succeed(&mut cryptsetup(&["token", "export", "--token-id", id], image));
    let ours = succeed(&mut ours(rig, &["token", "export", "--token-id", id], image));
    [text(&theirs), text(&ours)]
}

#[test]
fn a_token_that_nobody_knows_stays_byte_for_byte_through_both() {
    if !needs_programs("tokens_cryptsetup", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("tokens");
    let image = image(&rig);
    assert!(run_with_input(&mut ours(&rig, &["token", "import"], &image), FOREIGN.as_bytes()).status.success());
    let theirs = &mut cryptsetup(&["token", "import", "--token-id", "5"], &image);
    assert!(run_with_input(theirs, FOREIGN.as_bytes()).status.success());
    for id in ["0", "5"] {
        assert_eq!(exported(&rig, &image, id), [FOREIGN, FOREIGN], "token {id}");
    }
    // Each of us writes the header once more, and ties and unties.
    succeed(&mut ours(&rig, &["label", "--label", "x"], &image));
    succeed(&mut cryptsetup(&["config", "--subsystem", "y"], &image));
    succeed(ours(&rig, &["token", "unassign", "--token-id", "5", "-S", "0"], &image).arg("-q"));
    let untied = FOREIGN.replace(r#"["0"]"#, "[]");
    assert_eq!(exported(&rig, &image, "5"), [untied.as_str(), untied.as_str()]);
    succeed(&mut ours(&rig, &["token", "assign", "--token-id", "5", "-S", "0"], &image));
    for id in ["0", "5"] {
        assert_eq!(exported(&rig, &image, id), [FOREIGN, FOREIGN], "token {id}");
    }
    succeed(&mut cryptsetup(&["token", "remove", "--token-id", "0"], &image));
    succeed(&mut ours(&rig, &["token", "remove", "--token-id", "5"], &image));
    let dump = text(&succeed(&mut cryptsetup(&["luksDump"], &image)));
    assert!(dump.contains("Tokens:\nDigests:"), "{dump}");
}

#[test]
fn a_key_in_the_keyring_opens_for_both() {
    if !needs_programs("tokens_cryptsetup", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("keyring");
    let image = image(&rig);
    let description = |who: &str| format!("luksctl-test-{who}-{}", std::process::id());
    let add = |who: &str| ["token".to_owned(), "add".into(), "--key-description".into(), description(who)];
    let [token, add_verb, option, value] = &add("ours");
    succeed(&mut ours(&rig, &[token, add_verb, option, value, "-S", "0"], &image));
    let dump = text(&succeed(&mut cryptsetup(&["luksDump"], &image)));
    let said = format!("  0: luks2-keyring\n\tKey description: {value}\n\tKeyslot:    0\n");
    assert!(dump.contains(&said), "{dump}");
    assert!(text(&succeed(&mut ours(&rig, &["dump"], &image))).contains(&said));

    let test = ["open", "--test-passphrase", "--token-only"];
    let both = |more: &[&str]| {
        let arguments = [&test[..], more].concat();
        [run(&mut cryptsetup(&arguments, &image)).status.code(), run(&mut ours(&rig, &arguments, &image)).status.code()]
    };
    assert_eq!(both(&[]), [Some(2); 2], "without the key nothing opens");
    assert_eq!(both(&["--token-type", "nobody"]), [Some(1); 2], "without a token nothing is tried");
    let wrong = match UserKey::add(value, b"not the passphrase") {
        Ok(key) => key,
        Err(error) => return skip("tokens_cryptsetup keyring", &format!("no keyring: {error}")),
    };
    assert_eq!(both(&[])[1], Some(2), "a wrong key is a wrong passphrase");
    drop(wrong);
    let passphrase = fs::read(rig.key()).unwrap();
    let _key = UserKey::add(value, &passphrase).unwrap();
    assert_eq!(both(&[]), [Some(0); 2]);
    assert_eq!(both(&["--token-id", "0"]), [Some(0); 2]);
    assert_eq!(both(&["--token-type", "luks2-keyring"]), [Some(0); 2]);
    assert_eq!(both(&["--token-id", "7"]), [Some(1); 2]);
    // Nobody is asked: standard input is empty, and a keyslot is added by the token.
    let mut adding = ours(&rig, &["keyslot", "add", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"], &image);
    fs::write(rig.path("new"), b"another passphrase").unwrap();
    succeed(adding.arg(rig.path("new")));
    let mut test = cryptsetup(&["open", "--test-passphrase", "--key-file"], &rig.path("new"));
    succeed(test.arg(&image));
    // And theirs, for a passphrase of its own.
    let [token, add_verb, option, value] = &add("theirs");
    succeed(&mut cryptsetup(&[token, add_verb, option, value, "-S", "1"], &image));
    let _second = UserKey::add(value, b"another passphrase").unwrap();
    assert_eq!(both(&["--token-id", "1"]), [Some(0); 2]);
}

#[test]
fn a_volume_opens_by_its_token_through_the_server() {
    let rig = Rig::new("keyring-open");
    if !promises::skip::needs_fuse("tokens_cryptsetup open") {
        return;
    }
    let image = image(&rig);
    let description = format!("luksctl-test-open-{}", std::process::id());
    let token = ["token", "add", "--key-description", &description];
    succeed(&mut ours(&rig, &token, &image));
    // A stale key of another token comes first and is passed over.
    let stale = format!("{description}-stale");
    succeed(&mut ours(&rig, &["token", "add", "--key-description", &stale], &image));
    let keys = [UserKey::add(&description, &fs::read(rig.key()).unwrap()), UserKey::add(&stale, b"stale")];
    if let Some(error) = keys.iter().find_map(|key| key.as_ref().err()) {
        return skip("tokens_cryptsetup open", &format!("no keyring: {error}"));
    }
    succeed(&mut ours(&rig, &["token", "remove", "--token-id", "0"], &image));
    succeed(&mut ours(&rig, &token, &image));
    let opened = ["open", "--backend", "fuse", "--no-loop", "--json"];
    let mut open = ours(&rig, &opened, &image);
    let report: Value = serde_json::from_str(&text(&succeed(open.arg("by-token")))).unwrap();
    assert_eq!(report["opened"]["keyslot"], 0);
    // Again by its token, with and without asking for it; with a token that there is not, it stays suspended.
    for option in [&[][..], &["--token-only"], &["--token-id", "0"]] {
        succeed(&mut rig.luksctl(&["suspend", "by-token"]));
        let none = run(&mut rig.luksctl(&["resume", "by-token", "--token-only", "--token-type", "nobody"]));
        assert_eq!(none.status.code(), Some(1), "{}", String::from_utf8_lossy(&none.stderr));
        succeed(&mut rig.luksctl(&[&["resume", "by-token"], option].concat()));
    }
    rig.close("by-token");
    // With a key file tokens are not looked at; without one, and with a stale token only, standard input is asked.
    succeed(&mut ours(&rig, &["token", "remove", "--token-id", "0"], &image));
    let mut open = ours(&rig, &opened, &image);
    let asked = run_with_input(open.arg("by-line"), b"wrong\n");
    assert_eq!(asked.status.code(), Some(2), "{}", String::from_utf8_lossy(&asked.stderr));
    let only = run(ours(&rig, &["open", "--backend", "fuse", "--no-loop", "--token-only"], &image).arg("by-stale"));
    assert_eq!(only.status.code(), Some(2), "{}", String::from_utf8_lossy(&only.stderr));
}

#[test]
fn what_cannot_be_a_token_changes_no_byte() {
    if !needs_programs("tokens_cryptsetup", &["cryptsetup"]) {
        return;
    }
    let rig = Rig::new("bad-tokens");
    let image = image(&rig);
    let good = r#"{"type":"x","keyslots":[]}"#;
    let import = ["token", "import", "--token-id", "3"];
    assert!(run_with_input(&mut ours(&rig, &import, &image), good.as_bytes()).status.success());
    let before = fs::read(&image).unwrap();
    let large = format!(r#"{{"type":"x","keyslots":[],"blob":"{}"}}"#, "x".repeat(13_000));
    let nested = format!(r#"{{"type":"x","keyslots":[],"a":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    for bad in [
        "",
        "x",
        "[]",
        "{}",
        r#"{"keyslots":[]}"#,
        r#"{"type":"x"}"#,
        r#"{"type":"","keyslots":[]}"#,
        r#"{"type":"x","keyslots":["7"]}"#,
        r#"{"type":"x","keyslots":[0]}"#,
        r#"{"type":"luks2-new","keyslots":[]}"#,
        r#"{"type":"luks2-keyring","keyslots":[]}"#,
        r#"{"type":"luks2-keyring","keyslots":[],"key_description":"a","more":1}"#,
        &large,
        &nested,
    ] {
        let mut command = ours(&rig, &["token", "import"], &image);
        assert_eq!(run_with_input(&mut command, bad.as_bytes()).status.code(), Some(1), "{bad:.60}");
        let theirs = rig.path("theirs");
        fs::copy(&image, &theirs).unwrap();
        let accepted = run_with_input(&mut cryptsetup(&["token", "import"], &theirs), bad.as_bytes()).status.success();
        assert!(!accepted, "cryptsetup takes {bad:.60}");
    }
    for (arguments, input) in [
        (&["token", "import", "--token-id", "32"][..], good),
        (&["token", "import", "--token-id", "3"], good),
        (&["token", "import", "--token-id", "4", "--token-replace"], good),
        (&["token", "import", "-S", "9"], good),
        (&["token", "remove", "--token-id", "4"], ""),
        (&["token", "export", "--token-id", "4"], ""),
        (&["token", "assign", "--token-id", "3", "-S", "9"], ""),
        (&["token", "unassign", "--token-id", "3", "-S", "0"], ""),
        (&["token", "add", "--key-description", ""], ""),
        (&["token", "add", "--key-description", "d", "-S", "9"], ""),
    ] {
        let output = run_with_input(&mut ours(&rig, arguments, &image), input.as_bytes());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("\nhint: "), "{arguments:?}: {output:?}");
    }
    assert!(fs::read(&image).unwrap() == before, "a refused token changed the image");
    for _ in 1..32 {
        assert!(run_with_input(&mut ours(&rig, &["token", "import"], &image), good.as_bytes()).status.success());
    }
    let before = fs::read(&image).unwrap();
    assert_eq!(run_with_input(&mut ours(&rig, &["token", "import"], &image), good.as_bytes()).status.code(), Some(1));
    assert!(fs::read(&image).unwrap() == before);
    let list: Value =
        serde_json::from_str(&text(&succeed(&mut ours(&rig, &["token", "list", "--json"], &image)))).unwrap();
    assert_eq!(list["tokens"].as_array().unwrap().len(), 32);
    succeed(&mut cryptsetup(&["luksDump"], &image));
}
