//! `Container`: a header store and a data device, the handle through which a LUKS2 container is unlocked, used and edited.
//!
//! Attached header: both are the same device. Detached: the header store holds header and keyslots, the data device holds
//! nothing but segments. Invariants: the header in memory is one that was read or written whole; no key is derived from a
//! header, and no header written, that the container's [`Policy`] does not accept; after a failed write of
//! metadata the handle is poisoned and refuses changes until reopened (`edit.rs`); a volume is made only of a key that a
//! digest of this header accepted.
//!
//! Source: luks2-format §4 (default segment), §5 (segments), §7.4 (size), §8.1 (IVs: the `iv_tweak` of an ordinary single
//! segment is not honoured).

use std::sync::Arc;

use block::{BlockIo, Bytes, Sectors};
use dmcrypt::{CipherSpec, SectorSize};
use secret::Secret;

use crate::binary::{BinaryHeader, Position};
use crate::env::Env;
use crate::error::Error;
use crate::header::{Header, load};
use crate::limits::{BINARY_HEADER, Limits};
use crate::metadata::SegmentId;
use crate::metadata::segment::{CryptSegment, Segment, SegmentSize};
use crate::policy::Policy;
use crate::requirements::{self, Action};
use crate::store::HeaderStore;
use crate::unlock::{self, Purpose, UnlockRequest};
use crate::volume::{Extent, MapEntry, SegmentMap, Target, Volume};
use crate::volume_key::{VolumeKey, recognise_volume_key};

/// A LUKS2 container: header store `H`, data device `D`.
pub struct Container<H: HeaderStore, D: BlockIo> {
    pub(crate) store: H,
    pub(crate) data: D,
    pub(crate) header: Header,
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) poisoned: bool,
}

impl<H: HeaderStore, D: BlockIo> Container<H, D> {
    /// Reads and checks the header on `store`. Writes nothing; damage is in `header().health()`. For an attached header
    /// `store` and `data` are the same device. Under [`Policy::default_preset`]; see [`Container::with_policy`].
    ///
    /// # Errors
    /// What [`load`] says.
    pub fn open(store: H, data: D, limits: Limits) -> Result<Self, Error> {
        let header = load(&store, &limits)?;
        Ok(Container { store, data, header, limits, policy: Policy::default_preset(), poisoned: false })
    }

