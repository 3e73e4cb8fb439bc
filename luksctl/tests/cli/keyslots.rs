//! Keyslots through the command line: added, changed, removed, killed, and never the last one by accident.

use crate::desk::{CHEAP, Desk};

fn slots(desk: &Desk) -> Vec<u64> {
    let json = desk.run(&["keyslot", "list", "--json", "image"]).ends(0).json();
    json["keyslots"].as_array().unwrap().iter().map(|slot| slot["id"].as_u64().unwrap()).collect()
}

#[test]
fn add_change_remove_kill() {
    let desk = Desk::with_image();
    let cheap = |verb: &[&'static str]| [verb, &CHEAP].concat();
    let added = desk.run(&cheap(&["keyslot", "add", "image", "key2", "-d", "key", "--json"])).ends(0).json();
    assert_eq!(added["keyslot"], 1);
    desk.run(&cheap(&["keyslot", "add", "image", "key2", "-d", "key", "-S", "5"])).ends(0);
    desk.run(&cheap(&["keyslot", "add", "image", "key2", "-d", "key", "-S", "5"])).fails(1, "in use");
    desk.run(&cheap(&["keyslot", "add", "image", "key2", "-d", "wrong"])).fails(2, "No key available");
    assert_eq!(slots(&desk), [0, 1, 5]);

    desk.run(&cheap(&["keyslot", "change", "image", "wrong", "-d", "key"])).ends(0);
    desk.run(&["keyslot", "test", "image", "-d", "key"]).ends(2);
    desk.run(&["keyslot", "test", "image", "-d", "wrong", "-S", "0"]).ends(0);

    desk.run(&["keyslot", "remove", "image", "key"]).ends(2);
    let before = std::fs::read(desk.path("image")).unwrap();
    desk.run(&["keyslot", "remove", "image", "wrong"]).fails(1, "Nothing to read");
    let proof = |file: &'static str| ["keyslot", "remove", "image", "wrong", "--remaining-key-file", file];
    desk.run(&proof("key")).fails(2, "No key available");
    desk.run(&proof("wrong")).fails(2, "opens keyslot 0 itself");
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
    desk.run(&proof("key2")).ends(0);
    assert_eq!(slots(&desk), [1, 5]);
    // Both slots hold the same passphrase: it proves the one that stays.
    desk.run(&["keyslot", "kill", "image", "1", "-d", "key2"]).ends(0);
    assert_eq!(slots(&desk), [5]);
    desk.run(&["keyslot", "kill", "image", "1", "-d", "key2"]).fails(1, "not in use");
}

#[test]
fn the_last_one_goes_only_by_force() {
    let desk = Desk::with_image();
    let before = std::fs::read(desk.path("image")).unwrap();
    desk.run(&["keyslot", "kill", "-q", "image", "0", "-d", "key"]).fails(1, "the last one");
    desk.run(&["keyslot", "kill", "-q", "image", "0"]).fails(1, "the last one");
    desk.run(&["keyslot", "remove", "-q", "image", "key"]).fails(1, "the last one");
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
    desk.run(&["keyslot", "kill", "-q", "image", "0", "--force"]).ends(0);
    assert_eq!(slots(&desk), [0u64; 0]);
}

#[test]
fn killing_asks_for_a_passphrase_that_stays() {
    let desk = Desk::with_image();
    desk.run(&[&["keyslot", "add", "image", "key2", "-d", "key"][..], &CHEAP].concat()).ends(0);
    let before = std::fs::read(desk.path("image")).unwrap();
    desk.run(&["keyslot", "kill", "image", "0", "-d", "key"]).fails(2, "opens keyslot 0 itself");
    desk.run(&["keyslot", "kill", "image", "0", "-d", "wrong"]).fails(2, "No key available");
    desk.run_with_input(&["keyslot", "kill", "-q", "image", "0"], b"wrong line\n").ends(2);
    desk.run(&["keyslot", "kill", "image", "0"]).fails(1, "Nothing to read");
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
    desk.run(&["keyslot", "kill", "-q", "image", "0"]).ends(0);
    assert_eq!(slots(&desk), [1]);
}

#[test]
fn label_and_subsystem_are_set_alone() {
    let desk = Desk::with_image();
    desk.run(&["label", "image", "one"]).ends(0);
    desk.run(&["label", "image", "--subsystem", "two"]).ends(0);
    let both = desk.run(&["label", "image", "--json"]).ends(0).json();
    assert_eq!((both["label"].as_str(), both["subsystem"].as_str()), (Some("one"), Some("two")));
    desk.run(&["label", "image", ""]).ends(0);
    let both = desk.run(&["label", "image", "--json"]).ends(0).json();
    assert!(both["label"].is_null() && both["subsystem"] == "two", "{both}");
    let uuid = "12345678-9abc-4def-8123-456789abcdef";
    desk.run(&["uuid", "image", "--uuid", uuid]).ends(0);
    assert_eq!(desk.run(&["uuid", "image"]).ends(0).stdout.trim(), uuid);
    desk.run(&["uuid", "image", "--uuid", "nonsense"]).ends(1);
}
