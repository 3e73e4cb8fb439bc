//! From a passphrase to a [`VolumeKey`]: which keyslots are tried, in which order, and what a failure means.
//!
//! Order (luks2-format §4): slots of priority 2, then those of priority 1 or none, each in the order of the JSON;
//! priority 0 only by its number. Unlike cryptsetup, which gives up at the first slot it cannot read, a slot with a bad
//! salt, an unknown hash or cipher, an area out of range or a cost beyond the limits does not hide a good one behind
//! it: it is noted in the answer as [`Broken`].
//!
//! "Wrong passphrase" ([`Error::NoKey`]) is said only when at least one slot was honestly tried.

use block::BlockIo;
use secret::Secret;

use crate::area::AreaLayout;
use crate::digest_check::UsableDigest;
use crate::env::Env;
use crate::error::Error;
use crate::header::Header;
use crate::kdf;
use crate::limits::Limits;
use crate::metadata::digest::Digest;
use crate::metadata::keyslot::{Keyslot, Priority};
use crate::metadata::{DigestId, KeyslotId, Metadata, SegmentId};
use crate::store::{HeaderStore, LockMode};
use crate::volume_key::VolumeKey;

/// What the key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To open the container: the segment that [`default_segment`] names.
    #[default]
    DefaultSegment,
    /// To open this segment, as one of the two keys of a container in re-encryption.
    Segment(SegmentId),
    /// To see whether a passphrase opens anything, unbound slots too.
    AnyDigest,
}

/// Which keyslots to try, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnlockRequest {
    /// Only this keyslot, whatever its priority.
    pub keyslot: Option<KeyslotId>,
    /// What the key is for.
    pub purpose: Purpose,
}

/// A keyslot that could not be tried, and why.
#[derive(Debug)]
pub struct Broken {
    /// The keyslot.
    pub keyslot: KeyslotId,
    /// What is wrong with it, or with the machine.
    pub reason: Box<Error>,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "keyslot {}: {}", self.keyslot, self.reason)
    }
}

/// " (keyslot 1: …; keyslot 2: …)", or nothing.
pub(crate) fn list_broken(broken: &[Broken]) -> String {
    if broken.is_empty() {
        return String::new();
    }
    let each: Vec<String> = broken.iter().map(Broken::to_string).collect();
    format!(" ({})", each.join("; "))
}

/// The segment that opening means: the one that re-encryption will end with, else segment 0.
pub fn default_segment(metadata: &Metadata) -> SegmentId {
    let last = metadata.segments.iter().find(|(_, segment)| segment.has_flag("backup-final"));
    last.map_or(SegmentId(0), |(id, _)| id)
}

/// Tries `passphrase` on the keyslots of `header` until one gives a key that its digest accepts.
///
/// The metadata lock is held, shared, only while a keyslot's area is read.
///
/// # Errors
/// [`Error::NoKey`] when the passphrase is wrong, [`Error::NoUsableKeyslot`] when no slot could be tried,
/// [`Error::KeyslotMissing`] and [`Error::KeyslotUnbound`] for a slot asked for by number, [`Error::Locked`].
pub fn unlock<S: HeaderStore>(
    store: &S,
    header: &Header,
    env: &Env<'_>,
    limits: &Limits,
    request: &UnlockRequest,
    passphrase: &Secret,
) -> Result<VolumeKey, Error> {
    unlock_metadata(store, header.metadata(), env, limits, request, passphrase)
}

/// As [`unlock`], for metadata that stands for the header on `store`.
pub(crate) fn unlock_metadata<S: HeaderStore>(
    store: &S,
    metadata: &Metadata,
    env: &Env<'_>,
    limits: &Limits,
    request: &UnlockRequest,
    passphrase: &Secret,
) -> Result<VolumeKey, Error> {
    let attempt = Attempt { metadata, env, limits, passphrase };
    attempt.run(request, &|area| {
        let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
        area.read(store)
    })
}

/// Unlocks one keyslot of metadata that may not be on disk yet. The caller holds the lock.
pub(crate) fn unlock_held<D: BlockIo + ?Sized>(
    disk: &D,
    metadata: &Metadata,
    env: &Env<'_>,
    limits: &Limits,
    request: &UnlockRequest,
    passphrase: &Secret,
) -> Result<VolumeKey, Error> {
    Attempt { metadata, env, limits, passphrase }.run(request, &|area| area.read(disk))
}

