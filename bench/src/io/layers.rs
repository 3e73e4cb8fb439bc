//! The ways to the test file: started once for the run, taken down at its end, clients before servers. What this machine cannot do
//! says why.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use block::{Bytes, Direct, FileDisk, IoUringQueue, OpenMode, PreadQueue};
use luks::{Volume, VolumeQueue};
use luksbench::lane::{BlockingLane, Lane, Manner, RingLane};
use luksbench::run::{Job, Layer, PLAIN};
use tempfile::TempDir;

use super::nbd_lane::NbdLane;
use super::queue_lane::QueueLane;
use crate::exports::contestants::{DISK_FILE, DM_CRYPT, FUSE, NBD, UBLK};
use crate::image;
use crate::served::{LoopDevice, Order, Server};

pub(super) const RING: &str = "ring";
pub(super) const FUSE_LOOP: &str = "fuse-loop";
/// The same jobs by another program, on the plain file.
pub(super) const FIO: &str = "fio";
/// Names and titles of those that are measured if none is named.
const USUAL: [(&str, &str); 7] = [
    (PLAIN, "the file itself"),
    (RING, "our cipher in the ring"),
    (FUSE, "FUSE file"),
    (FUSE_LOOP, "loop device on a FUSE file"),
    (NBD, "NBD on a Unix socket"),
    (UBLK, "ublk device"),
    (DM_CRYPT, "the kernel's dm-crypt"),
];
const FIO_TITLE: &str = "the file itself, by fio";
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();
/// With it io_uring tries a request on the spot even on file systems that promise nothing (tmpfs); without, a worker does it.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// How its bytes are reached.
enum Way {
    /// A file or device whose data begins there.
    File(PathBuf, u64),
    Volume(Arc<Volume<FileDisk>>),
    Nbd(PathBuf),
    Fio,
}

/// A layer that can be measured.
pub(super) struct Ready {
    pub(super) name: &'static str,
    way: Way,
    // Dropped in this order.
    _loop_device: Option<LoopDevice>,
    server: Option<Server>,
}

/// All that were asked for.
pub(super) struct Layers {
    pub(super) ready: Vec<Ready>,
    /// Ready or not, as the run shows them.
    pub(super) all: Vec<Layer>,
    /// Mounts and sockets, outside of the target: another file system might not have them.
    _work: Option<TempDir>,
}

/// What the layers are started on.
#[derive(Clone, Copy)]
pub(super) struct Below<'a> {
    pub(super) file: &'a Path,
    pub(super) data_offset: Bytes,
    /// A header of ours for a file that is another's: it is only read.
    pub(super) header: Option<&'a Path>,
    pub(super) direct: bool,
    pub(super) io_uring: bool,
    /// Reach the plain file in no way that fio has not.
    pub(super) as_fio: bool,
}

/// The names that `wanted` stands for, in the order in which they are shown.
pub(super) fn names(wanted: &[String]) -> Result<Vec<(&'static str, &'static str)>> {
    let known: Vec<_> = USUAL.into_iter().chain([(FIO, FIO_TITLE)]).collect();
    for name in wanted {
        if known.iter().all(|(known, _)| known != name) {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            bail!("there is no layer {name}; there are {}", names.join(", "));
        }
    }
    let is_wanted = |name: &str| match wanted {
        [] => name != FIO,
        names => name == PLAIN || names.iter().any(|wanted| wanted == name),
    };
    Ok(known.into_iter().filter(|(name, _)| is_wanted(name)).collect())
}

impl Layers {
    /// Starts what can be started of `names`.
    pub(super) fn start(names: &[(&'static str, &'static str)], below: Below<'_>) -> Result<Layers> {
        let needs_folder = names.iter().any(|(name, _)| ![PLAIN, RING, FIO, UBLK].contains(name));
        let work = needs_folder.then(|| tempfile::Builder::new().prefix("luksbench-").tempdir()).transpose()?;
        let folder = work.as_ref().map_or(Path::new("."), TempDir::path);
        let chosen = chosen_by_open();
        let mut layers = Layers { ready: Vec::new(), all: Vec::new(), _work: None };
        for (name, title) in names {
            let absent = match Ready::start(name, below, &folder.join(name)) {
                Ok(ready) => {
                    layers.ready.push(ready);
                    None
                }
                Err(why) if *name == PLAIN => return Err(why),
                Err(why) => Some(format!("{why:#}")),
            };
            let layer =
                Layer { name: (*name).to_owned(), title: (*title).to_owned(), absent, chosen_by_open: *name == chosen };
            layers.all.push(layer);
        }
        layers._work = work;
        Ok(layers)
    }

    /// Takes all down, in order, and says what did not go.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut stopped = Ok(());
        for ready in self.ready.drain(..) {
            let Ready { way, _loop_device, server, .. } = ready;
            drop((way, _loop_device));
            if let Some(server) = server {
                stopped = stopped.and(server.stop());
            }
        }
        stopped
    }
}

/// The layer that an opening would take here.
fn chosen_by_open() -> &'static str {
    match session::automatic_backend() {
        "dm-crypt" => DM_CRYPT,
        "ublk" => UBLK,
        "nbd" => NBD,
        _ if rustix::process::geteuid().is_root() => FUSE_LOOP,
        _ => FUSE,
    }
}

