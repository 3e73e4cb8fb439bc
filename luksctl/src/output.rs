//! The two streams: data to stdout, words to stderr. A reader that went away (`luksctl dump … | head`) is no error.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use serde::Serialize;
use session::PathJson;

use crate::failure::Failure;
use crate::terminal;

/// Writes one line of data to stdout, without what a terminal would obey.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    data(format!("{}\n", terminal::plain(text)).as_bytes())
}

/// Writes data to stdout as it is.
pub(crate) fn data(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::wrong(format!("writing to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `value` to stdout as pretty JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::wrong(format!("turning the report into JSON: {error}")))?;
    data(format!("{}\n", terminal::plain_json(&text)).as_bytes())
}

/// A path for a report: `json!` would panic at a name that is not UTF-8.
pub(crate) fn path(path: &Path) -> PathJson<'_> {
    PathJson(path)
}

/// Says something to the person on stderr, without what a terminal would obey. Nobody can be told when that fails.
pub(crate) fn words(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let written = writeln!(stderr, "{}", terminal::plain_lines(text));
    drop(written);
}

/// Whether words may move and be coloured: stderr is a terminal, and neither `NO_COLOR` nor a dumb terminal forbids it.
pub(crate) fn is_lively() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}
