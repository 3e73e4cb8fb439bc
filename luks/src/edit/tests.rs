//! What the edits promise: order, proof, references, and a crash that never locks anyone out.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a few MiB")]

use super::*;
use crate::format::sample::{Cutter, cheap, fixed, formatted, open, params, secret, slots, try_open, try_slot};
use crate::metadata::token::Token;
use crate::metadata::{ById, TokenId};
use crate::{DigestId, JsonMap, Limits};
use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, Bytes, MemDisk};
use std::sync::Arc;

type Sample = Container<Arc<MemDisk>, Arc<MemDisk>>;

fn sample() -> (Arc<MemDisk>, Sample) {
    let disk = formatted(&params());
    let container = open(&disk);
    (disk, container)
}

fn at(id: u32) -> NewKeyslot {
    NewKeyslot { id: Some(KeyslotId(id)), ..cheap() }
}

fn add(container: &mut Sample, passphrase: &str, parameters: &NewKeyslot) -> Result<KeyslotId, Error> {
    let key = try_open(container, "first")?;
    container.keyslot_add(&fixed().env(), &key, &secret(passphrase), parameters)
}

/// A header on disk with a token for keyslot 0, unknown members and a requirement, as another program may have left it.
fn with_foreign_members(disk: &Arc<MemDisk>, requirement: Option<&str>) {
    let mut header = load_unlocked(disk, &Limits::default()).expect("load");
    let mut extra = JsonMap::new();
    extra.insert("note".into(), "keep me".into());
    let token = Token::new("test", vec![KeyslotId(0)], extra.clone());
    let metadata = header.metadata_mut();
    metadata.tokens = ById::from_iter([(TokenId(3), token)]);
    metadata.extra = extra.clone();
    metadata.keyslots.get_mut(KeyslotId(0)).expect("slot").extra = extra;
    metadata.config.mandatory.extend(requirement.map(str::to_owned));
    write::commit(disk, &mut header).expect("commit");
}

#[test]
fn a_keyslot_is_added_bound_and_opens() {
    let (disk, mut container) = sample();
    assert_eq!(add(&mut container, "second", &cheap()).expect("add"), KeyslotId(1));
    assert_eq!(add(&mut container, "ninth", &at(9)).expect("add"), KeyslotId(9));
    assert_eq!(container.header().seqid(), 5);
    let again = open(&disk);
    assert_eq!(slots(&again), [0, 1, 9]);
    assert!(again.header().health().is_healthy());
    let first = try_open(&again, "first").expect("first");
    for (id, passphrase) in [(1, "second"), (9, "ninth")] {
        let key = try_slot(&again, id, passphrase).expect("opens");
        assert!(key.secret().ct_eq(first.expose()));
        assert!(try_slot(&again, id, "first").is_err());
    }
    let areas: Vec<u64> = again.header().metadata().keyslots.iter().map(|(_, slot)| slot.area.offset.0).collect();
    assert_eq!(areas, [32 << 10, 160 << 10, 288 << 10]);
}

#[test]
fn a_header_that_cannot_be_written_again_loses_no_keyslot() {
    let (disk, mut container) = sample();
    add(&mut container, "second", &cheap()).expect("add");
    let mut header = load_unlocked(&disk, &Limits::default()).expect("load");
    header.binary.seqid = u64::MAX - 1;
    write::commit(&disk, &mut header).expect("the last commit");
    assert_eq!(header.seqid(), u64::MAX);
    let mut container = open(&disk);
    let killed = container.keyslot_kill(&fixed().env(), KeyslotId(1), LastSlot::Refuse);
    assert!(matches!(killed, Err(Error::SeqidExhausted)), "{killed:?}");
    assert!(matches!(add(&mut container, "third", &cheap()), Err(Error::SeqidExhausted)));
    try_slot(&open(&disk), 1, "second").expect("nothing was written, as the error says");
}

