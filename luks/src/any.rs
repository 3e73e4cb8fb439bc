//! A container of either version: what a program needs that opens LUKS volumes and changes their keyslots.
//!
//! The version is what the primary header's magic says; everything else is done by [`Container`] and [`Luks1Container`], whose
//! methods say what can fail. A LUKS1 header is shown as [`Metadata`] too (`luks1/view.rs`).

use std::borrow::Cow;

use block::{BlockIo, ByteView, Bytes};
use secret::Secret;

use crate::container::Container;
use crate::edit::{LastSlot, NewKeyslot};
use crate::env::Env;
use crate::error::Error;
use crate::header::{self, Header, Health};
use crate::limits::Limits;
use crate::luks1::{self, Luks1Container, Luks1Header};
use crate::metadata::segment::{CryptSegment, Segment};
use crate::metadata::{KeyslotId, Metadata, SegmentId};
use crate::policy::Policy;
use crate::store::{HeaderStore, LockMode};
use crate::unlock::{Purpose, UnlockRequest};
use crate::volume::{SegmentMap, Volume};
use crate::volume_key::VolumeKey;

/// The versions of LUKS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// LUKS1.
    Luks1,
    /// LUKS2.
    Luks2,
}

impl Version {
    /// 1 or 2.
    pub fn number(self) -> u16 {
        match self {
            Version::Luks1 => 1,
            Version::Luks2 => 2,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LUKS{}", self.number())
    }
}

/// Whether what starts here says that it is LUKS1. Everything else is for LUKS2 to judge, which has a second copy.
fn is_luks1<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<bool, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    let (view, mut start) = (ByteView::new(store), [0; 8]);
    if view.size() < Bytes::from_len(start.len()) {
        return Err(Error::NotLuks);
    }
    match view.read(Bytes::ZERO, &mut start) {
        Ok(()) => Ok(start == *b"LUKS\xba\xbe\x00\x01"),
        // The secondary copy of LUKS2 may be readable.
        Err(_) => Ok(false),
    }
}

/// A header of either version.
#[derive(Debug, Clone)]
pub enum AnyHeader {
    /// LUKS1.
    Luks1(Box<Luks1Header>),
    /// LUKS2.
    Luks2(Box<Header>),
}

/// Reads and checks the header on `store`, whichever version it is. Writes nothing.
///
/// # Errors
/// As [`header::load`] and [`luks1::load`].
pub fn load_any<S: HeaderStore + ?Sized>(store: &S, limits: &Limits) -> Result<AnyHeader, Error> {
    if is_luks1(store, limits)? {
        return Ok(AnyHeader::Luks1(Box::new(luks1::load(store, limits)?)));
    }
    Ok(AnyHeader::Luks2(Box::new(header::load(store, limits)?)))
}

impl AnyHeader {
    /// Which version it is.
    pub fn version(&self) -> Version {
        match self {
            AnyHeader::Luks1(_) => Version::Luks1,
            AnyHeader::Luks2(_) => Version::Luks2,
        }
    }

    /// The UUID; bytes that are no UTF-8 are replaced.
    pub fn uuid(&self) -> String {
        match self {
            AnyHeader::Luks1(header) => header.uuid.to_string(),
            AnyHeader::Luks2(header) => header.uuid(),
        }
    }

    /// The metadata; of LUKS1 in LUKS2's words.
    pub fn metadata(&self) -> Cow<'_, Metadata> {
        match self {
            AnyHeader::Luks1(header) => Cow::Owned(header.metadata()),
            AnyHeader::Luks2(header) => Cow::Borrowed(header.metadata()),
        }
    }

    /// How well the two copies of LUKS2 are; `None` for LUKS1, which has one and no checksum.
    pub fn health(&self) -> Option<&Health> {
        match self {
            AnyHeader::Luks1(_) => None,
            AnyHeader::Luks2(header) => Some(header.health()),
        }
    }

    /// Whether there is nothing to mend.
    pub fn is_healthy(&self) -> bool {
        self.health().is_none_or(Health::is_healthy)
    }

    /// What the user should do next about a damaged header, if anything.
    pub fn advice(&self) -> Option<String> {
        self.health().and_then(Health::advice)
    }
}

/// What tries passphrases: a container of one version or of any.
pub trait Unlock {
    /// The metadata, whose tokens may lead to a passphrase; of LUKS1 in LUKS2's words.
    fn metadata(&self) -> Cow<'_, Metadata>;

    /// Tries `passphrase` on the keyslots that `request` allows.
    ///
    /// # Errors
    /// As [`Container::unlock`].
    fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error>;
}

