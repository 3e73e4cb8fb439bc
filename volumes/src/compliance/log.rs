//! What can be told of the audit log without its seed: that there are records, since when, and which attributes its files
//! have. Whether a record was changed is for `luksctl audit verify`.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{IFlags, ioctl_getflags};

use super::{Gathering, Sources, Verdict};
use crate::VolumesError;
use crate::audit::{Filter, shown};

/// Whether there is a log, and whether records are in it.
pub(super) fn records(sources: &Sources<'_>, found: &mut Gathering) {
    let audit = &sources.config.audit;
    found.hold(audit.enabled, format!("volumes.toml: audit.enabled = {}", audit.enabled));
    let (mut first, mut last) = (None, None);
    let looked = shown(&audit.folder, &Filter::default(), |record| {
        let time = record.get("time").and_then(|time| time.as_str()).map(str::to_owned);
        first = first.take().or_else(|| time.clone());
        last = time.or_else(|| last.take());
        Ok::<(), VolumesError>(())
    });
    let folder = audit.folder.display();
    match (looked, first, last) {
        (Ok(looked), Some(first), Some(last)) if looked.broken == 0 => {
            found.add(Verdict::Met, format!("{folder}: {} records, {first} to {last}", looked.chosen));
        }
        (Ok(looked), ..) if looked.broken > 0 => {
            found.hold(false, format!("{folder}: {} lines are no records; `luksctl audit verify`", looked.broken));
        }
        (Ok(_), ..) => found.add(Verdict::Unknown, format!("{folder}: no record yet")),
        (Err(error), ..) => found.add(Verdict::Unknown, error.to_string()),
    }
}

/// Whether the files' attributes forbid changes: append-only for the newest, immutable for those before it.
pub(super) fn attributes(sources: &Sources<'_>, found: &mut Gathering) {
    let audit = &sources.config.audit;
    found.hold(audit.immutable, format!("volumes.toml: audit.immutable = {}", audit.immutable));
    let files = match files(sources) {
        Ok(files) => files,
        Err(error) => return found.add(Verdict::Unknown, error.to_string()),
    };
    if files.is_empty() {
        return found.add(Verdict::Unknown, format!("{}: no file yet", audit.folder.display()));
    }
    let newest = files.len() - 1;
    for (at, path) in files.iter().enumerate() {
        let flags = File::open(path).and_then(|file| ioctl_getflags(&file).map_err(Into::into));
        let (word, wanted) =
            if at == newest { ("append-only", IFlags::APPEND) } else { ("immutable", IFlags::IMMUTABLE) };
        match flags {
            Ok(flags) if flags.contains(wanted) => found.add(Verdict::Met, format!("{}: {word}", path.display())),
            Ok(_) => found.hold(false, format!("{}: is not {word}", path.display())),
            Err(error) => found.add(Verdict::Unknown, format!("{}: {error}", path.display())),
        }
    }
}

/// The files of records, the oldest first.
fn files(sources: &Sources<'_>) -> Result<Vec<PathBuf>, VolumesError> {
    let folder = &sources.config.audit.folder;
    let entries = fs::read_dir(folder).map_err(VolumesError::io("read", folder))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "jsonl"))
        .collect();
    files.sort();
    Ok(files)
}
