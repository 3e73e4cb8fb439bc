//! The kernel's own NBD client: `/dev/nbdN` on one end of a socket pair whose other end this process serves.
//!
//! * By ioctl, not by netlink. The thread that sits in `NBD_DO_IT` is one of the server's: when the server is killed, the kernel
//!   fails what waits, at once, and lets the device go. A device that was connected by netlink keeps the requests that a dead server
//!   had taken until they time out, and a request may take any time here: a suspended volume lets them wait.
//!   The price: a signal that stops or freezes that thread disconnects the device.
//! * One connection. With several, the kernel takes a request that was not answered for 30 seconds to another one and gives
//!   the first one up, suspended or not.
//! * A device is free if the kernel takes a socket for it; whoever comes second takes the next one.
//!
//! Sources: `drivers/block/nbd.c` and `include/uapi/linux/nbd.h` of Linux 6.12, `Documentation/admin-guide/blockdev/nbd.rst`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use export::nbd::NbdFacts;

use crate::{Failure, FailureKind, busy};

/// Devices that are tried; the module makes 16 unless it is told otherwise.
const DEVICES_MAX: usize = 1024;
/// The kernel sets the size when it has begun.
const START_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Largest request that the kernel makes: what a thread of the server has memory for.
const REQUEST_MAX_KIB: &str = "1024";

/// `_IO(0xab, n)`.
const NBD_SET_SOCK: libc::Ioctl = 0xab00;
const NBD_SET_BLKSIZE: libc::Ioctl = 0xab01;
const NBD_DO_IT: libc::Ioctl = 0xab03;
const NBD_CLEAR_SOCK: libc::Ioctl = 0xab04;
const NBD_SET_SIZE_BLOCKS: libc::Ioctl = 0xab07;
const NBD_DISCONNECT: libc::Ioctl = 0xab08;
const NBD_SET_TIMEOUT: libc::Ioctl = 0xab09;
const NBD_SET_FLAGS: libc::Ioctl = 0xab0a;

/// A device of the kernel that this process serves.
pub(crate) struct NbdDevice {
    path: PathBuf,
    control: File,
    read_only: bool,
    /// Sits in the kernel for as long as the device is connected.
    runner: Option<JoinHandle<()>>,
}

/// Why this process cannot attach any; `None` if it seems that it can.
pub(crate) fn hindrance() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can attach /dev/nbdN".to_owned());
    }
    numbers()
        .is_empty()
        .then(|| "this kernel has no NBD devices; `modprobe nbd` loads the driver, if it has one".to_owned())
}

/// The devices that there are.
fn numbers() -> Vec<u32> {
    let listed = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("nbd").and_then(|digits| digits.parse().ok());
    let mut numbers: Vec<u32> = listed.filter_map(|entry| entry.file_name().to_str().and_then(number)).collect();
    numbers.sort_unstable();
    numbers.truncate(DEVICES_MAX);
    numbers
}

/// Where the kernel tells of a device.
fn sysfs(device: &Path, file: &str) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join(file)
}

/// Whether `device` is one of the kernel's NBD client.
fn is_nbd(device: &Path) -> bool {
    device.parent() == Some(Path::new("/dev"))
        && device.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nbd"))
}

