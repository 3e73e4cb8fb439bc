//! The guide's variables: none is forgotten, none loosens the set unasked, and the file stays the user's.

use std::path::Path;

use super::*;
use crate::config::EXAMPLE;

/// Every variable that the guide names, and ENVIRONMENT of the security guide's audit records.
const OF_THE_GUIDE: [&str; 25] = [
    "AUDIT_LOG_IMMUTABLE",
    "AUDIT_LOG_RETENTION",
    "BACKUP_COMPRESSION_LEVEL",
    "BACKUP_REMOTE_HOST",
    "BACKUP_REMOTE_PATH",
    "BACKUP_REMOTE_USER",
    "BACKUP_RETENTION_DAYS",
    "ENABLE_AUDIT_LOGGING",
    "ENABLE_ENCRYPTION",
    "ENABLE_ENCRYPTION_MONITORING",
    "ENABLE_HARDWARE_ACCELERATION",
    "ENABLE_OFFSITE_BACKUP",
    "ENCRYPTED_CONFIG",
    "ENCRYPTED_DATA",
    "ENCRYPTED_LOGS",
    "ENCRYPTION_ALERT_THRESHOLD",
    "ENCRYPTION_AT_REST",
    "ENCRYPTION_PERFORMANCE_MODE",
    "ENVIRONMENT",
    "KEY_BACKUP_RETENTION",
    "KEY_ROTATION_DAYS",
    "LUKS_CIPHER",
    "LUKS_HASH",
    "LUKS_KEY_SIZE",
    "REQUIRE_DUAL_APPROVAL",
];

fn assigned(text: &str) -> Vec<Assignment> {
    DotEnv::parse(text).unwrap().known
}

fn of_example(env: &str, may_loosen: bool) -> Result<Import, Refusal> {
    import(EXAMPLE, Path::new("volumes.toml"), &assigned(env), may_loosen)
}

#[test]
fn every_variable_of_the_guide_is_known_and_documented() {
    let mut known: Vec<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
    known.sort_unstable();
    assert_eq!(known, OF_THE_GUIDE);
    let document = include_str!("../../../docs/volumes.md");
    let table: Vec<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
        .collect();
    let mut sorted = table.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, OF_THE_GUIDE, "the table of docs/volumes.md");
    for variable in &VARIABLES {
        let line = document.lines().find(|line| line.starts_with(&format!("| `{}` ", variable.name))).unwrap();
        let says = match variable.effect {
            Effect::Key { path, .. } => format!("`{}.{}`", path.0, path.1),
            Effect::NotYet(_) => "not acted on yet".to_owned(),
            Effect::AlwaysTrue => "always".to_owned(),
            Effect::Volume(name) => format!("`[volumes.{name}]`"),
        };
        assert!(line.contains(&says), "{line}: {says} is missing");
    }
}

#[test]
fn each_variable_is_handled() {
    for variable in &VARIABLES {
        let (value, changes) = match variable.effect {
            Effect::Key { kind: Kind::Number, stricter: Stricter::Lower, .. } => ("7", 1),
            Effect::Key { kind: Kind::Number, .. } if variable.name == "LUKS_KEY_SIZE" => ("256", 1),
            Effect::Key { kind: Kind::Number, .. } => ("5000", 1),
            Effect::Key { kind: Kind::Flag, .. } if variable.name == "ENABLE_AUDIT_LOGGING" => ("false", 1),
            Effect::Key { kind: Kind::Flag, .. } => ("true", 1),
            Effect::Key { stricter: Stricter::Cipher, .. } => ("serpent-xts-plain64", 1),
            Effect::Key { .. } => ("sha256", 1),
            Effect::AlwaysTrue | Effect::Volume(_) | Effect::NotYet(_) => ("true", 0),
        };
        let done = of_example(&format!("{}={value}", variable.name), true).unwrap();
        assert_eq!((done.changes.len(), done.left_out.len()), (changes, 1 - changes), "{}", variable.name);
        if let Some(change) = done.changes.first() {
            assert_eq!(change.new, value);
            let written = done.text.lines().filter(|line| line.contains(value)).count();
            assert!(written > EXAMPLE.lines().filter(|line| line.contains(value)).count(), "{}", done.text);
        }
    }
}

