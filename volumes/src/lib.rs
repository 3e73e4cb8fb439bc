//! The managed set: encrypted volumes for an application, described by one file.
//!
//! [`config`] is `volumes.toml`, read whole and checked before anything acts on it; [`variables`] knows the volume
//! encryption guide's environment variables and writes them into that file; [`audit`] is the log of what was done; [`set`] is
//! the set opened to be worked with: its lock, its log, its key store; [`setup`] makes what the file describes; [`life`] is
//! what happens to volumes afterwards; [`units`] is the set as systemd units, [`compose`] the container that uses it;
//! [`compliance`] holds what is there against what a profile demands; [`adopt`] takes over a set that scripts made.
//!
//! Invariants: a configuration that [`config::Config`] holds is possible and its profile's demands are met; what nothing
//! acts on is not accepted.
#![forbid(unsafe_code)]

pub mod adopt;
pub mod approval;
pub mod audit;
pub mod compliance;
pub mod compose;
pub mod config;
mod error;
mod file_system;
pub mod header_backup;
mod image;
pub mod keys;
mod ledger;
pub mod life;
mod mount_point;
mod program;
pub mod secrets;
pub mod set;
pub mod setup;
pub mod units;
pub mod variables;

pub use error::{Trouble, VolumesError};
pub use file_system::Checked;
pub use ledger::Ledger;
