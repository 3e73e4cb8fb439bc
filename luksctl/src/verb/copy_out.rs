//! `copy-out IMAGE FILE|-`: the plaintext as a stream, without a mount and without root. FILE appears only when it is
//! whole (`FILE.part` before), with mode 0600; runs of zeros become holes in it.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use block::{BlockIo, Bytes};
use clap::Args;
use serde_json::json;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::interrupt::Interrupt;
use crate::keys::KeySource;
use crate::part_file::PartFile;
use crate::progress::Progress;
use crate::unlock::{self, Ask};
use crate::{occupied, output};

/// Plaintext moved at once.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Runs of zeros of this size become holes.
const HOLE_BYTES: usize = 64 << 10;

/// Arguments of `copy-out`.
#[derive(Debug, Args)]
pub(crate) struct CopyOutArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Where the plaintext goes; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Start at this place of the volume
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    offset: Option<Bytes>,
    /// Copy only this much
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    length: Option<Bytes>,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
    /// Try only this keyslot
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Copies the plaintext out.
pub(crate) fn run(args: &CopyOutArgs, common: &Common) -> Result<Code, Failure> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && args.report.json {
        return Err(Failure::wrong("--json and the plaintext would both go to standard output")
            .with_hint("name a file, or leave --json out"));
    }
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::wrong("the plaintext would go to the terminal, which obeys the bytes of a disk")
            .with_hint("name a file, or send it on: `… - | program`"));
    }
    if !to_stdout && !args.force && args.file.symlink_metadata().is_ok() {
        return Err(Failure::busy(format!("{}: exists already", args.file.display()))
            .with_hint("choose another name, or add --force to replace it"));
    }
    let mut source = KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key);
    let image = Image::open(&args.target, Access::Read)?;
    if !to_stdout {
        image.refuse_itself(&args.file)?;
        refuse_in_use(&args.file)?;
    }
    let _in_use = image.lock_use(true)?;
    session::image::check_not_written(image.path()).map_err(Failure::of_session)?;
    let container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: args.key_slot, unlock: luks::Purpose::DefaultSegment, purpose: secret::Purpose::Unlock };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let volume = container.volume(&key, true).map_err(|error| Failure::of_luks(image.path(), error))?;
    drop(key);
    let (start, end) = range(args, volume.geometry().size)?;
    let span = Span { volume: &volume, start, end, image: image.path() };
    let progress = Progress::new("copying out", end.checked_sub(start), common.batch_mode);
    if to_stdout {
        span.copy(&progress, &mut |_, chunk| stdout_chunk(chunk))?;
    } else {
        let interrupt = Interrupt::watch()?;
        let part = PartFile::create(&args.file, args.force, &interrupt)?;
        let written = |error: std::io::Error| Failure::from_write("writing", &args.file, &error);
        span.copy(&progress, &mut |at, chunk| sparse_chunk(part.file(), at, chunk).map_err(written))?;
        part.file().set_len(end.0 - start.0).map_err(written)?;
        part.finish()?;
    }
    drop(progress);
    if args.report.json {
        output::json(
            &json!({ "image": output::path(image.path()), "file": output::path(&args.file), "copied_bytes": end.0 - start.0 }),
        )?;
    } else if !common.batch_mode {
        output::words(&format!("Copied {} out.", Bytes(end.0 - start.0)));
    }
    Ok(Code::Success)
}

/// An existing file that is mounted, attached or open would go on living without a name, and its new content be lost.
fn refuse_in_use(file: &Path) -> Result<(), Failure> {
    if file.symlink_metadata().is_ok_and(|found| found.is_file()) { occupied::refuse(file) } else { Ok(()) }
}

/// From where to where; inside the volume.
fn range(args: &CopyOutArgs, size: Bytes) -> Result<(Bytes, Bytes), Failure> {
    let start = args.offset.unwrap_or(Bytes(0));
    let end = args.length.map_or(Some(size.max(start)), |length| start.checked_add(length));
    match end {
        Some(end) if end <= size && start <= size => Ok((start, end)),
        _ => Err(Failure::wrong(format!("the range asked for ends beyond the volume of {size}"))
            .with_hint("choose --offset and --length within it")),
    }
}

/// Takes a chunk at its place in the output.
type Write<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Failure> + 'a;

/// A piece of a volume.
struct Span<'a, D: BlockIo> {
    volume: &'a D,
    start: Bytes,
    end: Bytes,
    image: &'a Path,
}

impl<D: BlockIo> Span<'_, D> {
    /// Hands the plaintext to `write`, chunk by chunk with its place in the output.
    fn copy(&self, progress: &Progress, write: &mut Write<'_>) -> Result<(), Failure> {
        let view = block::ByteView::new(self.volume);
        let mut buffer = block::AlignedBuf::zeroed(CHUNK_BYTES);
        let mut at = self.start;
        while at < self.end {
            let left = Bytes(self.end.0 - at.0).to_usize().unwrap_or(CHUNK_BYTES);
            let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
            view.read(at, chunk).map_err(|error| Failure::of_block(self.image, &error))?;
            write(at.0 - self.start.0, chunk)?;
            at = Bytes(at.0 + chunk.len() as u64);
            progress.at(Bytes(at.0 - self.start.0));
        }
        Ok(())
    }
}

/// A chunk to standard output; a reader that went away is an error here, for it did not get everything.
fn stdout_chunk(chunk: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(chunk)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::wrong(format!("writing to standard output: {error}")))
}

/// A chunk to a fresh file, without its runs of zeros.
fn sparse_chunk(file: &File, at: u64, chunk: &[u8]) -> std::io::Result<()> {
    for (index, piece) in chunk.chunks(HOLE_BYTES).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, at + (index * HOLE_BYTES) as u64)?;
        }
    }
    Ok(())
}
