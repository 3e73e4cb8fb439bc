//! Help, manual pages and completions: there for every verb, and short enough to read.

use crate::desk::Desk;

const VERBS: [&str; 68] = [
    "check",
    "format",
    "open",
    "close",
    "suspend",
    "resume",
    "status",
    "list",
    "dump",
    "is-luks",
    "uuid",
    "label",
    "keyslot",
    "keyslot add",
    "keyslot remove",
    "keyslot kill",
    "keyslot change",
    "keyslot test",
    "keyslot list",
    "keyslot convert",
    "keyslot priority",
    "keyslot name",
    "token",
    "token list",
    "token add",
    "token import",
    "token export",
    "token remove",
    "token assign",
    "token unassign",
    "key",
    "key export",
    "flags",
    "refresh",
    "resize",
    "doctor",
    "config",
    "luksConvertKey",
    "copy-out",
    "copy-in",
    "mount",
    "umount",
    "header",
    "header backup",
    "header restore",
    "erase",
    "convert",
    "repair",
    "generate",
    "audit",
    "audit show",
    "audit verify",
    "volume",
    "volume config",
    "volume config show",
    "volume config check",
    "volume config import",
    "volume config example",
    "volume setup",
    "volume adopt",
    "volume up",
    "volume down",
    "volume status",
    "volume list",
    "volume check",
    "volume grow",
    "volume remove",
    "luksAddKey",
];

#[test]
fn short_help_fits_a_screen_and_long_help_explains() {
    let desk = Desk::new();
    for verb in VERBS {
        let words: Vec<&str> = verb.split(' ').collect();
        let short = desk.run(&[&words[..], &["-h"]].concat()).ends(0).stdout;
        assert!(short.lines().count() <= 45, "{verb} -h has {} lines:\n{short}", short.lines().count());
        for line in short.lines() {
            assert!(line.chars().count() <= 100, "{verb}: {line}");
        }
        let long = desk.run(&[&words[..], &["--help"]].concat()).ends(0).stdout;
        assert!(long.lines().count() >= short.lines().count(), "{verb}");
    }
    assert!(desk.run(&["-h"]).ends(0).stdout.lines().count() <= 45);
    assert!(!desk.run(&["--help"]).ends(0).stdout.contains("__serve"));
}

#[test]
fn manual_pages_and_completions_come_out() {
    let desk = Desk::new();
    let page = desk.run(&["generate", "man"]).ends(0).stdout;
    assert!(page.contains(".TH luksctl") && page.contains("copy\\-out"), "{page}");
    std::fs::create_dir(desk.path("man")).unwrap();
    desk.run(&["generate", "man", "man"]).ends(0);
    for name in ["luksctl", "luksctl-format", "luksctl-keyslot-add", "luksctl-copy-in"] {
        let page = std::fs::read_to_string(desk.path("man").join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
    assert!(!desk.path("man").join("luksctl-__serve.1").exists());
    for page in std::fs::read_dir(desk.path("man")).unwrap() {
        let page = page.unwrap().path();
        let text = std::fs::read_to_string(&page).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (at, _) in lines.iter().enumerate().filter(|(_, line)| **line == ".TP") {
            let said = lines.get(at + 2).is_some_and(|line| !line.is_empty() && !line.starts_with('.'));
            assert!(said, "{}: nothing is said of {:?}", page.display(), lines.get(at + 1));
        }
    }
    desk.run(&["generate", "man", "missing"]).ends(1);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = desk.run(&["generate", "completions", shell]).ends(0).stdout;
        assert!(script.contains("copy-out"), "{shell}: {script}");
    }
    desk.run(&["generate", "completions", "cobol"]).ends(1);
}
