//! The exit codes of §11.1, verb by verb, and the one of our own.

use crate::desk::{CHEAP, Desk};

#[test]
fn every_verb_and_its_codes() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("text"), "no container\n".repeat(1000)).unwrap();
    let table: [(&[&str], i32); 30] = [
        (&["check", "--policy", "default", "image"], 0),
        (&["check", "image"], 10),
        (&["check", "text"], 1),
        (&["keyslot", "test", "image", "--key-file", "key", "--policy", "strict"], 1),
        (&["--version"], 0),
        (&["--help"], 0),
        (&["format", "--help"], 0),
        (&[], 1),
        (&["frobnicate"], 1),
        (&["dump"], 1),
        (&["dump", "image", "--no-such-option"], 1),
        (&["dump", "image"], 0),
        (&["dump", "text"], 1),
        (&["dump", "nothing"], 4),
        (&["dump", "."], 4),
        (&["is-luks", "image"], 0),
        (&["is-luks", "text"], 1),
        (&["is-luks", "nothing"], 4),
        (&["keyslot", "test", "image", "--key-file", "key"], 0),
        (&["keyslot", "test", "image", "--key-file", "wrong"], 2),
        (&["keyslot", "test", "image", "--key-file", "nothing"], 1),
        (&["keyslot", "test", "image", "--key-file", "key", "-S", "7"], 1),
        (&["keyslot", "test", "image"], 1),
        (&["keyslot", "kill", "-q", "image", "5"], 1),
        (&["open", "--test-passphrase", "image", "--key-file", "wrong"], 2),
        (&["open", "image", "name", "--key-file", "wrong"], 2),
        (&["open", "image", "bad/name", "--key-file", "key"], 1),
        (&["status", "nobody"], 4),
        (&["close", "nobody"], 4),
        (&["repair", "--dry-run", "image"], 0),
    ];
    for (arguments, code) in table {
        let done = desk.run(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{arguments:?}: {done:?}");
    }
}

#[test]
fn verbose_says_the_code_in_words() {
    let desk = Desk::with_image();
    let done = desk.run(&["-v", "keyslot", "test", "image", "--key-file", "wrong"]).ends(2);
    assert!(done.stderr.contains("Command failed with code -2 (no permission or bad passphrase)."), "{done:?}");
    let done = desk.run(&["keyslot", "test", "image", "--key-file", "key", "-v"]).ends(0);
    assert!(done.stderr.contains("Key slot 0 unlocked.\nCommand successful."), "{done:?}");
}

#[test]
fn standard_input_gives_lines_a_dash_gives_everything() {
    let desk = Desk::new();
    let mut format = vec!["format", "image", "--size", "20M"];
    format.extend(CHEAP);
    desk.run_with_input(&format, b"typed passphrase\nand more").ends(0);
    let test = ["keyslot", "test", "image"];
    desk.run_with_input(&test, b"typed passphrase\n").ends(0);
    desk.run_with_input(&test, b"typed passphrase").ends(0);
    desk.run_with_input(&test, b"typed passphrase \n").fails(2, "No key available with this passphrase.");
    desk.run_with_input(&test, b"\n").ends(2);
    desk.run_with_input(&test, b"").fails(1, "Nothing to read on input.");
    let dash = ["keyslot", "test", "image", "--key-file", "-"];
    desk.run_with_input(&dash, b"typed passphrase\n").ends(2);
    desk.run_with_input(&dash, b"typed passphrase").ends(0);
    let part = ["keyslot", "test", "image", "-d", "-", "-l", "16", "--keyfile-offset", "2"];
    desk.run_with_input(&part, b"xxtyped passphraseyy").ends(0);
    desk.run_with_input(&["keyslot", "test", "image", "--key-fd", "0"], b"typed passphrase").ends(0);
}

#[test]
fn a_key_file_has_at_most_8_mib() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("most"), vec![b'k'; 8 << 20]).unwrap();
    std::fs::write(desk.path("more"), vec![b'k'; (8 << 20) + 1]).unwrap();
    desk.run(&["keyslot", "test", "image", "-d", "most"]).ends(2);
    desk.run(&["keyslot", "test", "image", "-d", "more"]).fails(1, "more");
    desk.run(&["keyslot", "test", "image", "-d", "key", "-l", "1000"]).fails(1, "of the 1000 demanded");
}

