//! JSON areas. Input: JSON text. It is put into both copies, with right binary headers and checksums, and loaded.
//!
//! The copies are the smallest that hold the text; each newline at its end asks for the next larger size. Each text is
//! loaded twice: from two equal copies, and with a secondary copy that is one step behind.

use block::{BlockIo, Bytes, MemDisk};
use luks::binary::Position;
use luks::unlock::Purpose;
use luks::{
    Container, CopyState, Error, Header, KeyslotId, Limits, Metadata, Rule, SegmentSize, UnlockRequest, load_unlocked,
};
use secret::Secret;

use super::image::{BINARY_HEADER, binary, copy};
use super::surroundings::Surroundings;
use super::{Rules, rules_of, rules_of_health};

const DISK: Bytes = Bytes(64 << 20);
/// Sizes of one copy that are tried; larger ones differ in nothing but the time they take.
const SIZES: [u64; 4] = [0x4000, 0x8000, 0x1_0000, 0x2_0000];
const SEQID: u64 = 4;

pub(crate) fn run(input: &[u8]) -> Rules {
    let mut reached = Rules::new();
    let Some(size) = copy_size(input) else { return reached };
    let text = input.split(|byte| *byte == 0).next().unwrap_or_default();
    let parsed = std::str::from_utf8(text).ok().map(|text| Metadata::parse(text, Bytes(size)));
    if let Some(Err(violation)) = &parsed {
        reached.insert(violation.rule);
    }
    for behind in [0, 1] {
        let disk = disk_with(input, size, SEQID - behind);
        match load_unlocked(&disk, &Limits::default()) {
            Ok(header) => {
                reached.extend(rules_of_health(header.health()));
                check_header(&header, size, behind);
                let left_out = matches!(&parsed, Some(Err(_)));
                assert_eq!(left_out, !header.health().ignored_members.is_empty(), "{:?}", header.health());
                check_metadata(header.metadata(), size);
                check_areas(header.metadata());
                unlock_in_vain(&disk);
                reached.extend(rewrite(&disk, &header));
            }
            Err(error) => {
                let rules = rules_of(&error);
                assert!(!rules.is_empty(), "refused by no rule: {error}");
                reached.extend(rules);
            }
        }
    }
    reached
}

/// The size of a copy: the smallest for this text, or larger for newlines at its end.
fn copy_size(text: &[u8]) -> Option<u64> {
    let newlines = text.iter().rev().take_while(|byte| **byte == b'\n').count();
    let fitting = SIZES.iter().position(|size| (text.len() + BINARY_HEADER) as u64 <= *size)?;
    SIZES.get(fitting.max(newlines.min(SIZES.len() - 1))).copied()
}

fn disk_with(text: &[u8], size: u64, secondary_seqid: u64) -> MemDisk {
    let disk = MemDisk::new(DISK);
    for (position, offset, seqid) in [(Position::Primary, 0, SEQID), (Position::Secondary, size, secondary_seqid)] {
        disk.write_at(Bytes(offset), &copy(&binary(position, size, seqid), text), false).expect("write");
    }
    disk
}

fn check_header(header: &Header, size: u64, behind: u64) {
    let health = header.health();
    assert_eq!((header.position(), header.seqid(), header.metadata_size()), (Position::Primary, SEQID, Bytes(size)));
    assert_eq!(health.primary, CopyState::Ok);
    assert_eq!(matches!(health.secondary, CopyState::Obsolete { .. }), behind > 0, "{}", health.secondary);
    assert_eq!(health.is_healthy(), health.advice().is_none());
    assert_eq!(luks::repair::plan(header).rewrite.is_some(), behind > 0);
}

