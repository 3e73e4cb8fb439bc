//! A header policy as text: the TOML file behind `--policy FILE`, and the form in which a server gets it.
//!
//! ```toml
//! preset = "strict"                      # the base; every key below replaces one of its values
//! ciphers = ["aes-xts-plain64"]          # a list, or "any"
//! kdf.argon2-memory-kib = { min = 262144, max = 1048576 }
//!
//! [pins]
//! uuid = "0b1c…"
//! epoch = 7
//! ```
//!
//! Invariants: what a file does not say is `strict`; an unknown key, a name that no header can have and a bound that nothing can
//! keep are errors that name the line; a file is at most [`FILE_BYTES_MAX`] long, so that it fits a message to the server.
//! Raising pins touches the `[pins]` table and nothing else in the file. Documented for users in `docs/policy.md`.

mod form;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use luks::Policy;
use luks::policy::Pins;
use serde::{Deserialize, Serialize};

use crate::SessionError;
use form::PolicyForm;

/// Longest policy file.
pub const FILE_BYTES_MAX: u64 = 32 << 10;
/// The heading of the table that [`with_pins`] replaces.
const PINS_HEADING: &str = "[pins]";

/// The policy that `named` means: `default`, `strict`, or a file.
///
/// # Errors
/// [`SessionError::Io`] for a file that cannot be read, [`SessionError::PolicyFile`] with the line for one that is no policy.
pub fn load(named: &Path) -> Result<Policy, SessionError> {
    match named.to_str().and_then(Policy::preset) {
        Some(preset) => Ok(preset),
        None => parse(&read(named)?, &named.display().to_string()),
    }
}

/// The text of a policy file.
///
/// # Errors
/// [`SessionError::Io`], and [`SessionError::PolicyFile`] for one that is too long or no text.
pub fn read(path: &Path) -> Result<String, SessionError> {
    let failed = |error| SessionError::io("read the policy", path)(error);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    let refused = |what: String| SessionError::PolicyFile { name: path.display().to_string(), line: None, what };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| refused("it is no UTF-8 text".to_owned()))
}

/// The policy that `text` states, which messages call `name`.
///
/// # Errors
/// [`SessionError::PolicyFile`] with the line.
pub fn parse(text: &str, name: &str) -> Result<Policy, SessionError> {
    let form: PolicyForm = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        // The parser's own words, on one line.
        let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        SessionError::PolicyFile { name: name.to_owned(), line, what }
    })?;
    Ok(form.policy(name))
}

/// The whole policy as a file that [`parse`] reads back.
///
/// # Errors
/// [`SessionError::PolicyFile`] if it cannot be written as TOML.
pub fn to_toml(policy: &Policy) -> Result<String, SessionError> {
    toml::to_string(&PolicyForm::of(policy)).map_err(|error| not_written(&policy.name, error.to_string()))
}

/// The text of a file that takes the preset of this name as it is.
pub fn preset_file(preset: &str) -> String {
    format!(
        "# A header policy of luksctl, see docs/policy.md. What this file does not say is the preset's.\npreset = \"{preset}\"\n"
    )
}

/// `text` with other pins; everything outside of its `[pins]` table stays as it is, comments too.
///
/// # Errors
/// [`SessionError::PolicyFile`] if `text` is no policy, or states its pins in another way than as a table.
pub fn with_pins(text: &str, name: &str, pins: &Pins) -> Result<String, SessionError> {
    let before = parse(text, name)?;
    let table = form::pins_table(pins).map_err(|error| not_written(name, error.to_string()))?;
    let is_heading = |line: &&str| line.split('#').next().unwrap_or_default().trim() == PINS_HEADING;
    let mut kept: Vec<&str> = text.lines().take_while(|line| !is_heading(line)).collect();
    let behind: Vec<&str> = text.lines().skip_while(|line| !is_heading(line)).skip(1).collect();
    let next_table = behind.iter().position(|line| line.trim_start().starts_with('[')).unwrap_or(behind.len());
    while kept.last().is_some_and(|line| line.trim().is_empty()) {
        kept.pop();
    }
    let mut lines: Vec<String> = kept.into_iter().map(str::to_owned).collect();
    lines.extend([String::new(), PINS_HEADING.to_owned(), table.trim_end().to_owned()]);
    if next_table < behind.len() {
        lines.push(String::new());
    }
    lines.extend(behind[next_table..].iter().map(|line| (*line).to_owned()));
    let after = lines.join("\n") + "\n";
    // A heading inside of a longer text, or pins stated elsewhere: then this would change more than the pins.
    match parse(&after, name) {
        Ok(policy) if policy == before.pinned(pins.clone()) => Ok(after),
        _ => Err(not_written(name, "its pins are no table under a line `[pins]`: write them by hand".to_owned())),
    }
}

fn not_written(name: &str, what: String) -> SessionError {
    SessionError::PolicyFile { name: name.to_owned(), line: None, what }
}

/// A policy on its way to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyOrder {
    name: String,
    policy: PolicyForm,
}

impl From<&Policy> for PolicyOrder {
    fn from(policy: &Policy) -> PolicyOrder {
        PolicyOrder { name: policy.name.clone(), policy: PolicyForm::of(policy) }
    }
}

impl From<&PolicyOrder> for Policy {
    fn from(order: &PolicyOrder) -> Policy {
        order.policy.clone().policy(&order.name)
    }
}

#[cfg(test)]
mod tests;
