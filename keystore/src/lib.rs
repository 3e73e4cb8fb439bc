//! The key store: sealed keys of volumes in a folder, their generations, policy and rotation journal; sealed small values;
//! and the backup of all keys that opens without this program.
//!
//! [`Store`] is the folder, opened with a [`Master`] secret that a [`master::MasterSource`] gave. Every file in it is sealed
//! ([`sealed`]) or authenticated ([`metadata`]). [`rotate`] changes the key of a volume through [`Slots`], so that a cut
//! anywhere leaves a volume that opens with what the store holds. Nothing here knows LUKS, reads the wall clock or has a
//! terminal. The format is described to the byte in `docs/keystore.md`.
#![forbid(unsafe_code)]

mod error;
pub mod files;
pub mod key_backup;
pub mod limits;
pub mod master;
pub mod metadata;
mod name;
mod openpgp;
mod policy;
mod recovery;
mod rotation;
pub mod sealed;
mod store;
mod tarball;
mod timestamp;

pub use error::{BoxedError, Error};
pub use files::{Files, Folder};
pub use master::Master;
pub use metadata::{Generation, KeyKind, KeyRecord, KeyState, Metadata, OldKey, Rotation, Step};
pub use name::KeyName;
pub use policy::{DueKey, DueReport, Policy};
pub use recovery::RecoveryKey;
pub use rotation::{Decision, Facts, Outcome, Slots, Wish, decide, rotate, settle};
pub use store::{Checked, Head, Store};
pub use timestamp::Timestamp;
