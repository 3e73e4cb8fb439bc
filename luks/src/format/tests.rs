//! What `format` promises: a container that opens, cryptsetup's numbers, and never a half-made one.

use super::sample::{self, Cutter, SIZE, fixed, formatted, open, params, secret, try_open};
use super::*;
use crate::container::Container;
use crate::unlock::UnlockRequest;
use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, MemDisk};
use std::sync::Arc;

#[test]
fn a_new_container_opens_and_holds_data() {
    let disk = formatted(&params());
    let container = open(&disk);
    let header = container.header();
    assert_eq!(header.seqid(), 3);
    assert!(header.health().is_healthy());
    assert_eq!(header.uuid().len(), 36);
    assert_eq!((header.label(), header.subsystem()), (String::new(), String::new()));
    assert!(matches!(try_open(&container, "other"), Err(Error::NoKey { .. })));
    let key = try_open(&container, "first").expect("unlock");
    let volume = container.volume(&key, false).expect("volume");
    assert_eq!(volume.geometry().size.0, SIZE.0 - (1 << 20));
    volume.write_at(Bytes(4096), &[0x5a; 8192], true).expect("write");
    let again = container.volume(&key, true).expect("volume");
    let mut got = [0u8; 8192];
    again.read_at(Bytes(4096), &mut got).expect("read");
    assert_eq!(got, [0x5a; 8192]);
    assert_eq!(open(&disk).header().seqid(), 3, "data does not touch the header");
}

#[test]
fn options_arrive_in_the_header() {
    let params = FormatParams {
        cipher: "aes-cbc-essiv:sha256".into(),
        key_size_bits: Some(128),
        sector_size: Some(2048),
        hash: "sha512".into(),
        keyslot: KeyslotId(7),
        keyslot_encryption: Some(("aes-xts-plain64".into(), 512)),
        label: Some("a label".into()),
        subsystem: Some("a subsystem".into()),
        uuid: Some("6D3D1E0F-1111-4222-8333-ABCDEFABCDEF".into()),
        metadata_size: Some(Bytes(64 << 10)),
        data_offset: Some(Bytes(1 << 20)),
        ..params()
    };
    let container = open(&formatted(&params));
    let header = container.header();
    assert_eq!(header.label(), "a label");
    assert_eq!(header.subsystem(), "a subsystem");
    assert_eq!(header.uuid(), "6d3d1e0f-1111-4222-8333-abcdefabcdef");
    assert_eq!(header.metadata_size(), Bytes(64 << 10));
    let metadata = header.metadata();
    let crypt = metadata.segments.get(SegmentId(0)).and_then(|segment| segment.crypt.clone()).expect("crypt");
    assert_eq!((crypt.encryption.as_str(), crypt.sector_size), ("aes-cbc-essiv:sha256", 2048));
    let keyslot = metadata.keyslots.get(KeyslotId(7)).expect("slot 7");
    assert_eq!(keyslot.area.encryption.as_deref(), Some("aes-xts-plain64"));
    assert_eq!((keyslot.area.key_size_bytes, keyslot.key_size_bytes), (Some(64), 16));
    assert_eq!(keyslot.luks2().map(|slot| slot.af.hash.as_str()), Some("sha512"));
    assert_eq!(metadata.digests.get(DigestId(0)).and_then(|digest| digest.hash.clone()).as_deref(), Some("sha512"));
    try_open(&container, "first").expect("unlock");
}

#[test]
fn a_detached_header_leaves_the_data_alone() {
    let (header, data) = (Arc::new(MemDisk::new(Bytes(1 << 20))), Arc::new(MemDisk::new(Bytes(1 << 20))));
    data.write_at(Bytes(0), &vec![0x77; 1 << 20], false).expect("fill");
    let params = FormatParams { detached: true, ..params() };
    format(&header, &data, &fixed().env(), &params, &secret("first")).expect("format");
    let mut bytes = vec![0u8; 1 << 20];
    data.read_at(Bytes(0), &mut bytes).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 0x77));
    let container = Container::open(Arc::clone(&header), data, Limits::default()).expect("open");
    let key = try_open(&container, "first").expect("unlock");
    assert_eq!(container.volume(&key, false).expect("volume").geometry().size, Bytes(1 << 20));
    // The header's own device as data would be overwritten from its first byte, whichever copy is broken.
    for broken in [None, Some(Bytes(0)), Some(Bytes(0x4000))] {
        let disk = Arc::new(header.snapshot());
        if let Some(offset) = broken {
            disk.write_at(offset, &[0; 512], false).expect("break");
        }
        let wrong = Container::open(Arc::clone(&disk), disk, Limits::default()).expect("open");
        let key = try_open(&wrong, "first").expect("unlock");
        assert!(matches!(wrong.volume(&key, false), Err(Error::SegmentGeometry { .. })), "{broken:?}");
    }
    let small = Arc::new(MemDisk::new(Bytes(256 << 10)));
    let refused = format(&small, &small, &fixed().env(), &params, &secret("first"));
    assert!(matches!(refused, Err(Error::DeviceTooSmall { device: "header device", .. })));
}

