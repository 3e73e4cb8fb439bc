//! [`Luks1Container`]: a header store and a data device, the handle through which a LUKS1 container is unlocked, used and
//! edited.
//!
//! Invariants as those of [`Container`](crate::Container): opening never writes; a volume is made only of a key that the
//! header's digest accepted; no key is derived from a header, and none written, that the [`Policy`] does not accept; every cost
//! is held against [`Limits`] before work; after a failed write the handle is poisoned.

use std::sync::Arc;

use block::{BlockIo, Bytes, Sectors};
use dmcrypt::{CipherSpec, SectorSize};
use secret::Secret;

use crate::container::check_cipher_name;
use crate::env::Env;
use crate::error::Error;
use crate::limits::Limits;
use crate::luks1::header::{KEYSLOTS, Luks1Header};
use crate::luks1::load::{load, read_bytes};
use crate::luks1::view::DIGEST;
use crate::metadata::segment::{CryptSegment, Segment};
use crate::metadata::{KeyslotId, SegmentId};
use crate::policy::Policy;
use crate::store::HeaderStore;
use crate::unlock::{self, UnlockRequest};
use crate::volume::{Extent, MapEntry, SegmentMap, Target, Volume};
use crate::volume_key::{self, VolumeKey};

/// A LUKS1 container: header store `H`, data device `D`.
pub struct Luks1Container<H: HeaderStore, D: BlockIo> {
    pub(super) store: H,
    pub(super) data: D,
    pub(super) header: Luks1Header,
    pub(super) limits: Limits,
    pub(super) policy: Policy,
    pub(super) poisoned: bool,
}

impl<H: HeaderStore, D: BlockIo> Luks1Container<H, D> {
    /// Reads and checks the header on `store`. Writes nothing. For an attached header `store` and `data` are the same device.
    ///
    /// # Errors
    /// What [`load`] says.
    pub fn open(store: H, data: D, limits: Limits) -> Result<Self, Error> {
        let header = load(&store, &limits)?;
        Ok(Luks1Container { store, data, header, limits, policy: Policy::default_preset(), poisoned: false })
    }

