//! Conversions on disks in memory: what is refused, and every power cut on the way, which the recovery file takes back.

use std::sync::Arc;

use block::MemDisk;

use super::*;
use crate::backup::Backup;
use crate::format::FormatParams;
use crate::format::sample::{Cutter, cheap, fixed, formatted, open, params, secret, try_open};
use crate::hash::HashAlg;
use crate::header::CopyState;
use crate::metadata::KeyslotId;
use crate::metadata::token::Token;
use crate::replace::NoRecovery;
use crate::{ById, JsonMap, NewKeyslot, Priority, TokenId, repair, restore};

fn limits() -> Limits {
    Limits::default()
}

/// What LUKS1 can say: room for eight places of a 256-bit key, 512-byte sectors.
fn plain() -> FormatParams {
    let keyslots_size = Some(Bytes((2 << 20) - (32 << 10)));
    FormatParams { sector_size: Some(512), keyslots_size, data_offset: Some(Bytes(2 << 20)), ..params() }
}

/// Opens with `first` and, in keyslot 5, with `second`.
fn luks2() -> Arc<MemDisk> {
    let disk = formatted(&plain());
    let mut container = open(&disk);
    let key = try_open(&container, "first").unwrap();
    let fifth = NewKeyslot { id: Some(KeyslotId(5)), ..cheap() };
    container.keyslot_add(&fixed().env(), &key, &secret("second"), &fifth).unwrap();
    disk
}

fn luks1() -> MemDisk {
    let disk = luks2();
    turn(&disk, Version::Luks1);
    disk.snapshot()
}

fn turn<S: HeaderStore>(disk: &S, to: Version) {
    let planned = plan(disk, to, &limits()).unwrap();
    convert(disk, &fixed().env(), &planned, &limits(), &mut NoRecovery).unwrap();
}

fn bytes(disk: &MemDisk) -> Vec<u8> {
    crate::backup::read_region(disk, Bytes(4 << 20)).unwrap()
}

/// Opens as what it is now with both passphrases.
fn opens(disk: &MemDisk) -> bool {
    let disk = Arc::new(disk.snapshot());
    match AnyHeader::load_unlocked(&disk, &limits()) {
        Ok(AnyHeader::Luks1(_)) => {
            turn(&disk, Version::Luks2);
            opens(&disk)
        }
        Ok(AnyHeader::Luks2(_)) => {
            let container = open(&disk);
            try_open(&container, "first").is_ok() && try_open(&container, "second").is_ok()
        }
        Err(_) => false,
    }
}

#[test]
fn there_and_back_is_the_same_volume() {
    let disk = luks2();
    let before = open(&disk).header().clone();
    turn(&disk, Version::Luks1);
    let AnyHeader::Luks1(header) = AnyHeader::load_unlocked(&disk, &limits()).unwrap() else { panic!("not LUKS1") };
    assert_eq!(header.uuid.to_text(), before.uuid());
    assert_eq!(header.enabled().map(|(id, _)| id).collect::<Vec<_>>(), [0, 5]);
    let sectors: Vec<u32> = header.slots.iter().map(|slot| slot.key_material_offset_sectors).collect();
    assert_eq!(sectors, [8, 520, 776, 1032, 1288, 264, 1544, 1800], "as cryptsetup gives places out");
    let first = bytes(&disk);
    turn(&disk, Version::Luks2);
    assert!(opens(&disk));
    let after = open(&disk).header().clone();
    let places = |header: &crate::Header| {
        header.metadata().keyslots.iter().map(|(id, slot)| (id, slot.area.clone())).collect::<Vec<_>>()
    };
    assert_eq!(places(&before), places(&after));
    assert_eq!(after.metadata().config.keyslots_size, before.metadata().config.keyslots_size);
    assert!(after.health().is_healthy() && after.seqid() == 2);
    turn(&disk, Version::Luks1);
    let again = bytes(&disk);
    let end = header.keyslots_end().to_usize().unwrap();
    assert!(first[..end] == again[..end]);
}

/// Every cut of a conversion, and the header as the recovery file has it.
fn cuts(disk: &MemDisk, to: Version) -> (Vec<MemDisk>, Backup) {
    let mut saved = Vec::new();
    let mut states = Vec::new();
    for seed in 0..3 {
        let cutter = Cutter::new(disk, seed);
        let planned = plan(&cutter, to, &limits()).unwrap();
        let mut keep = |region: &[u8]| {
            saved = region.to_vec();
            Ok(())
        };
        convert(&cutter, &fixed().env(), &planned, &limits(), &mut keep).unwrap();
        states.extend(cutter.cuts());
    }
    (states, Backup::parse(saved, &limits()).unwrap())
}

