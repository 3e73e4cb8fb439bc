//! `list`: every open volume of this user. 10 if one of them is dead or failed.

use clap::Args;
use comfy_table::{Table, presets};

use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;
use crate::verb::status;

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    report: ReportArgs,
}

/// Lists the volumes.
pub(crate) fn run(args: &ListArgs, _common: &Common) -> Result<Code, Failure> {
    let found = session::list(&super::run_dir()?).map_err(Failure::of_session)?;
    if args.report.json {
        output::json(&found)?;
    } else if found.is_empty() {
        output::words("No volume is open.");
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["name", "state", "size", "device", "image", "mounted on"]);
        for volume in &found {
            let path = |path: &Option<std::path::PathBuf>| {
                path.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string())
            };
            let mounted: Vec<String> = volume.mount_points.iter().map(|point| point.display().to_string()).collect();
            table.add_row([
                volume.name.clone(),
                status::word(volume.state).to_owned(),
                volume.size_bytes.map_or_else(|| "-".to_owned(), |size| block::Bytes(size).to_string()),
                path(&volume.device),
                path(&volume.image),
                if mounted.is_empty() { "-".to_owned() } else { mounted.join(", ") },
            ]);
        }
        for line in table.lines() {
            output::line(line.trim_end())?;
        }
    }
    let ill = found.iter().any(|volume| status::code_of(volume) == Code::Found);
    Ok(if ill { Code::Found } else { Code::Success })
}
