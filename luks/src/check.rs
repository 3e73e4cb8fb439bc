//! Looking at a container without changing it: both header copies, a policy, and whether the keyslot areas are still what they
//! must be: noise. Prints nothing.
//!
//! What a keyslot's area holds is ciphertext, so every sector of it looks uniformly random. A partition table, a file system or
//! a wipe that went over it does not, and one changed bit is enough: the anti-forensic splitter needs all 4000 stripes. Such a
//! keyslot is dead, and nobody would notice before its passphrase is needed. What was overwritten by other ciphertext or by
//! compressed data cannot be found this way.
//!
//! Invariants: header and areas are read under one shared lock, so that no edit is in between; nothing is written; only the
//! part of an area that holds stripes is looked at; what is listed is bounded. The test and its false alarms: [`noise`].

mod area;
pub mod noise;

use crate::any::AnyHeader;
use crate::error::Error;
use crate::header::load_unlocked;
use crate::limits::Limits;
use crate::luks1;
use crate::metadata::{KeyslotId, Metadata};
use crate::policy::{Breach, Policy};
use crate::store::{HeaderStore, LockMode};

pub use area::{AreaFinding, Damage};

/// What a look at a container found.
#[derive(Debug, Clone)]
pub struct CheckReport {
    /// The header, with the health of its copies where it has two.
    pub header: AnyHeader,
    /// What the policy does not accept.
    pub breaches: Vec<Breach>,
    /// Keyslot areas that are no noise.
    pub areas: Vec<AreaFinding>,
    /// Keyslots whose areas were looked at.
    pub examined: Vec<KeyslotId>,
}

impl CheckReport {
    /// Whether there is nothing to say.
    pub fn is_clean(&self) -> bool {
        self.header.is_healthy() && self.breaches.is_empty() && self.areas.is_empty()
    }

    /// Keyslots that are listed although their removal has begun: the first sector of the area is zero, which is what a wipe
    /// writes first. No passphrase opens them any more.
    pub fn half_removed(&self) -> Vec<KeyslotId> {
        let marked = self.areas.iter().filter(|finding| finding.damage == Damage::WipeMark);
        marked.map(|finding| finding.keyslot).collect()
    }
}

/// Looks at the container on `store`.
///
/// # Errors
/// What [`crate::load_any`] says. Areas that cannot be read are findings, not errors.
pub fn check<S: HeaderStore + ?Sized>(store: &S, limits: &Limits, policy: &Policy) -> Result<CheckReport, Error> {
    let guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    let header = match load_unlocked(store, limits) {
        Err(Error::Luks1) => AnyHeader::Luks1(Box::new(luks1::load_unlocked(store)?)),
        loaded => AnyHeader::Luks2(Box::new(loaded?)),
    };
    let read = area::read_all(store, &header.metadata(), limits);
    drop(guard);
    let breaches = policy.judge_any(&header);
    let (examined, areas) = area::judge_all(read);
    Ok(CheckReport { header, breaches, areas, examined })
}

/// The keyslots whose removal has begun, by the marks at the start of their areas alone. The caller holds the lock.
pub(crate) fn marked_unlocked<S: HeaderStore + ?Sized>(store: &S, metadata: &Metadata) -> Vec<KeyslotId> {
    area::marked(store, metadata)
}

#[cfg(test)]
mod tests;
