//! Promise: what our userspace dm-crypt writes, the stock kernel's dm-crypt reads, and the reverse.
//!
//! Runs in the VM lane (tests/vm/run): this machine's kernel need not have device-mapper.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use promises::vm;

#[test]
fn vm_the_kernel_is_the_one_that_the_lane_promises() {
    if !vm::needs_vm("vm_the_kernel_is_the_one_that_the_lane_promises") {
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(release.starts_with("6.12."), "the guest runs {release}");
    for node in ["/dev/mapper/control", "/dev/loop-control", "/dev/fuse", "/dev/ublk-control"] {
        assert!(std::path::Path::new(node).exists(), "the guest has no {node}");
    }
    let udev = std::path::Path::new("/run/udev/control").exists();
    assert_eq!(udev, vm::has_udev(), "udevd's socket in this round");
}