#[test]
fn every_cut_is_finished_by_repair_or_taken_back_by_the_recovery_file() {
    for (disk, to) in [(luks2().snapshot(), Version::Luks1), (luks1(), Version::Luks2)] {
        let before = bytes(&disk);
        let (states, recovery) = cuts(&disk, to);
        assert!(recovery.bytes() == &before[..recovery.bytes().len()], "the recovery file is a backup");
        let (mut taken_back, mut done) = (0, 0);
        for state in states {
            let finished = match AnyHeader::load_unlocked(&state, &limits()) {
                Ok(AnyHeader::Luks1(_)) => to == Version::Luks1,
                Ok(AnyHeader::Luks2(header)) => {
                    // Only a conversion to LUKS2 leaves one copy to rewrite.
                    assert!(header.health().secondary == CopyState::Ok);
                    let (plan, foreign) = (repair::plan(&header), repair::ForeignSignature::Refuse);
                    repair::repair(&state, fixed().env().rng, &limits(), foreign, &plan).unwrap();
                    to == Version::Luks2
                }
                Err(error) => {
                    assert!(matches!(error, Error::NoValidCopy { .. }), "{error}");
                    false
                }
            };
            if finished {
                done += 1;
            } else {
                taken_back += 1;
                let planned = restore::plan(&state, &recovery, &limits()).unwrap();
                assert!(!planned.is_grave(), "{:?}", planned.concerns);
                restore::restore(&state, &recovery, &planned, &limits(), &mut NoRecovery).unwrap();
                assert!(bytes(&state)[..recovery.bytes().len()] == *recovery.bytes());
            }
            assert!(opens(&state));
        }
        assert!(taken_back > 10 && done > 3, "{taken_back} taken back, {done} done");
    }
}

fn refused(disk: &MemDisk, to: Version) -> ConvertObstacle {
    let before = bytes(disk);
    // Obstacles of the format, not of the default policy.
    match plan_under(disk, to, &limits(), &Policy::default_preset().allowing_null_cipher()) {
        Err(Error::Convert(obstacle)) => {
            assert!(bytes(disk) == before);
            obstacle
        }
        other => panic!("{other:?}"),
    }
}

fn edited(change: impl FnOnce(&mut crate::Metadata)) -> MemDisk {
    let disk = luks2();
    let mut header = crate::header::load_unlocked(&disk, &limits()).unwrap();
    change(header.metadata_mut());
    crate::write::commit(&disk, &mut header).unwrap();
    disk.snapshot()
}

#[test]
fn what_luks1_cannot_say_is_named() {
    let to1 = |disk: &MemDisk| refused(disk, Version::Luks1);
    assert!(matches!(refused(&luks2(), Version::Luks2), ConvertObstacle::SameVersion { version: 2 }));
    assert!(matches!(to1(&luks1()), ConvertObstacle::SameVersion { version: 1 }));
    let large = formatted(&FormatParams { metadata_size: Some(Bytes(32 << 10)), ..params() });
    assert!(matches!(to1(&large), ConvertObstacle::MetadataSize { size: Bytes(0x8000) }));
    let sectors = formatted(&FormatParams { sector_size: Some(4096), ..plain() });
    assert!(matches!(to1(&sectors), ConvertObstacle::Segment { .. }));
    assert!(matches!(to1(&formatted(&params())), ConvertObstacle::Segment { .. } | ConvertObstacle::Invalid(_)));
    let other = NewKeyslot { hash: HashAlg::Sha512, ..cheap() };
    let disk = luks2();
    let mut container = open(&disk);
    let key = try_open(&container, "first").unwrap();
    container.keyslot_add(&fixed().env(), &key, &secret("third"), &other).unwrap();
    assert!(matches!(to1(&disk), ConvertObstacle::Keyslot { keyslot: KeyslotId(1), .. }));
    let required = edited(|metadata| metadata.config.mandatory = vec!["of-the-future".to_owned()]);
    assert!(matches!(to1(&required), ConvertObstacle::Requirements { .. }));
    let token = Token::new("test", Vec::new(), JsonMap::new());
    let with_token = edited(|metadata| metadata.tokens = ById::from_iter([(TokenId(0), token)]));
    assert!(matches!(to1(&with_token), ConvertObstacle::Tokens { count: 1 }));
    let ninth = edited(|metadata| {
        let slot = metadata.keyslots.remove(KeyslotId(5)).unwrap();
        metadata.keyslots.insert(KeyslotId(9), slot);
        for (_, digest) in metadata.digests.iter_mut() {
            digest.keyslots = vec![KeyslotId(0), KeyslotId(9)];
        }
    });
    assert!(matches!(to1(&ninth), ConvertObstacle::Keyslot { keyslot: KeyslotId(9), .. }));
    let moved = edited(|metadata| {
        let slot = metadata.keyslots.get_mut(KeyslotId(5)).unwrap();
        slot.area.offset = Bytes(slot.area.offset.0 + 4096);
    });
    assert!(matches!(to1(&moved), ConvertObstacle::Keyslot { keyslot: KeyslotId(5), .. }));
    let unbound = edited(|metadata| {
        let digest = metadata.digests.iter().next().unwrap().1.clone();
        metadata.digests.insert(crate::DigestId(1), crate::Digest { segments: Vec::new(), ..digest });
        for (id, digest) in metadata.digests.iter_mut() {
            digest.keyslots = vec![KeyslotId(if id.0 == 0 { 0 } else { 5 })];
        }
    });
    assert!(matches!(to1(&unbound), ConvertObstacle::Digest { .. }));
}

