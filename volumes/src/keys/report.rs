//! [`Report`]: what there is to know of the keys of a set without opening the store: ages, what is due, what is under way,
//! backups of keys and of headers, and how much was written under each volume key.
//!
//! It believes the metadata as it lies there; whether that is true is for the opened store.

use std::path::PathBuf;
use std::time::Duration;

use keystore::{Folder, KeyKind, KeyName, KeyRecord, KeyState, Metadata, Step, Timestamp, key_backup};
use serde::Serialize;

use super::written;
use crate::VolumesError;
use crate::header_backup;
use crate::set::Set;

/// How long another command may hold the folder of backups.
const PATIENCE: Duration = Duration::from_secs(10);
const DAY_S: u64 = 86_400;

/// What a rotation does not do, and what a wipe cannot promise; said with every report.
const CAUTIONS: [&str; 3] = [
    "Rotating a key changes who can unlock: the keyslot and the key in the store. The volume key, which the data is encrypted \
     with, stays the same; who copied it reads the data until the volume is encrypted anew.",
    "A wipe overwrites and removes. SSDs, copy-on-write file systems and snapshots may keep the old keyslot or the sealed old \
     key; an old header with its old key opens the volume for ever.",
    "Bytes written are counted when `luksctl volume down` takes a volume down, as the kernel measured them; what other programs \
     write, and what a server that died wrote, is not counted. IEEE 1619 sets XTS's bound at 2^44 blocks of 16 bytes under \
     one volume key (256 TiB).",
];

/// A header backup and what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HeaderBackup {
    /// The file.
    pub path: PathBuf,
    /// The generation of the volume's key that opens it.
    pub opens_with_generation: u64,
    /// Whether the store still has that key.
    pub key_is_there: bool,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyReport {
    /// Its name.
    pub name: String,
    /// `volume`, `backup` or `recovery`.
    pub kind: &'static str,
    /// The volume's UUID; none for a key without a volume.
    pub volume: Option<String>,
    /// The generation in use; none before the first is.
    pub generation: Option<u64>,
    /// When that came into use.
    pub activated: Option<String>,
    /// How many whole days ago.
    pub age_days: Option<u64>,
    /// When it is due; none for what is not rotated.
    pub due: Option<String>,
    /// Whether that time has come.
    pub is_due: bool,
    /// The last durable stage of a rotation that is under way.
    pub rotation: Option<&'static str>,
    /// Older generations that stay sealed in the store.
    pub retired: Vec<u64>,
    /// Bytes written under the volume key, as far as they were counted.
    pub written_bytes: Option<u128>,
    /// How many may still be before the limit of IEEE 1619.
    pub writable_bytes: Option<u128>,
    /// Backups of the volume's header.
    pub header_backups: Vec<HeaderBackup>,
}

/// All keys of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// UUID of the store.
    pub store: String,
    /// A key is due so many days after it came into use.
    pub rotation_days: u32,
    /// When the master secret came into use.
    pub master_since: String,
    /// How many seconds the clock stands before the last change of the store: it was set back.
    pub clock_back_seconds: Option<u64>,
    /// Whether there is a recovery key.
    pub has_recovery_key: bool,
    /// The newest backup of keys, when it was made.
    pub newest_key_backup: Option<String>,
    /// The keys by name.
    pub keys: Vec<KeyReport>,
    /// What a rotation does not do.
    pub cautions: [&'static str; 3],
}

