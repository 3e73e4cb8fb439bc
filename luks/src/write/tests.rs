//! Commits under faults, power cuts and other writers.

use block::fault::{FaultDisk, Op, PowerCutDisk};
use block::{BlockErrorKind, MemDisk};

use super::*;
use crate::env::fixed::FixedEnv;
use crate::header::load_unlocked;
use crate::limits::Limits;
use crate::metadata::{DigestId, TokenId};
use crate::{Digest, JsonMap, Token};

const DISK: Bytes = Bytes(20 << 20);
const PLAIN: &str = include_str!("../../tests/vectors/plain.json");

fn fresh() -> Header {
    let metadata = Metadata::parse(PLAIN.trim_end(), Bytes(0x4000)).unwrap();
    let mut header = Header::create(metadata, FixedEnv::new(1, 1).env().rng).unwrap();
    header.binary.uuid = b"01234567-89ab-cdef-0123-456789abcdef".to_vec();
    header
}

fn load<D: BlockIo>(disk: &D) -> Header {
    load_unlocked(disk, &Limits::default()).unwrap()
}

/// A disk with a header at sequence number 2.
fn written() -> MemDisk {
    let disk = MemDisk::new(DISK);
    commit(&disk, &mut fresh()).unwrap();
    disk
}

fn token(name: &str) -> Token {
    Token::new(name, Vec::new(), JsonMap::new())
}

#[test]
fn what_is_committed_is_loaded() {
    let disk = written();
    let header = load(&disk);
    assert!(header.health().is_healthy(), "{:?}", header.health());
    assert_eq!(header.seqid(), 2);
    assert_eq!(header.metadata().to_text(), PLAIN.trim_end());
    let salts = header.salts.map(Option::unwrap);
    assert_ne!(salts[0], salts[1], "each copy has its salt");

    let mut header = header;
    header.metadata_mut().tokens.insert(TokenId(3), token("x"));
    commit(&disk, &mut header).unwrap();
    let again = load(&disk);
    assert_eq!(again.seqid(), 3);
    assert_eq!(again.metadata(), header.metadata());
    assert_eq!(again.salts.map(Option::unwrap), salts, "salts stay");
}

#[test]
fn a_header_can_be_committed_again_and_again() {
    let disk = written();
    let mut header = load(&disk);
    for seqid in 3..6 {
        commit(&disk, &mut header).unwrap();
        assert_eq!((header.seqid(), load(&disk).seqid()), (seqid, seqid));
    }
}

#[test]
fn digests_without_members_are_dropped() {
    let disk = written();
    let mut header = load(&disk);
    let mut unused = header.metadata().digests.get(DigestId(0)).unwrap().clone();
    (unused.keyslots, unused.segments) = (Vec::new(), Vec::new());
    let unused = Digest { hash: None, ..unused };
    header.metadata_mut().digests.insert(DigestId(4), unused);
    commit(&disk, &mut header).unwrap();
    assert!(!load(&disk).metadata().digests.contains(DigestId(4)));
}

#[test]
fn invalid_metadata_is_not_written() {
    let disk = FaultDisk::new(written());
    let before = disk.counts().writes;
    let mut header = load(&disk);
    header.metadata_mut().tokens.insert(TokenId(0), token(""));
    let error = commit(&disk, &mut header).unwrap_err();
    assert!(matches!(&error, Error::Invalid(violation) if violation.rule == Rule::TokenType), "{error}");
    let mut header = load(&disk);
    let room = header.binary.json_size().to_usize().unwrap() - header.metadata().to_text().len();
    let mut filler = token("");
    let overhead = "\"0\":{\"type\":\"\",\"keyslots\":[]}".len();
    filler.type_name = "x".repeat(room - overhead);
    header.metadata_mut().tokens.insert(TokenId(0), filler.clone());
    let error = commit(&disk, &mut header).unwrap_err();
    assert!(matches!(&error, Error::Invalid(violation) if violation.rule == Rule::JsonFits), "{error}");
    assert_eq!(disk.counts().writes, before, "nothing was written");

    filler.type_name.pop();
    header.metadata_mut().tokens.insert(TokenId(0), filler);
    commit(&disk, &mut header).expect("one NUL is left");
    assert_eq!(load(&disk).metadata(), header.metadata());
}

