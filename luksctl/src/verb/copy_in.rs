//! `copy-in IMAGE FILE|-`: streams a file into the plaintext of an existing container, without a mount and without root.
//! Refused while the image is open, mounted or attached. Stopped half-way it says how far it came; what lies behind the
//! piece that failed is as it was.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use block::{BlockIo, ByteView, Bytes};
use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::copy_out::CHUNK_BYTES;
use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::interrupt::Interrupt;
use crate::keys::KeySource;
use crate::progress::Progress;
use crate::unlock::{self, Ask};
use crate::{confirm, occupied, output};

/// Arguments of `copy-in`.
#[derive(Debug, Args)]
pub(crate) struct CopyInArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Where the plaintext comes from; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Start at this place of the volume
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    offset: Option<Bytes>,
    /// Overwrite a file system or other known content of the volume
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

/// Copies a file in.
pub(crate) fn run(args: &CopyInArgs, common: &Common) -> Result<Code, Failure> {
    let (input, length) = input(args)?;
    let mut source = KeySource::unlocking(&args.key, None)?.after_tokens(&args.token, &args.key);
    let image = Image::open(&args.target, Access::ChangeData)?;
    if args.file != Path::new("-") {
        image.refuse_itself(&args.file)?;
    }
    let _in_use = image.lock_use(false)?;
    let container = image.container(&image::limits(&args.limits))?;
    let ask = Ask { keyslot: args.key_slot, unlock: luks::Purpose::DefaultSegment, purpose: secret::Purpose::Unlock };
    let (key, _passphrase) = unlock::unlock(&image, &container, &ask, &mut source)?;
    let volume = container.volume(&key, false).map_err(|error| Failure::of_luks(image.path(), error))?;
    drop(key);
    let size = volume.geometry().size;
    let start = args.offset.unwrap_or(Bytes(0));
    let room = size.checked_sub(start).ok_or_else(|| too_large(start, size))?;
    if let Some(length) = length.filter(|length| *length > room) {
        return Err(too_large(Bytes(start.0.saturating_add(length.0)), size));
    }
    refuse_content(args, common, &image, &volume, container.data())?;
    let interrupt = Interrupt::watch()?;
    interrupt.stop_softly();
    let progress = Progress::new("copying in", length, common.batch_mode);
    let mut copied = Bytes(0);
    let outcome = copy(&input, &volume, start, room, &mut copied, &interrupt, &progress, image.path());
    let flushed = volume.flush().map_err(|error| Failure::of_block(image.path(), &error));
    drop(progress);
    let ended = match outcome.and_then(|ended| flushed.map(|()| ended)) {
        Ok(ended) => ended,
        Err(failure) => {
            output::words(&format!(
                "luksctl: stopped after {copied}; the volume from {} on is as it was, before that the last write may have \
                 gone through in part",
                Bytes(start.0.saturating_add(copied.0).saturating_add(CHUNK_BYTES as u64).min(size.0))
            ));
            return Err(failure);
        }
    };
    if let Ended::BySignal(signal) = ended {
        let words = format!("stopped by {signal}: the first {copied} are written and on disk, the rest is as it was");
        return Err(
            Failure::new(Code::of_signal(signal), words).with_hint("run the same command again to copy all of it")
        );
    }
    if args.report.json {
        output::json(
            &json!({ "image": output::path(image.path()), "file": output::path(&args.file), "offset_bytes": start.0, "copied_bytes": copied.0 }),
        )?;
    } else if !common.batch_mode {
        output::words(&format!("Copied {copied} in."));
    }
    Ok(Code::Success)
}

/// How a copy ended without an error.
enum Ended {
    AtEnd,
    BySignal(Signal),
}