impl Ready {
    fn start(name: &'static str, below: Below<'_>, place: &Path) -> Result<Ready> {
        let alone = |way| Ready { name, way, _loop_device: None, server: None };
        let serve = |kind: &str| {
            let (image, header) = (below.file, below.header);
            Server::start(&Order { kind, image, header, place, plain: false, threads: 0 })
        };
        let device = |server: &Server| server.device().map(Path::to_path_buf).context("the server named no device");
        match name {
            PLAIN => Ok(alone(Way::File(below.file.to_path_buf(), below.data_offset.0))),
            RING => {
                let direct = if below.direct { Direct::IfPossible } else { Direct::Never };
                Ok(alone(Way::Volume(Arc::new(image::open(below.file, below.header, direct)?))))
            }
            FIO => {
                ensure!(below.io_uring, "io_uring is denied");
                super::fio::version().map(|_| alone(Way::Fio))
            }
            NBD => {
                let server = serve(NBD)?;
                Ok(Ready { name, way: Way::Nbd(place.to_path_buf()), _loop_device: None, server: Some(server) })
            }
            FUSE | FUSE_LOOP => {
                ensure!(name == FUSE || rustix::process::geteuid().is_root(), "a loop device needs root");
                std::fs::create_dir(place)?;
                let server = serve(FUSE)?;
                let file = place.join(DISK_FILE);
                let loop_device =
                    if name == FUSE { None } else { Some(LoopDevice::attach(&file, below.header.is_some())?) };
                let path = loop_device.as_ref().map_or(file, |device| device.path().to_path_buf());
                Ok(Ready { name, way: Way::File(path, 0), _loop_device: loop_device, server: Some(server) })
            }
            UBLK => {
                if let Some(why) = export::ublk::hindrance() {
                    bail!("{why}");
                }
                let server = serve(UBLK)?;
                Ok(Ready { name, way: Way::File(device(&server)?, 0), _loop_device: None, server: Some(server) })
            }
            DM_CRYPT => {
                ensure!(rustix::process::geteuid().is_root(), "dm-crypt needs root");
                let misc = std::fs::read_to_string("/proc/misc").unwrap_or_default();
                ensure!(
                    misc.contains("device-mapper"),
                    "this kernel has no device-mapper, or its module is not loaded"
                );
                std::fs::create_dir(place)?;
                let server = serve(DM_CRYPT)?;
                Ok(Ready { name, way: Way::File(device(&server)?, 0), _loop_device: None, server: Some(server) })
            }
            other => bail!("no layer {other}"),
        }
    }

    /// The server's process.
    pub(super) fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Whether another program does the jobs.
    pub(super) fn is_fio(&self) -> bool {
        matches!(self.way, Way::Fio)
    }

    /// A new lane for one thread of `job`.
    pub(super) fn lane(&self, job: &Job, below: Below<'_>) -> Result<Box<dyn Lane>> {
        let (block, depth) = (job.block_bytes, job.depth);
        match &self.way {
            Way::File(path, start_bytes) => {
                // The library's data path opens its file with it: the plain file shall have the same. fio cannot. And on a FUSE file a
                // ring's workers would only get between.
                let nonblock = [PLAIN, FUSE].contains(&self.name) && !below.as_fio;
                let manner = if below.as_fio { Manner::Fio } else { Manner::Library };
                let file = Arc::new(open(path, below.direct, nonblock, below.header.is_none())?);
                Ok(if below.io_uring {
                    Box::new(RingLane::new(file, *start_bytes, block, depth, manner)?)
                } else {
                    Box::new(BlockingLane::new(file, *start_bytes, block, depth))
                })
            }
            Way::Volume(volume) => {
                let disk = volume.disk().clone();
                let queue: Box<dyn block::BlockQueue> = if below.io_uring {
                    Box::new(VolumeQueue::new(Arc::clone(volume), IoUringQueue::new(disk, depth as usize)?))
                } else {
                    Box::new(VolumeQueue::new(Arc::clone(volume), PreadQueue::new(disk, depth as usize)?))
                };
                Ok(Box::new(QueueLane::new(queue, block, depth)))
            }
            Way::Nbd(socket) => Ok(Box::new(NbdLane::connect(socket, block, depth)?)),
            Way::Fio => bail!("fio works by itself"),
        }
    }
}

fn open(path: &Path, direct: bool, nonblock: bool, for_writing: bool) -> Result<File> {
    let flags = if direct { DIRECT } else { 0 } | if nonblock { NONBLOCK } else { 0 };
    let file = OpenOptions::new().read(true).write(for_writing).custom_flags(flags).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// Whether the file at `path` can be read and written past the page cache.
pub(super) fn can_be_direct(path: &Path) -> bool {
    let mode = OpenMode { direct: Direct::IfPossible, read_only: true, ..OpenMode::default() };
    FileDisk::open(path, &mode).is_ok_and(|disk| disk.is_direct())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_always_there_and_fio_only_if_named() {
        let of = |wanted: &[&str]| -> Vec<&str> {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            names(&wanted).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(of(&["nbd", "ring"]), ["plain", "ring", "nbd"]);
        assert_eq!(of(&["fio"]), ["plain", "fio"]);
        assert!(of(&[]).len() == 7 && !of(&[]).contains(&"fio"));
        assert!(names(&["tape".to_owned()]).unwrap_err().to_string().contains("no layer tape; there are plain"));
    }
}