/// Reads a keyslot that was just written back from the disk and unlocks it. The caller holds the lock.
///
/// # Errors
/// [`Error::NotProven`] when what comes back is not `key`.
pub(crate) fn prove<D: BlockIo + ?Sized>(
    disk: &D,
    metadata: &Metadata,
    keyslot: KeyslotId,
    env: &Env<'_>,
    limits: &Limits,
    key: &Secret,
    passphrase: &Secret,
) -> Result<VolumeKey, Error> {
    let request = UnlockRequest { keyslot: Some(keyslot), purpose: Purpose::AnyDigest };
    match unlock_held(disk, metadata, env, limits, &request, passphrase) {
        Ok(proven) if proven.secret().ct_eq(key.expose()) => Ok(proven),
        Ok(_) | Err(Error::NoKey { .. }) => Err(Error::NotProven { keyslot }),
        Err(error) => Err(error),
    }
}

pub(crate) fn derive_area_key(
    env: &Env<'_>,
    limits: &Limits,
    keyslot: &Keyslot,
    layout: &AreaLayout,
    passphrase: &Secret,
) -> Result<Secret, Error> {
    let Some(slot) = keyslot.luks2() else {
        return Err(Error::KeyslotType { type_name: keyslot.type_name.clone() });
    };
    kdf::derive(env, limits, &slot.kdf, passphrase, layout.area_key_size_bytes())
}

/// Reads a checked area, under whatever lock the caller needs.
type ReadArea<'a> = &'a dyn Fn(&AreaLayout) -> Result<Secret, Error>;

struct Attempt<'a> {
    metadata: &'a Metadata,
    env: &'a Env<'a>,
    limits: &'a Limits,
    passphrase: &'a Secret,
}

impl Attempt<'_> {
    fn run(&self, request: &UnlockRequest, read: ReadArea<'_>) -> Result<VolumeKey, Error> {
        let (mut tried, mut broken) = (Vec::new(), Vec::new());
        for keyslot in self.candidates(request)? {
            match self.open(keyslot, read) {
                Ok(Some(key)) => return Ok(key),
                Ok(None) => tried.push(keyslot),
                // Another process at work is no property of the slot, and would only be waited for again.
                Err(error @ (Error::Locked { .. } | Error::Lock { .. })) => return Err(error),
                Err(reason) => broken.push(Broken { keyslot, reason: Box::new(reason) }),
            }
        }
        Err(if tried.is_empty() { Error::NoUsableKeyslot { broken } } else { Error::NoKey { tried, broken } })
    }

    /// The keyslots to try, in order.
    fn candidates(&self, request: &UnlockRequest) -> Result<Vec<KeyslotId>, Error> {
        let segment = match request.purpose {
            Purpose::DefaultSegment => Some(default_segment(self.metadata)),
            Purpose::Segment(id) => Some(id),
            Purpose::AnyDigest => None,
        };
        let fits = |id: KeyslotId| match (segment, self.digest_of(id)) {
            (Some(segment), Some((_, digest))) => digest.segments.contains(&segment),
            (Some(_), None) => false,
            (None, _) => true,
        };
        if let Some(id) = request.keyslot {
            return match self.metadata.keyslots.contains(id) {
                false => Err(Error::KeyslotMissing { keyslot: id }),
                true if fits(id) => Ok(vec![id]),
                true => Err(Error::KeyslotUnbound { keyslot: id }),
            };
        }
        let pass = |wanted: Priority| {
            let slots = self.metadata.keyslots.iter();
            let slots = slots.filter(move |(_, slot)| slot.priority.unwrap_or(Priority::Normal) == wanted);
            slots.filter(|(_, slot)| slot.luks2().is_some()).map(|(id, _)| id)
        };
        Ok(pass(Priority::Prefer).chain(pass(Priority::Normal)).filter(|id| fits(*id)).collect())
    }

    /// The digest that lists a keyslot: for a passphrase slot there is exactly one.
    fn digest_of(&self, keyslot: KeyslotId) -> Option<(DigestId, &Digest)> {
        self.metadata.digests.iter().find(|(_, digest)| digest.keyslots.contains(&keyslot))
    }

    /// Opens one slot: `None` when the passphrase is not its own. Everything cheap is checked before the derivation.
    fn open(&self, id: KeyslotId, read: ReadArea<'_>) -> Result<Option<VolumeKey>, Error> {
        let Some(keyslot) = self.metadata.keyslots.get(id) else {
            return Err(Error::KeyslotMissing { keyslot: id });
        };
        let layout = AreaLayout::of(self.metadata, keyslot, self.limits)?;
        let Some((digest_id, digest)) = self.digest_of(id) else {
            return Err(Error::DigestUnusable { digest: None, problem: "none lists this keyslot" });
        };
        let digest = UsableDigest::of(digest_id, digest, self.limits)?;
        let material = read(&layout)?;
        let area_key = derive_area_key(self.env, self.limits, keyslot, &layout, self.passphrase)?;
        let candidate = layout.open(&area_key, material)?;
        Ok(VolumeKey::judged(digest_id, &digest, Some(id), candidate))
    }
}