#[test]
fn ten_says_that_a_copy_needs_repair_and_repair_mends_it() {
    let desk = Desk::with_image();
    let good = std::fs::read(desk.path("image")).unwrap();
    for (place, copy) in [(5000, "primary"), (0x4000 + 5000, "secondary")] {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        std::fs::write(desk.path("image"), &bytes).unwrap();
        let dump = desk.run(&["dump", "image"]).ends(10);
        assert!(dump.stderr.contains(copy) && dump.stderr.contains("luksctl repair"), "{dump:?}");
        desk.run(&["keyslot", "test", "image", "--key-file", "key"]).ends(0);
        desk.run(&["repair", "--dry-run", "image"]).ends(10);
        let report = desk.run(&["repair", "--dry-run", "--json", "image"]).ends(10).json();
        assert_eq!(report["rewrite"]["copy"], copy, "{report}");
        assert!(std::fs::read(desk.path("image")).unwrap() == bytes, "looking changed the image");
        desk.run(&["repair", "-q", "image"]).ends(0);
        desk.run(&["repair", "--dry-run", "image"]).ends(0);
        let done = desk.run(&["dump", "image"]).ends(0);
        assert_eq!(done.stderr, "", "{done:?}");
    }
}

#[test]
fn ten_says_that_a_removal_was_cut_short_and_repair_finishes_it() {
    let desk = Desk::with_image();
    desk.run(&[&["keyslot", "add", "image", "key2", "-d", "key"][..], &CHEAP].concat()).ends(0);
    // What a kill leaves that is cut short after its first write: the area of keyslot 0 begins with a sector of zeros.
    let mut bytes = std::fs::read(desk.path("image")).unwrap();
    bytes[0x8000..0x8200].fill(0);
    std::fs::write(desk.path("image"), &bytes).unwrap();
    desk.run(&["keyslot", "test", "image", "-d", "key"]).ends(2);
    let report = desk.run(&["repair", "--dry-run", "--json", "image"]).ends(10).json();
    assert_eq!(report["half_removed"], serde_json::json!([0]), "{report}");
    assert!(std::fs::read(desk.path("image")).unwrap() == bytes, "looking changed the image");
    desk.run(&["repair", "-q", "image"]).ends(0);
    desk.run(&["repair", "--dry-run", "image"]).ends(0);
    let slots = desk.run(&["keyslot", "list", "--json", "image"]).ends(0).json();
    assert_eq!(slots["keyslots"].as_array().map(Vec::len), Some(1), "{slots}");
    desk.run(&["keyslot", "test", "image", "-d", "key2"]).ends(0);
}

#[test]
fn a_removal_that_was_cut_short_is_finished_in_luks1_too() {
    let desk = Desk::with_image();
    desk.run(&[&["format", "-q", "--type", "luks1", "--size", "4M", "one", "-d", "key"][..], &CHEAP].concat()).ends(0);
    desk.run(&[&["keyslot", "add", "one", "key2", "-d", "key"][..], &CHEAP].concat()).ends(0);
    desk.run(&["repair", "--dry-run", "one"]).ends(0);
    let mut bytes = std::fs::read(desk.path("one")).unwrap();
    bytes[0x1000..0x1200].fill(0);
    std::fs::write(desk.path("one"), &bytes).unwrap();
    desk.run(&["check", "one"]).ends(10);
    let report = desk.run(&["repair", "--dry-run", "--json", "one"]).ends(10).json();
    assert_eq!(report["half_removed"], serde_json::json!([0]), "{report}");
    assert!(std::fs::read(desk.path("one")).unwrap() == bytes, "looking changed the image");
    desk.run(&["repair", "-q", "one"]).ends(0);
    desk.run(&["repair", "--dry-run", "one"]).ends(0);
    let slots = desk.run(&["keyslot", "list", "--json", "one"]).ends(0).json();
    assert_eq!(slots["keyslots"].as_array().map(Vec::len), Some(1), "{slots}");
    desk.run(&["keyslot", "test", "one", "-d", "key2"]).ends(0);
}
