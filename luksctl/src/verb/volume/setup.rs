//! `volume setup`: from the file to mounted volumes. The plan is shown, agreed to, and done step by step; what is there stays.

use std::path::{Path, PathBuf};

use clap::Args;
use keystore::RecoveryKey;
use serde_json::json;
use volumes::VolumesError;
use volumes::compose::COMPOSE_FILE;
use volumes::set::Set;
use volumes::setup::{Action, Outside, Parts, Performed, Performer, Plan, Standpoint, Step, make_folders, plan};
use volumes::units::{Around, UNIT_FOLDER, main_unit, timer_unit};

use super::{SetArgs, Work, units};
use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::{confirm, output};

/// Arguments of `volume setup`.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Show the plan, do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask whether the plan is right
    #[arg(long)]
    yes: bool,
    /// Leave the volumes closed
    #[arg(long)]
    no_mount: bool,
    /// Make no header backups
    #[arg(long)]
    no_header_backup: bool,
    /// Make no recovery key and no backup of keys; `volume status` stays yellow
    #[arg(long)]
    no_recovery: bool,
    /// Write no units of systemd; without systemd, or without root, none are written unless --units-dir says where
    #[arg(long, conflicts_with = "units_dir")]
    no_units: bool,
    /// Folder of the units [default: /etc/systemd/system where systemd runs]
    #[arg(long, value_name = "FOLDER")]
    units_dir: Option<PathBuf>,
    /// Write no compose file
    #[arg(long, conflicts_with = "compose")]
    no_compose: bool,
    /// The compose file, where a volume has a place in a container [default: docker-compose.encrypted.yml beside the
    /// file that describes the set]
    #[arg(long, value_name = "FILE")]
    compose: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

impl SetupArgs {
    /// Where units and compose file go.
    fn outside(&self, config: &Path) -> Outside {
        let by_systemd = Path::new("/run/systemd/system").is_dir() && rustix::process::geteuid().is_root();
        let units = self.units_dir.clone().or_else(|| by_systemd.then(|| UNIT_FOLDER.into()));
        let beside = || config.with_file_name(COMPOSE_FILE);
        Outside {
            units: units.filter(|_| !self.no_units),
            compose: (!self.no_compose).then(|| self.compose.clone().unwrap_or_else(beside)),
        }
    }

    fn parts(&self) -> Parts {
        Parts { mount: !self.no_mount, header_backup: !self.no_header_backup, recovery: !self.no_recovery }
    }
}

/// Shows the plan, and performs it.
pub(crate) fn run(args: &SetupArgs, common: &Common) -> Result<Code, Failure> {
    let work = if args.dry_run { Work::looking(&args.set)? } else { Work::alone(&args.set)? };
    let plan = plan(work.set.config(), &args.parts(), work.metadata()?.as_ref(), &work.machine());
    let mut plan = plan.map_err(work.failed())?;
    let program = std::env::current_exe().map_err(|error| Failure::wrong(format!("finding this program: {error}")))?;
    let file = work.set.path().canonicalize().map_err(|error| Failure::from_open(work.set.path(), &error))?;
    let around = Around { program: &program, config: &file, encrypted_credential: None };
    let outside = args.outside(&file);
    outside.add_to(&mut plan, work.set.config(), &around);
    if !args.report.json {
        show(&plan)?;
    }
    if args.dry_run {
        if args.report.json {
            output::json(&json!({ "plan": plan, "changed": false }))?;
        }
        return plan.check().map(|()| Code::Success).map_err(work.failed());
    }
    plan.check().map_err(work.failed())?;
    let changed = !plan.is_done();
    if changed {
        if !args.yes {
            confirm::agreed(common, "Do what is missing?", "--yes")?;
        }
        perform(&work, &plan, args, &|step| outside.perform(step, work.set.config(), &around))?;
    }
    if args.report.json {
        output::json(&json!({ "plan": plan, "changed": changed }))?;
    } else if changed {
        output::words("Done.");
    } else {
        output::words("Everything is there; nothing was changed.");
    }
    Ok(Code::Success)
}

/// The plan, a line for each step.
pub(super) fn show(plan: &Plan) -> Result<(), Failure> {
    for step in &plan.steps {
        let state = match step.state {
            Standpoint::There => "there",
            Standpoint::Missing => "missing",
            Standpoint::InTheWay => "in the way",
        };
        output::line(format!("{state:<10} {:<13} {}  {}", step.action.word(), step.target, step.note).trim_end())?;
    }
    Ok(())
}

/// Does what is missing; `outside` does what is none of the set's own steps, and says so.
fn perform(
    work: &Work,
    plan: &Plan,
    args: &SetupArgs,
    outside: &dyn Fn(&Step) -> Result<bool, VolumesError>,
) -> Result<(), Failure> {
    let failed = work.failed();
    make_folders(plan).map_err(&failed)?;
    let store = if work.set.has_store() { work.set.store() } else { work.set.create_store() };
    let mut store = store.map_err(&failed)?;
    for step in plan.steps.iter().filter(|step| step.state == Standpoint::Missing) {
        output::words(&format!("{} {} …", step.action.word(), step.target));
        if outside(step).map_err(&failed)? {
            if step.action == Action::Units && Path::new(&step.target) == Path::new(UNIT_FOLDER) {
                units::reload();
                let (main, timer) = (main_unit(work.set.config()), timer_unit(work.set.config()));
                output::words(&format!("next: systemctl enable --now {main} {timer}"));
            }
            continue;
        }
        let mut performer = Performer { set: &work.set, store: &mut store, machine: work.machine() };
        if let Performed::Recovery(key) = performer.perform(step, Set::now()).map_err(&failed)? {
            // Before the step that makes a backup for it, which says that it was shown.
            hand_over(&key, args.report.json)?;
        }
    }
    Ok(())
}

/// Shows the recovery key, once: to standard output, or beside a report to the person. It goes to the descriptor without a
/// buffer that nobody would wipe.
fn hand_over(key: &RecoveryKey, as_json: bool) -> Result<(), Failure> {
    let put = |bytes: &[u8]| {
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = if as_json {
                rustix::io::write(rustix::stdio::stderr(), rest)
            } else {
                rustix::io::write(rustix::stdio::stdout(), rest)
            };
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Failure::wrong(format!("the recovery key could not be shown: {error}"))),
            }
        }
        Ok(())
    };
    output::words(
        "The recovery key opens the backups of keys without this program (docs/keystore.md). It is shown only now: write it \
         down and keep it elsewhere.",
    );
    put(b"recovery key: ")?;
    put(key.text().expose())?;
    put(b"\n")
}
