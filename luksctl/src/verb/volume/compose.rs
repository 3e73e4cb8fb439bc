//! `volume compose`: the compose file of the container that uses the volumes.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use session::State;
use volumes::compose::{COMPOSE_FILE, compose, write};
use volumes::config::{Config, VolumeSpec};
use volumes::units::Put;

use super::{SetArgs, of_volumes};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume compose`.
#[derive(Debug, Args)]
pub(crate) struct ComposeArgs {
    #[command(flatten)]
    set: SetArgs,
    /// The file to write; `-` prints it
    #[arg(short = 'o', long, value_name = "FILE", default_value = COMPOSE_FILE)]
    output: PathBuf,
    /// Write it although a mount point is not up: start the container only when it is
    #[arg(long)]
    allow_unmounted: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs `volume compose`.
pub(crate) fn run(args: &ComposeArgs) -> Result<Code, Failure> {
    let config = args.set.load()?;
    let up = |volume: &VolumeSpec| is_up(&config, volume);
    let text = if args.allow_unmounted { compose(&config, None) } else { compose(&config, Some(&up)) };
    let text = text.map_err(|error| of_volumes(&args.set.config, &error))?;
    if args.output.as_os_str() == "-" {
        output::data(text.as_bytes())?;
        return Ok(Code::Success);
    }
    let put = write(&config, &text, &args.output).map_err(|error| of_volumes(&args.set.config, &error))?;
    if args.report.json {
        output::json(&json!({ "file": output::path(&args.output), "written": put == Put::Written }))?;
    } else if put == Put::Written {
        output::line(&format!("written: {}", args.output.display()))?;
    } else {
        output::words(&format!("{} is as it is to be.", args.output.display()));
    }
    Ok(Code::Success)
}

/// Whether the volume is in service and mounted where the set says.
fn is_up(config: &Config, volume: &VolumeSpec) -> bool {
    let Ok(run) = crate::verb::run_dir() else { return false };
    let status = session::status(&run, &config.mapping(volume));
    status.is_ok_and(|status| {
        let mount = volume.mount.as_ref();
        status.state == State::Open && mount.is_some_and(|mount| status.mount_points.contains(mount))
    })
}
