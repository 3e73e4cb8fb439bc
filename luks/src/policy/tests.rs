//! Every rule found where it is broken, pins that hold and pins that do not, and no key derived from a refused header.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{Bytes, MemDisk};
use serde_json::{Value, json};

use super::*;
use crate::env::{Env, EnvError, MemoryBudget, Rng};
use crate::format::sample::{SIZE, cheap, fixed, formatted, params, secret};
use crate::header::load_unlocked;
use crate::metadata::{DigestId, KeyslotId, Metadata, SegmentId};
use crate::unlock::UnlockRequest;
use crate::{Container, LastSlot, Limits, write};

/// A header that the strict policy accepts.
fn good() -> Value {
    json!({
        "keyslots": { "0": {
            "type": "luks2", "key_size": 64, "af": { "type": "luks1", "stripes": 4000, "hash": "sha256" },
            "area": { "type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64 },
            "kdf": { "type": "argon2id", "time": 4, "memory": 65536, "cpus": 4, "salt": SALT },
        }},
        "tokens": {},
        "segments": { "0": {
            "type": "crypt", "offset": "1048576", "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64",
            "sector_size": 512,
        }},
        "digests": { "0": {
            "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256", "iterations": 1000, "salt": SALT,
            "digest": SALT,
        }},
        "config": { "json_size": "12288", "keyslots_size": "524288" },
    })
}

const SALT: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn header(json: &Value) -> Header {
    let metadata = Metadata::parse(&json.to_string(), Bytes(0x4000)).expect("a valid header");
    Header::create(metadata, fixed().env().rng).expect("header")
}

fn put(json: &mut Value, path: &str, value: Value) {
    let mut at = json;
    for name in path.split('/') {
        at = &mut at[name];
    }
    *at = value;
}

fn with(path: &str, value: Value) -> Header {
    let mut json = good();
    put(&mut json, path, value);
    header(&json)
}

fn strict(header: &Header) -> Vec<(PolicyRule, Place)> {
    Policy::strict().judge(header).iter().map(|breach| (breach.rule, breach.place)).collect()
}

#[test]
fn strict_accepts_what_it_should() {
    assert_eq!(strict(&header(&good())), []);
    let pbkdf2 = json!({ "type": "pbkdf2", "hash": "SHA512", "iterations": 600_000, "salt": SALT });
    assert_eq!(strict(&with("keyslots/0/kdf", pbkdf2)), []);
}

#[test]
fn strict_names_each_breach_and_its_place() {
    use PolicyRule as R;
    let (slot, segment, digest) =
        (Place::Keyslot(KeyslotId(0)), Place::Segment(SegmentId(0)), Place::Digest(DigestId(0)));
    let pbkdf2 =
        |hash: &str, iterations: u32| json!({ "type": "pbkdf2", "hash": hash, "iterations": iterations, "salt": SALT });
    let linear = json!({ "type": "linear", "offset": "1048576", "size": "dynamic" });
    for (path, value, expected) in [
        ("segments/0/encryption", json!("cipher_null-ecb"), vec![(R::NullCipher, segment)]),
        ("segments/0/encryption", json!("capi:ecb(cipher_null)-null"), vec![(R::NullCipher, segment)]),
        ("segments/0/encryption", json!("aes-cbc-plain"), vec![(R::Cipher, segment)]),
        ("segments/0", linear, vec![(R::SegmentType, segment)]),
        ("keyslots/0/area/encryption", json!("cipher_null-ecb"), vec![(R::NullCipher, slot)]),
        ("keyslots/0/area/encryption", json!("aes-cbc-essiv:sha256"), vec![(R::KeyslotCipher, slot)]),
        ("keyslots/0/area/key_size", json!(16), vec![(R::KeyslotKeySize, slot)]),
        ("keyslots/0/key_size", json!(16), vec![(R::KeySize, slot)]),
        ("keyslots/0/af/hash", json!("sha1"), vec![(R::Hash, slot)]),
        ("keyslots/0/kdf/time", json!(3), vec![(R::KdfFloor, slot)]),
        ("keyslots/0/kdf/memory", json!(32), vec![(R::KdfFloor, slot)]),
        ("keyslots/0/kdf/memory", json!(4 << 20), vec![(R::KdfCeiling, slot)]),
        ("keyslots/0/kdf/cpus", json!(64), vec![(R::KdfCeiling, slot)]),
        ("keyslots/0/kdf", pbkdf2("sha1", 1000), vec![(R::Hash, slot), (R::KdfFloor, slot)]),
        ("keyslots/0/kdf", pbkdf2("sha256", u32::MAX), vec![(R::KdfCeiling, slot)]),
        ("keyslots/0/kdf", json!({ "type": "scrypt", "salt": SALT }), vec![(R::KdfType, slot)]),
        ("digests/0/hash", json!("ripemd160"), vec![(R::Hash, digest)]),
        ("digests/0/iterations", json!(u32::MAX), vec![(R::KdfCeiling, digest)]),
        ("config/requirements", json!({ "mandatory": ["opal"] }), vec![(R::Requirement, Place::Header)]),
        ("config/requirements", json!({ "mandatory": ["offline-reencrypt"] }), vec![(R::Reencryption, Place::Header)]),
    ] {
        let header = with(path, value.clone());
        assert_eq!(strict(&header), expected, "{path} {value}");
        assert!(Policy::strict().check(&header).is_err());
        let default = Policy::default_preset().judge(&header);
        let null = expected[0].0 == R::NullCipher;
        assert_eq!(default.len(), usize::from(null), "the default preset refuses nothing but the null cipher: {path}");
    }
}

#[test]
fn strict_finds_a_reencryption_in_all_its_parts() {
    let json: Value = serde_json::from_str(include_str!("../../tests/vectors/reencrypt.json")).expect("vector");
    let header = header(&json);
    let of_rule: Vec<Place> = Policy::strict()
        .judge(&header)
        .iter()
        .filter(|b| b.rule == PolicyRule::Reencryption)
        .map(|b| b.place)
        .collect();
    assert!(of_rule.contains(&Place::Header), "the requirement: {of_rule:?}");
    assert!(of_rule.iter().any(|place| matches!(place, Place::Keyslot(_))), "its keyslot: {of_rule:?}");
    assert!(of_rule.iter().any(|place| matches!(place, Place::Segment(_))), "its segments: {of_rule:?}");
    assert!(Policy::default_preset().judge(&header).is_empty());
}

#[test]
fn the_null_cipher_needs_its_own_words() {
    let header = with("segments/0/encryption", json!("cipher_null-ecb"));
    let listed = Policy { ciphers: Names::only(["cipher_null-ecb"]), ..Policy::default_preset() };
    assert_eq!(listed.judge(&header)[0].rule, PolicyRule::NullCipher, "a list cannot say so");
    assert!(Policy::default_preset().allowing_null_cipher().judge(&header).is_empty());
    for spelt in ["cipher_null", "CIPHER_NULL-ecb", "capi:ecb(cipher_null)-plain", "ecb-cipher_null", "null"] {
        assert!(is_null_cipher(spelt), "{spelt}");
    }
    assert!(!is_null_cipher("aes-xts-plain64"));
}

#[test]
fn pins_hold_their_header_and_no_other() {
    let own = header(&good());
    let pins = Pins::of(&own);
    let policy = Policy::strict().pinned(pins.clone());
    assert_eq!(policy.judge(&own), []);
    let refused =
        |header: &Header| -> Vec<PolicyRule> { policy.judge(header).iter().map(|breach| breach.rule).collect() };
    let mut other = own.clone();
    other.binary.uuid = b"another".to_vec();
    assert_eq!(refused(&other), [PolicyRule::PinnedUuid]);
    let mut newer = own.clone();
    newer.binary.seqid += 5;
    assert_eq!(refused(&newer), []);
    let newer = policy.clone().pinned(Pins::of(&newer));
    assert_eq!(newer.judge(&own)[0].rule, PolicyRule::PinnedEpoch);
    for (member, value) in [("digest", json!("c2FtZQ==")), ("salt", json!("c2FtZQ==")), ("iterations", json!(1001))] {
        assert_eq!(refused(&with(&format!("digests/0/{member}"), value)), [PolicyRule::PinnedVolumeKey], "{member}");
    }
    for (member, value) in
        [("offset", json!("2097152")), ("encryption", json!("serpent-xts-plain64")), ("sector_size", json!(4096))]
    {
        assert_eq!(refused(&with(&format!("segments/0/{member}"), value)), [PolicyRule::PinnedSegments], "{member}");
    }
    assert!(!pins.is_empty() && Pins::default().is_empty());
}

#[test]
fn a_fingerprint_survives_its_text_and_nothing_else_is_one() {
    let print = Fingerprint::of_parts(&[b"a", b"bc"]);
    assert_ne!(print, Fingerprint::of_parts(&[b"ab", b"c"]), "parts do not run together");
    assert_eq!(print.to_string().parse::<Fingerprint>().expect("its own text"), print);
    let mixed = format!("sha256:{}", print.to_string()["sha256:".len()..].to_uppercase());
    assert_eq!(mixed.parse::<Fingerprint>().expect("capitals"), print);
    for bad in [
        "",
        "sha256:",
        "sha1:00",
        &"0".repeat(64),
        &format!("sha256:{}", "+1".repeat(32)),
        &format!("sha256:é{}", "0".repeat(62)),
    ] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}

#[test]
fn long_values_and_long_lists_are_cut() {
    let hostile = with("segments/0/encryption", json!("x".repeat(5000)));
    let breach = &Policy::strict().judge(&hostile)[0];
    assert_eq!(breach.value.chars().count(), 81);
    let many = vec![breach.clone(); 20];
    assert!(list(&many).ends_with("; and 12 more"), "{}", list(&many));
}

#[test]
fn segments_by_the_thousand_are_judged_and_named_in_few_words() {
    let mut json = good();
    let one = json["segments"]["0"].clone();
    let many: serde_json::Map<String, Value> = (0..20_000u64)
        .map(|id| {
            let mut segment = one.clone();
            segment["encryption"] = "cipher_null-ecb".into();
            segment["offset"] = ((1 << 30) + id * 512).to_string().into();
            segment["size"] = if id < 19_999 { "512".into() } else { "dynamic".into() };
            (id.to_string(), segment)
        })
        .collect();
    json["digests"]["0"]["segments"] = many.keys().cloned().collect();
    json["segments"] = many.into();
    json["config"] = json!({ "json_size": ((4 << 20) - 4096).to_string(), "keyslots_size": "524288" });
    json["keyslots"]["0"]["area"]["offset"] = (8 << 20).to_string().into();
    let metadata = Metadata::parse(&json.to_string(), Bytes(4 << 20)).expect("the format sets no bound");
    let header = Header::create(metadata, fixed().env().rng).expect("header");
    let breaches = Policy::default_preset().judge(&header);
    assert_eq!(breaches.len(), breach::LISTED_MAX);
    let message = Policy::default_preset().check(&header).expect_err("refused").to_string();
    assert!(message.len() < 2000 && message.contains("and 248 more"), "{message}");
}

/// What a derivation or a write needs of its surroundings, counted.
struct Counted {
    inner: crate::env::fixed::FixedEnv,
    asked: AtomicU32,
}

impl Rng for Counted {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.fill(buf)
    }
}