#[test]
fn ids_and_areas_run_out_by_name() {
    let (_, mut container) = sample();
    assert!(matches!(add(&mut container, "x", &at(0)), Err(Error::KeyslotInUse { .. })));
    assert!(matches!(add(&mut container, "x", &at(32)), Err(Error::KeyslotRange { .. })));
    for id in 1..4 {
        add(&mut container, "more", &at(id)).expect("room for four");
    }
    assert!(matches!(add(&mut container, "x", &cheap()), Err(Error::NoFreeArea { largest: Bytes(0), .. })));
    let seqid = container.header().seqid();
    let change = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("new"), &cheap());
    assert!(matches!(change, Err(Error::NoFreeArea { .. })));
    assert_eq!(container.header().seqid(), seqid, "nothing was written");
}

#[test]
fn the_json_area_runs_out_by_name() {
    let (disk, _) = sample();
    let mut header = load_unlocked(&disk, &Limits::default()).expect("load");
    let room = header.metadata().config.json_size.0 as usize - header.metadata().to_text().len();
    header.metadata_mut().extra.insert("filler".into(), "x".repeat(room - 200).into());
    write::commit(&disk, &mut header).expect("commit");
    let mut container = open(&disk);
    assert!(matches!(add(&mut container, "x", &cheap()), Err(Error::JsonFull { .. })));
    assert_eq!(container.header().seqid(), 4);
}

#[test]
fn a_killed_keyslot_is_gone_from_disk_and_references() {
    let (disk, mut container) = sample();
    with_foreign_members(&disk, None);
    container.reload().expect("reload");
    add(&mut container, "second", &cheap()).expect("add");
    let area = container.header().metadata().keyslots.get(KeyslotId(0)).expect("slot").area.clone();
    let read = |disk: &MemDisk| {
        let mut bytes = vec![0u8; area.size.0 as usize];
        disk.read_at(area.offset, &mut bytes).expect("read");
        bytes
    };
    let before = read(&disk);
    container.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Refuse).expect("kill");
    let after = read(&disk);
    assert!(before.chunks(512).zip(after.chunks(512)).all(|(old, new)| old != new), "every sector is overwritten");
    let again = open(&disk);
    assert_eq!(slots(&again), [1]);
    let metadata = again.header().metadata();
    assert_eq!(metadata.digests.get(DigestId(0)).expect("digest").keyslots, [KeyslotId(1)]);
    let token = metadata.tokens.get(TokenId(3)).expect("token");
    assert!(token.keyslots.is_empty());
    assert_eq!(token.extra.get("note").and_then(|note| note.as_str()), Some("keep me"));
    assert!(metadata.extra.contains_key("note"));
    assert!(matches!(try_open(&again, "first"), Err(Error::NoKey { .. })));
    try_open(&again, "second").expect("the other stays");
}

#[test]
fn the_last_keyslot_goes_only_when_told() {
    let (disk, mut container) = sample();
    let fixed = fixed();
    let env = fixed.env();
    assert!(matches!(
        container.keyslot_kill(&env, KeyslotId(0), LastSlot::Refuse),
        Err(Error::LastKeyslot { keyslot: KeyslotId(0) })
    ));
    assert!(matches!(
        container.keyslot_remove(&env, &secret("first"), LastSlot::Refuse),
        Err(Error::LastKeyslot { .. })
    ));
    assert!(matches!(
        container.keyslot_kill(&env, KeyslotId(5), LastSlot::Allow),
        Err(Error::KeyslotMissing { keyslot: KeyslotId(5) })
    ));
    add(&mut container, "second", &cheap()).expect("add");
    assert_eq!(container.keyslot_remove(&env, &secret("first"), LastSlot::Refuse).expect("remove"), KeyslotId(0));
    assert!(matches!(container.keyslot_remove(&env, &secret("first"), LastSlot::Allow), Err(Error::NoKey { .. })));
    container.keyslot_kill(&env, KeyslotId(1), LastSlot::Allow).expect("kill");
    assert!(slots(&open(&disk)).is_empty());
}

