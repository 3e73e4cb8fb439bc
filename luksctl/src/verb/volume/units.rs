//! `volume units`: the set as systemd units, printed or installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::json;
use volumes::units::{Around, Installed, UNIT_FOLDER, UnitFile, install, installed, main_unit, timer_unit, units};

use super::{SetArgs, of_volumes};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume units`.
#[derive(Debug, Args)]
pub(crate) struct UnitsArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Write the units into the folder instead of printing them; what was written before and is no longer needed goes
    #[arg(long)]
    install: bool,
    /// Folder of the units
    #[arg(long, value_name = "FOLDER", default_value = UNIT_FOLDER)]
    dir: PathBuf,
    /// With --install: say what would change, write nothing
    #[arg(long, requires = "install")]
    dry_run: bool,
    /// The credential of the master key is encrypted (systemd-creds) or plain; without this, by what is in /etc/credstore*
    #[arg(long, value_name = "KIND", value_parser = ["encrypted", "plain"])]
    credential: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs `volume units`.
pub(crate) fn run(args: &UnitsArgs) -> Result<Code, Failure> {
    let config = args.set.load()?;
    let failed = |error| of_volumes(&args.set.config, &error);
    let program = std::env::current_exe().map_err(|error| Failure::wrong(format!("finding this program: {error}")))?;
    let file = args.set.config.canonicalize().map_err(|error| Failure::from_open(&args.set.config, &error))?;
    let encrypted_credential = args.credential.as_deref().map(|kind| kind == "encrypted");
    let around = Around { program: &program, config: &file, encrypted_credential };
    let files = units(&config, &around).map_err(failed)?;
    if !args.install {
        return print(args, &files);
    }
    let done = if args.dry_run { installed(&files, &args.dir) } else { install(&files, &args.dir) };
    let done = done.map_err(failed)?;
    report(args, &done)?;
    if args.dry_run || (done.written.is_empty() && done.removed.is_empty()) {
        return Ok(Code::Success);
    }
    if args.dir == Path::new(UNIT_FOLDER) && Path::new("/run/systemd/system").is_dir() {
        reload();
    }
    output::words(&format!("next: systemctl enable --now {} {}", main_unit(&config), timer_unit(&config)));
    Ok(Code::Success)
}

/// Tells the manager to read the units again. If it cannot be told, the person is.
pub(super) fn reload() {
    let told = Command::new("systemctl").arg("daemon-reload").stdin(Stdio::null()).output();
    if !told.is_ok_and(|output| output.status.success()) {
        output::words("luksctl: warning: systemd did not read its units again; run `systemctl daemon-reload`");
    }
}

fn print(args: &UnitsArgs, files: &[UnitFile]) -> Result<Code, Failure> {
    if args.report.json {
        let files: Vec<_> = files
            .iter()
            .map(|file| json!({ "path": output::path(&args.dir.join(&file.path)), "text": file.text }))
            .collect();
        output::json(&json!({ "files": files }))?;
        return Ok(Code::Success);
    }
    for (at, file) in files.iter().enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        output::data(format!("{gap}# {}\n{}", args.dir.join(&file.path).display(), file.text).as_bytes())?;
    }
    Ok(Code::Success)
}

fn report(args: &UnitsArgs, done: &Installed) -> Result<(), Failure> {
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| json!(output::path(path))).collect::<Vec<_>>();
    if args.report.json {
        return output::json(&json!({
            "done": !args.dry_run,
            "written": paths(&done.written),
            "unchanged": paths(&done.unchanged),
            "removed": paths(&done.removed),
        }));
    }
    for (what, paths) in [("written", &done.written), ("removed", &done.removed)] {
        for path in paths {
            output::line(&format!("{what}: {}", path.display()))?;
        }
    }
    output::words(&format!("{} units are as they are to be.", done.unchanged.len()));
    Ok(())
}
