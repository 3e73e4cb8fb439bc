//! What the server process gives up and asks for before its first secret.
//!
//! * Not dumpable: no core dump, no ptrace by the same user, `/proc/PID/mem` closed. RLIMIT_CORE 0 as well.
//! * An I/O flusher (Linux 5.6): memory that the kernel frees by writing to our device must not wait for memory that we
//!   ask for. It is inherited by threads that start later, so it comes before the first one.
//! * mlockall on fault only where locking has no limit: under the usual 8 MiB of RLIMIT_MEMLOCK it would make later
//!   allocations fail. Key pages are locked one by one in any case.
//! * Never the OOM killer's choice, where allowed: killing the server under a mounted file system loses its writes.
//!
//! None of them is an error: what was denied is kept and shown by `status`. Source: prctl(2), mlockall(2), proc(5).

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, configure_io_flusher_behavior, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities};

/// What the pages of one volume's keys take at the least.
const KEYS_MIN_BYTES: u64 = 64 << 10;
const OOM_SCORE_NEVER: &str = "-1000";

/// Hardens this process and returns what the system denied, one line each. To be called before any thread starts.
pub(crate) fn harden() -> Vec<String> {
    let mut denied = Vec::new();
    let mut note = |what: &str, result: std::io::Result<()>| {
        if let Err(error) = result {
            denied.push(format!("{what}: {error}"));
        }
    };
    // While the process is not dumpable, its /proc files belong to root: this one first.
    note("protection from the OOM killer", std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_NEVER));
    note("no core dumps and no ptrace", set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Into::into));
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    note("core size limit 0", setrlimit(Resource::Core, no_core).map_err(Into::into));
    note("exemption from memory reclaim (io flusher)", configure_io_flusher_behavior(true).map_err(Into::into));
    if locking_is_unlimited() {
        note("locking all memory", lock_all());
    } else {
        let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
        let locked = if limit < KEYS_MIN_BYTES { "keys may be swapped, too" } else { "only key pages are locked" };
        denied.push(format!("locking all memory: the limit is {limit} bytes ({locked})"));
    }
    denied
}

/// Keeps what this process touches from now on out of swap, as a server does, where locking has no limit. For a process that
/// is about to hold a volume key itself; it is not to be called by one that lives long with much memory.
///
/// # Errors
/// What the system denies; with a limit only key pages are locked, one by one.
pub fn lock_memory() -> std::io::Result<()> {
    if locking_is_unlimited() { lock_all() } else { Ok(()) }
}

fn lock_all() -> std::io::Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(Into::into)
}

fn locking_is_unlimited() -> bool {
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    capable || getrlimit(Resource::Memlock).current.is_none()
}
