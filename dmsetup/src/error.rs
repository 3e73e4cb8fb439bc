//! What can go wrong with a loop device: which device or file, during what, and the system's own error.

use std::io;
use std::path::{Path, PathBuf};

/// The node that gives out loop devices.
pub(crate) const CONTROL: &str = "/dev/loop-control";

/// Why a loop device could not be attached, found or detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopError {
    /// The kernel has no loop driver, or its control node is missing.
    #[error("{CONTROL} is missing: the kernel has no loop driver, or the module `loop` is not loaded")]
    NoDriver,
    /// The driver made a device, but nobody made its node.
    #[error("{} does not exist although the kernel made the device: /dev is no devtmpfs, make the node (block 7:{number})", path.display())]
    NoNode {
        /// The node that is missing.
        path: PathBuf,
        /// Its minor number.
        number: u32,
    },
    /// Every free device was taken by other processes first.
    #[error("no free loop device: {attempts} were taken by other processes while being attached")]
    NoneFree {
        /// Devices tried.
        attempts: u32,
    },
    /// The device is mounted, held exclusively, or still open after the deadline.
    #[error("{} is in use: {how}", path.display())]
    Busy {
        /// The loop device.
        path: PathBuf,
        /// By what.
        how: &'static str,
    },
    /// The kernel attached the device without something that was asked for.
    #[error("{} cannot be attached with {option}: {reason}", path.display())]
    Refused {
        /// The backing file.
        path: PathBuf,
        /// The option that the kernel dropped.
        option: &'static str,
        /// Why it usually does.
        reason: &'static str,
    },
    /// An operation on a node or a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl LoopError {
    pub(crate) fn busy(path: &Path, how: &'static str) -> LoopError {
        LoopError::Busy { path: path.to_path_buf(), how }
    }

    /// For `map_err`: `action` failed on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoopError {
        move |source| LoopError::Io { action, path: path.to_path_buf(), source }
    }
}