    /// The same under another policy, which every unlock and every edit holds against the header in memory from now on.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Luks1Container { policy, ..self }
    }

    /// Holds the policy against the header in memory, as every unlock and every edit does.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check_policy(&self) -> Result<(), Error> {
        self.policy.check_luks1(&self.header)
    }

    /// The header as it was last read or written.
    pub fn header(&self) -> &Luks1Header {
        &self.header
    }

    /// The device that holds header and keyslots.
    pub fn store(&self) -> &H {
        &self.store
    }

    /// The device that holds the data.
    pub fn data(&self) -> &D {
        &self.data
    }

    /// Reads the header again, and forgets an earlier failed write.
    ///
    /// # Errors
    /// What [`load`] says.
    pub fn reload(&mut self) -> Result<(), Error> {
        self.header = load(&self.store, &self.limits)?;
        self.poisoned = false;
        Ok(())
    }

    /// Tries `passphrase` on the enabled keyslots in their order, or only on `keyslot`.
    ///
    /// # Errors
    /// [`Error::Policy`] before anything else; what [`unlock::unlock`] says; [`Error::Luks1KeyslotRange`].
    pub fn unlock(&self, env: &Env<'_>, keyslot: Option<KeyslotId>, passphrase: &Secret) -> Result<VolumeKey, Error> {
        self.check_policy()?;
        check_id(keyslot)?;
        let request = UnlockRequest { keyslot, ..UnlockRequest::default() };
        unlock::unlock_metadata(&self.store, &self.header.metadata(), env, &self.limits, &request, passphrase)
    }

    /// Accepts a key that was presented as such, not through a keyslot.
    ///
    /// # Errors
    /// [`Error::Policy`]; [`Error::KeyRefused`] when it is another key or has the wrong length.
    pub fn verify(&self, key: Secret) -> Result<VolumeKey, Error> {
        self.check_policy()?;
        if key.len() != self.header.key_bytes as usize {
            // A key with zeros behind it has the same digest; its length tells.
            return Err(Error::KeyRefused { digest: DIGEST });
        }
        volume_key::verify(&self.header.metadata(), &self.limits, DIGEST, key)
    }

    /// The payload, for who does the encryption elsewhere: its cipher need not be one of this crate's.
    ///
    /// # Errors
    /// [`Error::Policy`]; [`Error::UnsupportedSegment`] for a cipher of more than one word; [`Error::SegmentGeometry`] if the
    /// data device cannot hold it.
    pub fn opened_segment(&self) -> Result<(Segment, CryptSegment), Error> {
        self.check_policy()?;
        check_cipher_name(SegmentId(0), &self.header.cipher())?;
        self.check_place()?;
        Ok((self.header.segment(), self.header.crypt_segment()))
    }

    /// The volume under `key`: one run of sectors of 512 bytes, IVs from 0.
    ///
    /// # Errors
    /// [`Error::Policy`]; [`Error::SegmentGeometry`] if the data device cannot hold it; a cipher that this crate does not
    /// implement.
    pub fn segment_map(&self, key: &VolumeKey) -> Result<SegmentMap, Error> {
        self.check_policy()?;
        self.check_place()?;
        let spec = CipherSpec::parse_shorthand(&self.header.cipher())?;
        let cipher = dmcrypt::build(&spec, key.expose(), SectorSize::S512)?;
        let device_offset = self.header.payload_offset();
        let target = Target::Crypt { device_offset, iv_base: Sectors(0), cipher: Arc::from(cipher) };
        SegmentMap::new(vec![MapEntry { start: Bytes(0), len: Extent::ToEnd, target }])
    }

    /// The unlocked volume, over its own handle of the data device.
    ///
    /// # Errors
    /// As [`Luks1Container::segment_map`].
    pub fn volume(&self, key: &VolumeKey, read_only: bool) -> Result<Volume<D>, Error>
    where
        D: Clone,
    {
        Ok(Volume::new(self.data.clone(), self.segment_map(key)?, read_only))
    }

    /// The unlocked volume, which takes the data device along.
    ///
    /// # Errors
    /// As [`Luks1Container::segment_map`].
    pub fn into_volume(self, key: &VolumeKey, read_only: bool) -> Result<Volume<D>, Error> {
        let map = self.segment_map(key)?;
        Ok(Volume::new(self.data, map, read_only))
    }

    /// The data device holds at least one sector of data, and no header where the data is.
    ///
    /// # Errors
    /// [`Error::SegmentGeometry`].
    fn check_place(&self) -> Result<(), Error> {
        let (offset, device) = (self.header.payload_offset(), self.data.geometry().size);
        let segment = SegmentId(0);
        if offset.checked_add(Bytes(512)).is_none_or(|end| end > device) {
            let what = format!("512 bytes at {offset} do not fit on a data device of {device}");
            return Err(Error::SegmentGeometry { segment, what });
        }
        if offset < self.header.keyslots_end() && self.data_holds_own_header()? {
            let what =
                format!("it starts at {offset}, inside the header: give the data device of this detached header");
            return Err(Error::SegmentGeometry { segment, what });
        }
        Ok(())
    }

    /// Whether the data device starts with the header of this very container.
    fn data_holds_own_header(&self) -> Result<bool, Error> {
        let bytes = match read_bytes(&self.data) {
            Err(Error::NotLuks) => return Ok(false),
            read => read?,
        };
        Ok(Luks1Header::parse(&bytes).is_ok_and(|found| found.uuid == self.header.uuid))
    }
}

/// Refuses a keyslot that LUKS1 cannot have.
pub(super) fn check_id(keyslot: Option<KeyslotId>) -> Result<(), Error> {
    match keyslot {
        Some(keyslot) if keyslot.0 >= KEYSLOTS => Err(Error::Luks1KeyslotRange { keyslot }),
        _ => Ok(()),
    }
}
