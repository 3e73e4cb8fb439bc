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
    let attempt = Attempt { metadata: header.metadata(), env, limits, passphrase };
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
