//! Mandatory requirements: what a header says its reader must understand (luks2-format §2.8).
//!
//! A header with a requirement that this crate does not implement is still shown, but neither used nor changed, for a use
//! that ignores it may destroy data. Only removing a keyslot stays possible under an *unknown* one, as in cryptsetup: taking
//! a passphrase away must not wait for a newer program.

use crate::error::Error;
use crate::metadata::config::Config;

/// What is about to be done with the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read or write its data.
    Use,
    /// Write its metadata.
    Change,
    /// Take a keyslot away.
    Remove,
}

/// What a requirement means to this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A re-encryption is under way.
    Reencryption,
    /// Known, and not implemented.
    Known,
    /// Not known.
    Unknown,
}

/// What the requirement `name` means.
pub fn kind_of(name: &str) -> Kind {
    match name {
        "offline-reencrypt" | "online-reencrypt" | "online-reencrypt-v2" | "online-reencrypt-v3" => Kind::Reencryption,
        "inline-hw-tags" | "opal" | "opal-v2" => Kind::Known,
        _ => Kind::Unknown,
    }
}

/// Whether a container with this config allows `action`.
///
/// # Errors
/// [`Error::UnmetRequirements`] names the unknown ones, [`Error::InReencryption`] and [`Error::UnsupportedRequirement`] the
/// known one that stands in the way.
pub fn check(config: &Config, action: Action) -> Result<(), Error> {
    let of_kind = |kind| config.mandatory.iter().filter(move |name| kind_of(name) == kind);
    let unknown: Vec<String> = of_kind(Kind::Unknown).cloned().collect();
    if !unknown.is_empty() && action != Action::Remove {
        return Err(Error::UnmetRequirements { names: unknown.join(", ") });
    }
    if let Some(name) = of_kind(Kind::Reencryption).next() {
        return Err(Error::InReencryption { requirement: name.clone() });
    }
    if let Some(name) = of_kind(Kind::Known).next() {
        return Err(Error::UnsupportedRequirement { name: name.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::Bytes;

    fn config(names: &[&str]) -> Config {
        let mut config = Config::new(Bytes(16384), Bytes(1 << 20));
        config.mandatory = names.iter().map(|name| (*name).to_owned()).collect();
        config
    }

    #[test]
    fn no_requirement_is_no_hindrance() {
        for action in [Action::Use, Action::Change, Action::Remove] {
            check(&config(&[]), action).expect("nothing required");
        }
    }

    #[test]
    fn unknown_ones_are_named_and_still_let_a_keyslot_go() {
        let config = config(&["time-travel", "teleport"]);
        for action in [Action::Use, Action::Change] {
            let message = check(&config, action).expect_err("refused").to_string();
            assert!(message.contains("time-travel, teleport"), "{message}");
        }
        check(&config, Action::Remove).expect("a keyslot may go");
    }

    #[test]
    fn a_reencryption_and_opal_are_refused_by_name() {
        for name in ["offline-reencrypt", "online-reencrypt", "online-reencrypt-v2", "online-reencrypt-v3"] {
            for action in [Action::Use, Action::Change, Action::Remove] {
                let error = check(&config(&[name]), action).expect_err("refused");
                assert!(matches!(&error, Error::InReencryption { requirement } if requirement == name), "{error}");
            }
        }
        for name in ["inline-hw-tags", "opal", "opal-v2"] {
            let error = check(&config(&[name]), Action::Use).expect_err("refused");
            assert!(matches!(&error, Error::UnsupportedRequirement { name: got } if got == name), "{error}");
        }
        assert_eq!(kind_of("online-reencrypt-v4"), Kind::Unknown);
    }
}
