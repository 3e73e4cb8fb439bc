//! `volume up [NAME…]`: opens volumes with the keys of the store and mounts them.

use clap::Args;
use volumes::keys;
use volumes::life::{self, Up};

use super::{SetArgs, Work};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Volumes; all of the set without any
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    /// Open them, mount nothing
    #[arg(long)]
    no_mount: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Takes volumes up. The first that cannot be ends it; those before it stay up.
pub(crate) fn run(args: &UpArgs) -> Result<Code, Failure> {
    let work = Work::alone(&args.set)?;
    let failed = work.failed();
    let chosen = life::chosen(work.set.config(), &args.names).map_err(&failed)?;
    let mut store = work.set.store().map_err(&failed)?;
    let up = Up { set: &work.set, machine: work.machine(), mount: !args.no_mount };
    let mut reports = Vec::new();
    for volume in chosen {
        // A rotation of its key that was cut off.
        if let Err(error) = keys::settle(&work.set, &mut store, &volume.name) {
            // What keeps the rotation from its end need not keep the volume closed: the key in use opens it at every cut.
            let failure = failed(error);
            output::words(&format!(
                "luksctl: {}: the rotation of its key stays open: {}",
                volume.name,
                failure.message()
            ));
            drop(store);
            store = work.set.store().map_err(&failed)?;
        }
        let report = up.volume(volume, &mut store).map_err(&failed)?;
        if !args.report.json {
            let place = report.mounted.as_ref().or(report.device.as_ref());
            let place = place.map_or_else(String::new, |place| place.display().to_string());
            output::line(format!("{}  {place}", report.name).trim_end())?;
        }
        reports.push(report);
    }
    work.set.remember(&store).map_err(&failed)?;
    if args.report.json {
        output::json(&reports)?;
    }
    Ok(Code::Success)
}