#[test]
fn a_changed_keyslot_keeps_id_priority_and_tokens() {
    let (disk, mut container) = sample();
    with_foreign_members(&disk, None);
    container.reload().expect("reload");
    let prefer = NewKeyslot { priority: Some(Priority::Prefer), ..cheap() };
    add(&mut container, "second", &prefer).expect("add");
    let fixed = fixed();
    let change = |container: &mut Sample, old: &str, new: &str, parameters: &NewKeyslot| {
        container.keyslot_change(&fixed.env(), &secret(old), None, &secret(new), parameters)
    };
    assert_eq!(change(&mut container, "second", "third", &cheap()).expect("change"), KeyslotId(1));
    assert_eq!(change(&mut container, "first", "fourth", &cheap()).expect("change"), KeyslotId(0));
    let again = open(&disk);
    assert_eq!(slots(&again), [0, 1]);
    let metadata = again.header().metadata();
    assert_eq!(metadata.keyslots.get(KeyslotId(1)).expect("slot").priority, Some(Priority::Prefer));
    assert_eq!(metadata.tokens.get(TokenId(3)).expect("token").keyslots, [KeyslotId(0)]);
    for old in ["first", "second"] {
        assert!(matches!(try_open(&again, old), Err(Error::NoKey { .. })), "{old}");
    }
    try_slot(&again, 0, "fourth").expect("slot 0");
    try_slot(&again, 1, "third").expect("slot 1");

    assert_eq!(change(&mut container, "fourth", "fifth", &at(6)).expect("move"), KeyslotId(6));
    let again = open(&disk);
    assert_eq!(slots(&again), [1, 6]);
    assert_eq!(again.header().metadata().tokens.get(TokenId(3)).expect("token").keyslots, [KeyslotId(6)]);
    assert!(matches!(change(&mut container, "wrong", "x", &cheap()), Err(Error::NoKey { .. })));
    assert!(matches!(change(&mut container, "fifth", "x", &at(1)), Err(Error::KeyslotInUse { .. })));
}

#[test]
fn label_subsystem_and_uuid_change_alone() {
    let (disk, mut container) = sample();
    container.set_label(Some("data")).expect("label");
    container.set_subsystem(Some("vault")).expect("subsystem");
    let texts = |disk: &Arc<MemDisk>| {
        let header = load_unlocked(disk, &Limits::default()).expect("load");
        (header.label(), header.subsystem(), header.seqid())
    };
    assert_eq!(texts(&disk), ("data".into(), "vault".into(), 5));
    container.set_label(None).expect("label");
    assert_eq!(texts(&disk), (String::new(), "vault".into(), 6));
    container.set_uuid("AAAAAAAA-bbbb-4ccc-8ddd-eeeeeeeeeeee").expect("uuid");
    assert_eq!(open(&disk).header().uuid(), "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");
    container.set_subsystem(None).expect("the handle still knows the header after a new UUID");
    for bad in ["x".repeat(48), "a\0b".into()] {
        assert!(matches!(container.set_label(Some(&bad)), Err(Error::Parameter { parameter: "label", .. })));
    }
    for bad in ["", "aaaaaaaabbbb4ccc8dddeeeeeeeeeeee", "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeeg"] {
        assert!(matches!(container.set_uuid(bad), Err(Error::Parameter { parameter: "UUID", .. })), "{bad}");
    }
    container.set_label(Some(&"x".repeat(47))).expect("47 bytes fit");
    try_open(&open(&disk), "first").expect("still opens");
}

#[test]
fn a_header_that_changed_meanwhile_is_not_overwritten() {
    let (disk, mut container) = sample();
    let mut other = open(&disk);
    other.set_label(Some("theirs")).expect("label");
    assert!(matches!(container.set_label(Some("ours")), Err(Error::ConcurrentUpdate { seqid: 3 })));
    assert!(matches!(add(&mut container, "x", &cheap()), Err(Error::ConcurrentUpdate { .. })));
    assert_eq!(open(&disk).header().label(), "theirs");
    container.reload().expect("reload");
    container.set_label(Some("ours")).expect("label");
}