impl<H: HeaderStore, D: BlockIo> Unlock for Container<H, D> {
    fn metadata(&self) -> Cow<'_, Metadata> {
        Cow::Borrowed(self.header().metadata())
    }

    fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error> {
        Container::unlock(self, env, request, passphrase)
    }
}

impl<H: HeaderStore, D: BlockIo> Unlock for Luks1Container<H, D> {
    fn metadata(&self) -> Cow<'_, Metadata> {
        Cow::Owned(self.header().metadata())
    }

    fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error> {
        Luks1Container::unlock(self, env, request.keyslot, passphrase)
    }
}

impl<H: HeaderStore, D: BlockIo> Unlock for AnyContainer<H, D> {
    fn metadata(&self) -> Cow<'_, Metadata> {
        AnyContainer::metadata(self)
    }

    fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error> {
        match self {
            AnyContainer::Luks1(container) => container.unlock(env, request.keyslot, passphrase),
            AnyContainer::Luks2(container) => container.unlock(env, request, passphrase),
        }
    }
}

/// A container of either version: header store `H`, data device `D`.
pub enum AnyContainer<H: HeaderStore, D: BlockIo> {
    /// LUKS1.
    Luks1(Box<Luks1Container<H, D>>),
    /// LUKS2.
    Luks2(Box<Container<H, D>>),
}

impl<H: HeaderStore, D: BlockIo> AnyContainer<H, D> {
    /// Reads and checks the header on `store`. Writes nothing.
    ///
    /// # Errors
    /// As [`load_any`].
    pub fn open(store: H, data: D, limits: Limits) -> Result<Self, Error> {
        if is_luks1(&store, &limits)? {
            return Ok(AnyContainer::Luks1(Box::new(Luks1Container::open(store, data, limits)?)));
        }
        Ok(AnyContainer::Luks2(Box::new(Container::open(store, data, limits)?)))
    }