#[test]
fn comments_and_order_stay() {
    let done = of_example("KEY_ROTATION_DAYS=30\nENVIRONMENT=production\n", false).unwrap();
    let old: Vec<&str> = EXAMPLE.lines().filter(|line| !line.starts_with("rotation-days")).collect();
    let new: Vec<&str> = done
        .text
        .lines()
        .filter(|line| !line.starts_with("rotation-days") && !line.starts_with("environment"))
        .collect();
    assert_eq!(new, old);
    assert!(done.text.contains("rotation-days = 30\n") && done.text.contains("environment = \"production\"\n"));
    assert_eq!((done.config.keys.rotation_days, done.config.audit.environment.as_str()), (30, "production"));
    let beside = import(
        &EXAMPLE.replace("rotation-days = 90", "rotation-days = 90   # agreed with the bank"),
        Path::new("x"),
        &assigned("KEY_ROTATION_DAYS=30"),
        false,
    );
    assert!(beside.unwrap().text.contains("rotation-days = 30   # agreed with the bank"));
    let same = of_example("KEY_ROTATION_DAYS=90\nLUKS_HASH=\"sha512\"\n", false).unwrap();
    assert_eq!((same.text.as_str(), same.changes.len()), (EXAMPLE, 0));
}

#[test]
fn what_loosens_has_to_be_allowed() {
    for env in [
        "KEY_ROTATION_DAYS=91",
        "KEY_BACKUP_RETENTION=30",
        "LUKS_CIPHER=aes-cbc-essiv:sha256",
        "LUKS_KEY_SIZE=256",
        "LUKS_HASH=sha256",
        "LUKS_HASH=sha1",
        "ENABLE_AUDIT_LOGGING=false",
        "AUDIT_LOG_RETENTION=31",
    ] {
        let refused = of_example(env, false).unwrap_err();
        assert!(matches!(&refused, Refusal::Loosens(changes) if changes.len() == 1), "{env}: {refused}");
    }
    assert_eq!(of_example("KEY_ROTATION_DAYS=91", true).unwrap().config.keys.rotation_days, 91);
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for (env, line, words) in [
        ("\nENABLE_ENCRYPTION=false", "2", "every volume here is encrypted"),
        ("ENCRYPTED_DATA=off", "1", "every volume here is encrypted"),
        ("KEY_ROTATION_DAYS=soon", "1", "must be a whole number"),
        ("AUDIT_LOG_IMMUTABLE=maybe", "1", "must be true or false"),
    ] {
        let refused = of_example(env, true).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{line}: ")) && refused.contains(words), "{refused}");
    }
    let without = EXAMPLE.replace("[volumes.logs]", "[volumes.protocols]");
    let refused = import(&without, Path::new("x"), &assigned("ENCRYPTED_LOGS=true"), false).unwrap_err();
    assert!(refused.to_string().contains("there is no [volumes.logs]"), "{refused}");
    // The file would be none: nothing is written, and the fault names the key.
    let refused = of_example("LUKS_CIPHER=aes-ecb-plain", true).unwrap_err();
    assert!(matches!(refused, Refusal::Config(_)), "{refused}");
    assert!(refused.to_string().contains("defaults.cipher"), "{refused}");
    let strict = EXAMPLE
        .replace("profile = \"none\"", "profile = \"pci-dss\"")
        .replace("= 90", "= 30")
        .replace("retention-days = 365\n\n#", "retention-days = 2555\n\n#");
    let refused = import(&strict, Path::new("x"), &assigned("KEY_ROTATION_DAYS=60"), true).unwrap_err();
    assert!(refused.to_string().contains("profile pci-dss demands 30 days or less"), "{refused}");
}

#[test]
fn the_environment_tightens_and_never_loosens() {
    let of = |name: &str, value: &str| {
        let lookup = |asked: &str| (asked == name).then(|| value.to_owned());
        tightened(EXAMPLE, Path::new("x"), lookup).unwrap()
    };
    let (config, taken, ignored) = of("KEY_ROTATION_DAYS", "30");
    assert_eq!((config.keys.rotation_days, taken.len(), ignored.len()), (30, 1, 0));
    for (name, value) in [
        ("KEY_ROTATION_DAYS", "365"),
        ("ENABLE_AUDIT_LOGGING", "false"),
        ("LUKS_CIPHER", "aes-cbc-plain"),
        ("LUKS_HASH", "md5"),
        ("AUDIT_LOG_RETENTION", "x"),
    ] {
        let (config, taken, ignored) = of(name, value);
        assert_eq!(config, Config::parse(EXAMPLE, Path::new("x")).unwrap(), "{name}");
        assert_eq!((taken.len(), ignored.len()), (0, 1), "{name}");
    }
    let (_, taken, ignored) = of("ENVIRONMENT", "elsewhere");
    assert_eq!((taken.len(), ignored.len()), (0, 0), "it is no protection, so it is not read");
}

#[test]
fn a_default_that_does_not_reach_a_volume_is_said() {
    let own = EXAMPLE.replace("image = \"logs.img\"", "image = \"logs.img\"\nhash = \"sha512\"");
    let done = import(&own, Path::new("x"), &assigned("LUKS_HASH=sha384"), true).unwrap();
    assert!(done.left_out[0].why.contains("does not reach logs"), "{:?}", done.left_out);
}
