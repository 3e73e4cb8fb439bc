//! [`KeyProvider`]: the joint between a volume that needs a key and whatever has one.
//!
//! Invariants: `Ok(None)` means "not mine" and the next provider is asked; an error stops the search. A request never
//! carries a secret.

use crate::{KeySourceError, Secret};

/// What the passphrase is wanted for; a prompt words its question by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// To open a volume, or to test a passphrase.
    Unlock,
    /// Any passphrase that opens the volume already, before its keyslots are changed.
    ExistingPassphrase,
    /// A passphrase of a keyslot that stays, before another one goes.
    RemainingPassphrase,
    /// A passphrase that is about to be set: asked for twice on a terminal.
    NewPassphrase,
    /// The passphrase of the keyslot that is about to be removed.
    PassphraseToRemove,
}

/// One question for a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyRequest<'a> {
    /// How people know the volume: a path or a name.
    pub volume: &'a str,
    /// What the key is for.
    pub purpose: Purpose,
    /// 1 for the first question, 2 after one wrong answer …
    pub attempt: u32,
}

/// Something that may have the key to a volume.
pub trait KeyProvider {
    /// Answers `request`; `None` is "not mine".
    ///
    /// # Errors
    /// [`KeySourceError`] when the source is the right one and fails.
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError>;

    /// The keyslot that the last answer is for, where the source knows it: trying others with it would be in vain.
    fn keyslot(&self) -> Option<u32> {
        None
    }
}

impl<P: KeyProvider + ?Sized> KeyProvider for &mut P {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        (**self).key_for(request)
    }

    fn keyslot(&self) -> Option<u32> {
        (**self).keyslot()
    }
}

impl<P: KeyProvider + ?Sized> KeyProvider for Box<P> {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        (**self).key_for(request)
    }

    fn keyslot(&self) -> Option<u32> {
        (**self).keyslot()
    }
}
