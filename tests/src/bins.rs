//! The binaries under test, found beside the test executable in cargo's target folder.

use std::path::PathBuf;

/// The `luksctl` of this build.
///
/// # Panics
/// If it was not built: `cargo build -p luksctl` first (`make test` does).
#[must_use]
pub fn luksctl() -> PathBuf {
    built("luksctl")
}

/// The `luksbench` of this build.
///
/// # Panics
/// If it was not built: `cargo build -p luksbench` first (`make test` does).
#[must_use]
pub fn luksbench() -> PathBuf {
    built("luksbench")
}

#[allow(clippy::panic)]
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    // target/debug/deps/test-1234 → target/debug/NAME
    let path = test.ancestors().nth(2).map(|folder| folder.join(name)).unwrap_or_default();
    assert!(path.is_file(), "{} is not built: run `cargo build -p luksctl -p luksbench` first", path.display());
    path
}
