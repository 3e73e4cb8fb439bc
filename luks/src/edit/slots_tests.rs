//! What tokens, flags, names, unbound slots, conversion and the change in place promise; and that each survives a failing disk.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a few MiB")]

use std::sync::Arc;

use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, BlockIo, Bytes, MemDisk};
use secret::Secret;

use crate::digest_check::DigestCost;
use crate::edit::{ActivationFlag, LastSlot, NewKeyslot};
use crate::error::Error;
use crate::format::sample::{cheap, fixed, formatted, open, params, secret, slots, try_open, try_slot};
use crate::format::{FormatParams, format_with_key};
use crate::kdf::KdfParams;
use crate::metadata::keyslot::{Kdf, Priority};
use crate::metadata::slot_name::SlotName;
use crate::metadata::token::Token;
use crate::metadata::{DigestId, KeyslotId, TokenId};
use crate::store::HeaderStore;
use crate::unlock::{Purpose, UnlockRequest};
use crate::{Container, HashAlg, JsonMap};

type Sample = Container<Arc<MemDisk>, Arc<MemDisk>>;

fn sample() -> (Arc<MemDisk>, Sample) {
    let disk = formatted(&params());
    let container = open(&disk);
    (disk, container)
}

fn bytes_of(disk: &MemDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.geometry().size.0 as usize];
    disk.read_at(Bytes(0), &mut bytes).expect("read");
    bytes
}

fn token(json: &str) -> Token {
    Token::from_json(json).expect("token")
}

fn add<S: HeaderStore>(container: &mut Container<Arc<S>, Arc<S>>, passphrase: &str) -> Result<KeyslotId, Error> {
    let key = try_open(container, "first")?;
    container.keyslot_add(&fixed().env(), &key, &secret(passphrase), &cheap())
}

