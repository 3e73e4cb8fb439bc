//! LUKS1 containers: format, keyslots, and crashes at every write that never lock anyone out.

use std::sync::Arc;

use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, BlockIo, Bytes, MemDisk};

use secret::Secret;

use super::format::{Luks1FormatParams, format, plan};
use super::{Luks1Container, load_unlocked};
use crate::edit::{LastSlot, NewKeyslot};
use crate::error::Error;
use crate::format::NewKdf;
use crate::format::sample::{Cutter, SIZE, cheap, fixed, secret};
use crate::kdf::KdfParams;
use crate::limits::Limits;
use crate::metadata::KeyslotId;
use crate::metadata::keyslot::Priority;
use crate::policy::{Bounds, Names, Pins, Policy};
use crate::rule::Rule;
use crate::store::HeaderStore;

type Sample = Luks1Container<Arc<MemDisk>, Arc<MemDisk>>;

fn params() -> Luks1FormatParams {
    Luks1FormatParams {
        kdf: NewKdf::Given(KdfParams::minimal_for_random_key()),
        key_size_bits: Some(256),
        ..Luks1FormatParams::default()
    }
}

fn formatted(params: &Luks1FormatParams) -> Arc<MemDisk> {
    let disk = Arc::new(MemDisk::new(SIZE));
    format(&disk, &disk, &fixed().env(), params, &secret("first")).expect("format");
    disk
}

fn open<S: HeaderStore + Clone>(disk: &S) -> Luks1Container<S, S> {
    Luks1Container::open(disk.clone(), disk.clone(), Limits::default()).expect("open")
}

fn sample() -> (Arc<MemDisk>, Sample) {
    let disk = formatted(&params());
    let container = open(&disk);
    (disk, container)
}

fn at(id: u32) -> NewKeyslot {
    NewKeyslot { id: Some(KeyslotId(id)), ..cheap() }
}

fn opens<H: HeaderStore, D: BlockIo>(container: &Luks1Container<H, D>, passphrase: &str) -> Option<u32> {
    let key = container.unlock(&fixed().env(), None, &secret(passphrase)).ok()?;
    key.keyslot().map(|id| id.0)
}

fn add<H: HeaderStore, D: BlockIo>(
    container: &mut Luks1Container<H, D>,
    id: u32,
    passphrase: &str,
) -> Result<u32, Error> {
    let key = container.unlock(&fixed().env(), None, &secret("first"))?;
    Ok(container.keyslot_add(&fixed().env(), &key, &secret(passphrase), &at(id))?.0)
}

fn enabled<H: HeaderStore, D: BlockIo>(container: &Luks1Container<H, D>) -> Vec<u32> {
    container.header().enabled().map(|(id, _)| id).collect()
}

