//! `doctor`: the whole picture of this machine, and the command that mends each gap. 10 if something that matters is missing.

use clap::Args;
use session::doctor::{Area, Finding, Level, Report, examine};

use crate::args::Common;
use crate::args::target::ReportArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::harden;
use crate::output;

/// Columns that the report keeps to. A command is never broken: it is there to be copied.
const COLUMNS: usize = 100;
const INDENT: &str = "                                ";
const AREAS: [(Area, &str); 4] = [
    (Area::Machine, "Machine"),
    (Area::Backends, "Backends"),
    (Area::Secrets, "Secrets"),
    (Area::Programs, "Programs"),
];

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    report: ReportArgs,
}

/// Looks at the machine; changes nothing on it.
pub(crate) fn run(args: &DoctorArgs, _common: &Common) -> Result<Code, Failure> {
    let report = examine(harden::core_limit_at_start_bytes());
    if args.report.json {
        output::json(&report)?;
    } else {
        for line in lines(&report) {
            output::line(&line)?;
        }
    }
    Ok(if report.has_problems() { Code::Found } else { Code::Success })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Info => "info",
        Level::Warning => "warning",
        _ => "PROBLEM",
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (area, title) in AREAS {
        lines.push(title.to_owned());
        for finding in report.findings.iter().filter(|finding| finding.area == area) {
            lines.extend(of_finding(finding));
        }
        lines.push(String::new());
    }
    let count = |level: Level| report.findings.iter().filter(|finding| finding.level == level).count();
    let warnings = match count(Level::Warning) {
        0 => String::new(),
        1 => " 1 warning.".to_owned(),
        several => format!(" {several} warnings."),
    };
    let problems = match count(Level::Problem) {
        0 => "Nothing that matters is missing.".to_owned(),
        1 => "1 problem.".to_owned(),
        several => format!("{several} problems."),
    };
    lines.push(problems + &warnings);
    lines
}

/// One line for what is well; else also why it matters, and the command.
fn of_finding(finding: &Finding) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, part) in wrapped(&finding.found, COLUMNS - INDENT.len()).into_iter().enumerate() {
        match number {
            0 => lines.push(format!("  {:<8} {:<20} {part}", word(finding.level), finding.id)),
            _ => lines.push(format!("{INDENT}{part}")),
        }
    }
    if finding.level == Level::Ok {
        return lines;
    }
    let why = wrapped(&format!("({})", finding.why), COLUMNS - INDENT.len());
    lines.extend(why.into_iter().map(|part| format!("{INDENT}{part}")));
    lines.extend(finding.mend.iter().map(|command| format!("{INDENT}$ {command}")));
    lines
}

/// `text` in lines of at most `columns`, broken at blanks; a longer word is cut.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let symbols: Vec<char> = word.chars().collect();
        for (number, piece) in symbols.chunks(columns).enumerate() {
            let gap = usize::from(length > 0 && number == 0);
            if length + gap + piece.len() > columns || number > 0 {
                lines.push(String::new());
                length = 0;
            }
            if let Some(line) = lines.last_mut() {
                if length > 0 {
                    line.push(' ');
                    length += 1;
                }
                line.extend(piece);
                length += piece.len();
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks_and_words_where_they_must_be() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 5), ["one", "two", "three"]);
        assert_eq!(wrapped("a incomprehensible b", 6), ["a", "incomp", "rehens", "ible b"]);
        assert_eq!(wrapped("", 6), [""]);
    }

    #[test]
    fn what_is_not_well_says_why_and_the_whole_command() {
        let command = "x".repeat(120);
        let finding = Finding {
            id: "some-id",
            area: Area::Machine,
            level: Level::Problem,
            found: "word ".repeat(40).trim_end().to_owned(),
            why: "because",
            mend: Some(command.clone()),
        };
        let lines = of_finding(&finding);
        assert!(lines[0].starts_with("  PROBLEM  some-id              word"), "{lines:?}");
        assert!(lines[..lines.len() - 1].iter().all(|line| line.len() <= COLUMNS), "{lines:?}");
        assert_eq!(lines[lines.len() - 2].trim(), "(because)");
        assert_eq!(lines[lines.len() - 1].trim(), format!("$ {command}"));
        let well = Finding { level: Level::Ok, found: "fine".to_owned(), ..finding };
        assert_eq!(of_finding(&well), ["  ok       some-id              fine"]);
    }
}
