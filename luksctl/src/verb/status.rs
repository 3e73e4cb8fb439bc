//! `status NAME`: one open volume. 4 if there is none of that name, 10 if it is dead or failed.

use clap::Args;
use session::{State, Status};

use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Name given to `open`
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    report: ReportArgs,
}

/// Shows a volume.
pub(crate) fn run(args: &StatusArgs, _common: &Common) -> Result<Code, Failure> {
    let status = session::status(&super::run_dir()?, &args.name).map_err(Failure::of_session)?;
    if args.report.json {
        output::json(&status)?;
    } else {
        for line in lines(&status) {
            output::line(&line)?;
        }
    }
    if let Some(problem) = &status.problem {
        output::words(&format!("luksctl: warning: {problem}"));
    }
    Ok(code_of(&status))
}

/// 10 for a volume that somebody must look after.
pub(crate) fn code_of(status: &Status) -> Code {
    if matches!(status.state, State::Dead | State::Failed) { Code::Found } else { Code::Success }
}

/// The state in a word.
pub(crate) fn word(state: State) -> &'static str {
    match state {
        State::Opening => "opening",
        State::Open => "open",
        State::Suspended => "suspended",
        State::Failed => "failed",
        State::Closing => "closing",
        State::Dead => "dead",
        _ => "unknown",
    }
}

fn lines(status: &Status) -> Vec<String> {
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let mounted: Vec<String> = status.mount_points.iter().map(|point| point.display().to_string()).collect();
    let rows = [
        ("state", Some(word(status.state).to_owned())),
        ("device", path(&status.device)),
        ("URI", status.uri.clone()),
        ("TLS URI", status.tls_uri.clone()),
        ("mounted on", Some(mounted.join(", ")).filter(|points| !points.is_empty())),
        ("size", status.size_bytes.map(|size| block::Bytes(size).to_string())),
        ("mode", Some(if status.read_only { "read only" } else { "read and write" }.to_owned())),
        ("image", path(&status.image)),
        ("header", path(&status.header)),
        ("type", status.luks_version.map(|version| format!("LUKS{version}"))),
        ("UUID", status.uuid.clone()),
        ("cipher", status.cipher.clone()),
        ("key", status.key_size_bits.map(|bits| format!("{bits} bits"))),
        ("sector", status.sector_size_bytes.map(|bytes| format!("{bytes} bytes"))),
        ("keyslot", status.keyslot.map(|slot| slot.to_string())),
        ("loop", path(&status.loop_device)),
        ("flags", Some(status.flags.join(" ")).filter(|flags| !flags.is_empty())),
        ("key is in", status.key_location.clone()),
        ("backend", status.backend.clone()),
        ("engine", status.engine.clone()),
        ("server", status.pid.map(|pid| format!("process {pid}"))),
        ("denied", Some(status.denied.join("; ")).filter(|denied| !denied.is_empty())),
    ];
    let named = rows.into_iter().filter_map(|(label, value)| value.map(|value| format!("{label:<11} {value}")));
    std::iter::once(status.name.clone()).chain(named.map(|row| format!("  {row}"))).collect()
}