impl MemoryBudget for Counted {
    fn total(&self) -> Bytes {
        self.inner.total()
    }
    fn available(&self) -> Bytes {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.available()
    }
    fn free_without_swap(&self) -> Option<Bytes> {
        self.inner.free_without_swap()
    }
    fn online_cpus(&self) -> u32 {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.online_cpus()
    }
}

/// A real container whose keyslot has this key derivation.
fn on_disk(kdf: Value) -> Arc<MemDisk> {
    let disk = formatted(&params());
    let mut header = load_unlocked(&disk, &Limits::default()).expect("load");
    let mut json = Value::Object(header.metadata().to_map());
    json["keyslots"]["0"]["kdf"] = kdf;
    header.metadata = Metadata::parse(&json.to_string(), header.metadata_size()).expect("valid");
    write::commit(&disk, &mut header).expect("commit");
    disk
}

#[test]
fn a_refused_header_costs_no_derivation_and_no_read_of_an_area() {
    let argon2 =
        |memory_kib: u32| json!({ "type": "argon2id", "time": 4, "memory": memory_kib, "cpus": 1, "salt": SALT });
    for (memory_kib, policy, derives) in
        [(64, Policy::default_preset(), true), (64, Policy::strict(), false), (4 << 20, Policy::strict(), false)]
    {
        let disk = block::fault::FaultDisk::new(on_disk(argon2(memory_kib)));
        let container = Container::open(&disk, &disk, Limits::default()).expect("open").with_policy(policy);
        let counted = Counted { inner: fixed(), asked: AtomicU32::new(0) };
        let env = Env { rng: &counted, clock: &counted.inner, memory: &counted };
        let reads = disk.counts().reads;
        let outcome = container.unlock(&env, &UnlockRequest::default(), &secret("first"));
        let asked = counted.asked.load(Ordering::Relaxed);
        if derives {
            assert!(matches!(outcome, Err(Error::NoKey { .. })), "the salt is another: {outcome:?}");
            assert!(asked > 0 && disk.counts().reads > reads, "the control derives, and would be counted");
        } else {
            assert!(matches!(outcome, Err(Error::Policy { .. })), "{outcome:?}");
            assert_eq!((asked, disk.counts().reads), (0, reads), "no work before the refusal");
        }
    }
}

