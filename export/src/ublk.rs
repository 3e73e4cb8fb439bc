//! Disks as `/dev/ublkbN`, block devices of the kernel whose requests this process serves, through ublk (Linux 6.4).
//!
//! * **A queue per CPU**, four at most, each with a thread that owns a request from its arrival to its answer: the disk below
//!   is a [`BlockQueue`], so a cipher runs inline, and nothing is allocated per request. The kernel copies the data once.
//! * **No silent success.** A request is answered after the disk did it, with the disk's own error number. The device says that
//!   it has a volatile cache and FUA, so file systems flush; see `desk`.
//! * **No hole is ever zero.** Zeros go to the disk as zeros; a discard is what the disk makes of it.
//! * **When this process dies** the driver fails what waits and takes the block device away. What stays is its number, until
//!   [`remove`]; the [`UblkOptions::mark`] tells whose it was. With [`Recovery::Offered`] requests wait for another server
//!   instead, and what was in hand is asked again: a write may be done twice, so nothing else may write to the disk meanwhile.
//!
//! The driver's interface is small, and spoken here: see `docs/ublk.md` for why not through a crate.
//!
//! Source: `Documentation/block/ublk.rst`, `drivers/block/ublk_drv.c` of Linux 6.12 for what the document leaves open.

mod abi;
mod desk;
#[allow(unsafe_code)] // The one wrapper around the rings of the driver.
mod rings;
mod server;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use block::{BlockError, BlockQueue, Geometry};
use rustix::io::Errno;

use abi::{DeviceInfo, DeviceState};
use rings::ControlRing;
use server::QueueServer;

const CONTROL: &str = "/dev/ublk-control";
const DEVICES: &str = "/sys/class/ublk-char";
/// Queues when [`UblkOptions::queues`] is 0: one per CPU, but no more than these.
const DEFAULT_QUEUES_MAX: usize = 4;
/// Most queues.
const QUEUES_MAX: usize = 64;
/// Requests of a queue that are under way at once.
pub const QUEUE_DEPTH: u16 = 32;
/// From the kernel's answer to the node in `/dev`, and from the end of a device to the end of its number.
const NODE_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Devices of the driver that are looked at.
const DEVICES_MAX: usize = 4096;

/// What happens to requests when this process dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// They fail, and the device goes.
    #[default]
    No,
    /// They wait until another process serves the device, or removes it.
    Offered,
    /// The same, and this is that process: it goes on with the device of this number.
    GoOn(u32),
}

/// How to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UblkOptions {
    /// Queues, a thread each; 0 for one per CPU (four at most); lowered to 64.
    pub queues: usize,
    /// Refuse writes, also when the disk itself would take them.
    pub read_only: bool,
    /// What the driver keeps beside the device, for [`marked`] to find it by.
    pub mark: u64,
    /// What happens to requests when this process dies.
    pub recovery: Recovery,
}

/// Why there is no such device, or it does not go.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UblkError {
    /// The driver cannot be spoken to.
    #[error("{0}")]
    NotPossible(String),
    /// The driver refused.
    #[error("the driver ublk_drv cannot {step}: {source}")]
    Driver {
        /// What was asked of it.
        step: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The disk gave no queue.
    #[error("cannot open a queue to the disk: {0}")]
    Disk(BlockError),
    /// A thread did not start, or ended too early.
    #[error("cannot start a thread for a queue of the device: {0}")]
    Thread(io::Error),
}

/// Opens the disk's queue on the thread that will use it, for this many requests at once.
pub type OpenQueue = dyn Fn(usize) -> Result<Box<dyn BlockQueue>, BlockError> + Send + Sync;

/// Why this process cannot make a ublk device; `None` if it seems that it can. Loads no module.
#[must_use]
pub fn hindrance() -> Option<String> {
    Control::open().err().map(|error| error.to_string())
}

/// The driver's control device.
struct Control {
    ring: ControlRing,
}

