//! The kernel path: loop devices on top of an exported volume.
//!
//! One file per kernel idea: [`loop_device`] attaches, finds and detaches loop devices; `ioctl` holds the only unsafe
//! code. A loop device is identified by the device and inode numbers of its backing file, never by its path: a renamed
//! or hard-linked image is the same image.
#![deny(unsafe_code)]

mod error;
#[allow(unsafe_code)]
mod ioctl;
pub mod loop_device;

pub use error::LoopError;
pub use loop_device::{
    LoopDevice, LoopInfo, LoopOptions, attach, attached, detach, detach_within, find_by_backing, info, is_busy,
    set_capacity,
};
