//! Open volumes: the run directory and its registry, the server process behind each open volume, its control socket,
//! mount and unmount.
//!
//! * Every open volume has a server process of its own, a fresh exec (never a fork: a forked child would read
//!   wipe-on-fork key pages as zeros and encrypt with a zero key), which hardens itself before its first secret and
//!   unlocks itself with the passphrase that arrives over its control socket.
//! * `RUN/NAME/lock` held means the server lives; there is no pid file. A server that died leaves `RUN/NAME` behind,
//!   [`status`] says so and [`close`] cleans up.
//! * [`close`] returns after the data is flushed, the device gone, the keys wiped and the server's lock free.
#![deny(unsafe_code)]

mod backend;
mod busy;
mod cgroup;
mod client;
mod close;
mod container;
pub mod doctor;
pub mod env;
pub mod error;
mod harden;
pub mod image;
#[allow(unsafe_code)]
mod inherited;
mod log_file;
mod mount;
mod mount_table;
mod open;
mod opener;
mod path_json;
mod protocol;
mod registry;
pub mod run_dir;
mod serve;
mod spawn;
mod status;
mod suspend;
mod systemd;
mod volume_server;

pub use close::{CloseOptions, CloseReport, close};
pub use env::SystemEnv;
pub use error::{Failure, FailureKind, SessionError};
pub use inherited::keep_from_children;
pub use mount::{MountOptions, MountReport, UmountReport, mount, mount_image, name_for_image, umount};
pub use open::{OpenReport, OpenRequest, open};
pub use path_json::PathJson;
pub use run_dir::{RunDir, VolumeName};
pub use serve::{SERVE_VERB, serve};
pub use spawn::ServerCommand;
pub use status::{State, Status, list, status};
pub use suspend::{resume, suspend};