#[test]
fn an_update_by_someone_else_is_noticed() {
    let disk = written();
    let (mut ours, mut theirs) = (load(&disk), load(&disk));
    commit(&disk, &mut theirs).unwrap();
    assert!(matches!(commit(&disk, &mut ours), Err(Error::ConcurrentUpdate { seqid: 2 })));
    assert_eq!(load(&disk).seqid(), 3);
    assert_eq!(load(&disk).metadata(), theirs.metadata());

    // A new container in the same place may be at the same sequence number; its UUID and salt differ.
    let mut ours = load(&disk);
    let mut other = fresh();
    other.binary.uuid[0] = b'f';
    commit(&disk, &mut other).unwrap();
    assert!(matches!(commit(&disk, &mut ours), Err(Error::ConcurrentUpdate { .. })));
}

#[test]
fn after_a_failed_write_the_header_refuses_more() {
    for nth in 1..=8 {
        let disk = FaultDisk::new(written());
        let mut header = load(&disk);
        disk.fail_once(Op::Change, nth, BlockErrorKind::Io);
        assert!(matches!(commit(&disk, &mut header), Err(Error::Block(_))), "change {nth}");
        assert!(matches!(commit(&disk, &mut header), Err(Error::Poisoned)), "change {nth}");
        let found = load(&disk);
        commit(&disk, &mut found.clone()).expect("a fresh look may write");
        assert!(load(&disk).health().is_healthy());
    }
}

#[test]
fn a_broken_secondary_is_whole_after_a_commit() {
    let disk = written();
    disk.write_at(Bytes(0x4000), &[0; 0x4000], false).unwrap();
    let mut header = load(&disk);
    assert!(header.health().advice().unwrap().contains("secondary copy broken"));
    commit(&disk, &mut header).unwrap();
    let header = load(&disk);
    assert!(header.health().is_healthy());
    assert_ne!(header.salts[0], header.salts[1]);
}

/// Power is cut after each change of a commit: the header is then whole, old or new; new if the commit said so.
#[test]
fn a_power_cut_leaves_the_old_header_or_the_new() {
    let (mut old, mut new) = (0, 0);
    for nth in 1..=9 {
        let disk = FaultDisk::new(PowerCutDisk::from_disk(&written()));
        let mut header = load(&disk);
        let before = header.metadata().clone();
        header.metadata_mut().tokens.insert(TokenId(0), token(&"long".repeat(500)));
        disk.fail_from(Op::Change, nth, BlockErrorKind::Gone);
        let done = commit(&disk, &mut header).is_ok();
        assert_eq!(done, nth == 9, "a commit is eight changes");
        for seed in 0..40 {
            let found = load(&disk.inner().cut(seed));
            let is_new = *found.metadata() == header.metadata;
            assert!(is_new || (!done && *found.metadata() == before), "change {nth}, seed {seed}");
            (old, new) = if is_new { (old, new + 1) } else { (old + 1, new) };
        }
    }
    assert!(old > 0 && new > 40, "both outcomes were seen: {old} old, {new} new");
}

/// The same with a disk that lies about flushes: the test above must be able to fail.
#[test]
fn a_lying_disk_can_lose_both_copies() {
    let disk = PowerCutDisk::from_disk(&written());
    disk.lie_about_flush(true);
    let mut header = load(&disk);
    header.metadata_mut().tokens.insert(TokenId(0), token(&"long".repeat(500)));
    commit(&disk, &mut header).unwrap();
    let lost = (0..200).filter(|seed| load_unlocked(&disk.cut(*seed), &Limits::default()).is_err()).count();
    assert!(lost > 0, "200 cuts of a lying disk lost nothing");
}
