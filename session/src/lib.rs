//! Open volumes: the run directory and its registry, the server process behind each open volume, its control socket,
//! mount and unmount.
//!
//! * A volume is open through the kernel's dm-crypt, which needs no process beside it, or through a server of ours: see
//!   [`BackendChoice`]. What follows is about servers.
//! * Every served volume has a server process of its own, a fresh exec (never a fork: a forked child would read
//!   wipe-on-fork key pages as zeros and encrypt with a zero key), which hardens itself before its first secret and
//!   unlocks itself with the passphrase that arrives over its control socket.
//! * `RUN/NAME/lock` held means the server lives; there is no pid file. A server that died leaves `RUN/NAME` behind,
//!   [`status`] says so and [`close`] cleans up. One that was killed and cannot end is helped to.
//! * [`close`] returns after the data is flushed, the device gone, the keys wiped and the server's lock free.
#![deny(unsafe_code)]

mod backend;
mod busy;
mod cgroup;
mod change;
mod choice;
mod client;
mod close;
mod container;
mod cpu;
pub mod doctor;
mod dying;
pub mod env;
pub mod error;
mod harden;
pub mod image;
#[allow(unsafe_code)]
mod inherited;
#[cfg_attr(not(feature = "loop"), path = "kernel_absent.rs")]
mod kernel;
mod log_file;
mod lookup;
mod mount;
mod mount_table;
#[allow(unsafe_code)]
mod nbd_device;
mod open;
mod opener;
mod path_json;
pub mod policy;
mod processes;
mod protocol;
mod registry;
pub mod run_dir;
mod serve;
mod spawn;
mod status;
mod suspend;
mod systemd;
mod ublk_recovery;
mod volume_server;

pub use change::{ResizeReport, UnlockAgain, refresh, resize};
pub use choice::{BackendChoice, MappingFlags, NotPossible, automatic_backend};
pub use close::{CloseOptions, CloseReport, close};
pub use cpu::{CPU_VARIABLE, obey_cpu_variable};
pub use env::SystemEnv;
pub use error::{Failure, FailureKind, SessionError};
pub use harden::lock_memory;
pub use inherited::keep_from_children;
pub use mount::{MountOptions, MountReport, UmountReport, mount, mount_image, name_for_image, umount};
pub use mount_table::is_mount_point;
pub use open::{Listen, OpenReport, OpenRequest, open};
pub use path_json::PathJson;
pub use processes::working_below;
pub use run_dir::{RunDir, VolumeName};
pub use serve::{SERVE_VERB, serve};
pub use spawn::{ServerCommand, search_path};
pub use status::{State, Status, list, status};
pub use suspend::{resume, suspend};