/// The text of accepted metadata means the same when it is read again.
fn check_metadata(metadata: &Metadata, size: u64) {
    let text = metadata.to_text();
    let again = Metadata::parse(&text, Bytes(size)).expect("own text");
    assert_eq!(&again, metadata);
    assert_eq!(again.to_text(), text);
    assert_eq!(metadata.config.metadata_size().0, size);
    for (id, digest) in metadata.digests.iter() {
        assert!(digest.keyslots.iter().all(|slot| metadata.keyslots.contains(*slot)), "digest {id}");
        assert!(digest.segments.iter().all(|segment| metadata.segments.contains(*segment)), "digest {id}");
    }
    for (id, token) in metadata.tokens.iter() {
        assert!(token.keyslots.iter().all(|slot| metadata.keyslots.contains(*slot)), "token {id}");
    }
    let owners =
        |slot: KeyslotId| metadata.digests.iter().filter(|(_, digest)| digest.keyslots.contains(&slot)).count();
    for (id, slot) in metadata.keyslots.iter() {
        assert!(slot.luks2().is_none() || owners(id) == 1, "keyslot {id}");
    }
}

/// Keyslot areas lie apart inside their area, segments behind it.
fn check_areas(metadata: &Metadata) {
    let (start, end) = (metadata.config.keyslots_offset(), metadata.config.keyslots_end());
    assert!(start.0 + metadata.config.keyslots_size.0 == end.0 && end <= DISK);
    let mut areas: Vec<(u64, u64)> =
        metadata.keyslots.iter().map(|(_, slot)| (slot.area.offset.0, slot.area.size.0)).collect();
    areas.sort_unstable();
    assert!(areas.iter().all(|(offset, size)| *size > 0 && *offset >= start.0 && offset + size <= end.0), "{areas:?}");
    assert!(areas.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{areas:?}");

    assert!(!metadata.segments.is_empty());
    for (id, segment) in metadata.segments.iter() {
        assert!((id.0 as usize) < metadata.segments.len(), "ids without a gap");
        assert!(segment.offset.0.is_multiple_of(512));
        assert!(segment.is_backup() || segment.offset.0 == 0 || segment.offset >= end, "segment {id} in the header");
        let sector_size = segment.crypt.as_ref().map_or(512, |crypt| crypt.sector_size);
        assert!(sector_size != 0 && sector_size.is_multiple_of(512));
        if let SegmentSize::Fixed(size) = segment.size {
            assert!(size.0 > 0 && size.0.is_multiple_of(u64::from(sector_size)));
        }
    }
}

/// No passphrase opens areas of zeros; costs and lengths that a header makes up are refused before any work.
fn unlock_in_vain(disk: &MemDisk) {
    let limits = Limits {
        kdf_memory_kib: 32,
        kdf_time: 4,
        kdf_lanes: 1,
        kdf_iterations: 100,
        keyslot_area_bytes: 16 << 10,
        ..Limits::default()
    };
    let surroundings = Surroundings::new(1);
    let container = Container::open(disk, disk, limits).expect("a header that was loaded");
    let passphrase = Secret::copy_of(b"wrong").expect("memory");
    for purpose in [Purpose::AnyDigest, Purpose::DefaultSegment] {
        let request = UnlockRequest { keyslot: None, purpose };
        let error = container.unlock(&surroundings.env(), &request, &passphrase).expect_err("nothing to unlock");
        assert!(!error.to_string().is_empty());
    }
}

/// A change of the label rewrites both copies, or is refused for a reason that the metadata gives; then nothing is written.
fn rewrite(disk: &MemDisk, before: &Header) -> Rules {
    let mut container = Container::open(disk, disk, Limits::default()).expect("a header that was loaded");
    let changed = container.set_label(Some("rewritten"));
    let after = load_unlocked(disk, &Limits::default()).expect("a header that was rewritten");
    match changed {
        Ok(()) => {
            assert!(after.health().is_healthy(), "{:?}", after.health());
            assert_eq!((after.seqid(), after.label().as_str()), (SEQID + 1, "rewritten"));
            let mut expected = before.metadata().clone();
            expected.digests.retain(|_, digest| !digest.keyslots.is_empty() || !digest.segments.is_empty());
            assert_eq!(after.metadata(), &expected);
            Rules::new()
        }
        Err(error) => {
            assert_eq!((after.seqid(), after.label()), (SEQID, before.label()));
            assert_eq!(after.health(), before.health());
            let rules = rules_of(&error);
            let fits = rules == Rules::from([Rule::JsonFits]);
            let required = matches!(
                error,
                Error::UnmetRequirements { .. } | Error::UnsupportedRequirement { .. } | Error::InReencryption { .. }
            );
            assert!(fits || required, "{error}");
            rules
        }
    }
}