#[cfg(test)]
mod tests {
    use block::{Bytes, MemDisk};
    use serde_json::{Value, json};

    use super::*;
    use crate::area::wipe_area;
    use crate::digest_check::{DigestCost, make_digest};
    use crate::env::fixed::FixedEnv;
    use crate::hash::HashAlg;
    use crate::metadata::keyslot::Kdf;

    const METADATA_SIZE: Bytes = Bytes(0x4000);
    const AREA_BYTES: u64 = 65536;
    const KEY: [u8; 16] = *b"sixteen byte key";
    const PASSPHRASE: &[u8] = b"passphrase";

    /// A disk with `slots` keyslots, all opened by [`PASSPHRASE`] and listed from the highest id down.
    struct Bench {
        fixed: FixedEnv,
        disk: MemDisk,
        metadata: Metadata,
    }

    impl Bench {
        fn new(slots: u32) -> Bench {
            let fixed = FixedEnv::new(11, 1);
            let keyslots: serde_json::Map<String, Value> =
                (0..slots).rev().map(|id| (id.to_string(), keyslot_json(id))).collect();
            let digest = make_digest(&fixed.env(), DigestCost::Minimal, HashAlg::Sha256, &secret(&KEY)).unwrap();
            let mut digest = Value::Object(digest.to_map());
            digest["segments"] = json!(["0"]);
            digest["keyslots"] = (0..slots).map(|id| Value::from(id.to_string())).collect();
            let text = json!({
                "keyslots": keyslots, "tokens": {}, "digests": {"0": digest},
                "segments": {"0": {"type": "crypt", "offset": "16777216", "size": "dynamic", "iv_tweak": "0",
                                   "encryption": "aes-xts-plain64", "sector_size": 512}},
                "config": {"json_size": "12288", "keyslots_size": "16744448"},
            });
            let metadata = Metadata::parse(&text.to_string(), METADATA_SIZE).unwrap();
            let bench = Bench { fixed, disk: MemDisk::new(Bytes::from_mib(17)), metadata };
            (0..slots).for_each(|id| bench.write(KeyslotId(id)));
            bench
        }

        fn write(&self, id: KeyslotId) {
            let (env, limits) = (self.fixed.env(), Limits::default());
            let keyslot = self.metadata.keyslots.get(id).unwrap();
            let layout = AreaLayout::of(&self.metadata, keyslot, &limits).unwrap();
            let area_key = derive_area_key(&env, &limits, keyslot, &layout, &secret(PASSPHRASE)).unwrap();
            layout.write(&self.disk, &layout.seal(&env, &area_key, &secret(&KEY)).unwrap()).unwrap();
        }

        fn slot(&mut self, id: u32) -> &mut Keyslot {
            self.metadata.keyslots.get_mut(KeyslotId(id)).unwrap()
        }

        fn kdf(&mut self, id: u32) -> &mut Kdf {
            match &mut self.slot(id).kind {
                crate::metadata::keyslot::KeyslotKind::Luks2(slot) => &mut slot.kdf,
                other => panic!("{other:?}"),
            }
        }

        fn unlock(&self, request: &UnlockRequest, passphrase: &[u8]) -> Result<VolumeKey, Error> {
            let (env, limits) = (self.fixed.env(), Limits { kdf_iterations: 1 << 20, ..Limits::default() });
            unlock_held(&self.disk, &self.metadata, &env, &limits, request, &secret(passphrase))
        }

        fn opened(&self) -> Option<KeyslotId> {
            let key = self.unlock(&UnlockRequest::default(), PASSPHRASE).unwrap();
            assert_eq!(key.expose(), KEY);
            key.keyslot()
        }
    }

    fn secret(bytes: &[u8]) -> Secret {
        Secret::copy_of(bytes).unwrap()
    }

