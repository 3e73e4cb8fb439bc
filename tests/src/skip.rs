//! Skipped tests say so: one line per skip on stderr and in the file that the test runner sums up.

use std::io::Write as _;

/// Names the file that collects the skips; the test runner sets it.
const SKIP_FILE_VARIABLE: &str = "LUKS_TEST_SKIPS";

/// Records that `test` did not run on this machine, and why.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os(SKIP_FILE_VARIABLE) else {
        return;
    };
    let line = format!("{test}: {reason}\n");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("could not record the skip of {test}: {error}");
    }
}

/// Whether the test runs as root; if not, the skip is recorded.
pub fn needs_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Whether every one of `programs` is on the PATH; if not, the skip is recorded.
pub fn needs_programs(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|name| find_program(name).is_none()).collect();
    if !missing.is_empty() {
        skip(test, &format!("needs {} (run tests/setup)", missing.join(", ")));
    }
    missing.is_empty()
}

/// Whether this process can open `/dev/fuse`; if not, the skip is recorded.
pub fn needs_fuse(test: &str) -> bool {
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = &open {
        skip(test, &format!("needs /dev/fuse: {error}"));
    }
    open.is_ok()
}

/// The path of a program on the PATH or in the system folders that root's PATH has.
#[must_use]
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(Into::into))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