/// Whether `device` is one of the kernel's NBD client that nobody runs any more, so it was not given to somebody else who does.
pub(crate) fn is_abandoned(device: &Path) -> bool {
    let runner = std::fs::read_to_string(sysfs(device, "pid")).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
    is_nbd(device) && runner.is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

impl NbdDevice {
    /// Attaches a free device to `socket`, whose other end is served already.
    pub(crate) fn attach(socket: OwnedFd, facts: NbdFacts) -> Result<NbdDevice, Failure> {
        let failed = |what: String| Failure::new(FailureKind::System, what);
        if let Some(reason) = hindrance() {
            return Err(failed(reason));
        }
        let (tell, told) = channel();
        let run = move || run(&socket, facts, &tell);
        let runner = std::thread::Builder::new()
            .name("nbd-kernel".to_owned())
            .spawn(run)
            .map_err(|error| failed(format!("cannot start a thread: {error}")))?;
        let (path, control) = match told.recv() {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(failed("the thread that attaches an NBD device ended".to_owned())),
        };
        let mut device = NbdDevice { path, control, read_only: facts.read_only, runner: Some(runner) };
        if let Err(what) = device.wait_until_there(facts.size_bytes) {
            device.disconnect();
            return Err(failed(what));
        }
        if let Err(error) = std::fs::write(sysfs(&device.path, "queue/max_sectors_kb"), REQUEST_MAX_KIB) {
            log::debug!("requests of {} stay as long as they are: {error}", device.path.display());
        }
        Ok(device)
    }

    fn wait_until_there(&self, size_bytes: u64) -> Result<(), String> {
        let until = Instant::now() + START_WAIT;
        let expected = (size_bytes / 512).to_string();
        while std::fs::read_to_string(sysfs(&self.path, "size")).is_ok_and(|size| size.trim() != expected) {
            if self.is_lost() || Instant::now() >= until {
                return Err(format!("the kernel did not connect {}; `dmesg` may say why", self.path.display()));
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// The block device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody disconnected it.
    pub(crate) fn is_lost(&self) -> bool {
        self.runner.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Who uses it, in words; empty if nobody does.
    pub(crate) fn users(&self) -> Vec<String> {
        if self.is_lost() {
            return Vec::new();
        }
        let mut users = busy::users(&self.path);
        if users.is_empty() && matches!(self.hold(), Err(error) if error.raw_os_error() == Some(libc::EBUSY)) {
            users.push("mounted or held exclusively (in another mount namespace?)".to_owned());
        }
        users
    }

    /// Whether a file system on it is mounted here.
    pub(crate) fn is_mounted(&self) -> bool {
        busy::is_mounted(&self.path)
    }

    /// Opens it so that nobody else can mount it.
    fn hold(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(!self.read_only).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(&self.path)
    }

    /// Writes back what the kernel caches and takes the device away. `Ok(Some)` tells which writes were lost.
    ///
    /// # Errors
    /// Busy: nothing has changed then.
    pub(crate) fn detach(&mut self) -> Result<Option<String>, Failure> {
        if self.is_lost() {
            self.disconnect();
            return Ok(None);
        }
        let held = self.hold().map_err(|error| {
            Failure::new(FailureKind::Busy, format!("{} cannot be had alone: {error}", self.path.display()))
        })?;
        let synced = if self.read_only { Ok(()) } else { held.sync_all() };
        self.disconnect();
        Ok(synced.err().map(|error| format!("{} could not be written back: {error}", self.path.display())))
    }

    fn disconnect(&mut self) {
        let Some(runner) = self.runner.take() else {
            return;
        };
        if !runner.is_finished()
            && let Err(error) = ioctl(&self.control, NBD_DISCONNECT, 0)
        {
            log::error!("cannot disconnect {}: {error}", self.path.display());
        }
        if runner.join().is_err() {
            log::error!("the thread of {} panicked", self.path.display());
        }
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// Connects a free device, tells which one it is, and stays in the kernel until it is disconnected. The kernel demands that one
/// thread does all of this.
fn run(socket: &OwnedFd, facts: NbdFacts, tell: &Sender<Result<(PathBuf, File), String>>) {
    let connected = connect(socket, facts).and_then(|(path, device)| match device.try_clone() {
        Ok(control) => Ok((path, device, control)),
        Err(error) => Err(error.to_string()),
    });
    let (path, device, control) = match connected {
        Ok(connected) => connected,
        Err(what) => return drop(tell.send(Err(what))),
    };
    if tell.send(Ok((path.clone(), control))).is_err() {
        return;
    }
    match ioctl(&device, NBD_DO_IT, 0) {
        Ok(()) => log::info!("{} is disconnected", path.display()),
        Err(error) => log::warn!("{} is disconnected: {error}", path.display()),
    }
    // What still waits fails, and the device is free for the next one.
    if let Err(error) = ioctl(&device, NBD_CLEAR_SOCK, 0) {
        log::warn!("cannot clear {}: {error}", path.display());
    }
}

fn connect(socket: &OwnedFd, facts: NbdFacts) -> Result<(PathBuf, File), String> {
    let mut last = "every NBD device is in use; `modprobe -r nbd; modprobe nbd nbds_max=64` makes more".to_owned();
    for number in numbers() {
        let path = PathBuf::from(format!("/dev/nbd{number}"));
        // Connected, as far as the kernel tells; the socket is what decides.
        if sysfs(&path, "pid").exists() {
            continue;
        }
        match connect_one(&path, socket, facts) {
            Ok(device) => return Ok((path, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => last = format!("{} cannot be attached: {error}", path.display()),
        }
    }
    Err(last)
}

fn connect_one(path: &Path, socket: &OwnedFd, facts: NbdFacts) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
    ioctl(&device, NBD_SET_SOCK, u64::from(socket.as_raw_fd().unsigned_abs()))?;
    let block_bytes = u64::from(facts.block_bytes.max(1));
    let settings = [
        (NBD_SET_BLKSIZE, block_bytes),
        (NBD_SET_SIZE_BLOCKS, facts.size_bytes / block_bytes),
        (NBD_SET_FLAGS, u64::from(facts.flags)),
        (NBD_SET_TIMEOUT, 0),
    ];
    for (request, value) in settings {
        if let Err(error) = ioctl(&device, request, value) {
            // The device must not keep our socket.
            drop(ioctl(&device, NBD_CLEAR_SOCK, 0));
            return Err(error);
        }
    }
    Ok(device)
}

/// One of the driver's ioctls, all of which take a number and no pointer.
fn ioctl(device: &File, request: libc::Ioctl, value: u64) -> io::Result<()> {
    let descriptor: RawFd = device.as_raw_fd();
    // SAFETY: the descriptor is open while `device` is borrowed, and every request named here takes its argument by value, so
    // the kernel touches no memory of ours.
    let result = unsafe { libc::ioctl(descriptor, request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_the_driver_are_taken_for_some() {
        for (path, expected) in
            [("/dev/nbd0", true), ("/dev/loop0", false), ("/run/x/nbd", false), ("/dev/x/nbd0", false)]
        {
            assert_eq!(is_nbd(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_kernel_without_devices_is_said_to_be_one() {
        if rustix::process::geteuid().is_root() && numbers().is_empty() {
            assert!(hindrance().is_some_and(|reason| reason.contains("modprobe nbd")));
            let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            let facts = NbdFacts { size_bytes: 4096, block_bytes: 512, flags: 1, read_only: false };
            assert!(
                NbdDevice::attach(socket.into(), facts).is_err_and(|failure| failure.message.contains("modprobe nbd"))
            );
        }
    }
}
