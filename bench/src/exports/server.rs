//! `luksbench serve-export`: one export of one image, plain or unlocked, until its standard input ends.
//!
//! A process of its own, because the server of a FUSE file must not be the one that has it open (see `export::fuse::serve`).

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use block::{BlockIo, BlockQueue, Bytes, Direct, FileDisk, FileQueue, OpenMode, Window};
use export::fuse::FuseOptions;
use export::nbd::{NbdDisk, NbdOptions};
use export::ublk::{OpenQueue, UblkOptions};
use luks::{Volume, VolumeQueue};

use super::contestants::{DM_CRYPT, FUSE, NBD, UBLK};
use crate::image::{self, DATA_OFFSET};

const UNMOUNT_WAIT: Duration = Duration::from_secs(10);

/// Options of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    /// fuse, nbd, ublk or dm-crypt
    kind: String,
    image: PathBuf,
    /// The folder to mount on, or the socket to make
    place: PathBuf,
    /// The header, ours; the image is another's then, and only read
    #[arg(long, conflicts_with = "plain")]
    header: Option<PathBuf>,
    /// Serve the data segment as it is
    #[arg(long)]
    plain: bool,
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Makes the image that is served.
pub(super) fn format(path: &Path, size: Bytes) -> Result<()> {
    image::create(path, size, Some(4096))?;
    let volume = image::open(path, None, Direct::Never)?;
    // Every page is there before anything is measured.
    volume.write_zeroes(Bytes::ZERO, volume.geometry().size)?;
    Ok(volume.flush()?)
}

/// Serves until standard input ends.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    if args.kind == DM_CRYPT {
        return map(args);
    }
    let volume = || image::open(&args.image, args.header.as_deref(), Direct::IfPossible);
    if args.kind == UBLK {
        return attach(args, volume()?);
    }
    if args.plain {
        let disk = FileDisk::open(&args.image, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() })?;
        return serve(args, Arc::new(InBlocks(Window::new(disk, DATA_OFFSET, None))));
    }
    serve(args, Arc::new(volume()?))
}

/// Says that it serves, and waits for the end.
fn wait(device: &str) -> Result<()> {
    println!("{}", format!("ready {device}").trim_end());
    std::io::stdout().flush()?;
    Ok(std::io::stdin().read_to_end(&mut Vec::new()).map(drop)?)
}

fn serve<B: BlockIo + 'static>(args: &ServeArgs, disk: Arc<B>) -> Result<()> {
    match args.kind.as_str() {
        FUSE => {
            let options = FuseOptions { threads: args.threads, ..FuseOptions::default() };
            let export = export::fuse::serve(disk, &args.place, &options)?;
            wait("")?;
            let unmounted = export.unmount_within(UNMOUNT_WAIT);
            // Whoever made the folder may be gone.
            let _ = std::fs::remove_dir(&args.place);
            remove_if_empty(args.place.parent());
            Ok(unmounted?)
        }
        NBD => {
            let served =
                NbdDisk { name: "disk".into(), description: String::new(), disk, read_only: args.header.is_some() };
            let options = NbdOptions { threads: args.threads, ..NbdOptions::default() };
            let mut export = export::nbd::serve(vec![served], &args.place, &options)?;
            wait("")?;
            let stopped = export.stop();
            remove_if_empty(args.place.parent());
            Ok(stopped?)
        }
        other => bail!("no export {other}"),
    }
}

fn remove_if_empty(folder: Option<&Path>) {
    let _ = folder.map(std::fs::remove_dir);
}

/// A device of the kernel's driver ublk_drv, as `luksctl open` makes it.
fn attach(args: &ServeArgs, volume: Volume<FileDisk>) -> Result<()> {
    let volume = Arc::new(volume);
    let open_queue: Arc<OpenQueue> = Arc::new(move |depth| {
        let below = FileQueue::open(volume.disk().clone(), depth)?;
        Ok(Box::new(VolumeQueue::new(Arc::clone(&volume), below.queue)) as Box<dyn BlockQueue>)
    });
    let mut export = export::ublk::serve(&open_queue, &UblkOptions { queues: args.threads, ..UblkOptions::default() })?;
    let device = export.path().display().to_string();
    wait(&device)?;
    Ok(export.stop()?)
}

/// The kernel's dm-crypt, by the `luksctl` beside this program or on the PATH.
fn map(args: &ServeArgs) -> Result<()> {
    let beside = std::env::current_exe()?.with_file_name("luksctl");
    let program = if beside.is_file() { beside } else { "luksctl".into() };
    let name = format!("luksbench-{}", std::process::id());
    let luksctl = |arguments: &[&str], input: &[u8]| -> Result<()> {
        let mut command = Command::new(&program);
        command.args(arguments).env("LUKSCTL_RUN_DIR", &args.place);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        let done = child.wait_with_output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
        Ok(())
    };
    let image = args.image.to_str().context("the path of the image is no UTF-8")?;
    let mut open = vec!["open", "--backend", "dm", "--key-file", "-"];
    if let Some(header) = &args.header {
        let header = header.to_str().context("the path of the header is no UTF-8")?;
        open.extend(["--readonly", "--header", header]);
    }
    open.extend([image, &name]);
    luksctl(&open, image::PASSPHRASE)?;
    let waited = wait(&format!("/dev/mapper/{name}"));
    luksctl(&["close", &name], b"")?;
    let _ = std::fs::remove_dir_all(&args.place);
    remove_if_empty(args.place.parent());
    waited
}

/// The disk below with the blocks of an encrypted one, so that both are asked for the same.
struct InBlocks<D>(D);

impl<D: BlockIo> BlockIo for InBlocks<D> {
    fn geometry(&self) -> block::Geometry {
        let below = self.0.geometry();
        block::Geometry { logical_block: below.logical_block.max(4096), ..below }
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), block::BlockError> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), block::BlockError> {
        self.0.write_at(offset, buf, fua)
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), block::BlockError> {
        self.0.write_zeroes(offset, len)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), block::BlockError> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> Result<(), block::BlockError> {
        self.0.flush()
    }
}
