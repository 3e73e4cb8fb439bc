//! `volume units`: printed, installed, installed again.

use crate::desk::Desk;

fn desk() -> Desk {
    let desk = Desk::new();
    let example = desk.run(&["volume", "config", "example"]).ends(0).stdout;
    std::fs::write(desk.path("v.toml"), example).unwrap();
    std::os::unix::fs::symlink("v.toml", desk.path("link.toml")).unwrap();
    desk
}

#[test]
fn units_are_printed_and_installed_and_then_nothing_changes() {
    let desk = desk();
    let printed = desk.run(&["volume", "units", "--config", "link.toml"]).ends(0).stdout;
    assert!(
        printed.starts_with("# /etc/systemd/system/trading-bot-volumes.service\n# Written by `luksctl"),
        "{printed}"
    );
    // Units are run from anywhere: the program and the file are named in full.
    let file = desk.path("v.toml").canonicalize().unwrap();
    assert!(printed.contains(&format!("--config \"{}\"", file.display())), "{printed}");
    assert!(printed.contains(&format!("ExecStart=\"{}\" volume up", env!("CARGO_BIN_EXE_luksctl"))), "{printed}");

    let units = |words: &[&str]| {
        let all = [&["volume", "units", "--install", "--dir", "units", "--config", "v.toml", "--json"], words].concat();
        desk.run(&all).ends(0).json()
    };
    let count = |json: &serde_json::Value, key: &str| json[key].as_array().unwrap().len();
    let dry = units(&["--dry-run"]);
    assert_eq!((count(&dry, "written"), &dry["done"]), (9, &false.into()));
    assert!(!desk.path("units").exists());
    let done = units(&[]);
    assert_eq!((count(&done, "written"), count(&done, "unchanged"), count(&done, "removed")), (9, 0, 0));
    let again = units(&[]);
    assert_eq!((count(&again, "written"), count(&again, "unchanged"), count(&again, "removed")), (0, 9, 0));
}

#[test]
fn what_others_wrote_stays() {
    let desk = desk();
    std::fs::create_dir(desk.path("units")).unwrap();
    std::fs::write(desk.path("units/trading-bot-volumes.service"), "[Service]\nExecStart=/bin/other\n").unwrap();
    let install = ["volume", "units", "--install", "--dir", "units", "--config", "v.toml"];
    desk.run(&install).fails(5, "is not a file that luksctl wrote");
    assert_eq!(std::fs::read_dir(desk.path("units")).unwrap().count(), 1);
    let text = std::fs::read_to_string(desk.path("v.toml")).unwrap();
    let master = text.replace("{ file = \"/opt/trading-bot/keys/master.key\" }", "\"passphrase\"");
    std::fs::write(desk.path("typed.toml"), master).unwrap();
    desk.run(&["volume", "units", "--config", "typed.toml"]).fails(1, "nobody is there to type it");
    desk.run(&["volume", "units", "--dry-run", "--config", "v.toml"]).fails(1, "--install");
}
