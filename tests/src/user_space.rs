//! The ways from an image to a block device that run in user space and need no driver but loop devices: our FUSE below a loop
//! device, and our NBD socket below libnbd's nbdfuse below a loop device. Driven alike, with their servers at hand to be killed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Rig;
use crate::backend::status;
use crate::rig::{mount_points, run, succeed};
use crate::skip::{needs_fuse, needs_programs, needs_root, skip};

/// For what happens a moment later.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who makes a disk of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `luksctl open --backend fuse`.
    Fuse,
    /// `luksctl open --backend nbd`, nbdfuse and a loop device.
    Nbd,
}

/// An open volume as a block device.
pub struct OpenDisk {
    way: Way,
    name: String,
    /// The loop device.
    pub device: PathBuf,
    nbdfuse: Option<(Child, PathBuf)>,
    is_open: bool,
}

/// Waits until `done`.
///
/// # Panics
/// If that takes for ever.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 2] = [Way::Fuse, Way::Nbd];

    /// Whether this machine can go this way; if not, the skip is recorded.
    #[must_use]
    pub fn is_possible(self, test: &str) -> bool {
        let programs: &[&str] = if self == Way::Nbd { &["nbdfuse", "losetup", "fusermount3"] } else { &[] };
        let can = needs_root(test) && needs_fuse(test) && needs_programs(test, programs);
        let loops = Path::new("/dev/loop-control").exists();
        if can && !loops {
            skip(test, "needs /dev/loop-control");
        }
        can && loops
    }

    /// What `--backend` calls it.
    #[must_use]
    pub fn backend(self) -> &'static str {
        match self {
            Way::Fuse => "fuse",
            Way::Nbd => "nbd",
        }
    }

    /// Opens `image` as `name` with the rig's key.
    ///
    /// # Panics
    /// If it does not open.
    #[must_use]
    pub fn open(self, rig: &Rig, image: &Path, name: &str) -> OpenDisk {
        let key = rig.key();
        let mut command = rig.luksctl(&["open", "-q", "--backend", self.backend(), "--key-file"]);
        succeed(command.arg(key).arg(image).arg(name));
        let (device, nbdfuse) = match self {
            Way::Fuse => (std::fs::canonicalize(rig.run_dir().join(name).join("device")).unwrap(), None),
            Way::Nbd => {
                let (device, child, point) = loop_over_nbd(rig, name);
                (device, Some((child, point)))
            }
        };
        OpenDisk { way: self, name: name.to_owned(), device, nbdfuse, is_open: true }
    }
}

fn loop_over_nbd(rig: &Rig, name: &str) -> (PathBuf, Child, PathBuf) {
    let point = rig.path(&format!("nbdfuse-{name}"));
    std::fs::create_dir_all(&point).unwrap();
    let uri = status(rig, name)["uri"].as_str().unwrap().to_owned();
    let child = Command::new("nbdfuse").arg(&point).arg(&uri).stdin(Stdio::null()).spawn().unwrap();
    let file = point.join("nbd");
    eventually("nbdfuse's mount", || file.exists());
    let mut attach = Command::new("losetup");
    attach.args(["--find", "--show", "--direct-io=on"]).arg(&file);
    let attached = succeed(&mut attach);
    (PathBuf::from(String::from_utf8(attached.stdout).unwrap().trim()), child, point)
}

impl OpenDisk {
    /// Closes it, in order.
    ///
    /// # Panics
    /// If it does not close, or writes were lost.
    pub fn close(mut self, rig: &Rig) {
        self.take_down(true);
        rig.close(&self.name);
    }

    /// Takes everything away after the server died or the disk below failed; what `close` said.
    pub fn tear_down(mut self, rig: &Rig) -> std::process::Output {
        self.take_down(false);
        run(&mut rig.luksctl(&["close", &self.name]))
    }

    /// Kills the server and waits until it is no more.
    ///
    /// # Panics
    /// If there is none, or it survives.
    pub fn kill_server(&self, rig: &Rig) {
        kill_server(rig, &self.name);
    }

    /// What luksctl did not put up.
    fn take_down(&mut self, must: bool) {
        self.is_open = false;
        let Some((mut child, point)) = self.nbdfuse.take() else { return };
        let detached = run(Command::new("losetup").arg("--detach").arg(&self.device));
        assert!(detached.status.success() || !must, "{detached:?}");
        // The kernel lets go of the file a moment after.
        let until = Instant::now() + PATIENCE;
        while mount_points().contains(&point) {
            let left = run(Command::new("fusermount3").arg("-u").arg(&point));
            if !left.status.success() && Instant::now() >= until {
                eprintln!("{left:?}");
                drop(run(Command::new("fusermount3").arg("-uz").arg(&point)));
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(child.wait());
    }
}

impl Drop for OpenDisk {
    /// After a failed test: whatever is still there goes, so that the machine stays usable.
    fn drop(&mut self) {
        if self.is_open {
            crate::rig::unmount_device(&self.device);
            self.take_down(false);
        }
    }
}

impl std::fmt::Display for OpenDisk {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} by {:?} on {}", self.name, self.way, self.device.display())
    }
}

/// Kills the server of the open volume `name` and waits until it is no more.
///
/// # Panics
/// If there is none, or it survives.
pub fn kill_server(rig: &Rig, name: &str) {
    let number = i32::try_from(status(rig, name)["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::KILL).unwrap();
    eventually("the death of the server", || {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat"));
        // A zombie has no memory and no files: what its parent does is not our matter.
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
}
