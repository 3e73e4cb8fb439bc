//! `header backup IMAGE FILE`: header and keyslots into a new file of mode 0400, byte for byte as cryptsetup writes it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::Args;
use luks::{AnyHeader, Backup};
use serde_json::json;

use super::FileArgs;
use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::interrupt::Interrupt;
use crate::output;
use crate::part_file::sync_folder;

/// Arguments of `header backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Makes the backup.
pub(crate) fn run(args: &BackupArgs, _common: &Common) -> Result<Code, Failure> {
    make(&args.target, args.file.path()?, args.report.json)
}

fn make(target: &TargetArgs, file: &Path, as_json: bool) -> Result<Code, Failure> {
    let image = Image::open(target, Access::Read)?;
    let limits = image::limits(&LimitArgs::default());
    let backup = Backup::read(image.header(), &limits)
        .and_then(|backup| image.accepts(backup.header()).map(|()| backup))
        .map_err(|error| Failure::of_luks(image.header().path(), error))?;
    write(file, backup.bytes())?;
    let advice = backup.header().advice();
    if let Some(advice) = &advice {
        output::words(&format!(
            "luksctl: warning: {}: {advice}, then back up again: this backup is as damaged as the header, and is not \
             restored as it is",
            image.path().display()
        ));
    }
    if let AnyHeader::Luks2(header) = backup.header()
        && header.metadata().config.online_reencrypt().is_some()
    {
        output::words(&format!(
            "luksctl: warning: {} is in re-encryption: this backup is of use only until that goes on",
            image.path().display()
        ));
    }
    if as_json {
        output::json(&json!({
            "image": output::path(image.path()),
            "file": output::path(file),
            "version": backup.header().version().number(),
            "uuid": backup.header().uuid(),
            "size_bytes": backup.bytes().len(),
            "healthy": advice.is_none(),
        }))?;
    }
    Ok(if advice.is_some() { Code::Found } else { Code::Success })
}

/// Writes the file, durable with its name, and reads it back. What cannot be finished is removed.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let interrupt = Interrupt::watch()?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::busy(format!("{}: exists already, and a backup is never replaced", path.display()))
                .with_hint("choose another name")
        }
        _ => Failure::from_open(path, &error),
    })?;
    interrupt.remove_on_signal(path);
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
    let outcome = match written {
        Ok(()) => check(path, bytes),
        Err(error) => Err(Failure::from_write("writing", path, &error)),
    };
    interrupt.keep(path);
    if outcome.is_err()
        && let Err(error) = std::fs::remove_file(path)
    {
        log::warn!("could not remove {}: {error}", path.display());
    }
    outcome
}

fn check(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let found = std::fs::read(path).map_err(|error| Failure::from_open(path, &error))?;
    if found == bytes {
        return Ok(());
    }
    Err(Failure::wrong(format!("{}: does not read back as it was written", path.display()))
        .with_hint("write it to another file system"))
}
