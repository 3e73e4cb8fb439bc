//! `header restore IMAGE FILE`: header and keyslots of a backup over those of a container. Says what would change and asks;
//! what looks like a mistake (another container's backup) needs `--force` or an answer to a plainer question.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::Args;
use luks::restore::{Found, RestorePlan, plan, restore};
use luks::{Backup, Error, Limits};
use rustix::fs::OFlags;
use serde_json::json;

use super::FileArgs;
use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image;
use crate::interrupt::Interrupt;
use crate::output;
use crate::recovery_file::{RecoveryArgs, RecoveryFile};
use crate::unused::UnusedImage;

/// Arguments of `header restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// How carefully.
#[derive(Debug, Args)]
struct HowArgs {
    /// Restore even what looks like the backup of another container, or over another format
    #[arg(long)]
    force: bool,
    /// Show what would be written, write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    recovery: RecoveryArgs,
}

/// Restores.
pub(crate) fn run(args: &RestoreArgs, common: &Common) -> Result<Code, Failure> {
    work(&args.target, args.file.path()?, &args.how, args.report.json, common)
}

fn work(target: &TargetArgs, file: &Path, how: &HowArgs, as_json: bool, common: &Common) -> Result<Code, Failure> {
    let limits = image::limits(&LimitArgs::default());
    let backup = read(file, &limits)?;
    let held = UnusedImage::open(target)?;
    let header = held.image().header();
    let failed = |error| Failure::of_luks(header.path(), error);
    held.image().accepts(backup.header()).map_err(|error| Failure::of_luks(file, error))?;
    let planned = plan(header, &backup, &limits).map_err(failed)?;
    let mut recovery = RecoveryFile::choose(&how.recovery, header)?;
    if !how.dry_run {
        consent(header.path(), &planned, how.force, common)?;
        // A first Ctrl-C is not obeyed: in the middle is the worst place to stop.
        Interrupt::watch()?.stop_softly();
        let restored = restore(header, &backup, &planned, &limits, &mut recovery);
        if let Err(error) = restored {
            return Err(after_failure(header.path(), file, recovery.path(), error));
        }
        recovery.remove();
    }
    if as_json {
        return output::json(&json!({
            "image": output::path(header.path()),
            "file": output::path(file),
            "restored": !how.dry_run,
            "region_bytes": planned.region.0,
            "atomic": planned.atomic,
            "grave": planned.is_grave(),
            "concerns": planned.concerns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))
        .map(|()| Code::Success);
    }
    if how.dry_run {
        say(header.path(), &planned);
    } else {
        output::words(&format!("Restored the header of {} from {}.", header.path().display(), file.display()));
    }
    Ok(Code::Success)
}

/// Reads and checks the backup.
fn read(file: &Path, limits: &Limits) -> Result<Backup, Failure> {
    let failed = |error: std::io::Error| Failure::from_open(file, &error);
    // A pipe would keep us waiting; and what is looked at is what is read, whatever its name means meanwhile.
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(file);
    let opened = opened.map_err(failed)?;
    let found = opened.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(Failure::wrong(format!("{}: is no regular file, and so no header backup", file.display()))
            .with_hint("name the file that `luksctl header backup` or cryptsetup made"));
    }
    if found.len() > luks::backup::BACKUP_SIZE_MAX.0 {
        return Err(Failure::wrong(format!("{}: is larger than any header backup", file.display()))
            .with_hint("a header backup holds the header alone, not the image"));
    }
    let mut bytes = Vec::new();
    opened.take(luks::backup::BACKUP_SIZE_MAX.0 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Backup::parse(bytes, limits).map_err(|error| match error {
        Error::NotLuks => Failure::wrong(format!("{}: holds no LUKS header", file.display()))
            .with_hint("name the file that `luksctl header backup` or cryptsetup made"),
        error => Failure::of_luks(file, error),
    })
}

/// What is about to happen, in words.
fn say(image: &Path, plan: &RestorePlan) {
    let image = image.display();
    output::words(&match &plan.found {
        Found::Header { version, uuid } => {
            format!("{image}: the LUKS{version} header {uuid} ({} with its keyslots) will be replaced.", plan.region)
        }
        _ => format!("{image}: its first {} will be replaced.", plan.region),
    });
    for concern in &plan.concerns {
        output::words(&format!("luksctl: warning: {image}: {concern}"));
    }
    if !plan.atomic {
        output::words(&format!(
            "luksctl: warning: {image}: a crash in the middle leaves keyslots that do not open, until the same is done again"
        ));
    }
}

/// Nothing is replaced without a yes; what looks like a mistake is not replaced by `-q` alone.
fn consent(image: &Path, plan: &RestorePlan, force: bool, common: &Common) -> Result<(), Failure> {
    say(image, plan);
    if plan.is_grave() && !force {
        if common.batch_mode || !confirm::can_ask() {
            let grave: Vec<String> =
                plan.concerns.iter().filter(|concern| concern.is_grave()).map(ToString::to_string).collect();
            return Err(Failure::wrong(format!("{}: {}; nothing was changed", image.display(), grave.join("; ")))
                .with_hint("look at both with `luksctl dump`; if it is really meant, add --force"));
        }
        return confirm::typed_yes(&format!(
            "this does not look like a backup of {0}. If it is not, all data on {0} is lost for good.",
            image.display()
        ));
    }
    let warning = format!("the header of {} and all its keyslots will be replaced by the backup's.", image.display());
    confirm::before_loss(common, &warning)
}

/// What to do when it broke off.
fn after_failure(image: &Path, backup: &Path, recovery: Option<&Path>, error: Error) -> Failure {
    let failure = Failure::of_luks(image, error);
    let Some(recovery) = recovery else { return failure };
    failure.with_hint(format!(
        "`luksctl header restore {0} {1}` brings the former header back; with {2} instead it finishes",
        image.display(),
        recovery.display(),
        backup.display()
    ))
}