#[test]
fn requirements_stop_changes_but_let_a_keyslot_go() {
    for (requirement, removable) in [("time-travel", true), ("opal", false), ("offline-reencrypt", false)] {
        let (disk, mut container) = sample();
        add(&mut container, "second", &cheap()).expect("add");
        with_foreign_members(&disk, Some(requirement));
        container.reload().expect("a requirement does not hide the header");
        assert!(try_open(&container, "first").is_err());
        try_slot(&container, 0, "first").expect("a passphrase can be tested");
        assert!(container.set_label(Some("x")).is_err());
        let key = try_slot(&container, 0, "first").expect("key");
        assert!(container.keyslot_add(&fixed().env(), &key, &secret("x"), &cheap()).is_err());
        assert!(container.volume(&key, true).is_err());
        let killed = container.keyslot_kill(&fixed().env(), KeyslotId(1), LastSlot::Refuse);
        assert_eq!(killed.is_ok(), removable, "{requirement}");
        let kept = &open(&disk).header().metadata().config.mandatory.clone();
        assert_eq!(kept, &[requirement.to_owned()]);
    }
}

/// One change, on any store.
type Change<S> = fn(&mut Container<Arc<S>, Arc<S>>) -> Result<(), Error>;

fn changes<S: HeaderStore>() -> [(&'static str, Change<S>); 5] {
    [
        ("add", |container| {
            let key = try_open(container, "first")?;
            container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).map(drop)
        }),
        ("kill", |container| container.keyslot_kill(&fixed().env(), KeyslotId(1), LastSlot::Refuse)),
        ("change", |container| {
            let (old, new) = (secret("first"), secret("second"));
            container.keyslot_change(&fixed().env(), &old, None, &new, &cheap()).map(drop)
        }),
        ("label", |container| container.set_label(Some("new"))),
        ("uuid", |container| container.set_uuid("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")),
    ]
}

/// A container with a second keyslot, as the starting point of each crash.
fn start() -> MemDisk {
    let (disk, mut container) = sample();
    add(&mut container, "other", &cheap()).expect("add");
    disk.snapshot()
}

/// After a crash of `what` the header is whole and the volume key can be had; a header that names the new keyslot has it, and
/// one that does not name an old keyslot any more has left nothing of it.
fn check_after_crash(start: &MemDisk, disk: MemDisk, what: &str, context: &str) {
    let disk = Arc::new(disk);
    let container = match Container::open(Arc::clone(&disk), Arc::clone(&disk), Limits::default()) {
        Ok(container) => container,
        Err(error) => panic!("{context}: {error}"),
    };
    let opens = |passphrase| try_open(&container, passphrase).is_ok();
    match what {
        "change" => assert!(opens("first") || opens("second"), "{context}: neither passphrase"),
        _ => assert!(opens("first"), "{context}: the passphrase that stays"),
    }
    if what != "kill" {
        assert!(opens("other"), "{context}: the keyslot that nobody touched");
    }
    let before = load_unlocked(start, &Limits::default()).expect("start");
    let written = container.header().seqid() > before.seqid();
    if written && ["add", "change"].contains(&what) {
        assert!(opens("second"), "{context}: a keyslot is named that does not open");
    }
    let named =
        |offset: Bytes| container.header().metadata().keyslots.iter().any(|(_, slot)| slot.area.offset == offset);
    for (id, slot) in before.metadata().keyslots.iter().filter(|(_, slot)| !named(slot.area.offset)) {
        let (mut old, mut new) = (vec![0u8; slot.area.size.0 as usize], vec![0u8; slot.area.size.0 as usize]);
        start.read_at(slot.area.offset, &mut old).expect("read");
        disk.read_at(slot.area.offset, &mut new).expect("read");
        let wiped = old.chunks(512).zip(new.chunks(512)).all(|(old, new)| old != new);
        assert!(wiped, "{context}: the area of keyslot {id} is forgotten but not wiped");
    }
}