#[test]
fn the_layout_is_cryptsetups() {
    let geometry = MemDisk::new(Bytes(8 << 20)).geometry();
    let layout = |bits, params: Luks1FormatParams| {
        let plan = plan(&Luks1FormatParams { key_size_bits: Some(bits), ..params }, &geometry).expect("plan");
        let offsets = [0, 1, 7].map(|id: usize| plan.header.slots[id].key_material_offset_sectors);
        (plan.header.payload_offset_sectors, offsets, plan.header_size().0 / 512)
    };
    assert_eq!(layout(512, params()), (4096, [8, 0x200, 0xdd0], 4040));
    assert_eq!(layout(256, params()), (4096, [8, 0x108, 0x708], 2056));
    let cbc = Luks1FormatParams { cipher: "aes-cbc-plain".into(), ..params() };
    assert_eq!(layout(128, cbc), (2048, [8, 0x88, 0x388], 1032));
    let detached = Luks1FormatParams { detached: true, ..params() };
    assert_eq!(layout(512, detached), (0, [8, 0x200, 0xdd0], 4040));
    let placed = Luks1FormatParams { data_offset: Some(Bytes(4040 * 512)), ..params() };
    assert_eq!(layout(512, placed).0, 4040);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_value() {
    let geometry = MemDisk::new(Bytes(8 << 20)).geometry();
    let refused = |params: Luks1FormatParams| plan(&params, &geometry).expect_err("refused").to_string();
    let cases = [
        (Luks1FormatParams { data_offset: Some(Bytes(4096)), ..params() }, "data offset", "4 KiB"),
        (Luks1FormatParams { data_offset: Some(Bytes((3 << 20) + 1)), ..params() }, "data offset", "3145729"),
        (Luks1FormatParams { data_offset: Some(Bytes(2 << 40)), ..params() }, "data offset", "2 TiB"),
        (Luks1FormatParams { key_size_bits: Some(320), ..params() }, "key size", "320"),
        (Luks1FormatParams { cipher: "capi:xts(aes)-plain64".into(), ..params() }, "cipher", "aes-xts-plain64"),
        (Luks1FormatParams { uuid: Some("foo".into()), ..params() }, "UUID", "foo"),
        (Luks1FormatParams { keyslot: KeyslotId(8), ..params() }, "keyslot 8", "0 to 7"),
        (Luks1FormatParams { hash: "md4".into(), ..params() }, "hash", "md4"),
    ];
    for (params, parameter, value) in cases {
        let message = refused(params);
        assert!(message.contains(parameter) && message.contains(value), "{message}");
    }
    let disk = MemDisk::new(Bytes(1 << 20));
    let small = format(&disk, &disk, &fixed().env(), &params(), &secret("first"));
    assert!(matches!(small, Err(Error::DeviceTooSmall { .. })));
}

#[test]
fn keyslots_come_and_go_and_data_comes_back() {
    let (disk, mut container) = sample();
    let env = fixed();
    let key = container.unlock(&env.env(), None, &secret("first")).expect("opens");
    let volume = container.volume(&key, false).expect("volume");
    volume.write_at(Bytes(4096), &[0x5a; 512], false).expect("write");
    volume.flush().expect("flush");
    assert_eq!(add(&mut container, 6, "sixth").expect("add"), 6);
    assert_eq!(add(&mut container, 7, "seventh").expect("add"), 7);
    assert_eq!(container.keyslot_add(&env.env(), &key, &secret("second"), &cheap()).expect("add"), KeyslotId(1));
    assert_eq!(container.keyslot_remove(&env.env(), &secret("sixth"), LastSlot::Refuse).expect("remove"), KeyslotId(6));
    let again = open(&disk);
    assert_eq!(enabled(&again), [0, 1, 7]);
    for (passphrase, id) in [("first", Some(0)), ("second", Some(1)), ("seventh", Some(7)), ("sixth", None)] {
        assert_eq!(opens(&again, passphrase), id, "{passphrase}");
    }
    let key = again.unlock(&env.env(), Some(KeyslotId(7)), &secret("seventh")).expect("opens");
    let mut sector = [0; 512];
    again.volume(&key, true).expect("volume").read_at(Bytes(4096), &mut sector).expect("read");
    assert_eq!(sector, [0x5a; 512]);
    let gone = again.header().slots[6];
    assert_eq!((gone.iterations, gone.salt, gone.stripes), (0, [0; 32], 4000), "its place stays");
}

#[test]
fn a_change_keeps_the_number_or_moves() {
    for id in 0..8 {
        let disk = formatted(&Luks1FormatParams { keyslot: KeyslotId(id), ..params() });
        let mut container = open(&disk);
        let change = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("new"), &cheap());
        assert_eq!(change.expect("change"), KeyslotId(id));
        assert_eq!(enabled(&open(&disk)), [id]);
        assert_eq!((opens(&open(&disk), "new"), opens(&open(&disk), "first")), (Some(id), None));
    }
    let (disk, mut container) = sample();
    let moved = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("new"), &at(5));
    assert_eq!(moved.expect("change"), KeyslotId(5));
    assert_eq!(enabled(&open(&disk)), [5]);
}

