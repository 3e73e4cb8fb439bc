//! The environment variables of the volume encryption guide: what each means for `volumes.toml`.
//!
//! A variable changes the set in one of two ways. [`import()`] writes it into the file, where it is seen; what loosens the set
//! has to be allowed. At run time the environment is read, too ([`tightened`]), and only what makes the set stricter counts:
//! who can set a variable of a running service cannot weaken it. The table for users is in `docs/volumes.md`.

mod dotenv;
mod import;

use crate::config::{Config, SEVEN_YEARS_DAYS};

pub use dotenv::{Assignment, DotEnv, DotEnvError, read_dotenv};
pub use import::{Change, Import, LeftOut, Refusal, import, tightened};

/// One variable.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub effect: Effect,
}

/// What a variable does.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// It is a key of the file.
    Key {
        /// The table and the key.
        path: (&'static str, &'static str),
        /// What its values are.
        kind: Kind,
        /// Which values are the stricter ones.
        stricter: Stricter,
    },
    /// It can only be true: there is nothing here that is not encrypted.
    AlwaysTrue,
    /// It can only be true, and then the set has this volume.
    Volume(&'static str),
    /// Nothing acts on it yet; the text says what would.
    NotYet(&'static str),
}

/// What the values of a variable are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number,
    /// `true` or `false`; also yes, no, on, off, 1, 0.
    Flag,
    /// A word.
    Word,
}

/// Which of two values is the stricter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stricter {
    /// The smaller number.
    Lower,
    /// The larger number.
    Higher,
    /// `true`.
    True,
    /// The one that comes first in [`CIPHERS`]; every other one is looser.
    Cipher,
    /// The one that comes first in [`HASHES`]; every other one is looser.
    Hash,
    /// Neither: no value protects more than another.
    Neither,
}

/// Ciphers by strength. What is not here is looser than what is.
pub const CIPHERS: [&str; 3] = ["aes-xts-plain64", "serpent-xts-plain64", "camellia-xts-plain64"];
/// Hashes by strength. What is not here is looser than what is.
pub const HASHES: [&str; 3] = ["sha512", "sha384", "sha256"];

const fn key(name: &'static str, path: (&'static str, &'static str), kind: Kind, stricter: Stricter) -> Variable {
    Variable { name, effect: Effect::Key { path, kind, stricter } }
}

const fn not_yet(name: &'static str, what: &'static str) -> Variable {
    Variable { name, effect: Effect::NotYet(what) }
}

/// Every variable that is known.
pub const VARIABLES: [Variable; 25] = [
    Variable { name: "ENABLE_ENCRYPTION", effect: Effect::AlwaysTrue },
    Variable { name: "ENCRYPTION_AT_REST", effect: Effect::AlwaysTrue },
    Variable { name: "ENCRYPTED_LOGS", effect: Effect::Volume("logs") },
    Variable { name: "ENCRYPTED_DATA", effect: Effect::Volume("data") },
    Variable { name: "ENCRYPTED_CONFIG", effect: Effect::Volume("config") },
    key("KEY_ROTATION_DAYS", ("keys", "rotation-days"), Kind::Number, Stricter::Lower),
    key("KEY_BACKUP_RETENTION", ("keys", "backup-retention-days"), Kind::Number, Stricter::Higher),
    key("REQUIRE_DUAL_APPROVAL", ("keys", "dual-approval"), Kind::Flag, Stricter::True),
    key("LUKS_CIPHER", ("defaults", "cipher"), Kind::Word, Stricter::Cipher),
    key("LUKS_KEY_SIZE", ("defaults", "key-bits"), Kind::Number, Stricter::Higher),
    key("LUKS_HASH", ("defaults", "hash"), Kind::Word, Stricter::Hash),
    key("ENABLE_AUDIT_LOGGING", ("audit", "enabled"), Kind::Flag, Stricter::True),
    key("AUDIT_LOG_RETENTION", ("audit", "retention-days"), Kind::Number, Stricter::Higher),
    key("AUDIT_LOG_IMMUTABLE", ("audit", "immutable"), Kind::Flag, Stricter::True),
    key("ENVIRONMENT", ("audit", "environment"), Kind::Word, Stricter::Neither),
    not_yet("BACKUP_RETENTION_DAYS", "backups of data"),
    not_yet("BACKUP_COMPRESSION_LEVEL", "backups of data"),
    not_yet("ENABLE_OFFSITE_BACKUP", "backups of data to another machine"),
    not_yet("BACKUP_REMOTE_HOST", "backups of data to another machine"),
    not_yet("BACKUP_REMOTE_USER", "backups of data to another machine"),
    not_yet("BACKUP_REMOTE_PATH", "backups of data to another machine"),
    not_yet("ENCRYPTION_PERFORMANCE_MODE", "tuning"),
    not_yet("ENABLE_HARDWARE_ACCELERATION", "tuning; the fastest code that runs on the processor is always taken"),
    not_yet("ENABLE_ENCRYPTION_MONITORING", "monitoring"),
    not_yet("ENCRYPTION_ALERT_THRESHOLD", "monitoring"),
];

/// The variable of this name.
#[must_use]
pub fn variable(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// What holds for a key of the file now, as text; of `[defaults]` what `text_default` finds there.
fn present(config: &Config, path: (&str, &str), text_default: impl Fn(&str) -> Option<String>) -> String {
    match path {
        ("keys", "rotation-days") => config.keys.rotation_days.to_string(),
        ("keys", "backup-retention-days") => config.keys.backup_retention_days.to_string(),
        ("keys", "dual-approval") => config.keys.dual_approval.to_string(),
        ("audit", "enabled") => config.audit.enabled.to_string(),
        ("audit", "retention-days") => config.audit.retention_days.to_string(),
        ("audit", "immutable") => config.audit.immutable.to_string(),
        ("audit", "environment") => config.audit.environment.clone(),
        ("defaults", key) => text_default(key).unwrap_or_else(|| {
            match key {
                "cipher" => "aes-xts-plain64",
                "key-bits" => "512",
                _ => "sha512",
            }
            .to_owned()
        }),
        _ => String::new(),
    }
}

/// How a new value stands to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Same,
    Tightens,
    Loosens,
    Neither,
}

impl Stricter {
    fn compare(self, old: &str, new: &str) -> Direction {
        if old == new {
            return Direction::Same;
        }
        let number = |text: &str| text.parse::<u64>().unwrap_or(u64::from(SEVEN_YEARS_DAYS));
        let rank = |list: &[&str], text: &str| list.iter().position(|name| *name == text).unwrap_or(usize::MAX);
        let is_stricter = match self {
            Stricter::Lower => number(new) < number(old),
            Stricter::Higher => number(new) > number(old),
            Stricter::True => new == "true",
            Stricter::Cipher => rank(&CIPHERS, new) < rank(&CIPHERS, old),
            Stricter::Hash => rank(&HASHES, new) < rank(&HASHES, old),
            Stricter::Neither => return Direction::Neither,
        };
        if is_stricter { Direction::Tightens } else { Direction::Loosens }
    }
}

#[cfg(test)]
mod tests;
