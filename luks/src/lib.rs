//! The LUKS2 on-disk format: header copies, metadata, keyslots, digests, segments, volumes. And LUKS1, in [`luks1`]; a
//! container of either version is an [`AnyContainer`].
//!
//! Source: the LUKS2 on-disk format specification v1.1.4 and experiments recorded in `docs/format-notes.md`.
//!
//! Invariants: no system calls, no terminal, no clock (these come in through [`env::Env`]); opening never writes;
//! no panic on any input; every loop, allocation and key-derivation cost that an image asks for is held against
//! [`Limits`] first. Trust is a type: [`HeaderCopy`] (checksum held) → [`Header`] (copies reconciled, every rule of
//! the format checked) → volume key (a digest accepted it).
#![forbid(unsafe_code)]

pub mod af;
pub mod any;
pub(crate) mod area;
pub mod backup;
pub mod binary;
pub mod calibrate;
pub mod check;
pub mod container;
pub mod convert;
pub mod copy;
pub mod digest_check;
pub mod edit;
pub mod env;
pub mod error;
pub mod format;
pub mod hash;
pub mod header;
pub(crate) mod hex;
pub mod json;
pub mod kdf;
pub mod limits;
pub mod luks1;
pub mod metadata;
pub mod policy;
pub mod repair;
pub mod replace;
pub mod requirements;
pub mod restore;
pub mod rule;
pub mod store;
pub mod unlock;
pub(crate) mod validate;
pub mod volume;
pub mod volume_key;
pub(crate) mod write;

pub use any::{AnyContainer, AnyHeader, Unlock, Version, load_any};
pub use backup::Backup;
pub use binary::BinaryHeader;
pub use container::Container;
pub use copy::{HeaderCopy, Position};
pub use edit::erase::doomed;
pub use edit::{ActivationFlag, HeaderSettings, LastSlot, NewKeyslot};
pub use error::Error;
pub use format::{FormatParams, FormatPlan, NewKdf};
pub use hash::HashAlg;
pub use header::{CopyState, Header, Health, load, load_unlocked};
pub use json::JsonMap;
pub use kdf::KdfParams;
pub use limits::Limits;
pub use luks1::{Luks1Container, Luks1Header, Luks1Slot};
pub use metadata::config::Config;
pub use metadata::digest::Digest;
pub use metadata::keyslot::{Af, Area, Argon2Variant, Kdf, Keyslot, KeyslotKind, Luks2Slot, Priority};
pub use metadata::segment::{CryptSegment, OpalSegment, Segment, SegmentSize};
pub use metadata::slot_name::SlotName;
pub use metadata::token::Token;
pub use metadata::{ById, DigestId, KeyslotId, Metadata, ObjectId, SegmentId, TokenId};
pub use policy::Policy;
pub use replace::{NoRecovery, Recovery};
pub use rule::{Rule, Violation};
pub use store::{HeaderStore, LockMode};
pub use unlock::{Purpose, UnlockRequest, unlock};
pub use volume::{SegmentMap, Volume, VolumeQueue};
pub use volume_key::{VolumeKey, recognise_volume_key, verify_volume_key};