impl Control {
    fn open() -> Result<Control, UblkError> {
        let no = |reason: String| Err(UblkError::NotPossible(reason));
        let file = match OpenOptions::new().read(true).write(true).open(CONTROL) {
            Ok(file) => file,
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                    return no(format!(
                        "there is no {CONTROL}; load the module: modprobe ublk_drv (Linux 6.4 or newer)"
                    ));
                }
                Some(Errno::ACCESS | Errno::PERM) if !rustix::process::geteuid().is_root() => {
                    return no("it needs root".to_owned());
                }
                _ => return no(format!("{CONTROL} does not open: {error}")),
            },
        };
        match ControlRing::new(file) {
            Ok(ring) => Ok(Control { ring }),
            Err(error) => no(format!("the driver is spoken to through io_uring, which is denied here: {error}")),
        }
    }

    fn call(
        &mut self,
        step: &'static str,
        command: u32,
        device: u32,
        structure: &mut [u8],
        data: u64,
    ) -> Result<(), UblkError> {
        self.ring.call(command, device, structure, data).map_err(|source| UblkError::Driver { step, source })
    }

    fn info(&mut self, device: u32) -> Result<DeviceInfo, UblkError> {
        let mut bytes = [0; DeviceInfo::BYTES];
        self.call("describe a device", abi::GET_DEV_INFO, device, &mut bytes, 0)?;
        Ok(DeviceInfo::from_bytes(&bytes))
    }

    /// A new device, without a disk yet.
    fn add(&mut self, options: &UblkOptions) -> Result<DeviceInfo, UblkError> {
        let wanted = match options.queues {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_QUEUES_MAX),
            queues => queues.min(QUEUES_MAX),
        };
        let info = DeviceInfo {
            queues: u16::try_from(wanted).unwrap_or(1),
            depth: QUEUE_DEPTH,
            state: DeviceState::Dead,
            request_max_bytes: abi::REQUEST_MAX_BYTES,
            number: abi::ANY_DEVICE,
            flags: if options.recovery == Recovery::No { 0 } else { abi::RECOVERY_FLAGS },
            mark: options.mark,
        };
        let mut bytes = info.to_bytes();
        self.call("make a device", abi::ADD_DEV, abi::ANY_DEVICE, &mut bytes, 0)?;
        Ok(DeviceInfo::from_bytes(&bytes))
    }

    fn start(&mut self, device: u32, disk: &Geometry, read_only: bool) -> Result<(), UblkError> {
        let mut params = abi::params(disk, read_only);
        self.call("take the parameters of the disk", abi::SET_PARAMS, device, &mut params, 0)?;
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        self.call("start the device", abi::START_DEV, device, &mut [], u64::from(pid.unsigned_abs()))
    }

    /// Takes over a device that waits for a server.
    fn begin_recovery(&mut self, device: u32, mark: u64) -> Result<DeviceInfo, UblkError> {
        let info = self.info(device)?;
        if info.mark != mark || info.state != DeviceState::Quiesced {
            return Err(UblkError::NotPossible(format!("/dev/ublkb{device} does not wait for this server")));
        }
        let until = Instant::now() + NODE_WAIT;
        loop {
            // The driver may not have seen the end of the server before.
            match self.call("go on with the device", abi::START_USER_RECOVERY, device, &mut [], 0) {
                Err(UblkError::Driver { source, .. })
                    if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && Instant::now() < until =>
                {
                    sleep(POLL);
                }
                result => return result.map(|()| info),
            }
        }
    }

    fn end_recovery(&mut self, device: u32) -> Result<(), UblkError> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        self.call("go on with the device", abi::END_USER_RECOVERY, device, &mut [], u64::from(pid.unsigned_abs()))
    }

    /// Fails what waits, takes the block device away. What the kernel caches is written first.
    fn stop(&mut self, device: u32) -> Result<(), UblkError> {
        self.call("stop the device", abi::STOP_DEV, device, &mut [], 0)
    }

    /// Gives the number up, at once or as soon as nobody has the device open any more.
    fn delete(&mut self, device: u32) -> Result<(), UblkError> {
        let step = "remove the device";
        match self.call(step, abi::DEL_DEV_ASYNC, device, &mut [], 0) {
            Err(UblkError::Driver { source, .. })
                if matches!(
                    source.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::INVAL | Errno::OPNOTSUPP)
                ) =>
            {
                self.call(step, abi::DEL_DEV, device, &mut [], 0)
            }
            result => result,
        }
    }
}

