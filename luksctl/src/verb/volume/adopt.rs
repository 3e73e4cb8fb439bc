//! `volume adopt`: takes a set over that the guide's scripts made. Without a `volumes.toml` it writes one from what it finds.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use volumes::adopt::{self, Layout};
use volumes::config::Config;
use volumes::set::Set;
use volumes::setup::{Action, Standpoint, Step};

use super::{SetArgs, Work, of_volumes, setup};
use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::{confirm, output};

/// Arguments of `volume adopt`.
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// Volumes; all of the set without any
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    /// Without a file that describes the set: the folder of its images NAME.img
    #[arg(long, value_name = "FOLDER", default_value = "/opt/trading-bot/encrypted")]
    images: PathBuf,
    /// Without that file: the folder of the raw keys NAME.key
    #[arg(long, value_name = "FOLDER", default_value = "/opt/trading-bot/keys")]
    keys: PathBuf,
    /// Without that file: what stands before the names in mappings and mount points
    #[arg(long, value_name = "TEXT", default_value = "trading-")]
    prefix: String,
    /// Without that file: the folder of the mount points
    #[arg(long, value_name = "FOLDER", default_value = "/mnt")]
    mounts: PathBuf,
    /// Without that file: the folder of the audit log, with FOLDER.seed beside it [default: as volumes.toml has it]
    #[arg(long, value_name = "FOLDER")]
    audit: Option<PathBuf>,
    /// Destroy each raw key after the sealed one has opened its image
    #[arg(long)]
    wipe_raw_keys: bool,
    /// Show the plan, do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask whether the plan is right
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    report: ReportArgs,
}

impl AdoptArgs {
    fn layout(&self) -> Layout {
        Layout {
            folder: self.images.clone(),
            keys: self.keys.clone(),
            prefix: self.prefix.clone(),
            mounts: self.mounts.clone(),
            audit: self.audit.clone(),
        }
    }
}

/// Shows the plan, and takes the set over.
pub(crate) fn run(args: &AdoptArgs, common: &Common) -> Result<Code, Failure> {
    crate::harden::keep_in_memory();
    let path = &args.set.config;
    let failed = |error| of_volumes(path, &error);
    let text =
        if path.symlink_metadata().is_ok() { None } else { Some(adopt::describe(&args.layout()).map_err(failed)?) };
    let config = match &text {
        Some(text) => Config::parse(text, path).map_err(failed)?,
        None => args.set.load()?,
    };
    let set = Set::new(config, path);
    let has_store = set.has_store() && !adopt::is_foreign_metadata(set.config()).map_err(failed)?;
    let metadata = if has_store { Some(set.metadata().map_err(failed)?) } else { None };
    let mut plan = adopt::plan(set.config(), &args.names, metadata.as_ref(), args.wipe_raw_keys).map_err(failed)?;
    if text.is_some() {
        let target = path.display().to_string();
        plan.steps.insert(0, Step::missing(Action::Config, target, "from the images that were found"));
    }
    if !args.report.json {
        setup::show(&plan)?;
    }
    let changed = !plan.is_done();
    if !args.dry_run {
        plan.check().map_err(failed)?;
        if changed && !args.yes {
            confirm::agreed(common, "Take this set over?", "--yes")?;
        }
        if let Some(text) = text.as_ref() {
            adopt::write_config(path, text).map_err(failed)?;
        }
        if changed {
            take_over(args, &plan.steps)?;
        }
    }
    if args.report.json {
        output::json(&json!({ "plan": plan, "changed": changed && !args.dry_run }))?;
    } else if !args.dry_run {
        output::words(if changed {
            "Taken over. `luksctl volume setup` adds what is missing: header backups, a recovery key, mount points."
        } else {
            "Everything is taken over already; nothing was changed."
        });
    }
    plan.check().map(|()| Code::Success).map_err(failed)
}

fn take_over(args: &AdoptArgs, steps: &[Step]) -> Result<(), Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    if adopt::put_metadata_aside(work.set.config()).map_err(&failed)? {
        output::words("luksctl: another program's key_metadata.json was put aside");
    }
    let store = if work.set.has_store() { work.set.store() } else { work.set.create_store() };
    let mut store = store.map_err(&failed)?;
    for step in steps.iter().filter(|step| step.state == Standpoint::Missing) {
        adopt::perform(&work.set, &mut store, step, Set::now()).map_err(&failed)?;
    }
    Ok(())
}
