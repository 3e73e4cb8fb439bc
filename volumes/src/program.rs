//! Other programs: mkfs, fsck, resize. They are looked for where the system keeps them, get no terminal and no secret.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use crate::VolumesError;

/// Words of a failed program that go into an error.
const WORDS_MAX_CHARS: usize = 600;

/// Runs `program` to its end, whatever its exit code.
pub(crate) fn run<A: AsRef<OsStr>>(program: &'static str, arguments: &[A]) -> Result<Output, VolumesError> {
    Command::new(program)
        .args(arguments)
        .env("PATH", session::search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| VolumesError::Program { program, reason: format!("it cannot be started: {error}") })
}

/// Runs `program` and demands that it succeeds.
pub(crate) fn succeed<A: AsRef<OsStr>>(program: &'static str, arguments: &[A]) -> Result<(), VolumesError> {
    let output = run(program, arguments)?;
    if output.status.success() { Ok(()) } else { Err(failed(program, &output)) }
}

/// The error of a program that ended so.
pub(crate) fn failed(program: &'static str, output: &Output) -> VolumesError {
    VolumesError::Program { program, reason: format!("{}: {}", output.status, words(output)) }
}

/// What it said, on one line.
pub(crate) fn words(output: &Output) -> String {
    let words = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().replace('\n', "; "));
    let words: String = words.join(" ").chars().take(WORDS_MAX_CHARS).collect();
    words.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_quoted_and_one_that_is_not_there_named() {
        let error = succeed("sh", &["-c", "echo one; echo two >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().contains("exit status: 3: two one"), "{error}");
        let error = succeed::<&str>("no-such-program-here", &[]).unwrap_err();
        assert!(error.to_string().starts_with("no-such-program-here: it cannot be started"), "{error}");
    }
}
