//! The errors of this crate: what, where, which value, how to mend it. None can hold a byte of a secret.

use std::io;
use std::path::PathBuf;

/// An error of the caller's own, from behind [`crate::Slots`].
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and on which file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
    /// The source of the master secret failed.
    #[error("the master secret: {0}")]
    Source(#[from] secret::KeySourceError),
    /// Others may read what only the owner may.
    #[error("{path} has mode {mode:04o}, so others can read or change it: chmod {wanted:o} {path}")]
    Mode {
        /// Which file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Those it should have.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to user {user} or root: chown it")]
    Owner {
        /// Which file or folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Not a regular file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// Another process has the store.
    #[error("{path} is in use by another command")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A file is larger than it may be.
    #[error("{file} has more than {limit_bytes} bytes")]
    TooLarge {
        /// Which file.
        file: String,
        /// The most it may have.
        limit_bytes: usize,
    },
    /// The master secret has an impossible size.
    #[error("the master secret of {what} has {got_bytes} bytes; it needs {least_bytes} to {limit_bytes}")]
    MasterSize {
        /// Which source.
        what: String,
        /// How many it has.
        got_bytes: usize,
        /// The least.
        least_bytes: usize,
        /// The most.
        limit_bytes: usize,
    },
    /// The source has no master secret.
    #[error("there is no master secret in {what}")]
    NoMaster {
        /// Which source.
        what: String,
    },
    /// The command that should print the master secret failed.
    #[error("the command {program} for the master secret {problem}")]
    Command {
        /// Which program.
        program: String,
        /// How it failed.
        problem: String,
    },
    /// A parameter is out of bounds.
    #[error("{field} is {value}; it must be {least} to {most}")]
    OutOfBounds {
        /// Which parameter.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// The master secret is not the one that the store was made with.
    #[error("this master secret is not the one of the store")]
    WrongMaster,
    /// There is a store already.
    #[error("there is a key store already ({file})")]
    Exists {
        /// The file that says so.
        file: String,
    },
    /// There is no store.
    #[error("there is no key store ({file} is missing)")]
    NoStore {
        /// The file that is missing.
        file: String,
    },
    /// A name that no key or value can have.
    #[error("{name:?} cannot be a name: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A member of the metadata makes no sense.
    #[error("{file}: {field} {problem}")]
    Field {
        /// Which file.
        file: &'static str,
        /// The path of the member, such as `keys.data.generations[0].state`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The metadata was changed by something else.
    #[error("key_metadata.json was changed by something other than this program: its authentication code does not fit")]
    MetadataChanged,
    /// The whole store was put back to an older state.
    #[error("the key store is at epoch {epoch}, but was at {expected} before: an older copy was put back")]
    OlderStore {
        /// What the store says.
        epoch: u64,
        /// What was seen before.
        expected: u64,
    },
    /// The store went on from an older state.
    #[error("the key store at epoch {epoch} is not the one that was seen at this epoch: it went on from an older copy")]
    ForkedStore {
        /// The epoch.
        epoch: u64,
    },
    /// This is another store.
    #[error("this is key store {found}, not {expected}")]
    OtherStore {
        /// What was found.
        found: uuid::Uuid,
        /// What was expected.
        expected: uuid::Uuid,
    },
    /// A file is not sealed.
    #[error("{file} is not a sealed file of a key store")]
    NotSealed {
        /// Which file.
        file: String,
    },
    /// A file has a version that is not known here.
    #[error("{file} has format version {version}, which is not known here")]
    Version {
        /// Which file.
        file: String,
        /// Its version.
        version: u16,
    },
    /// A sealed file is cut off or too long.
    #[error("{file} has {got_bytes} bytes, its header says {wanted_bytes}: it is cut off or not whole")]
    SealedSize {
        /// Which file.
        file: String,
        /// How many it has.
        got_bytes: usize,
        /// How many it should have.
        wanted_bytes: usize,
    },
    /// A sealed file is another one than it should be.
    #[error("{file} was sealed as {field} {found}, not {wanted}: it was swapped with another file")]
    Swapped {
        /// Which file.
        file: String,
        /// What differs.
        field: &'static str,
        /// What stands in the file.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A sealed file of another generation than the metadata has.
    #[error("{file} holds generation {found}, but generation {wanted} is in use: an older or newer copy was put there")]
    OtherGeneration {
        /// Which file.
        file: String,
        /// The generation in the file.
        found: u64,
        /// The generation of the metadata.
        wanted: u64,
    },
    /// A sealed file under another master secret.
    #[error("{file} was sealed under another master secret than that of the store")]
    OtherMaster {
        /// Which file.
        file: String,
    },
    /// A sealed file that was edited or is damaged.
    #[error("{file} is damaged or was edited: its authentication code does not fit")]
    Changed {
        /// Which file.
        file: String,
    },
    /// A sealed file is not there.
    #[error("{file} is missing")]
    Missing {
        /// Which file.
        file: String,
    },
    /// No such key.
    #[error("there is no key {name:?} in the store")]
    NoKey {
        /// Its name.
        name: String,
    },
    /// The key is in the wrong state.
    #[error("key {name:?} {problem}")]
    State {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A write failed before.
    #[error("writing the key store failed before; what it holds now must be read again")]
    Reopen,
    /// Too many of something.
    #[error("the store has {limit} {what} already, the most it can have")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// The volume could not be asked or changed.
    #[error("the volume of key {name:?}: {source}")]
    Slots {
        /// Whose volume.
        name: String,
        /// What the volume's side said.
        source: BoxedError,
    },
    /// The rotation can neither go on nor back.
    #[error("the rotation of key {name:?} stopped after {step:?}: {problem}")]
    Stuck {
        /// Whose key.
        name: String,
        /// The last durable step.
        step: crate::Step,
        /// Why.
        problem: &'static str,
    },
    /// What was typed is no recovery key.
    #[error("this is no recovery key: {problem}")]
    RecoveryKey {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A backup of keys does not open.
    #[error("{file}: {problem}")]
    Backup {
        /// Which backup.
        file: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl Error {
    /// For `map_err`: what was tried, around what the system said.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source: source.into() }
    }
}
