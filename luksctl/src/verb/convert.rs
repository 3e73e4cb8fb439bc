//! `convert IMAGE --type luks1|luks2`: another version of the header around the same data and the same passphrases.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use luks::convert::{ConvertPlan, convert, plan_under};
use luks::{Error, Version};
use serde_json::json;
use session::SystemEnv;

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

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// File or block device; also UUID=…, LABEL=… or a name below /dev/disk
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The LUKS header lies in this file or device instead
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
    /// What it shall become
    #[arg(short = 'M', long = "type", value_name = "TYPE", value_enum)]
    to: To,
    /// Convert only what this policy accepts, before and after: default, strict, or a TOML file
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Bounds")]
    policy: Option<PathBuf>,
    /// Show what would be written, write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    recovery: RecoveryArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Versions of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// The old one: eight PBKDF2 keyslots, no tokens, no second copy of the header.
    Luks1,
    /// The present one.
    Luks2,
}

impl To {
    fn version(self) -> Version {
        match self {
            To::Luks1 => Version::Luks1,
            To::Luks2 => Version::Luks2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            To::Luks1 => "LUKS1",
            To::Luks2 => "LUKS2",
        }
    }
}

/// Plans, asks, converts.
pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<Code, Failure> {
    let limits = image::limits(&LimitArgs::default());
    let target =
        TargetArgs { image: args.image.clone(), header: args.header.clone(), policy: args.policy.clone(), kind: None };
    let held = UnusedImage::open(&target)?;
    let header = held.image().header();
    let path = header.path();
    let policy = target.policy()?.unwrap_or_default();
    let planned = plan_under(header, args.to.version(), &limits, &policy);
    let planned = planned.map_err(|error| Failure::of_luks(path, error))?;
    let mut recovery = RecoveryFile::choose(&args.recovery, header)?;
    say(path, args.to, &planned);
    if !args.dry_run {
        let warning = format!(
            "{} will be converted to {}. A crash in the middle leaves it closed until its present header is restored.",
            path.display(),
            args.to.name()
        );
        confirm::before_loss(common, &warning)?;
        // A first Ctrl-C is not obeyed: in the middle is the worst place to stop.
        Interrupt::watch()?.stop_softly();
        let converted = convert(header, &SystemEnv.env(), &planned, &limits, &mut recovery);
        if let Err(error) = converted {
            return Err(after_failure(path, recovery.path(), error));
        }
        recovery.remove();
    }
    if args.report.json {
        output::json(&json!({
            "image": output::path(path),
            "to": args.to.name().to_lowercase(),
            "converted": !args.dry_run,
            "uuid": planned.uuid,
            "keyslots": planned.keyslots,
            "lost": planned.lost,
        }))?;
    } else if !args.dry_run {
        output::words(&format!("Converted {} to {}.", path.display(), args.to.name()));
    }
    Ok(Code::Success)
}

/// What is about to happen, in words.
fn say(image: &Path, to: To, plan: &ConvertPlan) {
    let ids: Vec<String> = plan.keyslots.iter().map(ToString::to_string).collect();
    output::words(&format!(
        "{}: {} becomes {}; its keyslots ({}) and its data stay.",
        image.display(),
        plan.uuid,
        to.name(),
        ids.join(", ")
    ));
    for lost in &plan.lost {
        output::words(&format!("luksctl: warning: {}: {lost} will be lost", image.display()));
    }
}

/// What to do when it broke off.
fn after_failure(image: &Path, recovery: Option<&Path>, error: Error) -> Failure {
    let failure = Failure::of_luks(image, error);
    let Some(recovery) = recovery else { return failure };
    let (image, recovery) = (image.display(), recovery.display());
    failure.with_hint(format!(
        "`luksctl header restore {image} {recovery}` takes it back; where that says LUKS2, `luksctl repair {image}` finishes"
    ))
}