    /// The same under another policy, which every unlock and every edit holds against the header in memory from now on.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Container { policy, ..self }
    }

    /// The policy that holds.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Holds the policy against the header in memory, as every unlock and every edit does.
    ///
    /// # Errors
    /// [`Error::Policy`] with every breach.
    pub fn check_policy(&self) -> Result<(), Error> {
        self.policy.check(&self.header)
    }

    /// The header as it was last read or written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The device that holds header and keyslots.
    pub fn store(&self) -> &H {
        &self.store
    }

    /// The device that holds the segments.
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

    /// Tries `passphrase` on the keyslots that `request` allows.
    ///
    /// # Errors
    /// [`Error::Policy`] before anything else; the requirements in the way, if the key is wanted for the data; what
    /// [`unlock::unlock`] says.
    pub fn unlock(&self, env: &Env<'_>, request: &UnlockRequest, passphrase: &Secret) -> Result<VolumeKey, Error> {
        self.check_policy()?;
        if request.purpose != Purpose::AnyDigest {
            requirements::check(&self.header.metadata().config, Action::Use)?;
        }
        unlock::unlock(&self.store, &self.header, env, &self.limits, request, passphrase)
    }

    /// Accepts a volume key that was presented as such, not through a keyslot.
    ///
    /// # Errors
    /// [`Error::Policy`]; [`Error::KeyUnknown`] if no digest that `purpose` allows accepts it; the requirements in the way, if the key is wanted
    /// for the data.
    pub fn recognise(&self, purpose: Purpose, key: &Secret) -> Result<VolumeKey, Error> {
        self.check_policy()?;
        if purpose != Purpose::AnyDigest {
            requirements::check(&self.header.metadata().config, Action::Use)?;
        }
        recognise_volume_key(&self.header, &self.limits, purpose, key)
    }

    /// The segment that `key` opens, for who does the encryption elsewhere: its cipher need not be one of this crate's.
    ///
    /// # Errors
    /// [`Error::Policy`]; requirements or segments that this crate does not implement, each by name;
    /// [`Error::KeyNotForSegment`]; [`Error::SegmentGeometry`] if the data device cannot hold the segment.
    pub fn opened_segment(&self, key: &VolumeKey) -> Result<(&Segment, &CryptSegment), Error> {
        self.check_policy()?;
        let metadata = self.header.metadata();
        requirements::check(&metadata.config, Action::Use)?;
        let (id, segment) = self.only_segment()?;
        let crypt = supported(id, segment)?;
        let opens = metadata.digests.get(key.digest()).is_some_and(|digest| digest.segments.contains(&id));
        if !opens {
            return Err(Error::KeyNotForSegment { digest: key.digest(), segment: id });
        }
        self.check_place(id, segment)?;
        Ok((segment, crypt))
    }

    /// The segments of the volume under `key`.
    ///
    /// # Errors
    /// As [`Container::opened_segment`], and a cipher that this crate does not implement. A null cipher gets this far only
    /// under a policy that accepts it ([`Policy::allowing_null_cipher`]).
    pub fn segment_map(&self, key: &VolumeKey) -> Result<SegmentMap, Error> {
        let (segment, crypt) = self.opened_segment(key)?;
        let sector_size = SectorSize::try_from(crypt.sector_size)?;
        let device_offset = segment.offset;
        let target = if crypt.is_unencrypted() {
            Target::Linear { device_offset }
        } else {
            let spec = CipherSpec::parse_shorthand(&crypt.encryption)?;
            let cipher = dmcrypt::build(&spec, key.expose(), sector_size)?;
            Target::Crypt { device_offset, iv_base: Sectors(0), cipher: Arc::from(cipher) }
        };
        let len = match segment.size {
            SegmentSize::Dynamic => Extent::ToEnd,
            SegmentSize::Fixed(len) => Extent::Fixed(len),
        };
        SegmentMap::new(vec![MapEntry { start: Bytes(0), len, target }])
    }

    /// The unlocked volume, over its own handle of the data device.
    ///
    /// # Errors
    /// As [`Container::segment_map`].
    pub fn volume(&self, key: &VolumeKey, read_only: bool) -> Result<Volume<D>, Error>
    where
        D: Clone,
    {
        Ok(Volume::new(self.data.clone(), self.segment_map(key)?, read_only))
    }

    /// The unlocked volume, which takes the data device along.
    ///
    /// # Errors
    /// As [`Container::segment_map`].
    pub fn into_volume(self, key: &VolumeKey, read_only: bool) -> Result<Volume<D>, Error> {
        let map = self.segment_map(key)?;
        Ok(Volume::new(self.data, map, read_only))
    }

    /// The one segment of a container that is not in re-encryption.
    fn only_segment(&self) -> Result<(SegmentId, &Segment), Error> {
        let mut regular = self.header.metadata().segments.iter().filter(|(_, segment)| !segment.is_backup());
        let first = regular.next();
        match (first, regular.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some((id, _))) => {
                Err(unsupported(id, "a second segment without a re-encryption under way".into()))
            }
            (None, _) => Err(Error::SegmentMap { what: "no segment at all".into() }),
        }
    }

    /// The data device holds the segment, and the segment does not hold the header.
    fn check_place(&self, id: SegmentId, segment: &Segment) -> Result<(), Error> {
        let device = self.data.geometry().size;
        let len = match segment.size {
            SegmentSize::Dynamic => Bytes(u64::from(segment.crypt.as_ref().map_or(512, |crypt| crypt.sector_size))),
            SegmentSize::Fixed(len) => len,
        };
        let end = segment.offset.checked_add(len);
        if end.is_none_or(|end| end > device) {
            let what = format!("{len} at {} do not fit on a data device of {device}", segment.offset);
            return Err(Error::SegmentGeometry { segment: id, what });
        }
        if segment.offset < self.header.metadata().config.keyslots_end() && self.data_holds_own_header()? {
            let what = format!(
                "it starts at {}, inside the header: give the data device of this detached header",
                segment.offset
            );
            return Err(Error::SegmentGeometry { segment: id, what });
        }
        Ok(())
    }

    /// Whether the data device holds a copy of the header of this very container; one of the two may be broken.
    fn data_holds_own_header(&self) -> Result<bool, Error> {
        let device = self.data.geometry().size;
        for (position, offset) in [(Position::Primary, Bytes(0)), (Position::Secondary, self.header.metadata_size())] {
            let end = offset.checked_add(Bytes(BINARY_HEADER as u64));
            if end.is_none_or(|end| end > device) {
                continue;
            }
            let mut start = [0u8; BINARY_HEADER];
            self.data.read_at(offset, &mut start)?;
            let found = BinaryHeader::parse(&start, position, offset);
            if found.is_ok_and(|found| found.uuid == self.header.binary().uuid) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The segment's cipher, if it is one that this crate implements.
fn supported(id: SegmentId, segment: &Segment) -> Result<&CryptSegment, Error> {
    match (segment.type_name.as_str(), &segment.crypt) {
        ("crypt", Some(crypt)) => match &crypt.integrity {
            None => check_cipher_name(id, &crypt.encryption).map(|()| crypt),
            Some(integrity) => {
                let name = integrity.get("type").and_then(|name| name.as_str()).unwrap_or("of unknown type");
                Err(unsupported(id, format!("authenticated encryption (integrity {name})")))
            }
        },
        (other, _) => Err(unsupported(id, format!("segments of type {other}"))),
    }
}

/// The cipher, which the kernel is told as one word of a line: with a blank in it, it would name another key or another
/// device. No header that was made by a program for it has such a name.
pub(crate) fn check_cipher_name(segment: SegmentId, encryption: &str) -> Result<(), Error> {
    if encryption.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Ok(());
    }
    let name: String = encryption.chars().take(80).collect();
    Err(unsupported(segment, format!("ciphers of more than one word ({name:?})")))
}

fn unsupported(segment: SegmentId, what: String) -> Error {
    Error::UnsupportedSegment { segment, what }
}
