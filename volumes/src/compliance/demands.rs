//! What each profile demands, as the guide's compliance section has it. The numbers are those of `config::cross`, which
//! refuses a configuration that is laxer; here they are held against what is really there.

use keystore::{KeyKind, Metadata};

use super::{Demand, Gathering, Sources, Verdict, headers, log};
use crate::config::{Profile, SEVEN_YEARS_DAYS};
use crate::setup::{last_change, newest_backup};

/// Rotation that PCI DSS sets keep.
const PCI_DSS_ROTATION_DAYS: u32 = 30;
const DAY_S: u64 = 86_400;

/// The demands of `profile`.
pub(super) fn of(sources: &Sources<'_>, profile: Profile) -> Vec<Demand> {
    let keys = &sources.config.keys;
    let found = match profile {
        Profile::None => vec![rotation(sources, keys.rotation_days), key_backups(sources, keys.backup_retention_days)],
        Profile::PciDss => vec![
            rotation(sources, PCI_DSS_ROTATION_DAYS),
            headers::ciphers(sources),
            audit_retention(sources),
            key_backups(sources, keys.backup_retention_days),
        ],
        Profile::Sox => vec![
            dual_approval(sources),
            rotation(sources, keys.rotation_days),
            audit_retention(sources),
            immutable_audit(sources),
            key_backups(sources, SEVEN_YEARS_DAYS),
            data_backups(),
        ],
    };
    found.into_iter().map(Gathering::done).collect()
}

/// The key store's metadata, or a note that it says nothing.
fn metadata<'s>(sources: &Sources<'s>, found: &mut Gathering) -> Option<&'s Metadata> {
    match sources.keys {
        Ok(metadata) => Some(metadata),
        Err(why) => {
            found.add(Verdict::Unknown, why);
            None
        }
    }
}

/// No key is older than `days`.
fn rotation(sources: &Sources<'_>, days: u32) -> Gathering {
    let mut found = Gathering::new("rotation", format!("every key is rotated within {days} days"));
    let config = sources.config;
    let wanted = config.keys.rotation_days;
    found.hold(wanted <= days, format!("volumes.toml: keys.rotation-days = {wanted}"));
    let Some(metadata) = metadata(sources, &mut found) else { return found };
    let now = metadata.trusted(sources.now);
    for volume in &config.volumes {
        if !metadata.keys.iter().any(|(name, record)| name.as_str() == volume.name && record.active().is_some()) {
            found.add(Verdict::NotMet, format!("{}: key_metadata.json: no key in use", volume.name));
        }
    }
    for (name, record) in metadata.keys.iter().filter(|(_, record)| record.kind != KeyKind::Recovery) {
        let Some(active) = record.active() else { continue };
        let since = active.activated.unwrap_or(active.created);
        let age = now.seconds().saturating_sub(since.seconds()) / DAY_S;
        let words = format!("{name}: key_metadata.json: generation {} in use since {since}, {age} days", active.number);
        found.hold(now < since.plus_days(days), words);
    }
    if let Some(back_s) = metadata.clock_back_s(sources.now) {
        found.add(Verdict::Unknown, format!("the clock stands {back_s} s before the last change of the key store"));
    }
    found
}

/// Seven years of records.
fn audit_retention(sources: &Sources<'_>) -> Gathering {
    let mut found = Gathering::new("audit-retention", format!("an audit log, kept {SEVEN_YEARS_DAYS} days"));
    let days = sources.config.audit.retention_days;
    found.hold(days >= SEVEN_YEARS_DAYS, format!("volumes.toml: audit.retention-days = {days}"));
    log::records(sources, &mut found);
    found
}

fn immutable_audit(sources: &Sources<'_>) -> Gathering {
    let mut found = Gathering::new("audit-immutable", "an audit log that cannot be changed");
    log::attributes(sources, &mut found);
    found
}

/// Backups of keys, kept so long, and one that has the keys in use.
fn key_backups(sources: &Sources<'_>, days: u32) -> Gathering {
    let mut found = Gathering::new("key-backups", format!("backups of keys, kept {days} days"));
    let config = sources.config;
    let kept = config.keys.backup_retention_days;
    found.hold(kept >= days, format!("volumes.toml: keys.backup-retention-days = {kept}"));
    let Some(metadata) = metadata(sources, &mut found) else { return found };
    let kept = metadata.policy.key_backup_retention_days;
    found.hold(kept >= days, format!("key_metadata.json: key_backup_retention_days = {kept}"));
    match (newest_backup(config), last_change(metadata)) {
        (Ok(Some(newest)), Some(changed)) => {
            let words = format!(
                "{}: newest backup {newest}, last change of a key {changed}",
                config.store.key_backup.display()
            );
            found.hold(newest >= changed, words);
        }
        (Ok(None), Some(_)) => found.hold(false, format!("{}: no backup of keys", config.store.key_backup.display())),
        (Ok(_), None) => found.add(Verdict::Unknown, "key_metadata.json: no key was in use yet"),
        (Err(error), _) => found.add(Verdict::Unknown, error.to_string()),
    }
    found
}

/// A second person for key operations: `approval` holds every one that the configuration asks it for.
fn dual_approval(sources: &Sources<'_>) -> Gathering {
    let mut found = Gathering::new("dual-approval", "two people for every key operation");
    let asked = sources.config.keys.dual_approval;
    found.hold(asked, format!("volumes.toml: keys.dual-approval = {asked}"));
    if asked {
        let folder = sources.config.keys.approvals.display();
        found.add(
            Verdict::Met,
            format!("luksctl key rotate waits for an approval in {folder}; each use is a SECURITY record"),
        );
    }
    found
}

/// Backups of the data, which this program does not make.
fn data_backups() -> Gathering {
    let mut found = Gathering::new("data-backups", format!("backups of the data, kept {SEVEN_YEARS_DAYS} days"));
    found.add(Verdict::Unknown, "this version makes no backups of data; ask the program that does");
    found
}
