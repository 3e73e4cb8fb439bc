//! cryptsetup's verbs with cryptsetup's arguments.

use crate::desk::{CHEAP, Desk, skip};

#[test]
fn hands_that_know_cryptsetup_get_what_they_expect() {
    let desk = Desk::new();
    std::fs::File::create(desk.path("image")).unwrap().set_len(20 << 20).unwrap();
    let cheap = |verb: &[&'static str]| [verb, &CHEAP].concat();
    desk.run(&cheap(&["-q", "luksFormat", "--type", "luks2", "image", "key"])).ends(0);
    desk.run(&["isLuks", "image"]).ends(0);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-d", "key"]).ends(0);
    desk.run(&["open", "--type", "luks2", "--test-passphrase", "image", "-d", "key"]).ends(0);
    desk.run(&["open", "--type", "plain", "--test-passphrase", "image", "-d", "key"]).ends(1);
    assert_eq!(desk.run(&["luksUUID", "image"]).ends(0).stdout.trim().len(), 36);
    desk.run(&cheap(&["luksAddKey", "image", "key2", "-d", "key"])).ends(0);
    let two_lines = b"old line that is wrong\nnew line\n";
    desk.run_with_input(&cheap(&["luksAddKey", "image"]), two_lines).fails(2, "No key available");
    desk.run_with_input(&cheap(&["luksAddKey", "image", "-d", "key"]), b"a line passphrase\n").ends(0);
    desk.run_with_input(&cheap(&["luksAddKey", "image"]), b"a line passphrase\nthe second line\n").ends(0);
    desk.run_with_input(&["luksOpen", "--test-passphrase", "image"], b"the second line\n").ends(0);
    desk.run(&cheap(&["luksAddKey", "image", "--new-keyfile", "wrong", "--new-key-slot", "9", "-S", "0", "-d", "key"]))
        .ends(0);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-S", "9", "-d", "wrong"]).ends(0);
    desk.run(&["luksKillSlot", "-q", "image", "9"]).ends(0);
    desk.run(&["luksRemoveKey", "image", "key2"]).ends(0);
    desk.run(&cheap(&["luksChangeKey", "image", "key2", "-d", "key"])).ends(0);
    desk.run(&["luksOpen", "--test-passphrase", "image", "-d", "key"]).ends(2);
    desk.run(&["config", "image", "--label", "called", "--subsystem", "sub"]).ends(0);
    desk.run(&["config", "image"]).ends(1);
    let dump = desk.run(&["luksDump", "image"]).ends(0).stdout;
    for line in
        ["LUKS header information", "Label:         \tcalled", "Subsystem:     \tsub", "Data segments:", "Keyslots:"]
    {
        assert!(dump.lines().any(|found| found == line), "{line:?} is missing in {dump}");
    }
    for line in
        ["\toffset: 16777216 [bytes]", "\tlength: (whole device)", "\tPriority:   normal", "  0: luks2", "  0: pbkdf2"]
    {
        assert!(dump.lines().any(|found| found == line), "{line:?} is missing in {dump}");
    }
    desk.run(&["luksClose", "nobody"]).ends(4);
    desk.run(&["luksSuspend", "nobody"]).ends(4);
    desk.run(&["luksResume", "nobody"]).ends(4);
}

#[test]
fn the_dump_is_cryptsetups_line_by_line() {
    let desk = Desk::with_image();
    let theirs = match std::process::Command::new("cryptsetup").arg("luksDump").arg(desk.path("image")).output() {
        Ok(output) => output,
        Err(error) => {
            skip("the_dump_is_cryptsetups_line_by_line", &format!("needs cryptsetup: {error}"));
            return;
        }
    };
    let cheap =
        ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"];
    desk.run(&[&["keyslot", "add", "image", "key2", "-d", "key"][..], &cheap].concat()).ends(0);
    assert!(theirs.status.success());
    let theirs = std::process::Command::new("cryptsetup").arg("luksDump").arg(desk.path("image")).output().unwrap();
    assert_eq!(desk.run(&["dump", "image"]).ends(0).stdout, String::from_utf8(theirs.stdout).unwrap());
}