/// The file to read and its length, where it has one.
fn input(args: &CopyInArgs) -> Result<(File, Option<Bytes>), Failure> {
    if args.file == Path::new("-") {
        let from_stdin = args.key.key_file.as_deref() == Some(Path::new("-"))
            || (args.key.key_file.is_none() && args.key.key_fd.is_none());
        if from_stdin {
            return Err(Failure::wrong("standard input is the data, so the passphrase cannot come from it")
                .with_hint("give the passphrase with --key-file or --key-fd"));
        }
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let stdin = stdin.map_err(|error| Failure::wrong(format!("reading standard input: {error}")))?;
        return Ok((File::from(stdin), None));
    }
    let file = File::open(&args.file).map_err(|error| Failure::from_open(&args.file, &error))?;
    let found = file.metadata().map_err(|error| Failure::from_open(&args.file, &error))?;
    if found.is_dir() {
        return Err(Failure::wrong(format!("{}: is a folder", args.file.display()))
            .with_hint("`luksctl mount` the image and copy the folder into it"));
    }
    let length = found.is_file().then_some(Bytes(found.len()));
    Ok((file, length))
}

/// Refuses to overwrite known content of the volume, unless it is forced.
fn refuse_content<D: BlockIo>(
    args: &CopyInArgs,
    common: &Common,
    image: &Image,
    volume: &D,
    data: &dyn BlockIo,
) -> Result<(), Failure> {
    if args.force {
        return Ok(());
    }
    let probe =
        |disk: &dyn BlockIo| block::signature::probe(disk).map_err(|error| Failure::of_block(image.path(), &error));
    let mut found = probe(volume)?;
    if args.target.header.is_some() {
        // The header says nothing of the device that its data lies on. Ciphertext has no signature: this is another device.
        found.extend(probe(data)?);
    }
    let Some(words) = occupied::words(&found) else { return Ok(()) };
    if !common.batch_mode && confirm::can_ask() {
        return confirm::typed_yes(&format!(
            "the volume in {} holds {words}, which will be overwritten.",
            image.path().display()
        ));
    }
    Err(Failure::wrong(format!("{}: the volume holds {words}; nothing was changed", image.path().display()))
        .with_hint("add --force to overwrite it"))
}

/// Moves `input` into the volume from `start`, at most `room`; keeps `copied` true at every moment.
#[allow(clippy::too_many_arguments)] // one caller; the parts have no life together
fn copy<D: BlockIo>(
    input: &File,
    volume: &D,
    start: Bytes,
    room: Bytes,
    copied: &mut Bytes,
    interrupt: &Interrupt,
    progress: &Progress,
    image: &Path,
) -> Result<Ended, Failure> {
    let view = ByteView::new(volume);
    let mut buffer = block::AlignedBuf::zeroed(CHUNK_BYTES);
    loop {
        let len = fill(input, &mut buffer, interrupt)
            .map_err(|error| Failure::wrong(format!("reading the input: {error}")))?;
        if let Some(signal) = interrupt.signal() {
            return Ok(Ended::BySignal(signal));
        }
        if len == 0 {
            return Ok(Ended::AtEnd);
        }
        if len as u64 > room.0 - copied.0 {
            return Err(too_large(Bytes(start.0 + copied.0 + len as u64), Bytes(start.0 + room.0)));
        }
        let at = Bytes(start.0 + copied.0);
        view.write(at, &buffer[..len], false).map_err(|error| Failure::of_block(image, &error))?;
        copied.0 += len as u64;
        progress.at(*copied);
    }
}

/// Reads until the buffer is full, the input ends, or a signal came. A pipe that stays silent is waited for in steps, so
/// that a signal is seen.
fn fill(mut input: &File, buffer: &mut [u8], interrupt: &Interrupt) -> std::io::Result<usize> {
    let step = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut len = 0;
    while len < buffer.len() && interrupt.signal().is_none() {
        let ready = poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&step));
        if matches!(ready, Ok(0) | Err(rustix::io::Errno::INTR)) {
            continue;
        }
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn too_large(end: Bytes, size: Bytes) -> Failure {
    Failure::wrong(format!("the input reaches to {end}, the volume ends at {size}"))
        .with_hint("copy less, choose a smaller --offset, or format a larger image")
}
