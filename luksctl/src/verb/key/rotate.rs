//! `key rotate|rotate-all|rotate-backup|rotate-master|export-set`: new keys for the managed set.

use std::path::PathBuf;

use clap::Args;
use keystore::{KeyKind, KeyName, OldKey};
use secret::{KeyFile, KeyProvider, Prompt};
use serde_json::json;
use volumes::VolumesError;
use volumes::approval::{self, Operation};
use volumes::config::MasterSource;
use volumes::keys::{self, BACKUP_KEY, Rotated};
use volumes::set::{Set, SetStore};

use super::managed::Managed;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::volume::SetArgs;

/// What becomes of the old key.
#[derive(Debug, Args)]
struct OldArgs {
    /// Keep the old key sealed in the store, and with it the header backups that it opens [default: both are destroyed]
    #[arg(long)]
    keep_old: bool,
}

impl OldArgs {
    fn choice(&self) -> OldKey {
        if self.keep_old { OldKey::Keep } else { OldKey::Wipe }
    }
}

/// Arguments of `key rotate`.
#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The volume, as volumes.toml calls it
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    old: OldArgs,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `key rotate-all`.
#[derive(Debug, Args)]
pub(super) struct RotateAllArgs {
    /// Only keys that are due, or fall due within --within
    #[arg(long)]
    due: bool,
    /// With --due: until the next run, so many days
    #[arg(long, value_name = "DAYS", default_value_t = 7, requires = "due", value_parser = clap::value_parser!(u32).range(0..=3650))]
    within: u32,
    #[command(flatten)]
    old: OldArgs,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `key rotate-backup`.
#[derive(Debug, Args)]
pub(super) struct RotateBackupArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `key rotate-master`.
#[derive(Debug, Args)]
pub(super) struct RotateMasterArgs {
    /// Where the master secret is a credential, a key of the keyring or a command's output: a file with the new one, which
    /// you give that source afterwards. A master key file gets new random bytes, a passphrase is asked for
    #[arg(long, value_name = "FILE")]
    new_master_file: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
}

/// Arguments of `key export-set`.
#[derive(Debug, Args)]
pub(super) struct ExportSetArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Rotates the key of one volume.
pub(super) fn run(args: &RotateArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let mut store = managed.store()?;
    let done = keys::rotate(&managed.set, &mut store, &args.name, args.old.choice()).map_err(managed.failed())?;
    said(&[done], args.report.json)?;
    Ok(Code::Success)
}

/// The keys to rotate: of every volume that has one, and of backups; or only those that are due.
fn chosen(set: &Set, store: &SetStore, within_days: Option<u32>) -> Vec<KeyName> {
    let metadata = store.metadata();
    let is_rotated = |name: &KeyName| {
        let kind = metadata.keys.get(name).map(|record| record.kind);
        kind == Some(KeyKind::Backup) || (kind == Some(KeyKind::Volume) && set.config().volume(name.as_str()).is_some())
    };
    match within_days {
        Some(days) => {
            metadata.due_within(Set::now(), days).keys.into_iter().map(|key| key.name).filter(is_rotated).collect()
        }
        None => {
            let in_use = metadata.keys.iter().filter(|(_, record)| record.active().is_some());
            in_use.map(|(name, _)| name.clone()).filter(is_rotated).collect()
        }
    }
}

/// Rotates every key, or every one that is due. One that fails does not keep the others from being rotated; one that needs an
/// approval is requested, and ends it with 10.
pub(super) fn run_all(args: &RotateAllArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let mut store = managed.store()?;
    let (mut rotated, mut failed, mut waits) = (Vec::new(), None, false);
    for volume in &managed.set.config().volumes {
        if let Err(error) = keys::settle(&managed.set, &mut store, &volume.name) {
            let failure = managed.failed()(error);
            output::words(&format!("luksctl: {}: {}", volume.name, failure.message()));
            failed = Some(failure);
            drop(store);
            store = managed.store()?;
        }
    }
    for name in chosen(&managed.set, &store, args.due.then_some(args.within)) {
        let done = match name.as_str() {
            BACKUP_KEY => keys::rotate_backup(&managed.set, &mut store),
            name => keys::rotate(&managed.set, &mut store, name, args.old.choice()),
        };
        match done {
            Ok(done) => rotated.push(done),
            Err(VolumesError::Unapproved { pending, .. }) => {
                waits = true;
                let id = pending.map_or_else(|| requested(&managed, name.as_str()), Ok)?;
                output::words(&format!("{name} waits for a second person within 24 hours: luksctl key approve {id}"));
            }
            Err(error) => {
                let failure = managed.failed()(error);
                output::words(&format!("luksctl: {name}: {}", failure.message()));
                failed = Some(failure);
                // A store that could not be written is read again.
                drop(store);
                store = managed.store()?;
            }
        }
    }
    said(&rotated, args.report.json)?;
    if rotated.is_empty() && failed.is_none() && !waits {
        output::words("No key had to be rotated.");
    }
    let done = if waits { Code::Found } else { Code::Success };
    failed.map_or(Ok(done), Err)
}

/// Asks for the approval of a rotation; its ID.
fn requested(managed: &Managed, name: &str) -> Result<String, Failure> {
    let (operation, target) =
        if name == BACKUP_KEY { (Operation::RotateBackup, "") } else { (Operation::Rotate, name) };
    approval::request(&managed.set, operation, target).map_err(managed.failed())
}

/// Gives backups of data a new key.
pub(super) fn run_backup(args: &RotateBackupArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let mut store = managed.store()?;
    let done = keys::rotate_backup(&managed.set, &mut store).map_err(managed.failed())?;
    said(&[done], args.report.json)?;
    Ok(Code::Success)
}

fn said(rotated: &[Rotated], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return output::json(&rotated);
    }
    for one in rotated {
        let Rotated { name, from, to, .. } = one;
        if name == BACKUP_KEY {
            output::words(&format!(
                "{name}: generation {to} is in use; backups made under generation {from} open with it."
            ));
        } else {
            output::words(&format!("{name}: generation {to} is in use, generation {from} opens the header no longer."));
        }
        match &one.key_backup {
            Some(backup) => output::words(&format!("  backup of keys: {backup}")),
            None => output::words("  no backup of keys: there is no recovery key"),
        }
        for path in &one.header_backups_destroyed {
            output::words(&format!("  header backup destroyed: {}", path.display()));
        }
        for backup in &one.header_backups_kept {
            let (path, generation) = (backup.path.display(), backup.opens_with_generation);
            output::words(&format!("  header backup {path} opens with generation {generation}"));
        }
    }
    if !rotated.is_empty() {
        output::words("The volume keys are the same as before; `luksctl key report` says what that means.");
    }
    Ok(())
}

