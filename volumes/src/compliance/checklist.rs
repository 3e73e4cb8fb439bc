//! The fifteen points of document 000's security checklist. Where a point is partly ours, the part is looked at.

use super::{Demand, Gathering, Sources, Verdict, log};
use crate::setup::newest_backup;

/// First bytes of a sealed file of the key store.
const SEALED: &[u8] = b"LKSEALED";
/// Most files of the key store's folder that are looked at.
const FILES_MAX: usize = 4096;

/// Points that no program on this machine can see, and who can.
const OUTSIDE: [(&str, &str, &str); 10] = [
    ("database-network", "Database on private network only", "the cloud's network"),
    ("redis-password", "Redis requires password", "the configuration of Redis"),
    (
        "tls",
        "All services use TLS/SSL",
        "the services; luksctl itself listens on no network unless `open --listen` does, over TLS",
    ),
    ("firewall", "Firewall configured", "the cloud's network"),
    ("ddos", "DDoS protection enabled", "the cloud's network"),
    ("mfa", "MFA on DO account", "the cloud's account"),
    ("api-tokens", "API tokens with limited scope", "the cloud's account"),
    ("updates", "Regular security updates (automatic)", "the package manager"),
    ("incident-response", "Incident response plan documented", "the people who run this machine"),
    (
        "env-files",
        "Never use .env files in production",
        "the application; `luksctl secret` is where its secrets can live instead",
    ),
];

/// The points in the order of the document.
pub(super) fn of(sources: &Sources<'_>, demands: &[Demand]) -> Vec<Demand> {
    let outside = |name: &str| {
        let point = OUTSIDE.into_iter().find(|(of, ..)| *of == name);
        point.map(|(name, words, whose)| {
            let mut found = Gathering::new(name, words);
            found.add(Verdict::Outside, format!("look at: {whose}"));
            found.done()
        })
    };
    let mut points = vec![outside("env-files"), Some(secrets(sources))];
    points.extend(["database-network", "redis-password", "tls", "firewall", "ddos"].map(outside));
    points.extend([backups(sources), audit(sources), alerts(sources)].map(Some));
    points.extend(["mfa", "api-tokens", "updates", "incident-response"].map(outside));
    points.push(Some(compliance(demands)));
    points.into_iter().flatten().collect()
}

/// Everything secret in the key store's folder is sealed.
fn secrets(sources: &Sources<'_>) -> Demand {
    let mut found = Gathering::new("secrets-encrypted", "All secrets encrypted");
    let folder = &sources.config.store.keys;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            found.add(Verdict::Unknown, format!("{}: {error}", folder.display()));
            return found.done();
        }
    };
    let mut sealed = 0_usize;
    for entry in entries.flatten().take(FILES_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.contains(".key") || name == "master.key" {
            continue;
        }
        match begin_of(&entry.path()) {
            Ok(begin) if begin == SEALED => sealed += 1,
            Ok(_) => found.hold(false, format!("{}: a key that is not sealed", entry.path().display())),
            Err(error) => found.add(Verdict::Unknown, format!("{}: {error}", entry.path().display())),
        }
    }
    if sealed > 0 {
        found.add(Verdict::Met, format!("{}: {sealed} sealed keys", folder.display()));
    }
    if folder.join("master.key").exists() {
        found.add(Verdict::Met, "the master key is a file on this machine: who has the disk has it");
    }
    found.done()
}

fn begin_of(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let open = rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    );
    std::fs::File::from(open?).take(SEALED.len() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn backups(sources: &Sources<'_>) -> Demand {
    let mut found = Gathering::new("daily-backups", "Daily automated backups");
    match newest_backup(sources.config) {
        Ok(Some(time)) => found.add(Verdict::Met, format!("keys: newest backup {time}, one at each change")),
        Ok(None) => found.hold(false, "keys: no backup"),
        Err(error) => found.add(Verdict::Unknown, format!("keys: {error}")),
    }
    found.add(Verdict::Unknown, "data: this version makes no backups of data");
    found.done()
}

fn audit(sources: &Sources<'_>) -> Demand {
    let mut found = Gathering::new("audit-logging", "Audit logging enabled");
    log::records(sources, &mut found);
    found.done()
}

fn alerts(sources: &Sources<'_>) -> Demand {
    let mut found = Gathering::new("monitoring-alerts", "Monitoring alerts configured");
    let command = sources.config.audit.alert_command.first();
    let words = command
        .map_or_else(|| "no audit.alert-command".to_owned(), |program| format!("audit.alert-command: {program}"));
    found.hold(command.is_some(), format!("volumes.toml: {words}"));
    found.done()
}

/// The last point is the report itself.
fn compliance(demands: &[Demand]) -> Demand {
    let mut found = Gathering::new("compliance", "Compliance requirements met");
    for demand in demands {
        found.add(demand.verdict, demand.name);
    }
    found.done()
}
