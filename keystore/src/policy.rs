//! [`Policy`]: how long a key is used and how long backups of keys are kept; and what is due.
//!
//! No clock in here: the caller says what time it is. A clock that stands before the last change of the store was set back;
//! that is reported, and the time of the last change is used instead.

use crate::limits::DAYS_MAX;
use crate::{Error, KeyKind, KeyName, Metadata, Timestamp};

/// How often keys are rotated and how long their backups are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A key is due this many days after it came into use.
    pub key_rotation_days: u32,
    /// A backup of keys goes after this many days; the newest never.
    pub key_backup_retention_days: u32,
}

impl Policy {
    /// The guide's: 90 days, backups for a year.
    pub const STANDARD: Policy = Policy { key_rotation_days: 90, key_backup_retention_days: 365 };
    /// PCI DSS as the guide has it: 30 days.
    pub const PCI_DSS: Policy = Policy { key_rotation_days: 30, key_backup_retention_days: 365 };
    /// SOX as the guide has it: backups of keys for seven years.
    pub const SOX: Policy = Policy { key_rotation_days: 90, key_backup_retention_days: 2555 };

    /// Holds the bounds.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] unless both are 1 day to 100 years.
    pub fn check(&self) -> Result<(), Error> {
        for (field, days) in [
            ("key_rotation_days", self.key_rotation_days),
            ("key_backup_retention_days", self.key_backup_retention_days),
        ] {
            if !(1..=DAYS_MAX).contains(&days) {
                return Err(Error::OutOfBounds { field, value: days.into(), least: 1, most: DAYS_MAX.into() });
            }
        }
        Ok(())
    }
}

/// A key that is due, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueKey {
    /// Which key.
    pub name: KeyName,
    /// Its active generation.
    pub generation: u64,
    /// When that came into use.
    pub activated: Timestamp,
    /// When it is due.
    pub due: Timestamp,
    /// Whether that time has come.
    pub overdue: bool,
}

/// What is due, and whether the clock can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueReport {
    /// How many seconds the clock stands before the last change of the store; `None` if it does not.
    pub clock_back_s: Option<u64>,
    /// The keys, those that are due first before the others.
    pub keys: Vec<DueKey>,
}

impl Metadata {
    /// `now`, or the time of the last change where the clock stands before it.
    pub fn trusted(&self, now: Timestamp) -> Timestamp {
        now.max(self.updated)
    }

    /// How many seconds `now` stands before the last change of the store.
    pub fn clock_back_s(&self, now: Timestamp) -> Option<u64> {
        self.updated.seconds().checked_sub(now.seconds()).filter(|seconds| *seconds > 0)
    }

    /// The keys that are due at `now` or become due within `horizon_days`, for what runs every `horizon_days`.
    pub fn due_within(&self, now: Timestamp, horizon_days: u32) -> DueReport {
        let trusted = self.trusted(now);
        let mut keys: Vec<DueKey> = Vec::new();
        for (name, record) in self.keys.iter().filter(|(_, record)| record.kind != KeyKind::Recovery) {
            let Some(active) = record.active() else { continue };
            let activated = active.activated.unwrap_or(active.created);
            let due = activated.plus_days(self.policy.key_rotation_days);
            if due <= trusted.plus_days(horizon_days) {
                let (name, generation, overdue) = (name.clone(), active.number, due <= trusted);
                keys.push(DueKey { name, generation, activated, due, overdue });
            }
        }
        keys.sort_by(|a, b| (a.due, &a.name).cmp(&(b.due, &b.name)));
        DueReport { clock_back_s: self.clock_back_s(now), keys }
    }
}
