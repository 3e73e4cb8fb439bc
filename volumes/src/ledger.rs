//! [`Ledger`]: where what is done to a set is written down, before it is done.

use crate::VolumesError;
use crate::audit::{AuditLog, Event, Moment};
use crate::set::Set;

/// Takes records of the audit log. What cannot be recorded is not done.
pub trait Ledger {
    /// Records `event`.
    ///
    /// # Errors
    /// As [`AuditLog::record`].
    fn record(&self, event: &Event) -> Result<(), VolumesError>;

    /// Records that a volume could not be unlocked, and raises the alarm if that happens too often.
    ///
    /// # Errors
    /// As [`AuditLog::unlock_failed`].
    fn unlock_failed(&self, volume: &str, why: &str) -> Result<(), VolumesError>;
}

impl Ledger for AuditLog {
    fn record(&self, event: &Event) -> Result<(), VolumesError> {
        AuditLog::record(self, event, Moment::now()).map(drop)
    }

    fn unlock_failed(&self, volume: &str, why: &str) -> Result<(), VolumesError> {
        AuditLog::unlock_failed(self, volume, why, Moment::now()).map(drop)
    }
}

/// A set without an audit log writes nothing down.
impl Ledger for Set {
    fn record(&self, event: &Event) -> Result<(), VolumesError> {
        Set::record(self, event)
    }

    fn unlock_failed(&self, volume: &str, why: &str) -> Result<(), VolumesError> {
        self.audit().map_or(Ok(()), |log| Ledger::unlock_failed(&log, volume, why))
    }
}
