//! Positional block I/O: the [`BlockIo`] trait and the disks that need nothing but a file or memory.
//!
//! [`FileDisk`] is a file or a block device, [`MemDisk`] memory, [`Window`] a range of another disk, [`ByteView`] the one
//! byte-granular adaptor; [`fault`] holds the disks that fail on purpose. [`BlockQueue`] is block I/O by submission and
//! completion. [`Bytes`] and [`Sectors`] are the units.
//! This crate knows nothing of LUKS, of keys or of ciphers.

#![deny(unsafe_code)]

mod aligned;
mod byte_view;
mod chunks;
mod error;
pub mod fault;
mod file;
mod io;
mod lock;
mod memory;
mod queue;
mod range_lock;
pub mod signature;
mod units;
mod window;

pub use aligned::{AlignedBuf, BUFFER_ALIGNMENT_BYTES, BufferPool, PooledBuf};
pub use byte_view::{ByteView, zero_fill};
pub use error::{BlockError, BlockErrorKind};
pub use file::{Direct, FileDisk, OpenMode};
pub use io::{BlockIo, Geometry};
pub use lock::{LockError, MetadataLock, UseLock};
pub use memory::MemDisk;
pub use queue::{
    BlockQueue, Completion, FileQueue, Full, IoBuf, IoUringQueue, LARGE_BUFFER_BYTES, PreadBecause, PreadQueue,
    QueueOp, SMALL_BUFFER_BYTES, Waker,
};
pub use units::{Bytes, SECTOR_BYTES, Sectors};
pub use window::Window;
