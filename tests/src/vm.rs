//! The VM lane, seen from a test: whether it runs inside the guest, and what this round of the guest has.
//!
//! `tests/vm/run` boots a stock kernel and runs there every test of the binaries `vm_*` whose name contains `vm_`; its
//! first process sets the variables below. Outside of the guest such a test skips itself.

use std::path::PathBuf;

use crate::skip;

/// Whether this test runs inside the guest; if not, the skip is recorded (`make test` counts the guest's answer instead).
#[must_use]
pub fn needs_vm(test: &str) -> bool {
    let inside = variable_is("LUKS_VM", "1");
    if !inside {
        skip(test, "runs in the VM lane: make test-vm");
    }
    inside
}

/// Whether the longer matrix is wanted (`make test-vm-full`).
#[must_use]
pub fn is_full() -> bool {
    variable_is("LUKS_VM_FULL", "yes")
}

/// Whether udevd runs in this round.
#[must_use]
pub fn has_udev() -> bool {
    variable_is("LUKS_VM_UDEV", "yes")
}

/// Whether this round is the one for `test`: in the short lane, whose rounds run side by side, a long test runs in one of
/// them, with udevd or without; in the full lane in both. If not, the skip is recorded.
#[must_use]
pub fn is_round_for(test: &str, udev: bool) -> bool {
    let wanted = is_full() || has_udev() == udev;
    if !wanted {
        skip(test, "in the short lane the other round runs it");
    }
    wanted
}

/// The guest's work disk: ext4 on virtio, some GiB, empty at the start of a round. Also the temporary folder of every
/// test, so a `Rig` lies on it.
#[must_use]
pub fn work_disk() -> PathBuf {
    PathBuf::from("/work")
}

/// What the lane's check of itself wants this round to break, if anything.
#[must_use]
pub fn wanted_breakage() -> Option<String> {
    std::env::var("LUKS_VM_BREAK").ok().filter(|breakage| !breakage.is_empty())
}

fn variable_is(name: &str, value: &str) -> bool {
    std::env::var_os(name).is_some_and(|found| found == value)
}