/// Opens the file of a device, whose node may take a moment.
fn open_device(number: u32) -> Result<File, UblkError> {
    let path = PathBuf::from(format!("/dev/ublkc{number}"));
    let until = Instant::now() + NODE_WAIT;
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => sleep(POLL),
            Err(source) => return Err(UblkError::Driver { step: "give the device's file", source }),
            Ok(file) => return Ok(file),
        }
    }
}

/// A device in service. Dropping it stops the device, whoever uses it; [`UblkExport::stop`] also tells of an error.
pub struct UblkExport {
    control: Control,
    number: u32,
    path: PathBuf,
    threads: Vec<JoinHandle<()>>,
    is_stopped: bool,
}

impl std::fmt::Debug for UblkExport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("UblkExport").field("path", &self.path).finish_non_exhaustive()
    }
}

impl UblkExport {
    /// The block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every queue is served: nobody has stopped the device, and no thread has failed.
    #[must_use]
    pub fn is_served(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Writes what the kernel caches for the device, takes it away and waits until it is gone. Whoever still has it open gets
    /// errors from then on: whether there is anybody must be found out before.
    ///
    /// # Errors
    /// [`UblkError::Driver`]; the device is as gone as it can be then.
    pub fn stop(&mut self) -> Result<(), UblkError> {
        if std::mem::replace(&mut self.is_stopped, true) {
            return Ok(());
        }
        let stopped = self.control.stop(self.number);
        if stopped.is_ok() {
            // The driver has ended every request of every queue, so the threads end.
            self.join();
        }
        let deleted = self.control.delete(self.number);
        self.join();
        wait_until_gone(self.number);
        stopped.and(deleted)
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("the thread of a queue panicked");
            }
        }
    }
}

impl Drop for UblkExport {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::warn!("{error}");
        }
    }
}

fn wait_until_gone(number: u32) {
    let folder = Path::new(DEVICES).join(format!("ublkc{number}"));
    let until = Instant::now() + NODE_WAIT;
    while folder.exists() && Instant::now() < until {
        sleep(POLL);
    }
}

/// Makes a device and serves it from threads of its own; each opens its queue to the disk with `open_queue`.
///
/// # Errors
/// [`UblkError`]; no device is left then.
pub fn serve(open_queue: &Arc<OpenQueue>, options: &UblkOptions) -> Result<UblkExport, UblkError> {
    let mut control = Control::open()?;
    let info = match options.recovery {
        Recovery::GoOn(number) => control.begin_recovery(number, options.mark)?,
        _ => control.add(options)?,
    };
    let path = PathBuf::from(format!("/dev/ublkb{}", info.number));
    let mut export = UblkExport { control, number: info.number, path, threads: Vec::new(), is_stopped: false };
    // From here on an error drops the export, which takes the device away again.
    let geometry = export.serve_queues(&info, open_queue)?;
    match options.recovery {
        Recovery::GoOn(number) => {
            check_size(number, &geometry)?;
            export.control.end_recovery(number)?;
        }
        _ => export.control.start(info.number, &geometry, options.read_only || geometry.read_only)?,
    }
    Ok(export)
}

/// A disk that became shorter than the device is another one.
fn check_size(number: u32, disk: &Geometry) -> Result<(), UblkError> {
    let text = std::fs::read_to_string(format!("/sys/block/ublkb{number}/size")).unwrap_or_default();
    let sectors: u64 = text.trim().parse().unwrap_or(u64::MAX);
    if sectors.saturating_mul(512) <= disk.size.0 {
        return Ok(());
    }
    Err(UblkError::NotPossible(format!(
        "/dev/ublkb{number} has {sectors} sectors, the disk only {} bytes",
        disk.size.0
    )))
}

type Started = Result<Geometry, UblkError>;

impl UblkExport {
    /// Starts the threads and waits until each has asked the driver for its requests.
    fn serve_queues(&mut self, info: &DeviceInfo, open_queue: &Arc<OpenQueue>) -> Result<Geometry, UblkError> {
        let device = Arc::new(open_device(info.number)?);
        let (sender, started) = channel();
        for number in 0..info.queues {
            let (open_queue, device, sender) = (Arc::clone(open_queue), Arc::clone(&device), sender.clone());
            let depth = info.depth;
            let body = move || serve_queue(&open_queue, device, number, depth, &sender);
            let thread = std::thread::Builder::new().name(format!("ublk-{number}")).spawn(body);
            self.threads.push(thread.map_err(UblkError::Thread)?);
        }
        drop(sender);
        first_of_all(&started, usize::from(info.queues))
    }
}

