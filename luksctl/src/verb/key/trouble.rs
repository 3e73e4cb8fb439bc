//! What the key store says no to: exit code and the next command.

use std::path::Path;

use keystore::Error;
use volumes::VolumesError;

use crate::exit::{self, Code};
use crate::failure::Failure;
use crate::verb::volume;

/// What the crate of the set says, about the file at `path`, an image or the key store.
pub(super) fn of_set(path: &Path, error: &VolumesError) -> Failure {
    match error {
        VolumesError::KeyStore(error) => of_key_store(error),
        VolumesError::Luks { path, source } => {
            Failure::new(exit::of_luks(source), error.to_string()).with_hint(format!("luksctl dump {}", path.display()))
        }
        VolumesError::Block { path, source } => Failure::of_block_open(path, source),
        VolumesError::SetBusy { .. } => {
            Failure::busy(error.to_string()).with_hint("try again when the other command is done")
        }
        VolumesError::AuditBusy { .. } | VolumesError::AuditState { .. } => {
            Failure::wrong(error.to_string()).with_hint("luksctl audit verify")
        }
        VolumesError::Secret(error) => Failure::new(exit::of_secret(error), error.to_string()),
        VolumesError::KeySource(error) => Failure::of_key_source(error),
        other => volume::of_volumes(path, other),
    }
}

/// What the key store says.
fn of_key_store(error: &Error) -> Failure {
    let words = error.to_string();
    match error {
        Error::Mode { path, wanted, .. } => {
            Failure::wrong(words).with_hint(format!("chmod {wanted:o} {}", path.display()))
        }
        Error::Owner { path, .. } => Failure::wrong(words).with_hint(format!("ls -l {}", path.display())),
        Error::WrongMaster | Error::NoMaster { .. } => Failure::new(Code::Permission, words)
            .with_hint("look at keys.master of `luksctl volume config show`; the key store is as it was"),
        Error::NoStore { .. } => Failure::device(words).with_hint("luksctl volume setup"),
        Error::Exists { .. } => Failure::busy(words).with_hint("luksctl key report"),
        Error::Busy { .. } => Failure::busy(words).with_hint("try again when the other command is done"),
        Error::OlderStore { .. } | Error::ForkedStore { .. } | Error::OtherStore { .. } => Failure::wrong(words)
            .with_hint("find out who put it back; if it is meant, `luksctl key verify --accept-older`"),
        Error::NoKey { .. } | Error::Missing { .. } => Failure::device(words).with_hint("luksctl key report"),
        Error::Secret(error) => Failure::new(exit::of_secret(error), words),
        Error::Source(error) => Failure::of_key_source(error),
        _ => Failure::wrong(words).with_hint("luksctl key verify"),
    }
}
