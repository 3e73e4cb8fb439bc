//! Opening a volume through dm-crypt, in this process from the passphrase to the mapping.
//!
//! The order makes a kill harmless at every point: unlock (nothing is there yet), entry with the mapping's name and UUID,
//! loop device (goes with its last user), mapping, link, entry complete. Whoever finds an entry that is not complete and
//! not held takes the mapping away.

use std::time::SystemTime;

use block::FileDisk;
use dmsetup::{CreateOptions, DmError, LoopError, Mapper, Mapping, Uuid};
use luks::Version;
use secret::{KeyProvider, Secret};

use super::below::{self, Below};
use super::errors::{is_not_possible, session_error};
use super::{forget, mapping_name, target};
use crate::choice::DM_CRYPT;
use crate::container::{Prepared, Proof, UnlockedKey};
use crate::open::{ask, check_free, clean_entry};
use crate::protocol::UnlockOrder;
use crate::registry::{Info, MappingRecord, RegistryLock, claim, identity_of};
use crate::run_dir::{Entry, RunDir, replace_link};
use crate::{Failure, FailureKind, OpenReport, OpenRequest, SessionError};

/// Why an opening came to nothing.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// dm-crypt cannot do it here; the passphrase is right and good for another backend.
    NotPossible { reason: String, passphrase: Secret },
    /// Anything else.
    Failed(SessionError),
}

impl From<SessionError> for OpenFailure {
    fn from(error: SessionError) -> OpenFailure {
        OpenFailure::Failed(error)
    }
}

/// Opens `order.image`; `keys` is asked once per try. Nothing is left behind on an error.
pub(crate) fn open(
    run: &RunDir,
    entry: &Entry,
    order: &UnlockOrder,
    request: &OpenRequest,
    keys: &mut dyn KeyProvider,
) -> Result<OpenReport, OpenFailure> {
    let tries = request.tries.max(1);
    let mut passphrase = ask(keys, request, 1)?;
    let prepared = Prepared::open_for_kernel(order).map_err(SessionError::Refused)?;
    for attempt in 1..=tries {
        let failure = match prepared.unlock_key(Proof::of(order).for_answer(keys), &passphrase) {
            Ok(unlocked) => {
                let volume = Volume { run, entry, order, request, image: prepared.image(), unlocked: &unlocked };
                return volume.activate().map_err(|error| match error {
                    Activation::Mapping(error) if is_not_possible(&error) => {
                        OpenFailure::NotPossible { reason: error.to_string(), passphrase }
                    }
                    Activation::Mapping(error) => OpenFailure::Failed(session_error(entry.name.as_str(), error)),
                    Activation::Session(error) => OpenFailure::Failed(error),
                });
            }
            Err(failure) => failure,
        };
        if failure.kind != FailureKind::NoKey {
            return Err(SessionError::Refused(failure).into());
        }
        log::info!("try {attempt} of {tries}: {failure}");
        if attempt < tries {
            passphrase = ask(keys, request, attempt + 1)?;
        }
    }
    Err(SessionError::NoKey { tries }.into())
}

/// An unlocked volume that is about to become a mapping.
struct Volume<'a> {
    run: &'a RunDir,
    entry: &'a Entry,
    order: &'a UnlockOrder,
    request: &'a OpenRequest,
    image: &'a FileDisk,
    unlocked: &'a UnlockedKey,
}

enum Activation {
    Mapping(DmError),
    Session(SessionError),
}

impl From<DmError> for Activation {
    fn from(error: DmError) -> Activation {
        Activation::Mapping(error)
    }
}

impl From<LoopError> for Activation {
    fn from(error: LoopError) -> Activation {
        Activation::Mapping(error.into())
    }
}

impl From<SessionError> for Activation {
    fn from(error: SessionError) -> Activation {
        Activation::Session(error)
    }
}