/// What a crash may leave: nothing that claims to be LUKS, or a header that one of the two passphrases opens.
fn check_state(disk: MemDisk, passphrases: &[&str], what: &str) -> bool {
    let disk = Arc::new(disk);
    match Container::open(Arc::clone(&disk), disk, Limits::default()) {
        Err(Error::NotLuks) => false,
        Err(error) => panic!("{what}: {error}"),
        Ok(container) => {
            let opens = passphrases.iter().any(|passphrase| try_open(&container, passphrase).is_ok());
            assert!(opens, "{what}: a valid header that opens with neither passphrase");
            true
        }
    }
}

#[test]
fn a_power_cut_leaves_no_header_or_a_good_one() {
    let old = formatted(&FormatParams { metadata_size: Some(Bytes(32 << 10)), ..params() });
    for seed in 1..4u64 {
        let cutter = Cutter::new(&old, seed);
        format(&cutter, &cutter, &fixed().env(), &params(), &secret("second")).expect("format");
        let cuts = cutter.cuts();
        assert!(cuts.len() > 20);
        let total = cuts.len();
        let check = |(at, disk)| check_state(disk, &["first", "second"], &format!("seed {seed}, cut {at} of {total}"));
        let valid: Vec<bool> = cuts.into_iter().enumerate().map(check).collect();
        assert!(valid.iter().any(|valid| !valid), "the old header was gone before the new one came");
        assert_eq!(valid.last(), Some(&true), "the last state is the new container");
    }
}

#[test]
fn a_full_or_failing_disk_leaves_no_header_or_a_good_one() {
    let old = formatted(&params());
    for kind in [BlockErrorKind::NoSpace, BlockErrorKind::Io] {
        for nth in 1.. {
            let disk = FaultDisk::new(old.snapshot());
            disk.fail_from(Op::Write, nth, kind);
            let result = format(&disk, &disk, &fixed().env(), &params(), &secret("second"));
            check_state(disk.inner().snapshot(), &["first", "second"], &format!("{kind} at write {nth}"));
            if result.is_ok() {
                assert!(nth > 5, "format writes more than {nth} times");
                break;
            }
        }
    }
}

#[test]
fn a_refused_format_changes_nothing() {
    let disk = formatted(&params());
    let before = disk.snapshot();
    let bad = FormatParams { data_offset: Some(Bytes(4096)), ..params() };
    assert!(format(&disk, &disk, &fixed().env(), &bad, &secret("second")).is_err());
    let dear = FormatParams {
        kdf: NewKdf::Calibrate(KdfChoice::Argon2id, KdfCost { memory_kib: Some(u32::MAX), ..KdfCost::default() }),
        ..params()
    };
    assert!(format(&disk, &disk, &fixed().env(), &dear, &secret("second")).is_err());
    let (mut first, mut second) = (vec![0u8; 4 << 20], vec![0u8; 4 << 20]);
    before.read_at(Bytes(0), &mut first).expect("read");
    disk.read_at(Bytes(0), &mut second).expect("read");
    assert!(first == second);
}

#[test]
fn an_old_second_header_does_not_come_back() {
    // The old container's secondary stands at 256 KiB, in the keyslots area of the new one; another at 2 MiB, in its data.
    let large = FormatParams {
        metadata_size: Some(Bytes(2 << 20)),
        keyslots_size: Some(Bytes(256 << 10)),
        data_offset: None,
        ..params()
    };
    let disk = Arc::new(MemDisk::new(Bytes(8 << 20)));
    format(&disk, &disk, &fixed().env(), &large, &secret("old")).expect("format");
    format(&disk, &disk, &fixed().env(), &sample::params(), &secret("new")).expect("format");
    disk.write_at(Bytes(0), &[0u8; 4096], false).expect("lose the primary");
    disk.write_at(Bytes(16 << 10), &[0u8; 4096], false).expect("lose the secondary");
    let lost = Container::open(Arc::clone(&disk), disk, Limits::default());
    assert!(matches!(lost, Err(Error::NotLuks)), "the old container must not rise again");
}

#[test]
fn a_measured_kdf_is_used_and_capped() {
    let mut fixed = fixed();
    fixed.available = Bytes(256 << 20);
    let params = FormatParams {
        kdf: NewKdf::Calibrate(
            KdfChoice::Argon2id,
            KdfCost {
                effort: Effort::Forced { iterations: 4 },
                memory_kib: Some(32),
                parallel: Some(1),
                ..KdfCost::default()
            },
        ),
        ..params()
    };
    let disk = Arc::new(MemDisk::new(SIZE));
    format(&disk, &disk, &fixed.env(), &params, &secret("first")).expect("format");
    let container = open(&disk);
    let kdf = container
        .header()
        .metadata()
        .keyslots
        .get(KeyslotId(0))
        .and_then(|slot| slot.luks2())
        .map(|slot| slot.kdf.clone());
    assert!(matches!(kdf, Some(crate::Kdf::Argon2 { time: 4, memory_kib: 32, cpus: 1, .. })), "{kdf:?}");
    container.unlock(&fixed.env(), &UnlockRequest::default(), &secret("first")).expect("unlock");
}
