//! Unlocking an open volume again: a table with another length or other flags, or a wiped key, needs the volume key anew.
//!
//! The header is read where the volume is: in the image of the entry if it still is that file, else on the device below
//! the mapping, past the page cache. What is unlocked must be what is mapped, see [`target::recognised`].

use std::path::{Path, PathBuf};

use block::{Direct, FileDisk, OpenMode};
use dmsetup::{CryptTable, CryptTarget};
use luks::{AnyContainer, Error, Policy};
use secret::{KeyProvider, KeyRequest, Purpose, Secret};

use super::errors::session_error;
use super::{Subject, below, target};
use crate::container::{FileContainer, Proof, UnlockedKey, unlock_key};
use crate::registry::{MappingRecord, identity};
use crate::{FailureKind, SessionError, UnlockAgain};

/// An active mapping with the container that it was made of.
pub(super) struct Mapped<'a> {
    subject: &'a Subject,
    pub(super) live: CryptTable,
    container: FileContainer,
    again: &'a UnlockAgain,
}

impl<'a> Mapped<'a> {
    /// Reads the live table and the header.
    pub(super) fn read(subject: &'a Subject, again: &'a UnlockAgain) -> Result<Mapped<'a>, SessionError> {
        let live = subject.found.mapping.table().map_err(|error| session_error(subject.name(), error))?;
        let data = data_path(subject, &live)?;
        let recorded = || subject.info().and_then(|info| info.header.clone());
        let header = again.header.clone().or_else(recorded).unwrap_or_else(|| data.clone());
        let header_disk = open(&header)?;
        let data_disk = if header == data { header_disk.clone() } else { open(&data)? };
        let container = AnyContainer::open(header_disk, data_disk, again.limits.clone())
            .map_err(|source| SessionError::Luks { path: header.clone(), source })?;
        let record = subject.info().and_then(|info| info.mapping.as_ref());
        let container = judged(container, record, again.policy.as_ref())
            .map_err(|source| SessionError::Luks { path: header, source })?;
        Ok(Mapped { subject, live, container, again })
    }

    /// The key that `passphrase` opens, and the live target with its key reference anew.
    pub(super) fn unlock(&self, passphrase: &Secret) -> Result<(UnlockedKey, CryptTarget), SessionError> {
        self.unlock_with(Proof::Passphrase { keyslot: self.again.keyslot }, passphrase)
    }

    fn unlock_with(&self, proof: Proof, secret: &Secret) -> Result<(UnlockedKey, CryptTarget), SessionError> {
        let unlocked = unlock_key(&self.container, proof, secret).map_err(|failure| {
            if failure.kind == FailureKind::NoKey {
                SessionError::NoKey { tries: 1 }
            } else {
                SessionError::Refused(failure)
            }
        })?;
        let target = target::recognised(&self.subject.found, &self.live, self.subject.info(), &unlocked)?;
        Ok((unlocked, target))
    }

    /// As [`Mapped::unlock`], asking `keys` as often as it may.
    pub(super) fn unlock_asking(&self, keys: &mut dyn KeyProvider) -> Result<(UnlockedKey, CryptTarget), SessionError> {
        let tries = self.again.tries.max(1);
        for attempt in 1..=tries {
            let question = KeyRequest { volume: self.subject.name(), purpose: Purpose::Unlock, attempt };
            let passphrase = keys
                .key_for(&question)?
                .ok_or_else(|| SessionError::NoKeySource { name: self.subject.name().to_owned() })?;
            let proof = Proof::Passphrase { keyslot: self.again.keyslot }.for_answer(keys);
            match self.unlock_with(proof, &passphrase) {
                Err(SessionError::NoKey { .. }) => log::info!("try {attempt} of {tries}: wrong passphrase"),
                other => return other,
            }
        }
        Err(SessionError::NoKey { tries })
    }
}

/// The policy of the opening goes on holding, and besides it the one that is named now.
fn judged(
    container: FileContainer,
    record: Option<&MappingRecord>,
    named: Option<&Policy>,
) -> Result<FileContainer, Error> {
    let opened_under = record.and_then(|record| record.policy.as_ref()).map(Policy::from);
    let container = container.with_policy(opened_under.unwrap_or_default());
    container.check_policy()?;
    named.map_or(Ok(()), |policy| policy.check_any(&container.header())).map(|()| container)
}

fn data_path(subject: &Subject, live: &CryptTable) -> Result<PathBuf, SessionError> {
    if let Some(info) = subject.info()
        && identity(&info.image).is_ok_and(|now| now == info.identity)
    {
        return Ok(info.image.clone());
    }
    target::device(live).and_then(below::node).ok_or_else(|| SessionError::ForeignMapping {
        name: subject.name().to_owned(),
        what: "the device below it is not known".to_owned(),
    })
}

fn open(path: &Path) -> Result<FileDisk, SessionError> {
    let mode = OpenMode { read_only: true, direct: Direct::IfPossible, exclusive: false };
    FileDisk::open(path, &mode).map_err(|source| SessionError::Block { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use luks::{FormatParams, KdfParams, Limits, NewKdf};

    use super::*;
    use crate::SystemEnv;
    use crate::registry::DigestMark;

    #[test]
    fn a_mapping_goes_on_under_the_policy_that_it_was_opened_under() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(20 << 20).unwrap();
        let disk =
            FileDisk::open(&path, &OpenMode { read_only: false, direct: Direct::Never, exclusive: false }).unwrap();
        let kdf = NewKdf::Given(KdfParams::minimal_for_random_key());
        let passphrase = Secret::copy_of(b"passphrase").unwrap();
        let params = FormatParams { kdf, ..FormatParams::default() };
        luks::format::format(&disk, &disk, &SystemEnv.env(), &params, &passphrase).unwrap();

        let record = |policy: Option<&Policy>| MappingRecord {
            uuid: String::new(),
            complete: true,
            keyslot: None,
            policy: policy.map(Into::into),
            digest: DigestMark { id: 0, salt: None, value: None },
        };
        let (default, strict) = (Policy::default_preset(), Policy::strict());
        let accepted = |record: Option<&MappingRecord>, named: Option<&Policy>| {
            let container = AnyContainer::open(disk.clone(), disk.clone(), Limits::default()).unwrap();
            judged(container, record, named).is_ok()
        };
        // 1000 iterations: the default policy takes them, strict does not.
        assert!(accepted(None, None) && accepted(Some(&record(None)), None));
        assert!(accepted(Some(&record(Some(&default))), Some(&default)));
        assert!(!accepted(Some(&record(Some(&strict))), None), "forgotten");
        assert!(!accepted(Some(&record(Some(&strict))), Some(&default)), "a weaker one took its place");
        assert!(!accepted(Some(&record(Some(&default))), Some(&strict)), "the one that is named holds, too");
        assert!(!accepted(None, Some(&strict)));
        let text = serde_json::to_string(&record(Some(&strict))).unwrap();
        assert_eq!(serde_json::from_str::<MappingRecord>(&text).unwrap(), record(Some(&strict)));
    }
}
