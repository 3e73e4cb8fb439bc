//! The container behind a server's volume: opened and locked, unlocked on a scrubbed stack, recognised again on resume.

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::{BlockIo as _, Bytes, Direct, FileDisk, LockError, OpenMode, UseLock};
use luks::metadata::segment::{CryptSegment, Segment};
use luks::metadata::{KeyslotId, SegmentId};
use luks::{
    AnyContainer, Error, Limits, Policy, Purpose, SegmentMap, SegmentSize, UnlockRequest, Version, Volume, VolumeKey,
};
#[cfg(feature = "loop")]
use secret::KeyProvider;
use secret::Secret;

use crate::choice::ServedBy;
use crate::protocol::UnlockOrder;
use crate::registry::DigestMark;
use crate::{Failure, FailureKind, SessionError, SystemEnv};

/// Stack of the thread that unlocks: key derivations keep their memory on the heap.
const UNLOCK_STACK_BYTES: usize = 1 << 20;

/// A killed server's writes may be under way until the kernel has taken its rings apart; it keeps the image locked for so long.
const RINGS_END_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(crate) type FileContainer = AnyContainer<FileDisk, FileDisk>;

/// An image that is open, locked against other users, and has a valid header.
pub(crate) struct Prepared {
    container: FileContainer,
    order: UnlockOrder,
    use_locks: Vec<UseLock>,
}

/// What a secret is that shall unlock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    /// A passphrase, for this keyslot or for any.
    Passphrase { keyslot: Option<u32> },
    /// The volume key itself.
    VolumeKey,
}

impl Proof {
    /// As `order` says.
    pub(crate) fn of(order: &UnlockOrder) -> Proof {
        if order.volume_key { Proof::VolumeKey } else { Proof::Passphrase { keyslot: order.keyslot } }
    }

    /// For the last answer of `keys`, which may know its keyslot.
    #[cfg(feature = "loop")]
    pub(crate) fn for_answer(self, keys: &dyn KeyProvider) -> Proof {
        match self {
            Proof::Passphrase { keyslot } => Proof::Passphrase { keyslot: keys.keyslot().or(keyslot) },
            Proof::VolumeKey => Proof::VolumeKey,
        }
    }
}

/// What is known of an unlocked volume.
pub(crate) struct Facts {
    pub(crate) version: Version,
    pub(crate) uuid: String,
    pub(crate) keyslot: Option<u32>,
    pub(crate) cipher: Option<String>,
    pub(crate) key_size_bits: u32,
    pub(crate) sector_size_bytes: Option<u32>,
}

/// An unlocked volume, with what it takes to recognise it again.
pub(crate) struct Opened {
    pub(crate) volume: Arc<Volume<FileDisk>>,
    pub(crate) facts: Facts,
    pub(crate) read_only: bool,
    mark: Mark,
    order: UnlockOrder,
    data: FileDisk,
    _use_locks: Vec<UseLock>,
}

/// What makes a volume the same after a suspend: its UUID, the very digest that had accepted its key, and where and how
/// its bytes lie. A header is not authenticated: under a moved segment or another cipher the right passphrase would resume
/// a mounted file system onto other bytes.
#[derive(Clone, Debug, PartialEq)]
struct Mark {
    uuid: String,
    digest: DigestMark,
    segments: Vec<(SegmentId, Segment)>,
}

/// A volume key, and what a mapping of the kernel is made of besides it.
#[cfg(feature = "loop")]
pub(crate) struct UnlockedKey {
    pub(crate) key: VolumeKey,
    pub(crate) segment: Segment,
    pub(crate) crypt: CryptSegment,
    /// Flags that the header keeps for every opening.
    pub(crate) flags: Vec<String>,
    pub(crate) digest: DigestMark,
    pub(crate) facts: Facts,
}

impl Mark {
    fn of(container: &FileContainer, key: &VolumeKey) -> Mark {
        Mark { uuid: container.uuid(), digest: digest_mark(container, key), segments: container.segments() }
    }

    /// In words, what `other` has differently; nothing if it is the same volume.
    fn difference(&self, other: &Mark) -> Option<String> {
        if (&self.uuid, self.digest.id) != (&other.uuid, other.digest.id) {
            return Some(format!(
                "UUID {} and digest {}, suspended were {} and {}",
                other.uuid, other.digest.id, self.uuid, self.digest.id
            ));
        }
        if self.digest != other.digest {
            return Some(format!("digest {} was made for another key", self.digest.id));
        }
        (self.segments != other.segments).then(|| "its segments lie elsewhere or have another cipher".to_owned())
    }
}

impl Prepared {
    /// Opens and locks the image and reads the header. Refuses an image that something else uses.
    pub(crate) fn open(order: &UnlockOrder) -> Result<Prepared, Failure> {
        let patience = if order.served_by == ServedBy::Ublk { RINGS_END_WAIT } else { Duration::ZERO };
        let until = Instant::now() + patience;
        loop {
            match Prepared::open_with(order, Direct::IfPossible) {
                Err(failure) if failure.kind == FailureKind::ImageInUse && Instant::now() < until => sleep(POLL),
                other => return other,
            }
        }
    }

