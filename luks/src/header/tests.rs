//! Reading: which copy wins, where a copy is found, what is touched.

use std::sync::Mutex;

use block::{BlockError, Geometry, MemDisk};

use super::*;
use crate::env::fixed::FixedEnv;
use crate::limits::BINARY_HEADER;
use crate::write::{commit, write_copy};

const PLAIN: &str = include_str!("../../tests/vectors/plain.json");

/// A header of the given size on a disk of 32 MiB, at sequence number 2.
fn disk_with(metadata_size: Bytes) -> MemDisk {
    let disk = MemDisk::new(Bytes(32 << 20));
    let mut metadata = Metadata::parse(PLAIN.trim_end(), Bytes(0x4000)).unwrap();
    metadata.config = crate::Config::new(metadata_size, Bytes((16 << 20) - 2 * metadata_size.0));
    for (id, keyslot) in metadata.keyslots.iter_mut() {
        keyslot.area.offset = Bytes(2 * metadata_size.0 + u64::from(id.0) * keyslot.area.size.0);
    }
    let mut header = Header::create(metadata, FixedEnv::new(1, 1).env().rng).unwrap();
    commit(&disk, &mut header).unwrap();
    disk
}

fn load(disk: &MemDisk) -> Header {
    load_unlocked(disk, &Limits::default()).unwrap()
}

/// Rewrites one copy with another sequence number.
fn renumber(disk: &MemDisk, position: Position, seqid: u64) {
    let header = load(disk);
    let hdr_offset = if position == Position::Primary { Bytes(0) } else { header.metadata_size() };
    let binary = BinaryHeader { position, seqid, hdr_offset, ..header.binary.clone() };
    write_copy(disk, binary, header.json_area()).unwrap();
}

#[test]
fn the_newer_copy_wins() {
    for (newer, older) in [(Position::Primary, Position::Secondary), (Position::Secondary, Position::Primary)] {
        let disk = disk_with(Bytes(0x4000));
        renumber(&disk, newer, 7);
        let header = load(&disk);
        assert_eq!((header.position(), header.seqid()), (newer, 7));
        assert_eq!(*header.health().of(newer), CopyState::Ok);
        assert!(matches!(header.health().of(older), CopyState::Obsolete { .. }));
        let advice = header.health().advice().unwrap();
        assert_eq!(advice, format!("{older} copy stale: run `luksctl repair`"));
    }
}

#[test]
fn the_primary_wins_among_equals_that_differ() {
    let disk = disk_with(Bytes(0x4000));
    let header = load(&disk);
    let binary = BinaryHeader {
        position: Position::Secondary,
        hdr_offset: Bytes(0x4000),
        label: b"other".to_vec(),
        ..header.binary.clone()
    };
    write_copy(&disk, binary, header.json_area()).unwrap();
    let header = load(&disk);
    assert_eq!((header.position(), header.label()), (Position::Primary, String::new()));
    assert!(matches!(header.health().secondary, CopyState::Obsolete { .. }));
}

#[test]
fn a_secondary_is_found_at_each_of_its_places() {
    for size in METADATA_SIZES {
        let disk = disk_with(size);
        let before = load(&disk);
        disk.write_at(Bytes(0), &[0; BINARY_HEADER], false).unwrap();
        let header = load(&disk);
        assert_eq!((header.position(), header.metadata_size()), (Position::Secondary, size));
        assert_eq!(header.metadata(), before.metadata());
    }
}

#[test]
fn a_broken_primary_that_names_a_wrong_size_hides_nothing() {
    let disk = disk_with(Bytes(0x8000));
    let mut first = [0; BINARY_HEADER];
    disk.read_at(Bytes(0), &mut first).unwrap();
    first[8..16].copy_from_slice(&0x10_0000u64.to_be_bytes());
    disk.write_at(Bytes(0), &first, false).unwrap();
    assert_eq!(load(&disk).position(), Position::Secondary);
}

#[test]
fn foreign_and_old_headers_have_their_own_answers() {
    let disk = MemDisk::new(Bytes(1 << 20));
    assert!(matches!(load_unlocked(&disk, &Limits::default()), Err(Error::NotLuks)));
    let mut luks1 = [0; 512];
    luks1[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    disk.write_at(Bytes(0), &luks1, false).unwrap();
    assert!(matches!(load_unlocked(&disk, &Limits::default()), Err(Error::Luks1)));
    let empty = MemDisk::new(Bytes(0));
    assert!(matches!(load_unlocked(&empty, &Limits::default()), Err(Error::NotLuks)));
}

/// Notes what is read and fails every change.
struct Watched {
    disk: MemDisk,
    reads: Mutex<Vec<(u64, usize)>>,
}

impl BlockIo for Watched {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.reads.lock().unwrap().push((offset.0, buf.len()));
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], _fua: bool) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::ReadOnly, "write", offset, buf.len() as u64))
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::ReadOnly, "zero", offset, len.0))
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::ReadOnly, "discard", offset, len.0))
    }

    fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::ReadOnly, "flush", Bytes(0), 0))
    }
}

#[test]
fn loading_reads_both_copies_once_and_nothing_else() {
    let watched = Watched { disk: disk_with(Bytes(0x8000)), reads: Mutex::default() };
    load_unlocked(&watched, &Limits::default()).unwrap();
    let reads = watched.reads.into_inner().unwrap();
    assert_eq!(reads, [(0, 4096), (4096, 0x7000), (0x8000, 4096), (0x9000, 0x7000)]);
}

#[test]
fn a_search_for_the_secondary_reads_one_block_at_each_place() {
    let watched = Watched { disk: MemDisk::new(Bytes(32 << 20)), reads: Mutex::default() };
    assert!(matches!(load_unlocked(&watched, &Limits::default()), Err(Error::NotLuks)));
    let reads = watched.reads.into_inner().unwrap();
    let mut expected = vec![(0, 4096)];
    expected.extend(METADATA_SIZES.map(|size| (size.0, 4096)));
    assert_eq!(reads, expected);
}

#[test]
fn checksums_of_every_hash_are_understood() {
    for alg in crate::hash::HashAlg::all() {
        let disk = disk_with(Bytes(0x4000));
        let header = load(&disk);
        for (position, hdr_offset) in [(Position::Primary, Bytes(0)), (Position::Secondary, Bytes(0x4000))] {
            let csum_alg = alg.name().as_bytes().to_vec();
            let binary = BinaryHeader { position, hdr_offset, csum_alg, ..header.binary.clone() };
            write_copy(&disk, binary, header.json_area()).unwrap();
        }
        let header = load(&disk);
        assert!(header.health().is_healthy(), "{}: {:?}", alg.name(), header.health());
        assert_eq!(header.binary().csum_alg, alg.name().as_bytes());
    }
}

#[test]
fn a_smaller_bound_on_the_json_area_is_obeyed() {
    let disk = disk_with(Bytes(0x40_0000));
    let limits = Limits { json_bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(load_unlocked(&disk, &limits), Err(Error::NoValidCopy { .. })));
}
