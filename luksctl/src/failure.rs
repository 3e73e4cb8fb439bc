//! How a verb fails: what, where and which value in one sentence, the exit code, and the next command to try.

use std::io;
use std::path::Path;

use block::BlockError;
use secret::KeySourceError;
use session::SessionError;

use crate::exit::{self, Code};
use crate::hint;

/// A failed verb.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with this code.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hint: None }
    }

    /// Wrong parameters, and whatever has no code of its own.
    pub(crate) fn wrong(message: impl Into<String>) -> Failure {
        Failure::new(Code::Wrong, message)
    }

    /// No such device or file.
    pub(crate) fn device(message: impl Into<String>) -> Failure {
        Failure::new(Code::Device, message)
    }

    /// Exists already, or is in use.
    pub(crate) fn busy(message: impl Into<String>) -> Failure {
        Failure::new(Code::Busy, message)
    }

    /// The same with the next command to try.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// What the format library says about the container at `image`.
    pub(crate) fn of_luks(image: &Path, error: luks::Error) -> Failure {
        Failure::of_luks_ref(image, &error)
    }

    /// The same of an error that somebody else keeps.
    pub(crate) fn of_luks_ref(image: &Path, error: &luks::Error) -> Failure {
        Failure {
            code: exit::of_luks(error),
            hint: hint::of_luks(image, error),
            message: format!("{}: {}", image.display(), chain(error)),
        }
    }

    /// What reading or writing `image` says.
    pub(crate) fn of_block(image: &Path, error: &BlockError) -> Failure {
        Failure {
            code: exit::of_block(error),
            hint: hint::of_block(image, error),
            message: format!("{}: {}", image.display(), chain(error)),
        }
    }

    /// What opening `image` says.
    pub(crate) fn of_block_open(image: &Path, error: &BlockError) -> Failure {
        let hint = match &error.source {
            Some(source) => hint::of_open(image, source),
            None => hint::of_block(image, error),
        };
        // "open of 0 bytes at byte 0" says less than the system's own words.
        let message = match &error.source {
            Some(source) if error.op == "open" => format!("opening {}: {source}", image.display()),
            _ => format!("{}: {}", image.display(), chain(error)),
        };
        Failure { code: exit::of_block_open(error), hint, message }
    }

    /// What the session of open volumes says.
    pub(crate) fn of_session(error: SessionError) -> Failure {
        Failure::of_session_ref(&error)
    }

    /// The same of an error that somebody else keeps.
    pub(crate) fn of_session_ref(error: &SessionError) -> Failure {
        Failure { code: exit::of_session(error), hint: hint::of_session(error), message: chain(error) }
    }

    /// What a key source says.
    pub(crate) fn of_key_source(error: &KeySourceError) -> Failure {
        Failure { code: exit::of_key_source(error), hint: hint::of_key_source(error), message: chain(error) }
    }

    /// Opening `path` failed.
    pub(crate) fn from_open(path: &Path, error: &io::Error) -> Failure {
        let code = exit::of_open(error);
        let hint = hint::of_open(path, error);
        Failure { code, hint, message: format!("opening {}: {error}", path.display()) }
    }

    /// Writing `path` failed while doing `what`.
    pub(crate) fn from_write(what: &str, path: &Path, error: &io::Error) -> Failure {
        Failure {
            code: Code::Wrong,
            hint: hint::of_write(path, error),
            message: format!("{what} {}: {error}", path.display()),
        }
    }

    /// The same with a next command, if it has none.
    pub(crate) fn or_hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: self.hint.or_else(|| Some(hint.into())), ..self }
    }

    /// The same in other words.
    pub(crate) fn saying(self, message: impl Into<String>) -> Failure {
        Failure { message: message.into(), ..self }
    }

    /// With the real name where a hint says `IMAGE`.
    pub(crate) fn about(self, image: &Path) -> Failure {
        Failure { hint: self.hint.map(|hint| hint.replace("IMAGE", &image.display().to_string())), ..self }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// What, where, which value.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The next command.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}
