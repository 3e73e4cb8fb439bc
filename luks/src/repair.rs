//! Repair: rewrite a broken or stale copy of the header from the good one. A verb that the user types; nothing repairs
//! by itself.
//!
//! Source: format notes 1.5. The rewritten copy gets the good copy's JSON area byte for byte, its sequence number, label,
//! UUID and subsystem, a salt of its own and its own checksum. The good copy is not touched, so a repair that is cut short
//! loses nothing and can be repeated.

use std::fmt;

use block::{BlockIo, Bytes};

use crate::binary::{BinaryHeader, Position, SALT_LEN};
use crate::env::Rng;
use crate::error::Error;
use crate::header::{CopyState, Header, load_unlocked};
use crate::limits::Limits;
use crate::store::{HeaderStore, LockMode};
use crate::write::write_copy;

/// What a repair would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPlan {
    /// The copy that is taken over.
    pub source: Position,
    /// Its sequence number.
    pub seqid: u64,
    /// The copy to rewrite and what is wrong with it; `None` if both copies are well.
    pub rewrite: Option<(Position, CopyState)>,
    /// Where the rewritten copy stands.
    pub offset: Bytes,
    /// Its size.
    pub size: Bytes,
}

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rewrite {
            None => write!(f, "both header copies are valid, nothing to repair"),
            Some((position, state)) => write!(
                f,
                "rewrite the {position} header copy at {} ({}) from the {} copy, sequence number {}; it is {state}",
                self.offset, self.size, self.source, self.seqid
            ),
        }
    }
}

/// Whether a repair may overwrite the signature of another format in the place of the broken copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignSignature {
    /// Stop with [`Error::AmbiguousSignature`].
    Refuse,
    /// Overwrite it.
    Overwrite,
}

/// What a repair of this header would do.
pub fn plan(header: &Header) -> RepairPlan {
    let source = header.position();
    let other = match source {
        Position::Primary => Position::Secondary,
        Position::Secondary => Position::Primary,
    };
    let state = header.health().of(other).clone();
    let offset = match other {
        Position::Primary => Bytes(0),
        Position::Secondary => header.metadata_size(),
    };
    RepairPlan {
        source,
        seqid: header.seqid(),
        rewrite: (state != CopyState::Ok).then_some((other, state)),
        offset,
        size: header.metadata_size(),
    }
}

/// Repair the header under the exclusive metadata lock. Hands back what was done; `rewrite` is `None` if nothing was.
///
/// # Errors
/// Those of [`crate::load`], [`Error::AmbiguousSignature`], [`Error::Env`], and errors of the disk.
pub fn repair<S: HeaderStore + ?Sized>(
    store: &S,
    rng: &dyn Rng,
    limits: &Limits,
    foreign: ForeignSignature,
) -> Result<RepairPlan, Error> {
    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    let header = load_unlocked(store, limits)?;
    let plan = plan(&header);
    let Some((position, _)) = plan.rewrite else { return Ok(plan) };
    if foreign == ForeignSignature::Refuse {
        check_signatures(&store, &plan, position)?;
    }
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt)?;
    let binary = BinaryHeader { position, salt, hdr_offset: plan.offset, ..header.binary().clone() };
    write_copy(store, binary, header.json_area())?;
    Ok(plan)
}

/// Nothing but LUKS left its signature where the rewritten copy will stand.
fn check_signatures(disk: &dyn BlockIo, plan: &RepairPlan, position: Position) -> Result<(), Error> {
    for found in block::signature::probe(disk)? {
        let distance = found.offset.checked_sub(plan.offset);
        let inside = distance.is_some_and(|distance| distance < plan.size);
        if inside && !found.name.starts_with("LUKS") {
            return Err(Error::AmbiguousSignature { position, signature: found.name, offset: found.offset });
        }
    }
    Ok(())
}
