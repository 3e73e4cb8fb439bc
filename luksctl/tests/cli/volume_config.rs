//! `volume config`: the file of the managed set, from outside.

use std::os::unix::fs::PermissionsExt as _;

use crate::desk::{Desk, Done};

/// A desk with the example as `v.toml`.
fn desk() -> Desk {
    let desk = Desk::new();
    let example = desk.run(&["volume", "config", "example"]).ends(0).stdout;
    // Nothing of these tests leaves its folder.
    let audit = desk.path("audit");
    let example = example.replace("/var/log/luksctl/audit", audit.to_str().unwrap());
    let seed = format!("[audit]\nseed = \"{}\"", desk.path("audit.seed").display());
    put(&desk, "v.toml", &example.replace("[audit]", &seed));
    desk
}

fn put(desk: &Desk, name: &str, text: &str) {
    std::fs::write(desk.path(name), text).unwrap();
    std::fs::set_permissions(desk.path(name), std::fs::Permissions::from_mode(0o644)).unwrap();
}

fn config(desk: &Desk, words: &[&str]) -> Done {
    desk.run(&[&["volume", "config"], words, &["--config", "v.toml"]].concat())
}

#[test]
fn the_example_is_good_and_shown_with_its_defaults() {
    let desk = desk();
    assert!(config(&desk, &["check"]).ends(0).stderr.contains("4 volumes, no fault"));
    let shown = config(&desk, &["show"]).ends(0).stdout;
    assert!(shown.contains("sector-size = 4096") && shown.contains("[volumes.logs]"), "{shown}");
    let json = config(&desk, &["show", "--json"]).ends(0).json();
    assert_eq!(json["volumes"]["data"]["size"], "5G");
    assert_eq!(json["store"]["mapping-prefix"], "trading-");
    put(&desk, "shown.toml", &shown);
    assert_eq!(desk.run(&["volume", "config", "show", "--config", "shown.toml"]).ends(0).stdout, shown);
}

#[test]
fn faults_are_named_with_their_lines() {
    let desk = desk();
    let text = std::fs::read_to_string(desk.path("v.toml")).unwrap();
    let line = text.lines().position(|line| line.starts_with("size = \"5G\"")).unwrap() + 1;
    put(&desk, "v.toml", &text.replace("size = \"5G\"", "size = \"5X\"\nsice = 1"));
    let failed = config(&desk, &["check"]).fails(1, &format!("v.toml:{line}:8: volumes.data.size = \"5X\": "));
    assert!(failed.stderr.contains(&format!("v.toml:{}:1: volumes.data.sice: ", line + 1)), "{failed:?}");
    desk.run(&["volume", "config", "check", "--config", "missing"]).fails(4, "missing");
    std::fs::set_permissions(desk.path("v.toml"), std::fs::Permissions::from_mode(0o666)).unwrap();
    config(&desk, &["check"]).fails(1, "others may write to it");
}

#[test]
fn variables_are_imported_and_loosen_nothing_unasked() {
    let desk = desk();
    let before = std::fs::read_to_string(desk.path("v.toml")).unwrap();
    put(
        &desk,
        ".env",
        "# Key Management\nKEY_ROTATION_DAYS=30 # monthly\nBACKUP_COMPRESSION_LEVEL=6\nALPACA_SECRET_KEY=s3cr3t\n",
    );
    let dry = config(&desk, &["import", ".env", "--dry-run"]).ends(0);
    assert_eq!(dry.stdout, "keys.rotation-days: 90 -> 30 (KEY_ROTATION_DAYS)\n");
    assert_eq!(std::fs::read_to_string(desk.path("v.toml")).unwrap(), before);
    let done = config(&desk, &["import", ".env"]).ends(0);
    assert!(done.stderr.contains("BACKUP_COMPRESSION_LEVEL: not written: nothing acts on it yet"), "{done:?}");
    assert!(done.stderr.contains("1 variables are not this program's") && !done.stderr.contains("s3cr3t"), "{done:?}");
    let after = std::fs::read_to_string(desk.path("v.toml")).unwrap();
    assert_eq!(after, before.replace("rotation-days = 90", "rotation-days = 30"));
    let again = config(&desk, &["import", ".env", "--json"]).ends(0).json();
    assert_eq!((again["changes"].as_array().unwrap().len(), &again["written"]), (0, &false.into()));

    put(&desk, "loose", "KEY_ROTATION_DAYS=365\n");
    config(&desk, &["import", "loose"]).fails(1, "KEY_ROTATION_DAYS would turn keys.rotation-days from 30 to 365");
    put(&desk, "bad", "\nENABLE_ENCRYPTION=false\n");
    config(&desk, &["import", "bad", "--allow-loosening"]).fails(1, "bad:2: ENABLE_ENCRYPTION=false: cannot be");
    assert_eq!(std::fs::read_to_string(desk.path("v.toml")).unwrap(), after);
    config(&desk, &["import", "loose", "--allow-loosening"]).ends(0);
    config(&desk, &["import", "missing"]).fails(4, "missing");
}

#[test]
fn the_environment_only_tightens() {
    let desk = desk();
    let shown = |name: &str, value: &str| {
        let mut command = desk.command(&["volume", "config", "show", "--json", "--config", "v.toml"]);
        let output = command.env(name, value).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["keys"]["rotation-days"].as_u64().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (days, words) = shown("KEY_ROTATION_DAYS", "30");
    assert!(days == 30 && words.contains("makes keys.rotation-days 30"), "{days} {words}");
    let (days, words) = shown("KEY_ROTATION_DAYS", "365");
    assert!(days == 90 && words.contains("KEY_ROTATION_DAYS of the environment is ignored"), "{days} {words}");
}
