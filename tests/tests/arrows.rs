//! The architecture's dependency arrows: which crate of the workspace may use which. A new arrow fails here.
//!
//! Source: the table in `docs/layout.md`. Normal and build dependencies count, optional ones too; dev-dependencies do
//! not, a test may use anything.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const ALL: &[&str] = &["secret", "block", "dmcrypt", "luks", "dmsetup", "export", "session", "keystore", "volumes"];

/// Package, and the packages of this workspace that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("secret", &[]),
    ("block", &[]),
    ("dmcrypt", &["secret"]),
    ("luks", &["block", "dmcrypt", "secret"]),
    ("dmsetup", &["block", "secret"]),
    ("export", &["block"]),
    ("session", &["secret", "block", "dmcrypt", "luks", "dmsetup", "export"]),
    ("keystore", &["secret"]),
    ("volumes", &["secret", "block", "dmcrypt", "luks", "dmsetup", "export", "session", "keystore"]),
    ("luksctl", ALL),
    ("luksbench", ALL),
    (
        "promises",
        &[
            "secret",
            "block",
            "dmcrypt",
            "luks",
            "dmsetup",
            "export",
            "session",
            "keystore",
            "volumes",
            "luksctl",
            "luksbench",
        ],
    ),
];

/// Crates that make system calls or read clocks and randomness, and the packages that stay clear of them.
const SYSTEM: &[&str] = &["rustix", "nix", "libc", "getrandom", "fuser", "loopdev-3"];
const PURE: &[&str] = &["dmcrypt", "luks"];

fn metadata() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every arrow that the tables do not have, as "from -> to".
fn new_arrows(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let mut found = Vec::new();
    for package in packages {
        let from = package["name"].as_str().unwrap();
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == from) else {
            found.push(format!("{from} is not in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            if dependency["kind"] == "dev" {
                continue;
            }
            let inside = dependency["path"].is_string();
            if (inside && !may_use.contains(&to)) || (SYSTEM.contains(&to) && PURE.contains(&from)) {
                found.push(format!("{from} -> {to}"));
            }
        }
    }
    found
}

/// The same metadata with one more dependency.
fn with_arrow(mut metadata: Value, from: &str, dependency: Value) -> Value {
    let packages = metadata["packages"].as_array_mut().unwrap();
    let package = packages.iter_mut().find(|package| package["name"] == from).unwrap();
    package["dependencies"].as_array_mut().unwrap().push(dependency);
    metadata
}

#[test]
fn no_crate_uses_what_the_architecture_does_not_let_it() {
    assert_eq!(new_arrows(&metadata()), [""; 0]);
}

#[test]
fn the_table_names_every_crate_of_the_workspace() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let mut names: Vec<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let mut table: Vec<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    table.sort_unstable();
    assert_eq!(names, table);
}

#[test]
fn a_made_up_arrow_is_detected() {
    let inside = |name: &str, kind: Value| json!({ "name": name, "kind": kind, "path": format!("/x/{name}") });
    let outside = |name: &str| json!({ "name": name, "kind": null, "source": "registry" });
    for (from, dependency, expected) in [
        ("export", inside("luks", Value::Null), "export -> luks"),
        ("secret", inside("block", Value::Null), "secret -> block"),
        ("block", inside("session", json!("build")), "block -> session"),
        ("luks", inside("dmsetup", Value::Null), "luks -> dmsetup"),
        ("luks", outside("rustix"), "luks -> rustix"),
        ("dmcrypt", outside("getrandom"), "dmcrypt -> getrandom"),
    ] {
        assert_eq!(new_arrows(&with_arrow(metadata(), from, dependency)), [expected]);
    }
    let dev = with_arrow(metadata(), "secret", inside("block", json!("dev")));
    assert_eq!(new_arrows(&dev), [""; 0], "a test may use anything");
}
