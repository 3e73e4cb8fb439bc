//! What the cross-crate tests share: finding the built binaries, saying why a test was skipped, and a rig that runs the
//! real `luksctl` in a folder of its own and leaves nothing open behind it.
#![allow(clippy::print_stderr)]

pub mod backend;
pub mod bins;
pub mod crash;
pub mod crypt_volume;
pub mod disk_model;
pub mod file_tree;
pub mod forge;
pub mod kernel_leftovers;
pub mod keyring;
pub mod ledger;
pub mod leftovers;
pub mod managed;
pub mod managed_set;
pub mod memory;
pub mod postgres;
pub mod random;
pub mod rig;
pub mod served;
pub mod skip;
pub mod tracer;
pub mod user_space;
pub mod vm;
pub mod write_log;

pub use rig::Rig;
pub use skip::skip;

/// The README's example, compiled as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
