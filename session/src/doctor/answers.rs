//! [`Answers`]: what the running system's calls say. The only part of the doctor that asks the machine; it judges nothing.
//!
//! Invariant: a device node is opened only when its driver is registered. Opening any other would make the kernel load a
//! module (`request_module("char-major-…")`).

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use luks::env::MemoryBudget as _;
use rustix::process::{DumpableBehavior, Resource, getrlimit};

use super::{Root, kernel_calls, modules};
use crate::{SystemEnv, run_dir, spawn};

/// Pages that one volume's keys take, which are locked for the trial.
const TRIAL_BYTES: usize = 64 << 10;
/// Major number of the "misc" devices, which all control nodes are.
const MISC_MAJOR: u32 = 10;

/// How far this process gets with a device node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Node {
    /// There is none.
    Missing,
    /// Something else is there.
    Foreign,
    /// It is there; its driver is not, so it was not opened.
    Driverless,
    /// It could not be opened, with the system's words.
    Closed(String),
    /// It can be opened for reading and writing.
    Open,
}

/// What the device-mapper says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapperDriver {
    /// Version of its interface.
    pub version: String,
    /// Names and versions of the targets that are there now.
    pub targets: Vec<(String, String)>,
}

/// What system calls answered.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Effective user.
    pub effective_uid: u32,
    /// Release of the running kernel.
    pub kernel_release: String,
    /// `/dev/mapper/control`.
    pub mapper_control: Node,
    /// The device-mapper's own answer, or why there is none.
    pub mapper_driver: Result<MapperDriver, String>,
    /// `/dev/loop-control`.
    pub loop_control: Node,
    /// `/dev/fuse`.
    pub fuse: Node,
    /// Whether a ring could be made, or why not.
    pub io_uring: Result<(), String>,
    /// Whether a key could be added and read, or why not.
    pub keyring: Result<(), String>,
    /// The AES code in use.
    pub aes_engine: String,
    /// RLIMIT_MEMLOCK in bytes; `None`: unlimited.
    pub memlock_limit_bytes: Option<u64>,
    /// Whether 64 KiB could be locked.
    pub memory_locks: bool,
    /// RLIMIT_CORE in bytes that the process was started with; `None`: unlimited.
    pub core_limit_bytes: Option<u64>,
    /// Whether this process would leave a core dump.
    pub dumpable: bool,
    /// Whether the clock is synchronised, if the kernel says.
    pub clock_synchronised: Option<bool>,
    /// The time, in seconds since 1970.
    pub now_s: i64,
    /// When this program was made, in seconds since 1970; 0 if unknown.
    pub built_s: i64,
    /// Whether randomness is ready.
    pub randomness_ready: bool,
    /// Memory of the machine.
    pub memory_total_bytes: u64,
    /// Memory that a key derivation can have, cgroups counted.
    pub memory_available_bytes: u64,
    /// Folders that programs are looked for in.
    pub search_path: Vec<PathBuf>,
    /// The run directory.
    pub run_directory: PathBuf,
    /// Whether this build can use loop devices and the device-mapper.
    pub kernel_path_built: bool,
}

impl Answers {
    /// Asks the running system, whose files are below `root`.
    #[must_use]
    pub fn of_the_running_system(root: &Root, core_limit_bytes: Option<u64>) -> Answers {
        let node = |path: &str, minor: u32, name: &str| {
            let registered = modules::is_misc_device(root, name);
            probe(Path::new(path), minor, registered)
        };
        let mapper_control = node("/dev/mapper/control", 236, "device-mapper");
        Answers {
            effective_uid: rustix::process::geteuid().as_raw(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            mapper_driver: mapper_driver(&mapper_control),
            mapper_control,
            loop_control: node("/dev/loop-control", 237, "loop-control"),
            fuse: node("/dev/fuse", 229, "fuse"),
            io_uring: kernel_calls::io_uring().map_err(|error| error.to_string()),
            keyring: kernel_calls::keyring().map_err(|error| error.to_string()),
            aes_engine: dmcrypt::kernel_and_reason(),
            memlock_limit_bytes: getrlimit(Resource::Memlock).current,
            memory_locks: secret::Secret::zeroed(TRIAL_BYTES).is_ok_and(|trial| trial.is_locked()),
            core_limit_bytes,
            dumpable: !matches!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)),
            clock_synchronised: kernel_calls::clock_is_synchronised(),
            now_s: seconds(SystemTime::now()),
            built_s: std::env::current_exe()
                .and_then(std::fs::metadata)
                .and_then(|metadata| metadata.modified())
                .map_or(0, seconds),
            randomness_ready: kernel_calls::randomness_is_ready(),
            memory_total_bytes: SystemEnv.total().0,
            memory_available_bytes: SystemEnv.available().0,
            search_path: std::env::split_paths(&spawn::search_path()).collect(),
            run_directory: std::path::absolute(run_dir::usual_path()).unwrap_or_default(),
            kernel_path_built: cfg!(feature = "loop"),
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn probe(path: &Path, minor: u32, registered: bool) -> Node {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Node::Missing,
        Err(error) => return Node::Closed(error.to_string()),
    };
    if !metadata.file_type().is_char_device() || metadata.rdev() != rustix::fs::makedev(MISC_MAJOR, minor) {
        return Node::Foreign;
    }
    if !registered {
        return Node::Driverless;
    }
    match open(path) {
        Ok(_) => Node::Open,
        Err(error) => Node::Closed(error.to_string()),
    }
}

fn mapper_driver(control: &Node) -> Result<MapperDriver, String> {
    if *control != Node::Open {
        return Err("its control node was not opened".to_owned());
    }
    open(Path::new("/dev/mapper/control"))
        .and_then(|control| kernel_calls::mapper_driver(&control))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_its_driver_is_not_opened() {
        let null = Path::new("/dev/null");
        assert_eq!(probe(null, 3, true), Node::Foreign);
        assert_eq!(probe(Path::new("/nowhere/at/all"), 3, true), Node::Missing);
        assert_eq!(probe(Path::new("/proc/self/status"), 3, true), Node::Foreign);
        let fuse = Path::new("/dev/fuse");
        if fuse.exists() {
            assert_eq!(probe(fuse, 229, false), Node::Driverless);
        }
    }
}
