//! `luksbench serve-export`: one export of one image, plain or unlocked, until its standard input ends.
//!
//! A process of its own, because the server of a FUSE file must not be the one that has it open (see `export::fuse::serve`).

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use block::{BlockIo, Bytes, Direct, FileDisk, OpenMode, Window};
use export::fuse::FuseOptions;
use export::nbd::{NbdDisk, NbdOptions};
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::NewKdf;
use luks::{Container, FormatParams, Limits, UnlockRequest, Volume};
use secret::Secret;
use session::SystemEnv;

use super::contestants::{FUSE, NBD};

/// Where the data of a container with the usual areas begins.
pub(super) const DATA_OFFSET: Bytes = Bytes(16 << 20);
/// Of an image that holds nothing but random bytes.
const PASSPHRASE: &[u8] = b"measured";
const UNMOUNT_WAIT: Duration = Duration::from_secs(10);

/// Options of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    /// fuse or nbd
    kind: String,
    image: PathBuf,
    /// The folder to mount on, or the socket to make
    place: PathBuf,
    /// Serve the data segment as it is
    #[arg(long)]
    plain: bool,
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Makes the image that is served.
pub(super) fn format(image: &Path, size: Bytes) -> Result<()> {
    FileDisk::create_new(image, &OpenMode::default())?.set_len(Bytes(DATA_OFFSET.0 + size.0))?;
    let disk = FileDisk::open(image, &OpenMode::default())?;
    let effort = Effort::Forced { iterations: 4 };
    let cheap = KdfCost { effort, memory_kib: Some(32), parallel: Some(1), ..KdfCost::default() };
    let kdf = NewKdf::Calibrate(KdfChoice::Argon2id, cheap);
    let params = FormatParams { kdf, sector_size: Some(4096), ..FormatParams::default() };
    let env = SystemEnv;
    luks::format::format(&disk, &disk, &env.env(), &params, &Secret::copy_of(PASSPHRASE)?)?;
    let volume = unlocked(disk)?;
    // Every page is there before anything is measured.
    volume.write_zeroes(Bytes::ZERO, volume.geometry().size)?;
    Ok(volume.flush()?)
}

fn unlocked(disk: FileDisk) -> Result<Volume<FileDisk>> {
    let container = Container::open(disk.clone(), disk, Limits::default())?;
    let env = SystemEnv;
    let key = container.unlock(&env.env(), &UnlockRequest::default(), &Secret::copy_of(PASSPHRASE)?)?;
    Ok(container.into_volume(&key, false)?)
}

/// Serves until standard input ends.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let disk = FileDisk::open(&args.image, &OpenMode { direct: Direct::IfPossible, ..OpenMode::default() })?;
    if args.plain {
        return serve(args, Arc::new(InBlocks(Window::new(disk, DATA_OFFSET, None))));
    }
    serve(args, Arc::new(unlocked(disk)?))
}

fn serve<B: BlockIo + 'static>(args: &ServeArgs, disk: Arc<B>) -> Result<()> {
    let wait = || -> Result<()> {
        println!("ready");
        std::io::stdout().flush()?;
        Ok(std::io::stdin().read_to_end(&mut Vec::new()).map(drop)?)
    };
    match args.kind.as_str() {
        FUSE => {
            let options = FuseOptions { threads: args.threads, ..FuseOptions::default() };
            let export = export::fuse::serve(disk, &args.place, &options)?;
            wait()?;
            Ok(export.unmount_within(UNMOUNT_WAIT)?)
        }
        NBD => {
            let served = NbdDisk { name: "disk".into(), description: String::new(), disk, read_only: false };
            let options = NbdOptions { threads: args.threads, ..NbdOptions::default() };
            let mut export = export::nbd::serve(vec![served], &args.place, &options)?;
            wait()?;
            Ok(export.stop()?)
        }
        other => bail!("no export {other}"),
    }
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