    /// The same under another policy, which every unlock and every edit holds against the header in memory from now on.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        match self {
            AnyContainer::Luks1(container) => AnyContainer::Luks1(Box::new(container.with_policy(policy))),
            AnyContainer::Luks2(container) => AnyContainer::Luks2(Box::new(container.with_policy(policy))),
        }
    }

    /// Holds the policy against the header in memory, as every unlock and every edit does.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check_policy(&self) -> Result<(), Error> {
        match self {
            AnyContainer::Luks1(container) => container.check_policy(),
            AnyContainer::Luks2(container) => container.check_policy(),
        }
    }

    /// The header as it was last read or written.
    pub fn header(&self) -> AnyHeader {
        match self {
            AnyContainer::Luks1(container) => AnyHeader::Luks1(Box::new(container.header().clone())),
            AnyContainer::Luks2(container) => AnyHeader::Luks2(Box::new(container.header().clone())),
        }
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        match self {
            AnyContainer::Luks1(_) => Version::Luks1,
            AnyContainer::Luks2(_) => Version::Luks2,
        }
    }

    /// The UUID.
    pub fn uuid(&self) -> String {
        match self {
            AnyContainer::Luks1(container) => container.header().uuid.to_string(),
            AnyContainer::Luks2(container) => container.header().uuid(),
        }
    }

    /// The metadata; of LUKS1 in LUKS2's words.
    pub fn metadata(&self) -> Cow<'_, Metadata> {
        match self {
            AnyContainer::Luks1(container) => Cow::Owned(container.header().metadata()),
            AnyContainer::Luks2(container) => Cow::Borrowed(container.header().metadata()),
        }
    }

    /// What the user should do next about a damaged header, if anything.
    pub fn advice(&self) -> Option<String> {
        match self {
            AnyContainer::Luks1(_) => None,
            AnyContainer::Luks2(container) => container.header().health().advice(),
        }
    }

    /// The device that holds header and keyslots.
    pub fn store(&self) -> &H {
        match self {
            AnyContainer::Luks1(container) => container.store(),
            AnyContainer::Luks2(container) => container.store(),
        }
    }

    /// The device that holds the data.
    pub fn data(&self) -> &D {
        match self {
            AnyContainer::Luks1(container) => container.data(),
            AnyContainer::Luks2(container) => container.data(),
        }
    }

    /// Reads the header again, and forgets an earlier failed write.
    ///
    /// # Errors
    /// As [`Container::reload`].
    pub fn reload(&mut self) -> Result<(), Error> {
        match self {
            AnyContainer::Luks1(container) => container.reload(),
            AnyContainer::Luks2(container) => container.reload(),
        }
    }

    /// Tries `passphrase` on the keyslots that `request` allows.
    ///
    /// # Errors
    /// As [`Container::unlock`] and [`Luks1Container::unlock`].
    pub fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error> {
        Unlock::unlock(self, env, request, passphrase)
    }

    /// Accepts a volume key that was presented as such, not through a keyslot.
    ///
    /// # Errors
    /// As [`Container::recognise`].
    pub fn recognise(&self, purpose: Purpose, key: &Secret) -> Result<VolumeKey, Error> {
        match self {
            AnyContainer::Luks1(container) => match container.verify(Secret::copy_of(key.expose())?) {
                Err(Error::KeyRefused { .. }) => Err(Error::KeyUnknown),
                other => other,
            },
            AnyContainer::Luks2(container) => container.recognise(purpose, key),
        }
    }

    /// The segment that `key` opens, for who does the encryption elsewhere.
    ///
    /// # Errors
    /// As [`Container::opened_segment`].
    pub fn opened_segment(&self, key: &VolumeKey) -> Result<(Segment, CryptSegment), Error> {
        match self {
            AnyContainer::Luks1(container) => container.opened_segment(),
            AnyContainer::Luks2(container) => {
                container.opened_segment(key).map(|(segment, crypt)| (segment.clone(), crypt.clone()))
            }
        }
    }

    /// Every segment, to recognise a volume again.
    pub fn segments(&self) -> Vec<(SegmentId, Segment)> {
        self.metadata().segments.iter().map(|(id, segment)| (id, segment.clone())).collect()
    }

    /// The segments of the volume under `key`.
    ///
    /// # Errors
    /// As [`Container::segment_map`] and [`Luks1Container::segment_map`].
    pub fn segment_map(&self, key: &VolumeKey) -> Result<SegmentMap, Error> {
        match self {
            AnyContainer::Luks1(container) => container.segment_map(key),
            AnyContainer::Luks2(container) => container.segment_map(key),
        }
    }

    /// The unlocked volume, over its own handle of the data device.
    ///
    /// # Errors
    /// As [`AnyContainer::segment_map`].
    pub fn volume(&self, key: &VolumeKey, read_only: bool) -> Result<Volume<D>, Error>
    where
        D: Clone,
    {
        Ok(Volume::new(self.data().clone(), self.segment_map(key)?, read_only))
    }

    /// Adds a keyslot in which the passphrase `new` opens the key `existing`.
    ///
    /// # Errors
    /// As [`Container::keyslot_add`] and [`Luks1Container::keyslot_add`].
    pub fn keyslot_add(
        &mut self,
        env: &Env<'_>,
        existing: &VolumeKey,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        match self {
            AnyContainer::Luks1(container) => container.keyslot_add(env, existing, new, parameters),
            AnyContainer::Luks2(container) => container.keyslot_add(env, existing, new, parameters),
        }
    }

    /// Removes the keyslot `id`.
    ///
    /// # Errors
    /// As [`Container::keyslot_kill`] and [`Luks1Container::keyslot_kill`].
    pub fn keyslot_kill(&mut self, env: &Env<'_>, id: KeyslotId, last: LastSlot) -> Result<(), Error> {
        match self {
            AnyContainer::Luks1(container) => container.keyslot_kill(env, id, last),
            AnyContainer::Luks2(container) => container.keyslot_kill(env, id, last),
        }
    }

    /// Replaces the passphrase `old` of a keyslot (only `id`, if given) by `new`.
    ///
    /// # Errors
    /// As [`Container::keyslot_change`] and [`Luks1Container::keyslot_change`].
    pub fn keyslot_change(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        match self {
            AnyContainer::Luks1(container) => container.keyslot_change(env, old, id, new, parameters),
            AnyContainer::Luks2(container) => container.keyslot_change(env, old, id, new, parameters),
        }
    }

    /// The same without room for a second keyslot: over the old one, which a crash may lose.
    ///
    /// # Errors
    /// As [`Container::keyslot_change_in_place`] and [`Luks1Container::keyslot_change_in_place`].
    pub fn keyslot_change_in_place(
        &mut self,
        env: &Env<'_>,
        old: &Secret,
        id: Option<KeyslotId>,
        new: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<KeyslotId, Error> {
        match self {
            AnyContainer::Luks1(container) => container.keyslot_change_in_place(env, old, id, new, parameters),
            AnyContainer::Luks2(container) => container.keyslot_change_in_place(env, old, id, new, parameters),
        }
    }

    /// Sets the UUID.
    ///
    /// # Errors
    /// As [`Container::set_uuid`].
    pub fn set_uuid(&mut self, uuid: &str) -> Result<(), Error> {
        match self {
            AnyContainer::Luks1(container) => container.set_uuid(uuid),
            AnyContainer::Luks2(container) => container.set_uuid(uuid),
        }
    }
}
