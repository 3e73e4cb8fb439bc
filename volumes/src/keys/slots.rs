//! [`VolumeSlots`]: the keyslots of one volume of the set, as a rotation needs them. Every change goes through the container's
//! own transaction (lock, read again, compare, write), as that of `luksctl keyslot` does.
//!
//! Invariants: each question is asked of the header on the disk now; "opens nothing" is only said when every keyslot could be
//! tried; the keyslot of the key that stays is never removed; the container has the UUID that the key was made for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Direct, FileDisk, OpenMode};
use keystore::{BoxedError, Slots};
use luks::calibrate::{Effort, KdfChoice, KdfCost, calibrate};
use luks::{
    Container, Error, HashAlg, KdfParams, KeyslotId, LastSlot, Limits, NewKeyslot, Purpose, SlotName, UnlockRequest,
    VolumeKey,
};
use secret::Secret;
use session::SystemEnv;
use uuid::Uuid;

use super::VolumeKeys;
use crate::VolumesError;
use crate::config::{Kdf, VolumeSpec};

/// More keyslots than a LUKS2 header has.
const KEYSLOTS_MAX: usize = 32;
/// What a keyslot of the set is called in `luksctl keyslot list`.
const SLOT_NAME: &str = "key of the managed set";

type FileContainer = Container<Arc<FileDisk>, Arc<FileDisk>>;

/// The keyslots of one volume of a set.
pub struct VolumeSlots<'a> {
    path: PathBuf,
    volume: Uuid,
    kdf: Kdf,
    hash: String,
    /// Writes backups of keys before an old keyslot goes; none where nobody wants them.
    keys: Option<&'a mut VolumeKeys>,
}

impl fmt::Debug for VolumeSlots<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeSlots").field("path", &self.path).field("volume", &self.volume).finish_non_exhaustive()
    }
}

