//! The managed set as the verbs of keys work with it: under its lock, with its store open.

use secret::KeyProvider;
use volumes::VolumesError;
use volumes::set::{Set, SetLock, SetStore};

use crate::args::key::KeyArgs;
use crate::failure::Failure;
use crate::keys::KeySource;
use crate::verb::volume::{self, SetArgs};

/// The set, and its lock where something is changed.
pub(crate) struct Managed {
    pub(crate) set: Set,
    _lock: Option<SetLock>,
}

impl Managed {
    /// For a verb that only looks.
    pub(crate) fn looking(args: &SetArgs) -> Result<Managed, Failure> {
        let set = Set::new(args.load()?, &args.config).asking(asked()?);
        Ok(Managed { set, _lock: None })
    }

    /// For a verb that changes something: other commands wait meanwhile.
    pub(crate) fn alone(args: &SetArgs) -> Result<Managed, Failure> {
        let mut managed = Managed::looking(args)?;
        managed._lock = Some(managed.set.lock().map_err(managed.failed())?);
        crate::harden::keep_in_memory();
        Ok(managed)
    }

    /// The key store, open.
    pub(crate) fn store(&self) -> Result<SetStore, Failure> {
        self.set.store().map_err(self.failed())
    }

    /// For `map_err` of whatever was done with the set.
    pub(crate) fn failed(&self) -> impl Fn(VolumesError) -> Failure {
        |error| volume::of_volumes(self.set.path(), &error)
    }
}

/// Whoever knows the master passphrase: a person at the terminal, or the first line of standard input.
fn asked() -> Result<Box<dyn KeyProvider>, Failure> {
    Ok(Box::new(KeySource::unlocking(&KeyArgs { tries: 1, ..KeyArgs::default() }, None)?))
}