#[test]
fn tokens_come_go_and_follow_their_keyslots() {
    let (disk, mut container) = sample();
    let foreign = r#"{"a":1.50,"keyslots":["0"],"type":"x","b":{"z":1,"y":[]}}"#;
    assert_eq!(container.token_add(None, token(foreign)).expect("add"), TokenId(0));
    let keyring = Token::keyring("some key", Vec::new()).expect("keyring");
    assert_eq!(container.token_add(Some(TokenId(31)), keyring).expect("add"), TokenId(31));
    add(&mut container, "second").expect("slot 1");
    container.token_assign(TokenId(31), KeyslotId(1)).expect("assign");
    let seqid = container.header().seqid();
    container.token_assign(TokenId(31), KeyslotId(1)).expect("again");
    assert_eq!(container.header().seqid(), seqid, "nothing to write");
    let reread = open(&disk);
    let tokens = &reread.header().metadata().tokens;
    assert_eq!(tokens.get(TokenId(0)).expect("token").to_json(), foreign);
    let keyring = tokens.get(TokenId(31)).expect("token");
    assert_eq!((keyring.key_description(), keyring.keyslots.as_slice()), (Some("some key"), &[KeyslotId(1)][..]));
    container.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Refuse).expect("kill");
    let kept = open(&disk).header().metadata().tokens.get(TokenId(0)).expect("token").to_json();
    assert_eq!(kept, foreign.replace(r#"["0"]"#, "[]"));
    container.token_unassign(TokenId(31), KeyslotId(1)).expect("unassign");
    container.token_replace(TokenId(31), token(r#"{"type":"y","keyslots":["1"]}"#)).expect("replace");
    container.token_remove(TokenId(0)).expect("remove");
    let tokens = open(&disk).header().metadata().tokens.clone();
    assert_eq!(
        tokens.iter().map(|(id, token)| (id.0, token.type_name.clone())).collect::<Vec<_>>(),
        [(31, "y".into())]
    );
}

#[test]
fn a_token_that_cannot_be_changes_nothing() {
    let (disk, mut container) = sample();
    container.token_add(Some(TokenId(7)), token(r#"{"type":"x","keyslots":[]}"#)).expect("add");
    let before = bytes_of(&disk);
    let plain = || token(r#"{"type":"x","keyslots":[]}"#);
    let reserved = Token::new("luks2-tpm", Vec::new(), JsonMap::new());
    let large = Token::new("x", Vec::new(), JsonMap::from_iter([("blob".into(), "x".repeat(20_000).into())]));
    let missing = Token::new("x", vec![KeyslotId(5)], JsonMap::new());
    let id = TokenId;
    assert!(matches!(container.token_add(Some(id(32)), plain()), Err(Error::TokenRange { .. })));
    assert!(matches!(container.token_add(Some(id(7)), plain()), Err(Error::TokenInUse { .. })));
    assert!(matches!(container.token_add(None, reserved), Err(Error::TokenInvalid { .. })));
    assert!(matches!(container.token_add(None, large.clone()), Err(Error::JsonFull { .. })));
    assert!(matches!(container.token_replace(id(7), large), Err(Error::JsonFull { .. })));
    assert!(matches!(container.token_add(None, missing), Err(Error::KeyslotMissing { .. })));
    assert!(matches!(container.token_replace(id(6), plain()), Err(Error::TokenMissing { .. })));
    assert!(matches!(container.token_remove(id(6)), Err(Error::TokenMissing { .. })));
    assert!(matches!(container.token_assign(id(6), KeyslotId(0)), Err(Error::TokenMissing { .. })));
    assert!(matches!(container.token_assign(id(7), KeyslotId(9)), Err(Error::KeyslotMissing { .. })));
    assert!(matches!(container.token_unassign(id(7), KeyslotId(0)), Err(Error::TokenUnassigned { .. })));
    assert_eq!(bytes_of(&disk), before);
    for _ in 0..31 {
        container.token_add(None, plain()).expect("32 of them");
    }
    assert!(matches!(container.token_add(None, plain()), Err(Error::NoFreeToken { max: 32 })));
}

#[test]
fn flags_and_priority_are_written_as_cryptsetup_writes_them() {
    let (disk, mut container) = sample();
    container.set_flags(&[ActivationFlag::HighPriority, ActivationFlag::AllowDiscards]).expect("flags");
    let flags = |disk: &Arc<MemDisk>| open(disk).header().metadata().config.flags.clone();
    assert_eq!(flags(&disk), ["allow-discards", "high_priority"]);
    let mut header = crate::load_unlocked(&disk, &crate::Limits::default()).expect("load");
    header.metadata_mut().config.flags.push("of-the-future".into());
    crate::write::commit(&disk, &mut header).expect("commit");
    let mut container = open(&disk);
    container.set_flags(&[]).expect("flags");
    assert_eq!(flags(&disk), ["of-the-future"]);
    let priority = |disk: &Arc<MemDisk>| open(disk).header().metadata().keyslots.get(KeyslotId(0)).expect("0").priority;
    for (set, stored) in [
        (Priority::Prefer, Some(Priority::Prefer)),
        (Priority::Ignore, Some(Priority::Ignore)),
        (Priority::Normal, None),
    ] {
        container.set_keyslot_priority(KeyslotId(0), set).expect("priority");
        assert_eq!(priority(&disk), stored);
    }
    let before = bytes_of(&disk);
    let missing = container.set_keyslot_priority(KeyslotId(4), Priority::Prefer);
    assert!(matches!(missing, Err(Error::KeyslotMissing { .. })));
    assert_eq!(bytes_of(&disk), before);
}

#[test]
fn an_unbound_key_has_a_digest_of_its_own_and_opens_no_volume() {
    let (disk, mut container) = sample();
    let own = secret("a key of twenty bytes");
    let fixed = fixed();
    let unbound = |container: &mut Sample, key: &Secret, passphrase: &str| {
        container.keyslot_add_unbound(&fixed.env(), key, &secret(passphrase), &cheap(), DigestCost::Minimal)
    };
    assert_eq!(unbound(&mut container, &own, "unbound").expect("add"), KeyslotId(1));
    let again = open(&disk);
    let digest = again.header().metadata().digests.get(DigestId(1)).expect("digest");
    assert!(digest.segments.is_empty() && digest.keyslots == [KeyslotId(1)]);
    assert!(matches!(try_open(&again, "unbound"), Err(Error::NoKey { .. })));
    let key = try_slot(&again, 1, "unbound").expect("opens");
    assert!(key.secret().ct_eq(own.expose()) && key.digest() == DigestId(1));
    assert!(again.recognise(Purpose::AnyDigest, &own).is_ok());
    assert!(matches!(again.recognise(Purpose::DefaultSegment, &own), Err(Error::KeyUnknown)));
    container.keyslot_kill(&fixed.env(), KeyslotId(1), LastSlot::Refuse).expect("kill");
    assert!(!open(&disk).header().metadata().digests.contains(DigestId(1)), "its digest goes with it");
    let before = bytes_of(&disk);
    let long = Secret::copy_of(&[1; 600]).expect("secret");
    let refused = unbound(&mut container, &long, "x").expect_err("too long").to_string();
    assert!(refused.contains("600 bytes") && refused.contains("1 to 512 bytes"), "{refused}");
    assert_eq!(bytes_of(&disk), before);
}

#[test]
fn a_volume_key_is_enough_to_open_to_add_a_keyslot_and_to_format() {
    let (disk, mut container) = sample();
    let key = Secret::copy_of(try_open(&container, "first").expect("open").expose()).expect("copy");
    container.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Allow).expect("kill");
    let mut container = open(&disk);
    let known = container.recognise(Purpose::DefaultSegment, &key).expect("the digest knows it");
    assert_eq!(known.keyslot(), None);
    container.segment_map(&known).expect("a volume");
    container.keyslot_add(&fixed().env(), &known, &secret("new"), &cheap()).expect("add");
    assert!(try_open(&open(&disk), "new").expect("opens").secret().ct_eq(key.expose()));
    for wrong in [&key.expose()[..31], &[0; 32], &[]] {
        let wrong = Secret::copy_of(wrong).expect("secret");
        assert!(matches!(container.recognise(Purpose::DefaultSegment, &wrong), Err(Error::KeyUnknown)));
    }
    let other = Arc::new(MemDisk::new(crate::format::sample::SIZE));
    let copy = Secret::copy_of(key.expose()).expect("copy");
    format_with_key(&other, &other, &fixed().env(), &params(), &secret("first"), copy).expect("format");
    assert!(try_open(&open(&other), "first").expect("opens").secret().ct_eq(key.expose()));
    let short = Secret::copy_of(&[1; 16]).expect("secret");
    let refused = format_with_key(&other, &other, &fixed().env(), &params(), &secret("first"), short);
    assert!(matches!(refused, Err(Error::KeySize { expected_bytes: 32, got_bytes: 16 })));
}

#[test]
fn a_converted_keyslot_keeps_everything_but_its_cost_and_cipher() {
    let (disk, mut container) = sample();
    container.token_add(None, token(r#"{"type":"x","keyslots":["0"]}"#)).expect("token");
    container.set_keyslot_priority(KeyslotId(0), Priority::Prefer).expect("priority");
    container.set_keyslot_name(KeyslotId(0), Some(&SlotName::new("mine"))).expect("name");
    let kdf = KdfParams::pbkdf2(HashAlg::Sha512, 1234).expect("over the floor");
    let parameters = NewKeyslot {
        encryption: Some(("aes-cbc-essiv:sha256".into(), 32)),
        hash: HashAlg::Sha512,
        ..NewKeyslot::new(kdf)
    };
    let converted = container.keyslot_convert(&fixed().env(), &secret("first"), None, &parameters);
    assert_eq!(converted.expect("convert"), KeyslotId(0));
    let again = open(&disk);
    assert_eq!(slots(&again), [0]);
    let metadata = again.header().metadata();
    let slot = metadata.keyslots.get(KeyslotId(0)).expect("slot");
    assert!(
        matches!(&slot.luks2().expect("luks2").kdf, Kdf::Pbkdf2 { hash, iterations: 1234, .. } if hash == "sha512")
    );
    assert_eq!(slot.area.encryption.as_deref(), Some("aes-cbc-essiv:sha256"));
    assert_eq!(slot.priority, Some(Priority::Prefer));
    assert_eq!(metadata.tokens.get(TokenId(0)).expect("token").keyslots, [KeyslotId(0)]);
    assert_eq!(SlotName::of(metadata, KeyslotId(0)), Some(SlotName::new("mine")));
    try_open(&again, "first").expect("the passphrase is the same");
}

#[test]
fn names_say_what_a_keyslot_is_for_and_go_with_it() {
    let (disk, mut container) = sample();
    add(&mut container, "second").expect("add");
    let full = SlotName { made_by: Some("anna".into()), made_unix_s: Some(1_770_000_000), ..SlotName::new("the safe") };
    container.set_keyslot_name(KeyslotId(1), Some(&full)).expect("name");
    container.set_keyslot_name(KeyslotId(0), Some(&SlotName::new("first"))).expect("name");
    let of = |id| SlotName::of(open(&disk).header().metadata(), KeyslotId(id));
    assert_eq!((of(0), of(1), of(2)), (Some(SlotName::new("first")), Some(full), None));
    container.set_keyslot_name(KeyslotId(0), Some(&SlotName::new("renamed"))).expect("name");
    assert_eq!(of(0), Some(SlotName::new("renamed")));
    assert_eq!(open(&disk).header().metadata().tokens.len(), 2);
    container.keyslot_kill(&fixed().env(), KeyslotId(1), LastSlot::Refuse).expect("kill");
    assert_eq!(open(&disk).header().metadata().tokens.len(), 1);
    let before = bytes_of(&disk);
    for bad in ["", "a\nb", "\u{9b}1m", &"x".repeat(101)] {
        let refused = container.set_keyslot_name(KeyslotId(0), Some(&SlotName::new(bad)));
        assert!(matches!(refused, Err(Error::Parameter { .. })), "{bad:?}");
    }
    let missing = container.set_keyslot_name(KeyslotId(9), Some(&SlotName::new("x")));
    assert!(matches!(missing, Err(Error::KeyslotMissing { .. })));
    assert_eq!(bytes_of(&disk), before);
    container.set_keyslot_name(KeyslotId(0), None).expect("taken away");
    assert!(open(&disk).header().metadata().tokens.is_empty());
}

/// Room for one keyslot only.
fn full() -> Arc<MemDisk> {
    formatted(&FormatParams { keyslots_size: Some(Bytes(128 << 10)), ..params() })
}

#[test]
fn without_room_a_change_is_refused_and_works_in_place() {
    let disk = full();
    let mut container = open(&disk);
    container.token_add(None, token(r#"{"type":"x","keyslots":["0"]}"#)).expect("token");
    container.set_keyslot_priority(KeyslotId(0), Priority::Prefer).expect("priority");
    let before = bytes_of(&disk);
    let (old, new) = (secret("first"), secret("second"));
    let refused = container.keyslot_change(&fixed().env(), &old, None, &new, &cheap());
    assert!(matches!(refused, Err(Error::NoFreeArea { .. })));
    let wrong = container.keyslot_change_in_place(&fixed().env(), &new, None, &old, &cheap());
    assert!(matches!(wrong, Err(Error::NoKey { .. })));
    assert_eq!(bytes_of(&disk), before);
    let changed = container.keyslot_change_in_place(&fixed().env(), &old, None, &new, &cheap());
    assert_eq!(changed.expect("in place"), KeyslotId(0));
    let again = open(&disk);
    try_open(&again, "second").expect("the new one");
    assert!(matches!(try_open(&again, "first"), Err(Error::NoKey { .. })));
    let metadata = again.header().metadata();
    assert_eq!(metadata.keyslots.get(KeyslotId(0)).expect("slot").priority, Some(Priority::Prefer));
    assert_eq!(metadata.tokens.get(TokenId(0)).expect("token").keyslots, [KeyslotId(0)]);
}

type Change = fn(&mut Container<Arc<FaultDisk<MemDisk>>, Arc<FaultDisk<MemDisk>>>) -> Result<(), Error>;

const CHANGES: [(&str, Change); 11] = [
    ("token add", |c| c.token_add(None, token(r#"{"type":"z","keyslots":["0"]}"#)).map(drop)),
    ("token replace", |c| c.token_replace(TokenId(0), token(r#"{"type":"z","keyslots":["0"]}"#))),
    ("token remove", |c| c.token_remove(TokenId(0))),
    ("token assign", |c| c.token_assign(TokenId(0), KeyslotId(1))),
    ("token unassign", |c| c.token_unassign(TokenId(0), KeyslotId(0))),
    ("flags", |c| c.set_flags(&[ActivationFlag::AllowDiscards])),
    ("priority", |c| c.set_keyslot_priority(KeyslotId(0), Priority::Prefer)),
    ("name", |c| c.set_keyslot_name(KeyslotId(0), Some(&SlotName::new("n")))),
    ("unbound", |c| {
        let key = secret("some other key");
        c.keyslot_add_unbound(&fixed().env(), &key, &secret("u"), &cheap(), DigestCost::Minimal).map(drop)
    }),
    ("convert", |c| c.keyslot_convert(&fixed().env(), &secret("first"), None, &cheap()).map(drop)),
    ("in place", |c| {
        let id = Some(KeyslotId(0));
        c.keyslot_change_in_place(&fixed().env(), &secret("first"), id, &secret("second"), &cheap()).map(drop)
    }),
];

#[test]
fn one_failed_write_or_flush_loses_no_keyslot() {
    let (disk, mut container) = sample();
    add(&mut container, "other").expect("add");
    container.token_add(None, token(r#"{"type":"x","keyslots":["0"]}"#)).expect("token");
    let start = disk.snapshot();
    for (what, change) in CHANGES {
        for (op, name) in [(Op::Write, "write"), (Op::Flush, "flush")] {
            for nth in 1.. {
                let faulty = Arc::new(FaultDisk::new(start.snapshot()));
                let mut container = open(&faulty);
                faulty.fail_once(op, nth, BlockErrorKind::Io);
                let result = change(&mut container);
                let context = format!("{what}, {name} {nth}");
                let after = Arc::new(faulty.inner().snapshot());
                let seen = open(&after);
                try_open(&seen, "other").unwrap_or_else(|error| panic!("{context}: {error}"));
                let opens =
                    try_open(&seen, "first").is_ok() || (what == "in place" && try_open(&seen, "second").is_ok());
                assert!(opens, "{context}: keyslot 0 is lost");
                for id in slots(&seen).into_iter().filter(|id| *id > 1) {
                    let request = UnlockRequest { keyslot: Some(KeyslotId(id)), purpose: Purpose::AnyDigest };
                    let passphrase = if what == "unbound" { "u" } else { "first" };
                    let opened = seen.unlock(&fixed().env(), &request, &secret(passphrase));
                    // An area that is wiped while the header still lists its keyslot: honest, and `repair` finishes it.
                    assert!(opened.is_ok() || what == "convert", "{context}: keyslot {id} is named and does not open");
                }
                if result.is_ok() {
                    break;
                }
                assert!(matches!(container.set_label(Some("x")), Err(Error::Poisoned)), "{context}");
            }
        }
    }
}

/// A restore takes the sequence number back. A handle from before it must not take the state that has its number later for
/// its own, and write keyslots that are gone.
#[test]
fn a_handle_from_before_a_restore_is_refused_at_the_same_sequence_number() {
    let disk = formatted(&params());
    let limits = crate::Limits::default();
    let backup = crate::Backup::read(&disk, &limits).unwrap();
    let mut stale = open(&disk);
    let key = try_open(&stale, "first").unwrap();
    stale.keyslot_add(&fixed().env(), &key, &secret("second"), &cheap()).unwrap();

    let plan = crate::restore::plan(&disk, &backup, &limits).unwrap();
    crate::restore::restore(&disk, &backup, &plan, &limits, &mut crate::NoRecovery).unwrap();
    let mut other = open(&disk);
    other.set_label(Some("other")).unwrap();
    assert_eq!(other.header().seqid(), stale.header().seqid());

    let refused = stale.keyslot_add(&fixed().env(), &key, &secret("third"), &cheap()).expect_err("a stale handle");
    assert!(matches!(refused, Error::ConcurrentUpdate { .. }), "{refused}");
    assert!(
        stale.set_label(None).is_err() && stale.keyslot_kill(&fixed().env(), KeyslotId(0), LastSlot::Allow).is_err()
    );
    assert_eq!(slots(&open(&disk)), [0]);
    stale.reload().unwrap();
    stale.set_label(None).expect("it read again");
}
