//! What this process does before it touches a passphrase: no core dumps, no ptrace by others of the same user, no
//! descriptor (`--key-fd`) for the programs that it starts. All are best effort (a container may forbid them) and are said
//! with `-v` when they fail. Inherited by no exec'd child.

use std::sync::OnceLock;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

static CORE_LIMIT_AT_START: OnceLock<Option<u64>> = OnceLock::new();

/// The core size limit in bytes that the caller's shell gave, before this process set its own to 0; `None`: unlimited.
pub(crate) fn core_limit_at_start_bytes() -> Option<u64> {
    *CORE_LIMIT_AT_START.get_or_init(|| rustix::process::getrlimit(Resource::Core).current)
}

/// Forbids core dumps and attaching debuggers, and keeps inherited descriptors to itself.
pub(crate) fn before_any_secret() {
    if let Err(error) = session::keep_from_children() {
        log::info!("programs started from here share the descriptors: {error}");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::info!("core dumps and ptrace stay possible: {error}");
    }
    core_limit_at_start_bytes();
    let limit = rustix::process::getrlimit(Resource::Core);
    let none = Rlimit { current: Some(0), maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Core, none) {
        log::info!("the core dump limit stays: {error}");
    }
}

/// Keeps the memory of a process that is going to hold a volume key out of swap, where the system lets it.
pub(crate) fn keep_in_memory() {
    if let Err(error) = session::lock_memory() {
        log::info!("only key pages are locked: {error}");
    }
}