/// Seals everything under a new master secret.
pub(super) fn run_master(args: &RotateMasterArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let is_ours = matches!(managed.set.config().keys.master, MasterSource::File(_) | MasterSource::Passphrase);
    let provider: Box<dyn KeyProvider> = match (&args.new_master_file, is_ours) {
        (None, true) => Box::new(Prompt::new()),
        (Some(file), false) => Box::new(KeyFile::whole(file)),
        (Some(_), true) => {
            return Err(Failure::wrong("--new-master-file is for a master secret that this program does not keep")
                .with_hint("leave it out: a file gets new random bytes, a passphrase is asked for"));
        }
        (None, false) => {
            return Err(Failure::wrong("the source of the master secret cannot be written by this program")
                .with_hint("make a new secret in a file, add --new-master-file FILE, then give it to the source"));
        }
    };
    let mut store = managed.store()?;
    managed.set.change_master(&mut store, provider).map_err(managed.failed())?;
    managed.set.back_up_keys(&store).map_err(managed.failed())?;
    output::words("Every key is sealed under the new master secret; the old one opens nothing in the store.");
    if !is_ours {
        output::words("Give the source the new master secret now: the store opens with nothing else.");
    }
    output::words(
        "Copies of the old store still open with the old one: `luksctl key rotate-all` takes their worth away.",
    );
    Ok(Code::Success)
}

/// Writes a backup of all keys for the recovery key.
pub(super) fn run_export_set(args: &ExportSetArgs) -> Result<Code, Failure> {
    let managed = Managed::alone(&args.set)?;
    let store = managed.store()?;
    approval::demand(&managed.set, Operation::ExportSet, "").map_err(managed.failed())?;
    let name = managed.set.back_up_keys(&store).map_err(managed.failed())?;
    let Some(name) = name else {
        return Err(Failure::wrong("there is no recovery key that a backup of keys could be written for")
            .with_hint("luksctl volume setup"));
    };
    let path = managed.set.config().store.key_backup.join(name);
    if args.report.json {
        output::json(&json!({ "key-backup": output::path(&path) }))?;
    } else {
        output::line(&path.display().to_string())?;
        output::words("It opens with the recovery key alone: gpg --decrypt FILE | tar -xzf - -C FOLDER-ON-A-TMPFS");
    }
    Ok(Code::Success)
}