#[test]
fn what_luks2_has_no_place_for_is_named() {
    let to2 = |disk: &MemDisk| refused(disk, Version::Luks2);
    let luksmeta = luks1();
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(b"LUKSMETA");
    luksmeta.write_at(Bytes((2 << 20) - 4096), &sector, false).unwrap();
    assert!(matches!(to2(&luksmeta), ConvertObstacle::Luksmeta { offset } if offset.0 == (2 << 20) - 4096));
    let mut tight = crate::luks1::load_unlocked(&luks1()).unwrap();
    tight.payload_offset_sectors = u32::try_from(tight.keyslots_end().0 / 512).unwrap() + 55;
    let disk = luks1();
    let mut sectors = [0; 1024];
    sectors[..crate::luks1::HEADER_BYTES].copy_from_slice(&tight.to_bytes());
    disk.write_at(Bytes(0), &sectors, false).unwrap();
    assert!(matches!(to2(&disk), ConvertObstacle::NoRoom { .. }));
    let mut null = crate::luks1::load_unlocked(&luks1()).unwrap();
    null.cipher_name = crate::luks1::FixedText::new("cipher_null").unwrap();
    sectors[..crate::luks1::HEADER_BYTES].copy_from_slice(&null.to_bytes());
    disk.write_at(Bytes(0), &sectors, false).unwrap();
    assert!(matches!(to2(&disk), ConvertObstacle::NullCipher { .. }));
    assert!(matches!(plan(&disk, Version::Luks2, &limits()), Err(Error::Policy { .. })));
}

#[test]
fn what_is_lost_is_said() {
    let disk = luks2();
    let mut container = open(&disk);
    container.set_label(Some("name")).unwrap();
    let mut header = crate::header::load_unlocked(&disk, &limits()).unwrap();
    header.metadata_mut().config.flags = vec!["allow-discards".to_owned()];
    header.metadata_mut().keyslots.get_mut(KeyslotId(5)).unwrap().priority = Some(Priority::Prefer);
    crate::write::commit(&disk, &mut header).unwrap();
    let lost = plan(&disk, Version::Luks1, &limits()).unwrap().lost;
    assert_eq!(lost, ["the label \"name\"", "the flags allow-discards", "the priority of keyslot 5"]);
}

#[test]
fn a_luks1_header_of_any_bytes_is_converted_or_refused() {
    let disk = luks1();
    let mut original = [0; 1024];
    disk.read_at(Bytes(0), &mut original).unwrap();
    let (env, mut converted) = (fixed(), 0);
    for _ in 0..80 {
        let mut random = [0; 8];
        env.env().rng.fill(&mut random).unwrap();
        let mut bytes = original;
        // One to three bytes behind the version.
        for place in random.chunks(3).take(1 + usize::from(random[7]) % 3).filter(|place| place.len() == 3) {
            let at = 8 + (usize::from(place[0]) << 8 | usize::from(place[1])) % (crate::luks1::HEADER_BYTES - 8);
            bytes[at] ^= place[2];
        }
        let state = disk.snapshot();
        state.write_at(Bytes(0), &bytes, false).unwrap();
        let backup = Backup::read(&state, &limits());
        if let Ok(backup) = &backup {
            let parsed = Backup::parse(backup.bytes().to_vec(), &limits()).unwrap();
            let planned = restore::plan(&disk, &parsed, &limits());
            assert!(matches!(planned, Ok(_) | Err(Error::Restore(_) | Error::DeviceTooSmall { .. })), "{planned:?}");
        }
        if let Ok(planned) = plan(&state, Version::Luks2, &limits()) {
            convert(&state, &env.env(), &planned, &limits(), &mut NoRecovery).unwrap();
            assert!(matches!(AnyHeader::load_unlocked(&state, &limits()), Ok(AnyHeader::Luks2(_))));
            converted += 1;
        }
    }
    assert!(converted > 10, "{converted}");
}

/// Where the new header is the first that the policy would refuse, and where the old one is.
#[test]
fn the_policy_judges_both_headers() {
    let versions = |versions: &[u16]| Policy { versions: versions.to_vec(), ..Policy::default_preset() };
    let cases = [(luks2().snapshot(), Version::Luks1), (luks1(), Version::Luks2)];
    for (disk, to) in cases {
        let before = bytes(&disk);
        for one in [1, 2] {
            let refused = plan_under(&disk, to, &limits(), &versions(&[one])).expect_err("one of the two is refused");
            assert!(matches!(&refused, Error::Policy { breaches, .. } if breaches.len() == 1), "{refused}");
        }
        // And again under the lock, for who made his plan himself.
        let planned = ConvertPlan { policy: versions(&[1]), ..plan(&disk, to, &limits()).unwrap() };
        let refused = convert(&disk, &fixed().env(), &planned, &limits(), &mut NoRecovery).expect_err("refused");
        assert!(matches!(refused, Error::Policy { .. }), "{refused}");
        assert!(bytes(&disk) == before);
        plan_under(&disk, to, &limits(), &versions(&[1, 2])).expect("both are accepted");
    }
}