impl<'a> VolumeSlots<'a> {
    /// The keyslots of the container that `spec` names, which must have the UUID `volume`.
    #[must_use]
    pub fn new(spec: &VolumeSpec, volume: Uuid) -> VolumeSlots<'a> {
        let path = spec.place.path().to_owned();
        VolumeSlots { path, volume, kdf: spec.kdf, hash: spec.hash.clone(), keys: None }
    }

    /// The same, with `keys` told before an old keyslot is wiped.
    #[must_use]
    pub fn telling(self, keys: &'a mut VolumeKeys) -> VolumeSlots<'a> {
        VolumeSlots { keys: Some(keys), ..self }
    }

    fn container(&self, read_only: bool) -> Result<FileContainer, VolumesError> {
        let disk = disk(&self.path, read_only)?;
        let opened = Container::open(Arc::clone(&disk), disk, Limits::default()).map_err(self.failed())?;
        let found = opened.header().uuid().to_string();
        if Uuid::parse_str(&found).ok() != Some(self.volume) {
            let what = format!("is container {found}, not {}: the image was replaced", self.volume);
            return Err(VolumesError::File { path: self.path.clone(), what });
        }
        Ok(opened)
    }

    fn failed(&self) -> impl Fn(Error) -> VolumesError {
        let path = self.path.clone();
        move |source| VolumesError::Luks { path: path.clone(), source }
    }

    /// The volume key that `key` opens in one of the keyslots; none if there is no such keyslot. A keyslot that could not be
    /// tried is an error: it may be the one.
    fn unlocked(
        &self,
        container: &FileContainer,
        purpose: Purpose,
        key: &Secret,
    ) -> Result<Option<VolumeKey>, VolumesError> {
        let request = UnlockRequest { keyslot: None, purpose };
        match container.unlock(&SystemEnv.env(), &request, key) {
            Ok(key) => Ok(Some(key)),
            Err(Error::NoKey { broken, .. } | Error::NoUsableKeyslot { broken }) if broken.is_empty() => Ok(None),
            Err(Error::NoKey { broken, .. }) => Err(self.failed()(Error::NoUsableKeyslot { broken })),
            Err(error) => Err(self.failed()(error)),
        }
    }

    /// What a new keyslot costs: as the set's file says.
    fn parameters(&self) -> Result<NewKeyslot, VolumesError> {
        let hash = HashAlg::parse(&self.hash).map_err(self.failed())?;
        let (choice, cost) = match self.kdf {
            Kdf::Pbkdf2 { iterations } => {
                let effort = Effort::Forced { iterations };
                (KdfChoice::Pbkdf2 { hash }, KdfCost { effort, ..KdfCost::default() })
            }
            Kdf::Argon2id { memory, passes, lanes } => {
                let memory_kib = u32::try_from(memory.0.get() >> 10).unwrap_or(u32::MAX);
                let effort = Effort::Forced { iterations: passes };
                let (memory_kib, parallel) = (Some(memory_kib), Some(lanes));
                (KdfChoice::Argon2id, KdfCost { effort, memory_kib, parallel, ..KdfCost::default() })
            }
        };
        let kdf: KdfParams = calibrate(&SystemEnv.env(), choice, &cost).map_err(self.failed())?;
        let name = Some(SlotName::new(SLOT_NAME));
        Ok(NewKeyslot { hash, name, ..NewKeyslot::new(kdf) })
    }

    fn try_add(&self, existing: &Secret, new: &Secret) -> Result<(), VolumesError> {
        let mut container = self.container(false)?;
        let key = self.unlocked(&container, Purpose::DefaultSegment, existing)?;
        let key = key.ok_or_else(|| self.failed()(Error::NoUsableKeyslot { broken: Vec::new() }))?;
        container.keyslot_add(&SystemEnv.env(), &key, new, &self.parameters()?).map(drop).map_err(self.failed())
    }

    fn try_remove(&self, key: &Secret, remaining: &Secret) -> Result<(), VolumesError> {
        let mut container = self.container(false)?;
        for _ in 0..KEYSLOTS_MAX {
            let Some(opened) = self.unlocked(&container, Purpose::AnyDigest, key)? else { return Ok(()) };
            let Some(id) = opened.keyslot() else { return Ok(()) };
            let stays = self.unlocked(&container, Purpose::DefaultSegment, remaining)?;
            let stays = stays.and_then(|stays| stays.keyslot());
            if stays.is_none_or(|stays: KeyslotId| stays == id) {
                return Err(self.failed()(Error::LastKeyslot { keyslot: id }));
            }
            container.keyslot_kill(&SystemEnv.env(), id, LastSlot::Refuse).map_err(self.failed())?;
        }
        Ok(())
    }

    /// Takes keyslots out of the header whose removal was cut off: their areas are wiped already.
    ///
    /// # Errors
    /// [`VolumesError::Luks`], [`VolumesError::Block`].
    pub fn finish_removals(&self) -> Result<(), VolumesError> {
        if self.container(true)?.half_removed().map_err(self.failed())?.is_empty() {
            return Ok(());
        }
        self.container(false)?.finish_removals(&SystemEnv.env()).map(drop).map_err(self.failed())
    }
}

impl Slots for VolumeSlots<'_> {
    fn opens(&mut self, key: &Secret) -> Result<bool, BoxedError> {
        Ok(self.unlocked(&self.container(true)?, Purpose::DefaultSegment, key)?.is_some())
    }

    fn add(&mut self, existing: &Secret, new: &Secret) -> Result<(), BoxedError> {
        Ok(self.try_add(existing, new)?)
    }

    fn before_removal(
        &mut self,
        write: &mut dyn FnMut(&mut dyn keystore::Files) -> Result<String, keystore::Error>,
    ) -> Result<(), BoxedError> {
        self.keys.as_deref_mut().map_or(Ok(()), |keys| Ok(keys.before_removal(write)?))
    }

    fn remove(&mut self, key: &Secret, remaining: &Secret) -> Result<(), BoxedError> {
        Ok(self.try_remove(key, remaining)?)
    }
}

/// Opens the file or device for others to use as well. A block device that others may use is read and written past its page
/// cache: docs/crash-safety.md.
fn disk(path: &Path, read_only: bool) -> Result<Arc<FileDisk>, VolumesError> {
    use std::os::unix::fs::FileTypeExt as _;
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let direct = if is_device { Direct::IfPossible } else { Direct::Never };
    let disk = FileDisk::open(path, &OpenMode { read_only, direct, exclusive: false });
    disk.map(Arc::new).map_err(|source| VolumesError::Block { path: path.to_owned(), source })
}