impl Volume<'_> {
    fn activate(&self) -> Result<OpenReport, Activation> {
        let (entry, facts) = (self.entry, &self.unlocked.facts);
        let name = mapping_name(&entry.name)?;
        let uuid = match facts.version {
            Version::Luks1 => Uuid::luks1(&facts.uuid, &name)?,
            Version::Luks2 => Uuid::luks2(&facts.uuid, &name)?,
        };
        let mut info = self.info(&uuid)?;
        let registry = RegistryLock::take(self.run)?;
        check_free(self.run, entry, &self.order.image, &info.identity)?;
        clean_entry(entry)?;
        entry.create()?;
        // The record comes before the claim: an entry without one would be taken for a server's.
        let claimed = info.write(entry).and_then(|()| claim(entry));
        let lock = claimed.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = entry.remove();
        })?;
        drop(registry);
        let made = self.make(&uuid, &mut info);
        match made {
            Ok(mapping) => {
                drop(lock);
                log::info!("{} is open: {} as {}", entry.name, info.image.display(), info.device.display());
                let dropped: Vec<String> = mapping.dropped().iter().map(ToString::to_string).collect();
                if !dropped.is_empty() {
                    log::warn!("this kernel does not know {}: left away", dropped.join(", "));
                }
                Ok(self.report(info))
            }
            Err(error) => {
                if let Err(other) = forget(entry, &lock) {
                    log::warn!("{other}");
                }
                Err(error)
            }
        }
    }

    fn info(&self, uuid: &Uuid) -> Result<Info, SessionError> {
        let opened_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let record = MappingRecord {
            uuid: uuid.to_string(),
            complete: false,
            keyslot: self.unlocked.facts.keyslot,
            policy: Some(self.order.policy.clone()),
            digest: self.unlocked.digest.clone(),
        };
        Ok(Info {
            image: self.order.image.clone(),
            header: self.order.header.clone(),
            identity: identity_of(self.image),
            uuid: self.unlocked.facts.uuid.clone(),
            pid: None,
            device: mapping_path(self.entry),
            backend: DM_CRYPT.to_owned(),
            read_only: self.order.read_only,
            opened_unix_s,
            mapping: Some(record),
        })
    }

    /// Makes loop device, mapping and link; takes them away again if one fails.
    fn make(&self, uuid: &Uuid, info: &mut Info) -> Result<Mapping, Activation> {
        let name = mapping_name(&self.entry.name)?;
        let mapper = Mapper::open()?;
        let unlocked = self.unlocked;
        let below = Below::attach(self.image, self.order.read_only, unlocked.crypt.sector_size)?.ok_or_else(|| {
            let reason = "is another file than the one that was unlocked: somebody exchanged it just now".to_owned();
            SessionError::Image { image: self.order.image.clone(), reason }
        })?;
        let sectors = target::len(unlocked, below::size_sectors(below.number).unwrap_or(0));
        if sectors.0 == 0 {
            let what = format!("{} has no room for data behind its header", self.order.image.display());
            return Err(SessionError::Refused(Failure::new(FailureKind::Image, what)).into());
        }
        let options = target::options(&unlocked.flags, &self.request.flags);
        let table = target::target(unlocked, below.number, options);
        let create = CreateOptions { read_only: self.order.read_only, drop_unknown_performance_options: true };
        let key = (table.key.len_bytes() > 0).then(|| unlocked.key.secret());
        let mapping = mapper.create(&name, uuid, sectors, &table, key, create)?;
        let mut finish = || {
            replace_link(&self.entry.folder, "device", &mapping.device_path())?;
            if let Some(record) = &mut info.mapping {
                record.complete = true;
            }
            info.write(self.entry)
        };
        finish().inspect_err(|_| {
            if let Err(other) = mapping.remove(false) {
                log::error!("{other}");
            }
        })?;
        Ok(mapping)
    }

    fn report(&self, info: Info) -> OpenReport {
        OpenReport {
            name: self.entry.name.to_string(),
            link: self.entry.device(),
            device: info.device,
            backend: info.backend,
            uri: None,
            tls_uri: None,
            uuid: info.uuid,
            keyslot: self.unlocked.facts.keyslot,
            pid: None,
            not_possible: Vec::new(),
        }
    }
}

fn mapping_path(entry: &Entry) -> std::path::PathBuf {
    std::path::Path::new("/dev/mapper").join(entry.name.as_str())
}