    /// The same for a mapping of the kernel, which claims a block device for itself: ours is not opened exclusively.
    #[cfg(feature = "loop")]
    pub(crate) fn open_for_kernel(order: &UnlockOrder) -> Result<Prepared, Failure> {
        Prepared::open_with(order, Direct::Never)
    }

    fn open_with(order: &UnlockOrder, direct: Direct) -> Result<Prepared, Failure> {
        crate::image::wait_for_passers_by(&order.image);
        crate::image::check_not_in_use(&order.image).map_err(|error| match error {
            SessionError::ImageInUse { how, .. } => Failure::new(FailureKind::ImageInUse, how),
            other => Failure::new(FailureKind::Image, other.to_string()),
        })?;
        let data = open_disk(&order.image, order.read_only, direct)?;
        let lock = |disk: &FileDisk, shared| {
            disk.lock_use(shared).map_err(|error| match error {
                LockError::Busy { .. } => Failure::new(FailureKind::ImageInUse, "another process holds its use lock"),
                other => Failure::new(FailureKind::Image, other.to_string()),
            })
        };
        let mut use_locks = vec![lock(&data, order.read_only)?];
        let container = container(order, &data)?;
        if order.header.is_some() {
            // Shared: keyslots may be edited, but nobody may format over the only copy of the volume's key.
            use_locks.push(lock(container.store(), true)?);
        }
        if let Some(advice) = container.advice() {
            log::warn!("{advice}");
        }
        Ok(Prepared { container, order: order.clone(), use_locks })
    }

    /// The image, as it was opened and locked.
    #[cfg(feature = "loop")]
    pub(crate) fn image(&self) -> &FileDisk {
        self.container.data()
    }

    /// The volume key that `secret` opens or is.
    #[cfg(feature = "loop")]
    pub(crate) fn unlock_key(&self, proof: Proof, secret: &Secret) -> Result<UnlockedKey, Failure> {
        unlock_key(&self.container, proof, secret)
    }

    /// Unlocks. A failure gives the prepared image back for another try.
    pub(crate) fn unlock(self: Box<Self>, proof: Proof, secret: Secret) -> Result<Opened, (Box<Prepared>, Failure)> {
        let unlocked = on_scrubbed_thread(|| {
            let (map, mark, facts) = unlock(&self.container, proof, &secret)?;
            drop(secret);
            Ok((map, mark, facts))
        });
        let (map, mark, facts) = match unlocked {
            Ok(unlocked) => unlocked,
            Err(failure) => return Err((self, failure)),
        };
        let data = self.container.data().clone();
        let read_only = self.order.read_only;
        let volume = Arc::new(Volume::new(data.clone(), map, read_only));
        Ok(Opened { volume, facts, read_only, mark, order: self.order, data, _use_locks: self.use_locks })
    }
}

impl Opened {
    /// What the header says of the volume: the same for whoever unlocks it again.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:?}", self.mark)
    }

    /// Unlocks the suspended volume again, if the header still is that of this volume, and lets I/O go on. The policy that it
    /// was opened under holds, and besides it `policy`.
    pub(crate) fn resume(&self, passphrase: Secret, policy: Option<&Policy>) -> Result<(), Failure> {
        let container = self.container_under(policy)?;
        let (map, mark, _) = on_scrubbed_thread(|| {
            let unlocked = unlock(&container, Proof::Passphrase { keyslot: None }, &passphrase)?;
            drop(passphrase);
            Ok(unlocked)
        })?;
        if let Some(difference) = self.mark.difference(&mark) {
            let what = format!("{} holds another volume now: {difference}", self.order.image.display());
            return Err(Failure::new(FailureKind::OtherVolume, what));
        }
        self.volume.resume(map);
        Ok(())
    }

    /// The header as it lies there now, if the policy that the volume was opened under accepts it, and `policy`.
    fn container_under(&self, policy: Option<&Policy>) -> Result<FileContainer, Failure> {
        let container = container(&self.order, &self.data)?;
        if let Some(policy) = policy {
            let checked = policy.check_any(&container.header());
            checked.map_err(|error| failure(container.store().path(), &error))?;
        }
        Ok(container)
    }

    /// How long the volume may become on its image as it is now, unless its header fixes its size or `policy` does not accept
    /// that header any more.
    pub(crate) fn room(&self, policy: Option<&Policy>) -> Result<Bytes, Failure> {
        if policy.is_some() {
            self.container_under(policy)?;
        }
        let last = self.mark.segments.last().map(|(_, segment)| &segment.size);
        if let Some(SegmentSize::Fixed(fixed)) = last {
            return Err(Failure::new(FailureKind::Image, format!("its header gives it a fixed size of {fixed}")));
        }
        Ok(self.volume.geometry().size)
    }
}

