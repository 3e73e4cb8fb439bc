//! Positional block I/O: the [`BlockIo`] trait and the disks that need nothing but a file or memory.
//!
//! [`FileDisk`] is a file or a block device, [`MemDisk`] memory, [`Window`] a range of another disk, [`ByteView`] the one
//! byte-granular adaptor; [`fault`] holds the disks that fail on purpose. [`Bytes`] and [`Sectors`] are the units.
//! This crate knows nothing of LUKS, of keys or of ciphers.

#![forbid(unsafe_code)]

mod chunks;
mod error;
mod io;
mod memory;
mod units;
mod window;

pub use error::{BlockError, BlockErrorKind};
pub use io::{BlockIo, Geometry};
pub use memory::MemDisk;
pub use units::{Bytes, SECTOR_BYTES, Sectors};
pub use window::Window;
