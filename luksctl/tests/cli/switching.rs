//! What somebody meets who managed volumes with cryptsetup until yesterday: its short options, its order of things, a word on
//! what is not here, and never half of a command.

use crate::desk::{CHEAP, Desk, skip};

/// The image, to see that nothing changed.
fn bytes(desk: &Desk) -> Vec<u8> {
    std::fs::read(desk.path("image")).unwrap()
}

fn import(desk: &Desk, id: &str) {
    let token = br#"{"type":"x","keyslots":["0"]}"#;
    desk.run_with_input(&["token", "import", "image", "--token-id", id], token).ends(0);
}

#[test]
fn h_with_the_name_of_a_hash_is_the_hash() {
    let desk = Desk::new();
    for (hash, arguments) in [("sha512", &["-h", "sha512"][..]), ("sha1", &["-hsha1"]), ("sha384", &["--hash=sha384"])]
    {
        std::fs::File::create(desk.path("image")).unwrap().set_len(20 << 20).unwrap();
        desk.run(&[&["luksFormat", "-q", "image", "key"][..], arguments, &CHEAP].concat()).ends(0);
        let dump = desk.run(&["dump", "--json", "image"]).ends(0).json();
        assert_eq!(dump["digests"][0]["hash"], hash, "{dump}");
        assert_eq!(dump["keyslots"][0]["kdf"]["hash"], hash, "{dump}");
        std::fs::remove_file(desk.path("image")).unwrap();
    }
    let help = desk.run(&["luksFormat", "-h"]).ends(0).stdout;
    assert!(help.contains("Usage: luksctl format"), "{help}");
}

