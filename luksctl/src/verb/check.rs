//! `check IMAGE`: everything that is wrong with a header, each with its reason: its two copies, what a policy does not accept,
//! keyslot areas that something went over. 10 if anything is found. Opens nothing, writes nothing to the image.
//!
//! `--write-pins FILE` records what ties a policy to this container, only if nothing was found: a new file, or an existing one
//! whose `[pins]` are raised to what the header is now.

mod report;

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use luks::Policy;
use luks::check::{CheckReport, check};
use luks::policy::Pins;
use session::policy as file;

use crate::args::Common;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::interrupt::Interrupt;
use crate::output;
use crate::part_file::PartFile;

/// The policy that is judged by if none is named.
const PRESET: &str = "strict";

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// If nothing is found: write UUID, epoch and the fingerprints of volume key and segments to FILE, for --policy FILE
    #[arg(long, value_name = "FILE")]
    write_pins: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Looks at the container and reports.
pub(crate) fn run(args: &CheckArgs, common: &Common) -> Result<Code, Failure> {
    let pinned =
        args.write_pins.as_deref().map(|file| PinFile::look(file, args.target.policy.as_deref())).transpose()?;
    let policy = match (&pinned, args.target.policy()?) {
        (Some(pinned), _) => pinned.policy.clone(),
        (None, Some(policy)) => policy,
        (None, None) => Policy::strict(),
    };
    // Judged here, not refused: nothing of the target's own policy.
    let image = Image::open_unjudged(&args.target, Access::Read)?;
    let limits = image::limits(&LimitArgs::default());
    let found =
        check(image.header().as_ref(), &limits, &policy).map_err(|error| Failure::of_luks(image.path(), error))?;
    let written = match &pinned {
        Some(pinned) if found.is_clean() => Some(pinned.write(&found)?),
        _ => None,
    };
    if args.report.json {
        output::json(&report::in_json(image.path(), &policy, &found, written.as_deref()))?;
    } else {
        report::lines(image.path(), &policy, &found).iter().try_for_each(|line| output::line(line))?;
    }
    if !common.batch_mode
        && let Some(pinned) = &pinned
    {
        output::words(&match &written {
            Some(path) => format!("Pins written to {}.", path.display()),
            None => format!("{} was not written: something was found.", pinned.path.display()),
        });
    }
    Ok(if found.is_clean() { Code::Success } else { Code::Found })
}

/// The file that pins go to, and the policy in it.
struct PinFile {
    path: PathBuf,
    /// What it says, or will say apart from its pins.
    text: String,
    policy: Policy,
    /// Permissions of the file that is replaced.
    mode: Option<Permissions>,
}

impl PinFile {
    /// An existing file is the policy itself; a new one takes over the named one.
    fn look(path: &Path, named: Option<&Path>) -> Result<PinFile, Failure> {
        let name = path.display().to_string();
        let there = std::fs::metadata(path).ok().map(|found| found.permissions());
        if there.is_some() && named.is_some_and(|named| named != path) {
            return Err(Failure::wrong(format!("{name} exists already and is the policy itself"))
                .with_hint("leave --policy out to raise its pins, or name a new file"));
        }
        let text = match (&there, named) {
            (Some(_), _) => file::read(path).map_err(Failure::of_session)?,
            (None, Some(named)) if named.to_str().and_then(Policy::preset).is_none() => {
                file::read(named).map_err(Failure::of_session)?
            }
            (None, named) => {
                let preset = named.and_then(Path::to_str).unwrap_or(PRESET);
                file::preset_file(preset)
            }
        };
        let policy = file::parse(&text, &name).map_err(Failure::of_session)?;
        Ok(PinFile { path: path.to_owned(), text, policy, mode: there })
    }

    fn write(&self, found: &CheckReport) -> Result<PathBuf, Failure> {
        let name = self.path.display().to_string();
        let text = file::with_pins(&self.text, &name, &Pins::of_any(&found.header)).map_err(Failure::of_session)?;
        let interrupt = Interrupt::watch()?;
        let part = PartFile::create(&self.path, self.mode.is_some(), &interrupt)?;
        let failed = |error: std::io::Error| Failure::from_write("writing", &self.path, &error);
        part.file().write_all(text.as_bytes()).map_err(failed)?;
        if let Some(mode) = &self.mode {
            let mode = Permissions::from_mode(mode.mode() & 0o777);
            part.file().set_permissions(mode).map_err(failed)?;
        }
        part.finish()?;
        Ok(self.path.clone())
    }
}
