//! `volume list`: the volumes of the set, a line each.

use clap::Args;

use super::SetArgs;
use super::status::{look, word};
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::output;

/// Arguments of `volume list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Lists the set: name, state, health, size, image, mount.
pub(crate) fn run(args: &ListArgs) -> Result<Code, Failure> {
    let found = look(&args.set, &[])?;
    if args.report.json {
        output::json(&found)?;
        return Ok(Code::Success);
    }
    let widest = found.iter().map(|status| status.name.len()).max().unwrap_or(0);
    for status in &found {
        let size = status.image_bytes.map_or_else(|| "-".to_owned(), |bytes| block::Bytes(bytes).to_string());
        let mounted = status.mounted.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
        output::line(&format!(
            "{:<widest$}  {:<5}  {:<6}  {size:>10}  {}  {mounted}",
            status.name,
            status.state,
            word(status.health),
            status.image.display()
        ))?;
    }
    Ok(Code::Success)
}