#[test]
fn what_luks1_does_not_have_is_refused_by_name() {
    let (disk, mut container) = sample();
    let before = load_unlocked(&disk).expect("load");
    let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
    let mut refused = |parameters: NewKeyslot| {
        let added = container.keyslot_add(&fixed().env(), &key, &secret("x"), &parameters);
        added.expect_err("refused").to_string()
    };
    let argon2 = crate::kdf::argon2::Cost { variant: crate::Argon2Variant::Id, time: 4, memory_kib: 32, lanes: 1 };
    let argon2 = NewKeyslot::new(KdfParams::argon2(argon2).expect("cost"));
    assert!(refused(argon2).contains("LUKS1 has no key derivation but PBKDF2"));
    let sha512 = NewKeyslot::new(KdfParams::pbkdf2(crate::HashAlg::Sha512, 1000).expect("cost"));
    assert!(refused(sha512).contains("hash"));
    assert!(refused(NewKeyslot { priority: Some(Priority::Prefer), ..cheap() }).contains("priorities"));
    assert!(refused(NewKeyslot { encryption: Some(("aes-cbc-plain".into(), 32)), ..cheap() }).contains("ciphers"));
    assert!(refused(at(8)).contains("0 to 7"));
    assert!(refused(at(0)).contains("in use"));
    for id in 1..8 {
        add(&mut container, id, "more").expect("add");
    }
    assert!(matches!(add(&mut container, 0, "x"), Err(Error::KeyslotInUse { .. })));
    let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
    let full = container.keyslot_add(&fixed().env(), &key, &secret("x"), &cheap());
    assert!(matches!(full, Err(Error::NoFreeKeyslot { max: 8 })));
    let full = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("x"), &cheap());
    assert!(matches!(full, Err(Error::NoFreeKeyslot { max: 8 })));
    assert_eq!(container.header().slots[0], before.slots[0]);
}

#[test]
fn a_stale_handle_and_a_last_keyslot_are_refused() {
    let (disk, mut container) = sample();
    let mut other = open(&disk);
    add(&mut container, 3, "third").expect("add");
    assert!(matches!(add(&mut other, 4, "x"), Err(Error::ChangedSinceRead)));
    assert!(matches!(other.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Refuse), Err(Error::ChangedSinceRead)));
    other.reload().expect("reload");
    other.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Refuse).expect("kill");
    let last = other.keyslot_kill(&fixed().env(), KeyslotId(3), LastSlot::Refuse);
    assert!(matches!(last, Err(Error::LastKeyslot { keyslot: KeyslotId(3) })));
    let missing = other.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Allow);
    assert!(matches!(missing, Err(Error::KeyslotMissing { keyslot: KeyslotId(0) })));
    other.set_uuid("12345678-1234-1234-1234-123456789ABC").expect("uuid");
    assert_eq!(open(&disk).header().uuid.to_text(), "12345678-1234-1234-1234-123456789abc");
    other.keyslot_kill(&fixed().env(), KeyslotId(3), LastSlot::Allow).expect("kill");
    assert!(matches!(open(&disk).unlock(&fixed().env(), None, &secret("third")), Err(Error::NoUsableKeyslot { .. })));
}

#[test]
fn costs_are_held_against_the_limits_before_work() {
    let (disk, container) = sample();
    for (slot, digest) in [(u32::MAX, 1000), (0, 1000), (1000, u32::MAX), (1000, 0)] {
        let mut header = container.header().clone();
        header.slots[0].iterations = slot;
        header.digest_iterations = digest;
        super::write::replace(&disk, &load_unlocked(&disk).expect("load"), &header).expect("write");
        let Err(Error::NoUsableKeyslot { broken }) = open(&disk).unlock(&fixed().env(), None, &secret("first")) else {
            panic!("worked on {slot} and {digest}")
        };
        assert!(matches!(*broken[0].reason, Error::KdfLimit { .. }), "{broken:?}");
    }
}

