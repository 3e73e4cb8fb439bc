//! The same suite where the kernel denies io_uring and 8 MiB may be locked: all tests of queues, in a process of their own.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::process::Command;

/// Set for the suite that runs under the limits, so that it does not begin another one.
const INSIDE: &str = "LUKS_TEST_WITHOUT_RINGS";
const LOCKABLE_BYTES: u64 = 8 << 20;

/// Lets neither this thread nor its children make a ring, as the default filter of many container engines does.
fn deny_rings() {
    let denied = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
    let answer = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, answer, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn the_suite_passes_where_rings_are_denied_and_little_memory_may_be_locked() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let run = || {
        deny_rings();
        let mut suite = Command::new("prlimit");
        suite.arg(format!("--memlock={LOCKABLE_BYTES}")).arg(std::env::current_exe().unwrap());
        suite.args(["--nocapture", "queue::"]).env(INSIDE, "1").output().unwrap()
    };
    let output = std::thread::spawn(run).join().unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("without io_uring: "), "the kernel gave a ring: {words}");
    assert!(words.contains("access is denied (Operation not permitted"), "{words}");
}