#[test]
fn keyslots_and_tokens_are_shown_by_their_numbers() {
    let desk = Desk::with_image();
    for id in ["7", "2", "31"] {
        desk.run(&[&["luksAddKey", "image", "key2", "-d", "key", "-S", id][..], &CHEAP].concat()).ends(0);
        import(&desk, id);
    }
    let ids = |verb: &[&str], what: &str| {
        let json = desk.run(&[verb, &["--json", "image"]].concat()).ends(0).json();
        json[what].as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    for verb in [&["dump"][..], &["keyslot", "list"]] {
        assert_eq!(ids(verb, "keyslots"), [0, 2, 7, 31], "{verb:?}");
    }
    for verb in [&["dump"][..], &["token", "list"]] {
        assert_eq!(ids(verb, "tokens"), [2, 7, 31], "{verb:?}");
    }
    let text = desk.run(&["keyslot", "list", "image"]).ends(0).stdout;
    let shown: Vec<&str> = text.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(shown, ["0", "2", "7", "31"]);
    match std::process::Command::new("cryptsetup").arg("luksDump").arg(desk.path("image")).output() {
        Err(error) => skip("keyslots_and_tokens_are_shown_by_their_numbers", &format!("needs cryptsetup: {error}")),
        Ok(theirs) => {
            let theirs = String::from_utf8(theirs.stdout).unwrap();
            assert_eq!(desk.run(&["dump", "image"]).ends(0).stdout, theirs);
        }
    }
}

#[test]
fn several_settings_are_set_together_or_not_at_all() {
    let desk = Desk::with_image();
    let (before, long) = (bytes(&desk), "x".repeat(48));
    for refused in [
        &["config", "image", "--label", "fine", "--subsystem", &long][..],
        &["config", "image", "--priority", "prefer", "-S", "0", "--label", &long],
        &["config", "image", "--priority", "prefer", "-S", "5", "--label", "fine"],
        &["label", "image", "fine", "--subsystem", &long],
    ] {
        let done = desk.run(refused).ends(1);
        assert!(done.stderr.starts_with("luksctl: "), "{done:?}");
        assert!(bytes(&desk) == before, "{refused:?} changed the image");
    }
    let epoch = || desk.run(&["dump", "--json", "image"]).ends(0).json()["epoch"].as_u64().unwrap();
    let was = epoch();
    let all = ["config", "image", "--label", "one", "--subsystem", "two", "--priority", "prefer", "-S", "0"];
    desk.run(&all).ends(0);
    let dump = desk.run(&["dump", "--json", "image"]).ends(0).json();
    assert_eq!((&dump["label"], &dump["subsystem"]), (&"one".into(), &"two".into()));
    assert_eq!(dump["keyslots"][0]["priority"], "preferred");
    assert_eq!(epoch(), was + 1, "one write of the header");
}

#[test]
fn a_keyslot_comes_with_its_name_or_not_at_all() {
    let desk = Desk::with_image();
    let add = [&["keyslot", "add", "image", "key2", "-d", "key", "--name", "the safe"][..], &CHEAP].concat();
    let epoch = || desk.run(&["dump", "--json", "image"]).ends(0).json()["epoch"].as_u64().unwrap();
    let was = epoch();
    desk.run(&add).ends(0);
    assert_eq!(epoch(), was + 1);
    let slots = desk.run(&["keyslot", "list", "--json", "image"]).ends(0).json();
    assert_eq!(slots["keyslots"][1]["name"]["text"], "the safe");
    for id in 1..32 {
        import(&desk, &id.to_string());
    }
    let before = bytes(&desk);
    desk.run(&add).fails(1, "all 32 tokens are in use");
    assert!(bytes(&desk) == before, "half of it was done");
}

#[test]
fn a_header_backup_is_named_either_way() {
    let desk = Desk::with_image();
    desk.run(&["header", "backup", "image", "one"]).ends(0);
    desk.run(&["header", "backup", "image", "--header-backup-file", "two"]).ends(0);
    desk.run(&["luksHeaderBackup", "--header-backup-file", "three", "image"]).ends(0);
    for other in ["two", "three"] {
        assert!(std::fs::read(desk.path("one")).unwrap() == std::fs::read(desk.path(other)).unwrap());
    }
    desk.run(&["luksHeaderRestore", "-q", "image", "--header-backup-file", "two"]).ends(0);
    let before = desk.names();
    desk.run(&["header", "backup", "image", "-"]).fails(1, "a header backup is a file");
    desk.run(&["header", "backup", "image"]).fails(1, "");
    desk.run(&["header", "backup", "image", "four", "--header-backup-file", "five"]).fails(1, "cannot be used with");
    assert_eq!(desk.names(), before);
}

#[test]
fn a_keyslot_that_is_named_is_tested_whatever_it_opens() {
    let desk = Desk::with_image();
    let unbound = ["luksAddKey", "--unbound", "-s", "256", "image", "key2"];
    desk.run(&[&unbound[..], &CHEAP].concat()).ends(0);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-d", "key2"]).ends(2);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-d", "key2", "-S", "1"]).ends(0);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-d", "key2", "--unbound"]).ends(0);
}

#[test]
fn what_is_not_here_says_what_to_do() {
    let desk = Desk::with_image();
    let before = bytes(&desk);
    for (arguments, hint) in [
        (&["luksFormat", "-q", "--use-random", "image", "key"][..], "getrandom"),
        (&["luksFormat", "-q", "--align-payload=2048", "image", "key"], "--offset SECTORS"),
        (&["luksAddKey", "--timeout", "5", "image"], "timeout 30"),
        (&["luksOpen", "-t", "5", "image", "x"], "timeout 30"),
        (&["luksDump", "--disable-locks", "image"], "never changed without its lock"),
        (&["reencrypt", "image"], "cryptsetup reencrypt"),
        (&["benchmark"], "luksbench"),
        (&["luksDump", "--dump-volume-key", "-d", "key", "image"], "key export image FILE"),
    ] {
        let done = desk.run(arguments).fails(1, "");
        assert!(done.stderr.contains(hint), "{arguments:?}: {}", done.stderr);
    }
    assert!(bytes(&desk) == before);
}

