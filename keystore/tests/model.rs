//! The store on a model of a file system and of a volume, which can lose power at every change.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "model/cut.rs"]
mod cut;
#[path = "model/disk.rs"]
mod disk;
#[path = "model/operations.rs"]
mod operations;
#[path = "model/rotations.rs"]
mod rotations;
#[path = "model/volume.rs"]
mod volume;
