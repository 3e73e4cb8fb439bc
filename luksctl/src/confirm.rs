//! Questions before something irreversible: the word `YES`, typed in capitals on a terminal, as cryptsetup asks for it.

use std::io::{BufRead as _, IsTerminal as _};

use crate::args::Common;
use crate::failure::Failure;

/// The answer that counts; anything else, `yes` too, is a no.
const YES: &str = "YES";

/// Whether a person can be asked: both standard input and stderr are a terminal.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Before data may be lost: `-q` is a yes, otherwise it must be typed, and where nobody can be asked it is a no.
pub(crate) fn before_loss(common: &Common, warning: &str) -> Result<(), Failure> {
    if common.batch_mode {
        return Ok(());
    }
    if can_ask() {
        return typed_yes(warning);
    }
    Err(Failure::wrong(format!("{warning} There is no terminal to ask for a YES; nothing was changed"))
        .with_hint("if it is meant, add -q"))
}

/// Says `warning` and goes on only after a typed `YES`. Call it only where [`can_ask`] is true.
pub(crate) fn typed_yes(warning: &str) -> Result<(), Failure> {
    crate::output::words("");
    crate::output::words(&format!("WARNING: {warning}"));
    crate::output::words("Are you sure? Type 'YES' in capital letters:");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::wrong(format!("reading the answer: {error}")))?;
    if answer.trim_end_matches(['\n', '\r']) == YES {
        return Ok(());
    }
    Err(Failure::wrong("nothing was changed: the answer was not YES".to_owned()))
}

/// Before something that destroys nothing: `y` or `yes` on a terminal, `-q` is a yes; where nobody can be asked, `option` says it.
pub(crate) fn agreed(common: &Common, question: &str, option: &str) -> Result<(), Failure> {
    if common.batch_mode {
        return Ok(());
    }
    if !can_ask() {
        return Err(Failure::wrong("there is no terminal to ask on; nothing was changed".to_owned())
            .with_hint(format!("if the plan is right, add {option}")));
    }
    crate::output::words(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::wrong(format!("reading the answer: {error}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes" | "Yes") {
        return Ok(());
    }
    Err(Failure::wrong("nothing was changed: the answer was not yes".to_owned()))
}
