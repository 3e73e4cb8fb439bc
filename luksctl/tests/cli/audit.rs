//! `audit show|verify`: what `volume config import` recorded, and what is done to the records afterwards.

use std::os::unix::fs::PermissionsExt as _;

use crate::desk::{Desk, Done};

/// A desk whose set keeps its log in it, and three recorded changes.
fn desk() -> Desk {
    let desk = Desk::new();
    let example = desk.run(&["volume", "config", "example"]).ends(0).stdout;
    let log = format!("folder = \"{}\"\nseed = \"{}\"", desk.path("log").display(), desk.path("audit.seed").display());
    std::fs::write(desk.path("v.toml"), example.replace("folder = \"/var/log/luksctl/audit\"", &log)).unwrap();
    std::fs::set_permissions(desk.path("v.toml"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for (name, env) in [("one", "KEY_ROTATION_DAYS=60\nAUDIT_LOG_RETENTION=2555\n"), ("two", "KEY_ROTATION_DAYS=30\n")]
    {
        std::fs::write(desk.path(name), env).unwrap();
        desk.run(&["volume", "config", "import", name, "--config", "v.toml"]).ends(0);
    }
    desk
}

fn audit(desk: &Desk, words: &[&str]) -> Done {
    desk.run(&[&["audit"], words, &["--config", "v.toml"]].concat())
}

/// The one file of records.
fn file(desk: &Desk) -> std::path::PathBuf {
    let files = std::fs::read_dir(desk.path("log")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).last().unwrap()
}

#[test]
fn an_import_is_recorded_with_old_and_new_value() {
    let desk = desk();
    let shown = audit(&desk, &["show"]).ends(0).stdout;
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(shown.contains("CONFIG set v.toml done by uid ") && shown.contains("old_value=60 new_value=30"), "{shown}");
    let json = audit(&desk, &["show", "--json", "--category", "config", "--since", "1h"]).ends(0).json();
    assert_eq!((json.as_array().unwrap().len(), json[2]["details"]["new_value"].as_str()), (3, Some("30")));
    assert!(audit(&desk, &["show", "--category", "KEY"]).ends(0).stderr.contains("No such record"));
    assert!(audit(&desk, &["show", "--until", "2020-01-01"]).ends(0).stdout.is_empty());
    assert_eq!(audit(&desk, &["show", "--target", "v.toml"]).ends(0).stdout, shown);
    audit(&desk, &["show", "--since", "yesterday"]).fails(1, "must be 2026-11-23");
    audit(&desk, &["show", "--category", "TRADING"]).fails(1, "must be ACCESS");
    audit(&desk, &["show", "--log", "missing"]).fails(4, "missing");
}

#[test]
fn what_was_done_to_the_records_is_found() {
    let desk = desk();
    let good = audit(&desk, &["verify", "--no-journal"]).ends(0).stdout;
    let head = good.strip_prefix("good: ").unwrap().trim().to_owned();
    assert!(head.starts_with("3:"), "{good}");
    let older = [file(&desk), desk.path("log/audit.state")].map(|path| (path.clone(), std::fs::read(path).unwrap()));

    std::fs::write(desk.path("three"), "KEY_ROTATION_DAYS=20\n").unwrap();
    desk.run(&["volume", "config", "import", "three", "--config", "v.toml"]).ends(0);
    let newer = audit(&desk, &["verify", "--no-journal", "--head", &head, "--json"]).ends(0).json();
    let newer_head = newer["head"].as_str().unwrap().to_owned();

    let text = std::fs::read_to_string(file(&desk)).unwrap();
    let name = file(&desk).file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(file(&desk), text.replacen("\"old_value\":\"90\"", "\"old_value\":\"91\"", 1)).unwrap();
    let found = audit(&desk, &["verify", "--no-journal"]).ends(10);
    assert!(found.stdout.starts_with(&format!("{name}:1: record 0: changed: ")), "{found:?}");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(file(&desk), format!("{}\n{}\n{}\n", lines[0], lines[2], lines[3])).unwrap();
    let found = audit(&desk, &["verify", "--no-journal"]).ends(10);
    assert!(found.stdout.starts_with(&format!("{name}:2: record 1: deleted: ")), "{found:?}");

    // Log and state from an older copy: only what is remembered elsewhere shows it.
    older.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    audit(&desk, &["verify", "--no-journal"]).ends(0);
    let found = audit(&desk, &["verify", "--no-journal", "--head", &newer_head]).ends(10);
    assert!(found.stdout.contains("record 3: rolled back: outside of the log 4 records are remembered"), "{found:?}");
    let elsewhere = ["audit", "verify", "--no-journal", "--log", "log", "--seed", "audit.seed"];
    desk.run(&elsewhere).ends(0);
    desk.run(&["audit", "verify", "--log", "log", "--seed", "key"]).fails(1, "others may read the seed");
    audit(&desk, &["verify", "--head", "3"]).fails(1, "must be COUNT:HEX");
}

#[test]
fn the_journal_is_asked_by_itself() {
    let desk = desk();
    let chain =
        audit(&desk, &["verify", "--no-journal", "--json"]).ends(0).json()["chain"].as_str().unwrap().to_owned();
    std::fs::create_dir(desk.path("bin")).unwrap();
    let program = desk.path("bin/journalctl");
    let asked = format!("case \"$*\" in *LUKSCTL_AUDIT_CHAIN={chain}*) ;; *) exit 1;; esac");
    let line = format!("{{\"LUKSCTL_AUDIT_COUNT\":\"9\",\"LUKSCTL_AUDIT_HEAD\":\"{}\"}}", "ab".repeat(32));
    std::fs::write(&program, format!("#!/bin/sh\n{asked}\necho '{line}'\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = desk.command(&["audit", "verify", "--config", "v.toml"]);
    let path = format!("{}:{}", desk.path("bin").display(), std::env::var("PATH").unwrap());
    let output = command.env("PATH", path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    assert!(text.contains("records 3 to 8: rolled back: outside of the log 9 records are remembered"), "{text}");
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let desk = desk();
    let before = std::fs::read_to_string(desk.path("v.toml")).unwrap();
    std::fs::set_permissions(desk.path("log"), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(desk.path("three"), "KEY_ROTATION_DAYS=20\n").unwrap();
    let refused = desk.run(&["volume", "config", "import", "three", "--config", "v.toml"]);
    refused.fails(1, "nothing was changed, as it cannot be recorded");
    assert_eq!(std::fs::read_to_string(desk.path("v.toml")).unwrap(), before);
}
