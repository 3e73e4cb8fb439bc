//! What this process does before it touches a passphrase: no core dumps, no ptrace by others of the same user, no
//! descriptor (`--key-fd`) for the programs that it starts. All are best effort (a container may forbid them) and are said
//! with `-v` when they fail. Inherited by no exec'd child.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Forbids core dumps and attaching debuggers, and keeps inherited descriptors to itself.
pub(crate) fn before_any_secret() {
    if let Err(error) = session::keep_from_children() {
        log::info!("programs started from here share the descriptors: {error}");
    }
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::info!("core dumps and ptrace stay possible: {error}");
    }
    let limit = rustix::process::getrlimit(Resource::Core);
    let none = Rlimit { current: Some(0), maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Core, none) {
        log::info!("the core dump limit stays: {error}");
    }
}