fn container(order: &UnlockOrder, data: &FileDisk) -> Result<FileContainer, Failure> {
    let header = match &order.header {
        None => data.clone(),
        Some(path) => open_disk(path, true, Direct::Never)?,
    };
    let path = order.header.as_ref().unwrap_or(&order.image);
    let opened = AnyContainer::open(header, data.clone(), Limits::from(&order.limits));
    let container = opened.map_err(|error| failure(path, &error))?.with_policy(Policy::from(&order.policy));
    // Known before anybody waits for a derivation, and held again by every unlock.
    container.check_policy().map_err(|error| failure(path, &error))?;
    Ok(container)
}

fn open_disk(path: &Path, read_only: bool, direct: Direct) -> Result<FileDisk, Failure> {
    // A header device is only read, and may be shared; the data device is ours alone.
    let exclusive = direct != Direct::Never;
    FileDisk::open(path, &OpenMode { read_only, direct, exclusive }).map_err(|error| {
        let kind = match error.kind {
            block::BlockErrorKind::Busy => FailureKind::ImageInUse,
            _ => FailureKind::Image,
        };
        let hint = match error.kind {
            block::BlockErrorKind::ReadOnly if !read_only => " (it cannot be written; open it read-only)",
            _ => "",
        };
        Failure::new(kind, format!("{}: {error}{hint}", path.display()))
    })
}

fn unlock(container: &FileContainer, proof: Proof, secret: &Secret) -> Result<(SegmentMap, Mark, Facts), Failure> {
    let path = container.store().path();
    let key = judge(container, proof, secret)?;
    let map = container.segment_map(&key).map_err(|error| failure(path, &error))?;
    let mark = Mark::of(container, &key);
    let crypt = mark.segments.iter().find_map(|(_, segment)| segment.crypt.as_ref());
    let facts = facts(container, crypt, &key);
    Ok((map, mark, facts))
}

/// The volume key that `secret` opens or is, with the segment that it is for. Runs on a scrubbed stack.
#[cfg(feature = "loop")]
pub(crate) fn unlock_key(container: &FileContainer, proof: Proof, secret: &Secret) -> Result<UnlockedKey, Failure> {
    on_scrubbed_thread(|| {
        let key = judge(container, proof, secret)?;
        let opened = container.opened_segment(&key);
        let (segment, crypt) = opened.map_err(|error| failure(container.store().path(), &error))?;
        Ok(UnlockedKey {
            flags: container.metadata().config.flags.clone(),
            digest: digest_mark(container, &key),
            facts: facts(container, Some(&crypt), &key),
            segment,
            crypt,
            key,
        })
    })
}

fn judge(container: &FileContainer, proof: Proof, secret: &Secret) -> Result<VolumeKey, Failure> {
    let unlocked = match proof {
        Proof::VolumeKey => container.recognise(Purpose::DefaultSegment, secret),
        Proof::Passphrase { keyslot } => {
            let request = UnlockRequest { keyslot: keyslot.map(KeyslotId), purpose: Purpose::DefaultSegment };
            container.unlock(&SystemEnv.env(), &request, secret)
        }
    };
    unlocked.map_err(|error| failure(container.store().path(), &error))
}

fn facts(container: &FileContainer, crypt: Option<&CryptSegment>, key: &VolumeKey) -> Facts {
    Facts {
        version: container.version(),
        uuid: container.uuid(),
        keyslot: key.keyslot().map(|id| id.0),
        cipher: crypt.map(|crypt| crypt.encryption.clone()),
        key_size_bits: u32::try_from(key.len_bytes() * 8).unwrap_or(u32::MAX),
        sector_size_bytes: crypt.map(|crypt| crypt.sector_size),
    }
}

fn digest_mark(container: &FileContainer, key: &VolumeKey) -> DigestMark {
    let metadata = container.metadata();
    let digest = metadata.digests.get(key.digest());
    DigestMark {
        id: key.digest().0,
        salt: digest.and_then(|digest| digest.salt.clone()),
        value: digest.and_then(|digest| digest.digest.clone()),
    }
}

/// Runs `work` on a thread of its own and overwrites the stack that it used.
fn on_scrubbed_thread<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("unlock".to_owned())
            .stack_size(UNLOCK_STACK_BYTES)
            .spawn_scoped(scope, || secret::scrubbed(work))
            .map_err(|error| Failure::new(FailureKind::System, format!("cannot start a thread: {error}")))?;
        thread.join().unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::System, "unlocking ended with a fault of the program; see the log"))
        })
    })
}

pub(crate) fn failure(path: &Path, error: &Error) -> Failure {
    Failure::new(kind_of(error), format!("{}: {error}", path.display()))
}

fn kind_of(error: &Error) -> FailureKind {
    match error {
        Error::NoKey { .. } | Error::KeyUnknown => FailureKind::NoKey,
        Error::Memory { .. } | Error::Threads { .. } | Error::Secret(_) => FailureKind::Memory,
        Error::NoUsableKeyslot { broken } if broken.iter().any(|slot| kind_of(&slot.reason) == FailureKind::Memory) => {
            FailureKind::Memory
        }
        Error::Block(_) => FailureKind::Image,
        Error::Policy { .. } => FailureKind::Policy,
        _ => FailureKind::Header,
    }
}