#[test]
fn a_policy_is_held_before_work_and_before_writing() {
    let (disk, container) = sample();
    let bits = Policy { key_bits_min: 512, ..Policy::default_preset() };
    let pins = Pins { epoch: Some(1), ..Pins::default() };
    let refusals = [
        (Policy { versions: vec![2], ..Policy::default_preset() }, "version"),
        (bits, "256 bits"),
        (Policy { ciphers: Names::only(["aes-cbc-plain"]), ..Policy::default_preset() }, "aes-xts-plain64"),
        (Policy { pbkdf2_iterations: Bounds { min: 1001, max: 5000 }, ..Policy::default_preset() }, "1000"),
        (Policy::default_preset().pinned(pins), "LUKS1 has no epoch"),
    ];
    let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
    let before = load_unlocked(&disk).expect("load");
    for (policy, says) in refusals {
        let mut container = open(&disk).with_policy(policy);
        let refused = container.unlock(&fixed().env(), None, &secret("first"));
        assert!(
            matches!(&refused, Err(error @ Error::Policy { .. }) if error.to_string().contains(says)),
            "{refused:?}"
        );
        let added = container.keyslot_add(&fixed().env(), &key, &secret("x"), &cheap());
        assert!(matches!(added, Err(Error::Policy { .. })));
        assert!(matches!(container.segment_map(&key), Err(Error::Policy { .. })));
    }
    let ceiling = Policy { pbkdf2_iterations: Bounds { min: 0, max: 1500 }, ..Policy::default_preset() };
    let mut container = open(&disk).with_policy(ceiling);
    let costly = NewKeyslot::new(KdfParams::pbkdf2(crate::HashAlg::Sha256, 2000).expect("cost"));
    let added = container.keyslot_add(&fixed().env(), &key, &secret("x"), &costly);
    assert!(matches!(added, Err(Error::Policy { .. })), "the header that would be written is judged");
    assert_eq!(load_unlocked(&disk).expect("load"), before);
}

#[test]
fn a_key_is_judged_by_digest_and_length() {
    let (_, container) = sample();
    let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
    container.verify(Secret::copy_of(key.expose()).expect("secret")).expect("the key");
    let longer = [key.expose(), &[0]].concat();
    let longer = container.verify(Secret::copy_of(&longer).expect("secret"));
    assert!(matches!(longer, Err(Error::KeyRefused { .. })));
}

#[test]
fn a_detached_header_is_no_data_device() {
    let header = Arc::new(MemDisk::new(Bytes(4040 * 512)));
    let data = Arc::new(MemDisk::new(Bytes(1 << 20)));
    let params = Luks1FormatParams { detached: true, ..params() };
    format(&header, &data, &fixed().env(), &params, &secret("first")).expect("format");
    let container = Luks1Container::open(header.clone(), header.clone(), Limits::default()).expect("open");
    let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
    assert!(matches!(container.segment_map(&key), Err(Error::SegmentGeometry { .. })));
    let container = Luks1Container::open(header, data, Limits::default()).expect("open");
    assert_eq!(container.volume(&key, false).expect("volume").geometry().size, Bytes(1 << 20));
}

/// Runs `work` on a disk that keeps every state a power cut may leave, and counts those in which `good` fails.
fn cuts_that_fail(
    disk: &MemDisk,
    lie: bool,
    work: impl Fn(&mut Luks1Container<Arc<Cutter>, Arc<Cutter>>),
    good: impl Fn(&Sample) -> bool,
) -> (usize, usize) {
    let cutter = Arc::new(Cutter::new(disk, 7));
    if lie {
        cutter.lie_about_flush();
    }
    work(&mut open(&cutter));
    let cuts = cutter.cuts();
    let (all, mut bad) = (cuts.len(), 0);
    for cut in cuts {
        bad += usize::from(!good(&open(&Arc::new(cut))));
    }
    (all, bad)
}