impl Report {
    /// The report on the keys of `set` at `now`, with what falls due within `horizon_days` counted as due.
    ///
    /// # Errors
    /// [`VolumesError::KeyStore`] without a store or with one that cannot be read, [`VolumesError::Io`].
    pub fn of(set: &Set, now: Timestamp, horizon_days: u32) -> Result<Report, VolumesError> {
        let folder = set.folder()?;
        let mut metadata = Metadata::read(&folder)?;
        for (name, bytes) in written::noted(&folder)? {
            let record = KeyName::new(&name).ok().and_then(|name| metadata.keys.get_mut(&name));
            if let Some(record) = record {
                record.written_bytes = record.written_bytes.saturating_add(bytes.into());
            }
        }
        drop(folder);
        let due = metadata.due_within(now, horizon_days);
        let keys = metadata.keys.iter().map(|(name, record)| {
            let header_backups = header_backups(set, &metadata, name.as_str())?;
            let is_due = due.keys.iter().any(|due| due.name == *name);
            Ok(key_report(&metadata, (name, record), metadata.trusted(now), is_due, header_backups))
        });
        let keys = keys.collect::<Result<_, VolumesError>>()?;
        let is_in_use = |record: &KeyRecord| record.kind == KeyKind::Recovery && record.active().is_some();
        Ok(Report {
            store: metadata.store.to_string(),
            rotation_days: metadata.policy.key_rotation_days,
            master_since: metadata.master_since.to_string(),
            clock_back_seconds: metadata.clock_back_s(now),
            has_recovery_key: metadata.keys.values().any(is_in_use),
            newest_key_backup: newest_backup(set)?,
            keys,
            cautions: CAUTIONS,
        })
    }

    /// Whether a key is due.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.keys.iter().any(|key| key.is_due)
    }
}

fn newest_backup(set: &Set) -> Result<Option<String>, VolumesError> {
    let path = &set.config().store.key_backup;
    if !path.is_dir() {
        return Ok(None);
    }
    Ok(key_backup::list(&Folder::open(path, PATIENCE)?)?.last().map(|(time, _)| time.to_string()))
}

fn key_report(
    metadata: &Metadata,
    (name, record): (&KeyName, &KeyRecord),
    now: Timestamp,
    is_due: bool,
    header_backups: Vec<HeaderBackup>,
) -> KeyReport {
    let active = record.active();
    let activated = active.map(|active| active.activated.unwrap_or(active.created));
    let (is_volume, is_rotated) = (record.kind == KeyKind::Volume, record.kind != KeyKind::Recovery);
    let due = activated.filter(|_| is_rotated).map(|since| since.plus_days(metadata.policy.key_rotation_days));
    let retired = record.live().filter(|generation| generation.state == KeyState::Retired);
    KeyReport {
        name: name.to_string(),
        kind: match record.kind {
            KeyKind::Volume => "volume",
            KeyKind::Backup => "backup",
            KeyKind::Recovery => "recovery",
        },
        volume: is_volume.then(|| record.volume.to_string()),
        generation: active.map(|active| active.number),
        activated: activated.map(|time| time.to_string()),
        age_days: activated.map(|since| now.seconds().saturating_sub(since.seconds()) / DAY_S),
        due: due.map(|time| time.to_string()),
        is_due,
        rotation: record.rotation.map(|rotation| stage(rotation.step)),
        retired: retired.map(|generation| generation.number).collect(),
        written_bytes: is_volume.then_some(record.written_bytes),
        writable_bytes: is_volume.then(|| record.writable_bytes()),
        header_backups,
    }
}

fn stage(step: Step) -> &'static str {
    match step {
        Step::Staged => "staged",
        Step::SlotWritten => "slot-written",
        Step::Proven => "proven",
        Step::Committed => "committed",
        Step::OldSlotWiped => "old-slot-wiped",
    }
}

/// The header backups of a volume, each with the generation that opens it.
pub(super) fn header_backups(set: &Set, metadata: &Metadata, name: &str) -> Result<Vec<HeaderBackup>, VolumesError> {
    let record = KeyName::new(name).ok().and_then(|name| metadata.keys.get(&name));
    let is_there = |number: u64| {
        let generation = record.and_then(|record| record.generation(number));
        generation.is_some_and(|generation| generation.state != KeyState::Wiped)
    };
    let backups = header_backup::list(set.config(), name)?.into_iter();
    Ok(backups
        .map(|(number, path)| HeaderBackup { path, opens_with_generation: number, key_is_there: is_there(number) })
        .collect())
}