/// What all threads say about the disk, or what one of them failed with.
fn first_of_all(started: &Receiver<Started>, count: usize) -> Result<Geometry, UblkError> {
    let ended = || UblkError::Thread(io::Error::other("it ended"));
    let geometry = started.recv().map_err(|_| ended())??;
    for _ in 1..count {
        started.recv().map_err(|_| ended())??;
    }
    Ok(geometry)
}

/// The body of a queue's thread.
fn serve_queue(open_queue: &Arc<OpenQueue>, device: Arc<File>, number: u16, depth: u16, started: &Sender<Started>) {
    let opened = open_queue(usize::from(depth)).map_err(UblkError::Disk).and_then(|disk| {
        let geometry = disk.geometry();
        let server = QueueServer::open(device, number, depth, disk);
        let refused = |source| UblkError::Driver { step: "give a queue", source };
        server.map(|server| (server, geometry)).map_err(refused)
    });
    let (mut server, said) = match opened {
        Ok((server, geometry)) => (Some(server), Ok(geometry)),
        Err(error) => (None, Err(error)),
    };
    // Who started this thread waits for it, or has found another one failed.
    let _ = started.send(said);
    if let Some(Err(error)) = server.as_mut().map(QueueServer::run) {
        log::error!("queue {number} of the ublk device ends: {error}");
    }
}

/// A device of the driver that a process has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedDevice {
    /// Its number.
    pub number: u32,
    /// Its block device, if it has one: a dead server's is gone.
    pub path: PathBuf,
    /// Whether a process serves it.
    pub is_served: bool,
    /// Whether it has no server, and requests wait for one.
    pub waits: bool,
}

/// The devices with this mark, whoever made them; none where there is no driver.
///
/// # Errors
/// [`UblkError`], where there are devices that cannot be asked.
pub fn marked(mark: u64) -> Result<Vec<MarkedDevice>, UblkError> {
    let number_of = |name: std::ffi::OsString| name.to_str()?.strip_prefix("ublkc")?.parse::<u32>().ok();
    let listed = std::fs::read_dir(DEVICES).into_iter().flatten().flatten().take(DEVICES_MAX);
    let mut numbers: Vec<u32> = listed.filter_map(|entry| number_of(entry.file_name())).collect();
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    numbers.sort_unstable();
    let mut control = Control::open()?;
    let mut found = Vec::new();
    for number in numbers {
        match control.info(number) {
            Ok(info) if info.mark == mark => found.push(MarkedDevice {
                number,
                path: PathBuf::from(format!("/dev/ublkb{number}")),
                is_served: info.state == DeviceState::Live,
                waits: info.state == DeviceState::Quiesced,
            }),
            Ok(_) => {}
            // It went meanwhile.
            Err(UblkError::Driver { source, .. }) if source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Takes away what a dead server left of its device; whoever waits for it gets errors.
///
/// # Errors
/// [`UblkError::NotPossible`] and [`UblkError::Driver`].
pub fn remove(number: u32) -> Result<(), UblkError> {
    let mut control = Control::open()?;
    let stopped = control.stop(number);
    let deleted = control.delete(number);
    wait_until_gone(number);
    stopped.and(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_driver_the_reason_is_told_and_nothing_is_found() {
        if Path::new(CONTROL).exists() {
            return;
        }
        let reason = hindrance().unwrap();
        assert!(reason.contains("there is no /dev/ublk-control") && reason.contains("modprobe ublk_drv"), "{reason}");
        assert_eq!(marked(1).unwrap(), []);
        let none: Arc<OpenQueue> = Arc::new(|_| Err(BlockError::from_io("open", block::Bytes(0), 0, Errno::IO.into())));
        assert!(matches!(serve(&none, &UblkOptions::default()), Err(UblkError::NotPossible(_))));
        assert!(matches!(remove(0), Err(UblkError::NotPossible(_))));
    }
}
