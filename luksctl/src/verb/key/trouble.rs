//! What the key store says no to: exit code and the next command.

use keystore::Error;

use crate::exit::{self, Code};
use crate::failure::Failure;

/// What the key store says.
pub(crate) fn of_key_store(error: &Error) -> Failure {
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