    fn keyslot_json(id: u32) -> Value {
        json!({
            "type": "luks2", "key_size": 16, "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {"type": "raw", "offset": (32768 + u64::from(id) * AREA_BYTES).to_string(),
                     "size": AREA_BYTES.to_string(), "encryption": "aes-cbc-essiv:sha256", "key_size": 32},
            "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000 + id,
                    "salt": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="},
        })
    }

    #[test]
    fn slots_are_tried_by_priority_then_in_the_order_of_the_json() {
        let mut bench = Bench::new(4);
        assert_eq!(bench.opened(), Some(KeyslotId(3)), "listed first");
        bench.slot(1).priority = Some(Priority::Prefer);
        assert_eq!(bench.opened(), Some(KeyslotId(1)));
        bench.slot(1).priority = Some(Priority::Ignore);
        bench.slot(3).priority = Some(Priority::Ignore);
        assert_eq!(bench.opened(), Some(KeyslotId(2)));
        bench.slot(0).priority = Some(Priority::Normal);
        bench.slot(2).priority = Some(Priority::Ignore);
        assert_eq!(bench.opened(), Some(KeyslotId(0)));
        bench.slot(0).priority = Some(Priority::Ignore);
        let none = bench.unlock(&UnlockRequest::default(), PASSPHRASE);
        assert!(matches!(none, Err(Error::NoUsableKeyslot { broken }) if broken.is_empty()));
        let by_id = UnlockRequest { keyslot: Some(KeyslotId(3)), ..UnlockRequest::default() };
        assert_eq!(bench.unlock(&by_id, PASSPHRASE).unwrap().keyslot(), Some(KeyslotId(3)));
    }

    /// Damages slot `id` in one way and says how the error must look.
    fn damage(bench: &mut Bench, id: u32) -> fn(&Error) -> bool {
        match id {
            1 => {
                *bench.kdf(id) = Kdf::Pbkdf2 { hash: "sha256".into(), iterations: 1000, salt: "AAAA".into() };
                |error| matches!(error, Error::Salt { len_bytes: Some(3) })
            }
            2 => {
                *bench.kdf(id) = Kdf::Pbkdf2 { hash: "md4".into(), iterations: 1000, salt: String::new() };
                |error| matches!(error, Error::UnknownHash { .. })
            }
            3 => {
                *bench.kdf(id) = Kdf::Other { type_name: "scrypt".into(), raw: serde_json::Map::new() };
                |error| matches!(error, Error::UnknownKdf { .. })
            }
            4 => {
                bench.slot(id).area.encryption = Some("anubis-xts-plain64".into());
                |error| matches!(error, Error::Cipher(_))
            }
            5 => {
                bench.slot(id).area.key_size_bytes = Some(17);
                |error| matches!(error, Error::Cipher(dmcrypt::CipherError::KeySize { .. }))
            }
            6 => {
                bench.slot(id).area.offset = Bytes(16 << 20);
                |error| matches!(error, Error::KeyslotArea { .. })
            }
            7 => {
                bench.slot(id).area.offset = Bytes(u64::MAX - 511);
                |error| matches!(error, Error::KeyslotArea { .. })
            }
            8 => {
                bench.slot(id).key_size_bytes = u32::MAX;
                |error| matches!(error, Error::KeyslotArea { .. })
            }
            9 => {
                bench.slot(id).key_size_bytes = 0;
                |error| matches!(error, Error::KeyslotArea { .. })
            }
            _ => {
                let salt = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into();
                *bench.kdf(id) = Kdf::Pbkdf2 { hash: "sha256".into(), iterations: u32::MAX, salt };
                |error| matches!(error, Error::KdfLimit { .. })
            }
        }
    }

    #[test]
    fn broken_slots_are_named_and_do_not_hide_the_good_one() {
        let mut bench = Bench::new(11);
        let expected: Vec<_> = (1..=10).map(|id| (KeyslotId(id), damage(&mut bench, id))).collect();
        assert_eq!(bench.opened(), Some(KeyslotId(0)), "the last in the JSON, behind all broken ones");
        let Err(Error::NoKey { tried, broken }) = bench.unlock(&UnlockRequest::default(), b"wrong") else {
            panic!("a wrong passphrase opened something");
        };
        assert_eq!((tried, broken.len()), (vec![KeyslotId(0)], 10));
        for (broken, (id, matches)) in broken.iter().rev().zip(&expected) {
            assert!(broken.keyslot == *id && matches(&broken.reason), "{broken}");
        }
        bench.metadata.keyslots.remove(KeyslotId(0));
        let all = bench.unlock(&UnlockRequest::default(), PASSPHRASE);
        assert!(matches!(all, Err(Error::NoUsableKeyslot { broken }) if broken.len() == 10));
    }

    #[test]
    fn an_area_past_the_end_of_the_device_is_named() {
        let bench = Bench::new(2);
        bench.disk.set_len(Bytes(32768 + AREA_BYTES + 512));
        assert_eq!(bench.opened(), Some(KeyslotId(0)));
        let request = UnlockRequest { keyslot: Some(KeyslotId(1)), ..UnlockRequest::default() };
        match bench.unlock(&request, PASSPHRASE) {
            Err(Error::NoUsableKeyslot { broken }) => {
                assert!(matches!(*broken[0].reason, Error::KeyslotArea { .. }), "{}", broken[0]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_written_slot_is_proven_and_a_lost_write_is_found() {
        let bench = Bench::new(1);
        let (env, limits) = (bench.fixed.env(), Limits::default());
        let proof = |passphrase: &[u8], key: &[u8]| {
            let (passphrase, key) = (secret(passphrase), secret(key));
            prove(&bench.disk, &bench.metadata, KeyslotId(0), &env, &limits, &key, &passphrase).map(|_| ())
        };
        assert!(proof(PASSPHRASE, &KEY).is_ok());
        assert!(matches!(proof(b"other", &KEY), Err(Error::NotProven { keyslot: KeyslotId(0) })));
        assert!(matches!(proof(PASSPHRASE, &[0; 16]), Err(Error::NotProven { .. })));
        bench.disk.write_at(Bytes(32768 + 512), &[0; 512], false).unwrap();
        assert!(matches!(proof(PASSPHRASE, &KEY), Err(Error::NotProven { .. })));
    }

    #[test]
    fn a_wiped_area_gives_no_key_and_its_neighbours_are_untouched() {
        let mut bench = Bench::new(3);
        let area = bench.slot(1).area.clone();
        wipe_area(&bench.disk, &bench.fixed.env(), &area).unwrap();
        let mut area = vec![0; usize::try_from(AREA_BYTES).unwrap()];
        bench.disk.read_at(Bytes(32768 + AREA_BYTES), &mut area).unwrap();
        let zeros = area[512..].iter().filter(|byte| **byte == 0).count();
        assert!(area[..512] == [0; 512], "the mark");
        assert!(zeros < area.len() / 100, "{zeros} zeros in a wiped area");
        for (id, opens) in [(0, true), (1, false), (2, true)] {
            let request = UnlockRequest { keyslot: Some(KeyslotId(id)), ..UnlockRequest::default() };
            assert_eq!(bench.unlock(&request, PASSPHRASE).is_ok(), opens, "keyslot {id}");
        }
    }

    #[test]
    fn nothing_is_sealed_that_does_not_fit() {
        let mut bench = Bench::new(1);
        let (limits, area_key) = (Limits::default(), secret(&[1; 32]));
        let layout = |bench: &Bench| {
            AreaLayout::of(&bench.metadata, bench.metadata.keyslots.get(KeyslotId(0)).unwrap(), &limits).unwrap()
        };
        let wrong_length = layout(&bench).seal(&bench.fixed.env(), &area_key, &secret(&[1; 32]));
        assert!(matches!(wrong_length, Err(Error::KeySize { expected_bytes: 16, got_bytes: 32 })));
        bench.slot(0).area.size = Bytes(63 * 1024);
        assert_eq!(bench.opened(), Some(KeyslotId(0)), "the declared size does not matter to a reader");
        bench.slot(0).area.size = Bytes(62 * 1024);
        let sealed = layout(&bench).seal(&bench.fixed.env(), &area_key, &secret(&KEY));
        assert!(matches!(sealed, Err(Error::KeyslotArea { .. })));
    }

    #[test]
    fn the_default_segment_is_the_one_that_will_remain() {
        let mut bench = Bench::new(1);
        assert_eq!(default_segment(&bench.metadata), SegmentId(0));
        let mut last = bench.metadata.segments.get(SegmentId(0)).unwrap().clone();
        last.flags = vec!["backup-final".to_owned()];
        bench.metadata.segments.insert(SegmentId(2), last);
        assert_eq!(default_segment(&bench.metadata), SegmentId(2));
        let request = UnlockRequest::default();
        assert!(matches!(bench.unlock(&request, PASSPHRASE), Err(Error::NoUsableKeyslot { .. })), "no slot for it");
        let first = UnlockRequest { keyslot: None, purpose: Purpose::Segment(SegmentId(0)) };
        assert!(bench.unlock(&first, PASSPHRASE).is_ok());
        let bound = UnlockRequest { keyslot: Some(KeyslotId(0)), ..request };
        assert!(matches!(bench.unlock(&bound, PASSPHRASE), Err(Error::KeyslotUnbound { .. })));
    }
}