#[test]
fn a_size_that_may_mean_two_things_is_refused() {
    let desk = Desk::new();
    for arguments in [["resize", "nobody", "--size", "2048"], ["resize", "nobody", "-b", "2048"]] {
        desk.run(&arguments).fails(1, "2048s for sectors of 512 bytes");
    }
    for arguments in [["resize", "nobody", "-b", "2048s"], ["resize", "nobody", "--device-size", "2048"]] {
        desk.run(&arguments).fails(4, "no volume named nobody");
    }
}

#[test]
fn nothing_on_standard_input_is_no_passphrase() {
    let desk = Desk::with_image();
    desk.run(&["open", "--test-passphrase", "image", "-d", "-"]).fails(1, "Nothing to read");
    desk.run_with_input(&["open", "--test-passphrase", "image", "-d", "-"], b"wrong").fails(2, "No key available");
}

#[test]
fn a_repair_reports_the_same_members_for_either_version() {
    let desk = Desk::with_image();
    std::fs::File::create(desk.path("old")).unwrap().set_len(4 << 20).unwrap();
    let cost = ["--pbkdf-force-iterations", "1000"];
    desk.run(&[&["luksFormat", "-q", "--type", "luks1", "old", "key"][..], &cost].concat()).ends(0);
    let members = |image: &str| {
        let json = desk.run(&["repair", "--dry-run", "--json", image]).ends(0).json();
        json.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(members("image"), members("old"));
}

#[test]
fn a_lost_header_is_no_reason_to_format() {
    let desk = Desk::with_image();
    let mut image = bytes(&desk);
    image[..64 << 10].fill(0);
    std::fs::write(desk.path("image"), image).unwrap();
    let refused = desk.run(&["repair", "-q", "image"]).fails(1, "not a LUKS device");
    assert!(refused.stderr.contains("luksctl header restore") && !refused.stderr.contains("format"), "{refused:?}");
}

#[test]
fn without_room_a_keyslot_is_changed_and_converted_only_in_place() {
    let desk = Desk::new();
    // Room for one keyslot of 512 bits.
    desk.format("image", &["--size", "20M", "--luks2-keyslots-size", "256K"]).ends(0);
    let before = bytes(&desk);
    let convert = [&["keyslot", "convert", "image", "-d", "key", "--hash", "sha512"][..], &CHEAP].concat();
    let change = [&["keyslot", "change", "image", "key2", "-d", "key"][..], &CHEAP].concat();
    for refused in [&convert, &change] {
        let done = desk.run(refused).fails(1, "no room for a new keyslot");
        assert!(done.stderr.contains("--in-place"), "{done:?}");
        assert!(bytes(&desk) == before);
    }
    desk.run(&[&convert[..], &["--in-place"]].concat()).ends(0);
    let slots = desk.run(&["keyslot", "list", "--json", "image"]).ends(0).json();
    assert_eq!(slots["keyslots"][0]["kdf"]["hash"], "sha512");
    desk.run(&[&change[..], &["--in-place"]].concat()).ends(0);
    desk.run(&["keyslot", "test", "image", "-d", "key2"]).ends(0);
    desk.run(&["keyslot", "test", "image", "-d", "key"]).ends(2);
}

#[test]
fn a_primary_copy_without_its_version_is_no_luks1() {
    let desk = Desk::with_image();
    let before = bytes(&desk);
    let mut image = before.clone();
    image[6..8].copy_from_slice(&[0, 3]);
    std::fs::write(desk.path("image"), image).unwrap();
    let planned = desk.run(&["repair", "--dry-run", "--json", "image"]).ends(10).json();
    assert_eq!((&planned["version"], &planned["rewrite"]["copy"]), (&2.into(), &"primary".into()), "{planned}");
    desk.run(&["repair", "-q", "image"]).ends(0);
    desk.run(&["keyslot", "test", "image", "-d", "key"]).ends(0);
    assert_eq!(bytes(&desk)[..8], before[..8]);
}
