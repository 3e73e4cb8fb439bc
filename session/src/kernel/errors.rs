//! What device-mapper says, in the words of this crate.

use std::path::PathBuf;

use dmsetup::{DmError, LoopError};

use crate::{Failure, FailureKind, SessionError};

/// `error` of the mapping `name`.
pub(super) fn session_error(name: &str, error: DmError) -> SessionError {
    let kind = match &error {
        DmError::NotActive { .. } => return SessionError::NotOpen { name: name.to_owned() },
        DmError::Busy { how, .. } => return SessionError::Busy { name: name.to_owned(), how: (*how).to_owned() },
        DmError::BackingBusy { device } => {
            let how = "the kernel holds it: a mounted file system, RAID, LVM, another mapping or swap".to_owned();
            return SessionError::ImageInUse { image: PathBuf::from(device), how };
        }
        DmError::Foreign { targets, .. } => {
            let what = format!("not one crypt target, it has {targets}");
            return SessionError::ForeignMapping { name: name.to_owned(), what };
        }
        DmError::NameInUse { .. } | DmError::UuidInUse { .. } => FailureKind::Busy,
        DmError::NoPermission { .. } => FailureKind::Permission,
        DmError::BackingReadOnly { .. } | DmError::BackingGone { .. } | DmError::BackingShrank { .. } => {
            FailureKind::Image
        }
        DmError::Suspended { .. } | DmError::NotSuspended { .. } | DmError::KeyNeeded { .. } => FailureKind::State,
        DmError::Loop(LoopError::Busy { .. }) => FailureKind::Busy,
        DmError::Loop(_) => FailureKind::Loop,
        DmError::Io { .. } => FailureKind::System,
        _ => FailureKind::Mapping,
    };
    SessionError::Refused(Failure::new(kind, error.to_string()))
}

/// Whether `error` says that this machine, or this process, has no dm-crypt for this volume: another backend may do.
pub(super) fn is_not_possible(error: &DmError) -> bool {
    matches!(
        error,
        DmError::NoDeviceMapper
            | DmError::NoCryptTarget
            | DmError::NoKeyring { .. }
            | DmError::KeyringQuota { .. }
            | DmError::NoPermission { .. }
            | DmError::NoCipher { .. }
            | DmError::TableRefused { .. }
            | DmError::Loop(LoopError::NoDriver | LoopError::NoNode { .. })
    )
}
