//! The kernel path: dm-crypt mappings, the kernel keyring, and loop devices below or on top of a volume.
//!
//! One file per kernel idea: [`mapper`] opens device-mapper and makes mappings, [`mapping`] is one of them,
//! [`crypt_table`] its table as text and as a type, [`key_reference`] the table's word for the key, [`name`] what
//! mappings are called; [`loop_device`] attaches, finds and detaches loop devices. `ioctl`, `dm_ioctl`, `semaphore` and
//! `keyctl` hold the only unsafe code, one system interface each.
//!
//! * No key bytes are ever in a table, in an ioctl's buffer or in a log: a table names a `logon` key, which is in this
//!   thread's keyring only while the table is loaded.
//! * A loop device is identified by the device and inode numbers of its backing file, never by its path: a renamed or
//!   hard-linked image is the same image.
#![deny(unsafe_code)]

pub mod crypt_option;
pub mod crypt_table;
mod dm_error;
#[allow(unsafe_code)]
mod dm_ioctl;
mod error;
#[allow(unsafe_code)]
mod ioctl;
pub mod key_reference;
#[allow(unsafe_code)]
mod keyctl;
mod keyring;
pub mod loop_device;
pub mod mapper;
pub mod mapping;
pub mod name;
mod node;
#[allow(unsafe_code)]
mod semaphore;
mod udev;

pub use crypt_option::CryptOption;
pub use crypt_table::{Backing, CryptTable, CryptTarget};
pub use dm_error::DmError;
pub use error::LoopError;
pub use key_reference::{KeyReference, KeyType};
pub use loop_device::{
    LoopDevice, LoopInfo, LoopOptions, attach, attached, detach, detach_within, find_by_backing, info, is_busy,
    set_capacity,
};
pub use mapper::{CreateOptions, Mapper, TargetVersion, has_device_mapper};
pub use mapping::{Mapping, MappingInfo, Removal, SuspendOptions, TargetRange};
pub use name::{DevNo, Name, Owner, Uuid};
pub use udev::remove_orphaned_cookies;