#[test]
fn a_power_cut_in_an_edit_leaves_a_usable_key() {
    for id in [1, 5, 6, 7] {
        let disk = formatted(&params());
        let adding = |container: &mut Luks1Container<Arc<Cutter>, Arc<Cutter>>| {
            add(container, id, "new").expect("add");
        };
        let (all, bad) = cuts_that_fail(&disk, false, adding, |container| {
            opens(container, "first") == Some(0)
                && (!enabled(container).contains(&id) || opens(container, "new") == Some(id))
        });
        assert!(all > 0 && bad == 0, "add {id}: {bad} of {all}");

        add(&mut open(&disk), id, "new").expect("add");
        let killing = |container: &mut Luks1Container<Arc<Cutter>, Arc<Cutter>>| {
            container.keyslot_kill(&fixed().env(), KeyslotId(id), LastSlot::Refuse).expect("kill");
        };
        let (all, bad) = cuts_that_fail(&disk, false, killing, |container| opens(container, "first") == Some(0));
        assert!(all > 0 && bad == 0, "kill {id}: {bad} of {all}");

        let disk = formatted(&Luks1FormatParams { keyslot: KeyslotId(id), ..params() });
        let changing = |container: &mut Luks1Container<Arc<Cutter>, Arc<Cutter>>| {
            let changed = container.keyslot_change(&fixed().env(), &secret("first"), None, &secret("new"), &cheap());
            changed.expect("change");
        };
        let either = |container: &Sample| opens(container, "first").or(opens(container, "new")).is_some();
        let (all, bad) = cuts_that_fail(&disk, false, changing, either);
        assert!(all > 0 && bad == 0, "change {id}: {bad} of {all}");
        let (all, bad) = cuts_that_fail(&disk, true, changing, either);
        assert!(bad > 0, "with flushes that lie, {bad} of {all}: this test could find nothing");
    }
}

#[test]
fn a_power_cut_in_a_format_leaves_no_header_or_a_good_one() {
    let empty = MemDisk::new(SIZE);
    for before in [&empty, formatted(&params()).as_ref()] {
        let cutter = Cutter::new(before, 3);
        let first = Luks1FormatParams { keyslot: KeyslotId(6), ..params() };
        format(&cutter, &cutter, &fixed().env(), &first, &secret("new")).expect("format");
        let states = cutter.cuts();
        assert!(states.len() > 20);
        for state in states {
            match load_unlocked(&state) {
                Err(Error::NotLuks) => {}
                Ok(_) => {
                    let container = open(&Arc::new(state));
                    assert!(opens(&container, "new") == Some(6) || opens(&container, "first") == Some(0));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn after_a_failed_write_the_handle_refuses_changes() {
    let (plain, _) = sample();
    for (op, nth) in [(Op::Write, 0), (Op::Write, 1), (Op::Flush, 0), (Op::Flush, 1)] {
        let mut copy = vec![0; usize::try_from(SIZE.0).expect("size")];
        plain.read_at(Bytes(0), &mut copy).expect("read");
        let disk = MemDisk::new(SIZE);
        disk.write_at(Bytes(0), &copy, false).expect("write");
        let disk = Arc::new(FaultDisk::new(disk));
        let mut container = open(&disk);
        let key = container.unlock(&fixed().env(), None, &secret("first")).expect("opens");
        disk.fail_once(op, nth, BlockErrorKind::Io);
        let failed = container.keyslot_add(&fixed().env(), &key, &secret("x"), &at(6));
        assert!(matches!(failed, Err(Error::Block(_))), "{op:?} {nth}: {failed:?}");
        let refused = container.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Allow);
        assert!(matches!(refused, Err(Error::Poisoned)));
        container.reload().expect("reload");
        assert_eq!(opens(&container, "first"), Some(0));
    }
}

#[test]
fn a_header_that_breaks_a_rule_is_not_written() {
    let (disk, container) = sample();
    let mut header = container.header().clone();
    header.slots[3].stripes = 0;
    let refused = super::write::replace(&disk, container.header(), &header);
    assert!(matches!(refused, Err(Error::InvalidLuks1(broken)) if broken.rule == Rule::Luks1SlotStripes));
    assert_eq!(&load_unlocked(&disk).expect("load"), container.header());
}