#[test]
fn edits_are_held_to_the_policy_before_the_first_write() {
    let disk = block::fault::FaultDisk::new(formatted(&params()));
    let open = |policy: Policy| Container::open(&disk, &disk, Limits::default()).expect("open").with_policy(policy);
    let (env, fixed_env) = (fixed(), fixed());
    let key =
        open(Policy::default_preset()).unlock(&env.env(), &UnlockRequest::default(), &secret("first")).expect("key");
    let writes = disk.counts().writes;
    let mut container = open(Policy::strict());
    let add = container.keyslot_add(&fixed_env.env(), &key, &secret("second"), &cheap());
    assert!(matches!(add, Err(Error::Policy { .. })), "the header itself: {add:?}");
    let kill = container.keyslot_kill(&fixed_env.env(), KeyslotId(0), LastSlot::Allow);
    assert!(matches!(kill, Err(Error::Policy { .. })), "{kill:?}");
    // A header that is accepted, and a new keyslot that is not.
    let floor = Policy { keyslot_key_bits_min: 512, ..Policy::default_preset() };
    let mut container = open(Policy { keyslot_key_bits_min: 256, ..floor.clone() });
    let weak = crate::NewKeyslot { encryption: Some(("aes-cbc-essiv:sha256".into(), 16)), ..cheap() };
    let add = container.keyslot_add(&fixed_env.env(), &key, &secret("second"), &weak);
    assert!(
        matches!(&add, Err(Error::Policy { breaches, .. }) if breaches[0].place == Place::Keyslot(KeyslotId(1))),
        "{add:?}"
    );
    let pinned = Policy::default_preset().pinned(Pins::of(container.header()));
    let renamed = open(pinned.clone()).set_uuid("00000000-0000-4000-8000-000000000000");
    assert!(matches!(renamed, Err(Error::Policy { .. })), "{renamed:?}");
    assert_eq!(disk.counts().writes, writes, "nothing was written");
    // An edit raises the epoch, and the pins still hold.
    let mut container = open(pinned.clone());
    container.keyslot_add(&fixed_env.env(), &key, &secret("second"), &cheap()).expect("accepted");
    assert_eq!(pinned.judge(container.header()), []);
    assert!(disk.counts().writes > writes);
    assert_eq!(SIZE, Bytes(4 << 20), "the sample");
}

#[test]
fn presets_are_found_by_name_and_rules_have_names_of_their_own() {
    for name in ["default", "strict"] {
        assert_eq!(Policy::preset(name).expect("preset").name, name);
    }
    assert!(Policy::preset("lenient").is_none());
    let names: std::collections::BTreeSet<&str> = PolicyRule::ALL.iter().map(|rule| rule.name()).collect();
    assert_eq!(names.len(), PolicyRule::ALL.len());
}