#[test]
fn a_power_cut_in_an_edit_leaves_the_old_state_or_the_new_one() {
    let start = start();
    for (what, change) in changes() {
        for seed in 1..4u64 {
            let cutter = Arc::new(Cutter::new(&start, seed));
            change(&mut open(&cutter)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let cuts = cutter.cuts();
            assert!(cuts.len() >= 8 * 3, "{what}: {} cuts", cuts.len());
            for (at, disk) in cuts.into_iter().enumerate() {
                check_after_crash(&start, disk, what, &format!("{what}, seed {seed}, cut {at}"));
            }
        }
    }
}

/// With one copy broken, a torn write of the other would be the end.
#[test]
fn a_power_cut_with_one_copy_broken_leaves_a_good_one() {
    for broken in [0, 16 << 10] {
        let start = start();
        start.write_at(Bytes(broken), &[0x11; 4096], false).expect("break a copy");
        for seed in 1..4u64 {
            let cutter = Arc::new(Cutter::new(&start, seed));
            open(&cutter).set_label(Some("new")).expect("label");
            for (at, disk) in cutter.cuts().into_iter().enumerate() {
                check_after_crash(&start, disk, "label", &format!("copy at {broken} broken, seed {seed}, cut {at}"));
            }
        }
    }
}

/// The negative control: on a disk whose flush does nothing the same cuts do lose keyslots or headers.
#[test]
fn without_flushes_a_power_cut_does_harm() {
    let start = start();
    let mut harmed = 0u32;
    for seed in 1..20u64 {
        let cutter = Arc::new(Cutter::new(&start, seed));
        cutter.lie_about_flush();
        let fixed = fixed();
        let mut container = open(&cutter);
        container
            .keyslot_change(&fixed.env(), &secret("first"), None, &secret("second"), &cheap())
            .expect("the live disk is fine");
        for disk in cutter.cuts() {
            let disk = Arc::new(disk);
            let opened = Container::open(Arc::clone(&disk), disk, Limits::default());
            let whole = opened
                .is_ok_and(|container| try_open(&container, "first").is_ok() || try_open(&container, "second").is_ok());
            harmed += u32::from(!whole);
        }
    }
    assert!(harmed > 0, "the crash check cannot fail");
}

#[test]
fn a_failed_write_poisons_the_handle_and_keeps_the_header() {
    let start = start();
    for (what, change) in changes() {
        for nth in 1.. {
            let disk = Arc::new(FaultDisk::new(start.snapshot()));
            let mut container = open(&disk);
            disk.fail_once(Op::Write, nth, BlockErrorKind::Io);
            let result = change(&mut container);
            check_after_crash(&start, disk.inner().snapshot(), what, &format!("{what}, write {nth} failed"));
            if result.is_ok() {
                break;
            }
            assert!(matches!(container.set_label(Some("x")), Err(Error::Poisoned)), "{what}, write {nth}");
            container.reload().expect("reopened");
            container.set_label(Some("x")).expect("writable again");
        }
    }
}

#[test]
fn a_device_that_loses_writes_fails_the_proof() {
    /// Takes writes to keyslot areas and keeps nothing of them.
    struct Forgetful(MemDisk);
    impl BlockIo for Forgetful {
        fn geometry(&self) -> block::Geometry {
            self.0.geometry()
        }
        fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), block::BlockError> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), block::BlockError> {
            if offset.0 >= 32 << 10 { Ok(()) } else { self.0.write_at(offset, buf, fua) }
        }
        fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), block::BlockError> {
            self.0.write_zeroes(offset, len)
        }
        fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), block::BlockError> {
            self.0.discard(offset, len)
        }
        fn flush(&self) -> Result<(), block::BlockError> {
            self.0.flush()
        }
    }
    impl HeaderStore for Forgetful {
        type Guard = ();
        fn lock(&self, _: LockMode, _: std::time::Duration) -> Result<(), Error> {
            Ok(())
        }
    }
    let disk = Arc::new(Forgetful(formatted(&params()).snapshot()));
    let mut container = open(&disk);
    let key = try_open(&container, "first").expect("unlock");
    let added = container.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap());
    assert!(matches!(added, Err(Error::NotProven { .. })));
    let changed = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("second"), &cheap());
    assert!(matches!(changed, Err(Error::NotProven { .. })));
    let again = open(&disk);
    assert_eq!(slots(&again), [0], "the keyslot that did not hold is gone");
    try_open(&again, "first").expect("the old one stays");
}
