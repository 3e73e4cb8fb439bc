//! Repair: rewrite a broken or stale copy of the header from the good one. A verb that the user types; nothing repairs
//! by itself.
//!
//! Source: format notes 1.5. The rewritten copy gets the good copy's JSON area byte for byte, its sequence number, label,
//! UUID and subsystem, a salt of its own and its own checksum. The good copy is not touched, so a repair that is cut short
//! loses nothing and can be repeated.
//!
//! Invariant: only what was planned is done. A copy that could not be read may be the newer one; were it unreadable for a
//! moment only, the stale copy would take its place.

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
                "rewrite the {position} header copy, {} at byte {}, from the {} copy, sequence number {}; it is {state}{}",
                self.size,
                self.offset.0,
                self.source,
                self.seqid,
                if matches!(state, CopyState::Unreadable { .. }) { " and may hold newer metadata" } else { "" }
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

/// Do what [`plan`] found there is to do, under the exclusive metadata lock.
///
/// # Errors
/// [`Error::ChangedSinceRead`] if the plan would be another one now, also because a copy that could not be read then can be
/// read now; those of [`crate::load`], [`Error::AmbiguousSignature`], [`Error::Env`], and errors of the disk.
pub fn repair<S: HeaderStore + ?Sized>(
    store: &S,
    rng: &dyn Rng,
    limits: &Limits,
    foreign: ForeignSignature,
    planned: &RepairPlan,
) -> Result<(), Error> {
    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    let header = load_unlocked(store, limits)?;
    if plan(&header) != *planned {
        return Err(Error::ChangedSinceRead);
    }
    let Some((position, _)) = planned.rewrite else { return Ok(()) };
    if foreign == ForeignSignature::Refuse {
        check_signatures(&store, planned, position)?;
    }
    let mut salt = [0; SALT_LEN];
    rng.fill(&mut salt)?;
    let binary = BinaryHeader { position, salt, hdr_offset: planned.offset, ..header.binary().clone() };
    write_copy(store, binary, header.json_area())?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use block::MemDisk;
    use block::fault::{FaultDisk, Op};

    use super::*;
    use crate::env::fixed::FixedEnv;
    use crate::metadata::Metadata;
    use crate::write::commit;

    const PLAIN: &str = include_str!("../tests/vectors/plain.json");

    fn written() -> MemDisk {
        let disk = MemDisk::new(Bytes(20 << 20));
        let metadata = Metadata::parse(PLAIN.trim_end(), Bytes(0x4000)).unwrap();
        let mut header = Header::create(metadata, FixedEnv::new(1, 1).env().rng).unwrap();
        header.binary.label = b"kept".to_vec();
        commit(&disk, &mut header).unwrap();
        disk
    }

    fn mend<S: HeaderStore>(disk: &S, foreign: ForeignSignature) -> Result<RepairPlan, Error> {
        let limits = Limits::default();
        let planned = plan(&load_unlocked(disk, &limits)?);
        repair(disk, FixedEnv::new(2, 1).env().rng, &limits, foreign, &planned).map(|()| planned)
    }

    #[test]
    fn each_copy_is_mended_from_the_other() {
        for (offset, position) in [(0, Position::Primary), (0x4000, Position::Secondary)] {
            let disk = written();
            let before = load_unlocked(&disk, &Limits::default()).unwrap();
            disk.write_at(Bytes(offset), &[0; 0x2000], false).unwrap();
            let done = mend(&disk, ForeignSignature::Refuse).unwrap();
            assert_eq!(done.rewrite.unwrap().0, position);
            let after = load_unlocked(&disk, &Limits::default()).unwrap();
            assert!(after.health().is_healthy());
            assert_eq!((after.seqid(), after.label()), (before.seqid(), "kept".to_owned()));
            assert_eq!(after.json_area(), before.json_area());
            let at = usize::from(position == Position::Secondary);
            assert_ne!(after.salts[at], before.salts[at], "the rewritten copy has a fresh salt");
            assert_eq!(after.salts[1 - at], before.salts[1 - at], "the good copy is untouched");
        }
    }

    #[test]
    fn a_copy_that_was_unreadable_for_a_moment_is_not_replaced_by_a_stale_one() {
        let disk = FaultDisk::new(written());
        let stale = disk.inner().snapshot();
        let mut header = load_unlocked(&disk, &Limits::default()).unwrap();
        commit(&disk, &mut header).unwrap();
        let mut copy = vec![0; 0x4000];
        stale.read_at(Bytes(0x4000), &mut copy).unwrap();
        disk.inner().write_at(Bytes(0x4000), &copy, false).unwrap();
        let writes = disk.counts().writes;
        disk.fail_once(Op::Read, 1, block::BlockErrorKind::Io);
        let error = mend(&disk, ForeignSignature::Refuse).unwrap_err();
        assert!(matches!(error, Error::ChangedSinceRead), "{error}");
        assert_eq!(disk.counts().writes, writes);
        let done = mend(&disk, ForeignSignature::Refuse).unwrap();
        assert_eq!((done.source, done.seqid), (Position::Primary, header.seqid()));
    }

    #[test]
    fn a_healthy_header_is_not_written() {
        let disk = FaultDisk::new(written());
        assert_eq!(mend(&disk, ForeignSignature::Refuse).unwrap().rewrite, None);
        assert_eq!(disk.counts().writes, 0);
    }

    #[test]
    fn another_format_in_the_place_of_a_copy_stops_the_repair() {
        let disk = FaultDisk::new(written());
        let mut block = [0; 4096];
        block[..4].copy_from_slice(b"XFSB");
        disk.inner().write_at(Bytes(0), &block, false).unwrap();
        let error = mend(&disk, ForeignSignature::Refuse).unwrap_err();
        assert!(matches!(error, Error::AmbiguousSignature { signature: "xfs", offset: Bytes(0), .. }), "{error}");
        assert_eq!(disk.counts().writes, 0);
        mend(&disk, ForeignSignature::Overwrite).unwrap();
        assert!(load_unlocked(&disk, &Limits::default()).unwrap().health().is_healthy());
    }

    #[test]
    fn a_repair_that_is_cut_short_can_be_repeated() {
        for nth in 1..=4 {
            let disk = FaultDisk::new(written());
            disk.inner().write_at(Bytes(0x4000), &[0; 4096], false).unwrap();
            disk.fail_once(Op::Change, nth, block::BlockErrorKind::Io);
            assert!(mend(&disk, ForeignSignature::Refuse).is_err());
            mend(&disk, ForeignSignature::Refuse).unwrap();
            assert!(load_unlocked(&disk, &Limits::default()).unwrap().health().is_healthy());
        }
    }
}
