//! [`HeaderStore`]: where a header stands. Block I/O and a lock that keeps two programs from changing it at once.
//!
//! Source: format notes 1.7. This crate makes no system calls, so the lock comes in through this trait; a file takes it
//! as cryptsetup does, memory has nothing to lock.

use std::sync::Arc;
use std::time::Duration;

use block::fault::{FaultDisk, PowerCutDisk};
use block::{BlockIo, FileDisk, LockError, MemDisk, MetadataLock};

use crate::error::Error;

/// Whether others may hold the lock too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// To read the header.
    Shared,
    /// To write the header.
    Exclusive,
}

/// A disk with a metadata lock.
pub trait HeaderStore: BlockIo {
    /// Holds the lock until it is dropped.
    type Guard;

    /// Take the metadata lock, or fail once `wait` is over. The lock is not re-entrant.
    ///
    /// # Errors
    /// [`Error::Locked`] when another program holds it all the time, [`Error::Lock`] when it cannot be taken at all.
    fn lock(&self, mode: LockMode, wait: Duration) -> Result<Self::Guard, Error>;
}

impl HeaderStore for FileDisk {
    type Guard = MetadataLock;

    fn lock(&self, mode: LockMode, wait: Duration) -> Result<MetadataLock, Error> {
        let device = || self.path().display().to_string();
        self.lock_metadata(mode == LockMode::Shared, wait).map_err(|error| match error {
            LockError::Busy { waited, .. } => Error::Locked { device: device(), waited },
            other => Error::Lock { device: device(), reason: other.to_string() },
        })
    }
}

impl HeaderStore for PowerCutDisk {
    type Guard = ();

    fn lock(&self, _mode: LockMode, _wait: Duration) -> Result<(), Error> {
        Ok(())
    }
}

impl<S: HeaderStore> HeaderStore for FaultDisk<S> {
    type Guard = S::Guard;

    fn lock(&self, mode: LockMode, wait: Duration) -> Result<S::Guard, Error> {
        self.inner().lock(mode, wait)
    }
}

impl HeaderStore for MemDisk {
    type Guard = ();

    fn lock(&self, _mode: LockMode, _wait: Duration) -> Result<(), Error> {
        Ok(())
    }
}

impl<S: HeaderStore + ?Sized> HeaderStore for Arc<S> {
    type Guard = S::Guard;

    fn lock(&self, mode: LockMode, wait: Duration) -> Result<S::Guard, Error> {
        (**self).lock(mode, wait)
    }
}

impl<S: HeaderStore + ?Sized> HeaderStore for &S {
    type Guard = S::Guard;

    fn lock(&self, mode: LockMode, wait: Duration) -> Result<S::Guard, Error> {
        (**self).lock(mode, wait)
    }
}
