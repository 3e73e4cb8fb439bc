//! The whole picture of a machine: what opening a volume needs, what would carry a secret out, and the command that mends
//! each gap.
//!
//! * [`Answers`] is what system calls said, [`Root`] where `/proc`, `/sys`, `/etc` and the like are read. Everything between
//!   these two and the [`Report`] is pure, so a test feeds a made-up machine.
//! * Every report has the same ids in the same order, whatever the machine: a reader finds what it knows.
//! * Looking changes nothing: no module is loaded (a device node whose driver is not there is not opened, for opening it
//!   would load it), nothing is made on a disk, nothing waits.
//!
//! [`Level::Problem`] is kept for what matters: no backend could open a volume, new keys would have no randomness, or a
//! secret could reach a disk in clear. `docs/doctor.md` lists every id. Sources: proc(5), sysfs(5), and the kernel document
//! named at each finding's file.

mod answers;
mod calls;
mod drivers;
mod fuse;
#[allow(unsafe_code)]
mod kernel_calls;
mod leaks;
mod machine;
mod modules;
mod open;
mod programs;
mod root;
mod surroundings;
mod swap;

#[cfg(test)]
mod fixture;

use serde::Serialize;

pub use answers::{Answers, MapperDriver, Node};
pub use root::Root;

use machine::Machine;

/// Version of the report's form in JSON; a field or an id that goes away or changes its meaning raises it.
pub const REPORT_VERSION: u32 = 1;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// As it should be.
    Ok,
    /// A fact; nothing has to be done about it.
    Info,
    /// Something works less well, or not for everybody.
    Warning,
    /// Something that matters is missing.
    Problem,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Area {
    /// The machine itself: kernel, clock, randomness, memory, run directory.
    Machine,
    /// What makes an unlocked volume a disk.
    Backends,
    /// Ways out for a secret: swap, core dumps, debuggers.
    Secrets,
    /// Programs that are run or that people will want.
    Programs,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, the same for ever.
    pub id: &'static str,
    /// What it is about.
    pub area: Area,
    /// How much it matters.
    pub level: Level,
    /// What was found, with the value.
    pub found: String,
    /// Why one looks at it.
    pub why: &'static str,
    /// The command that mends it, where there is a gap and a command for it.
    pub mend: Option<String>,
}

impl Finding {
    fn new(id: &'static str, area: Area, level: Level, found: impl Into<String>, why: &'static str) -> Finding {
        Finding { id, area, level, found: found.into(), why, mend: None }
    }

    fn mended_by(self, command: impl Into<Option<String>>) -> Finding {
        Finding { mend: command.into(), ..self }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub report_version: u32,
    /// The level of the worst finding.
    pub level: Level,
    /// All findings, in an order that does not change.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether something that matters is missing.
    #[must_use]
    pub fn has_problems(&self) -> bool {
        self.level == Level::Problem
    }

    /// The finding of this id.
    #[must_use]
    pub fn finding(&self, id: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.id == id)
    }
}

/// Looks at the running machine. `core_limit_bytes` is the core size limit (`None`: unlimited) that this process was
/// started with, for a process that handles secrets has set its own to 0.
#[must_use]
pub fn examine(core_limit_bytes: Option<u64>) -> Report {
    let root = Root::system();
    let answers = Answers::of_the_running_system(&root, core_limit_bytes);
    judge(&root, &answers)
}

/// Judges what was found.
#[must_use]
pub fn judge(root: &Root, answers: &Answers) -> Report {
    let machine = Machine::new(root, answers);
    let findings: Vec<Finding> = [
        surroundings::judge(&machine),
        open::judge(&machine),
        drivers::judge(&machine),
        fuse::judge(&machine),
        calls::judge(&machine),
        leaks::judge(&machine),
        programs::judge(&machine),
    ]
    .concat();
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Report { report_version: REPORT_VERSION, level, findings }
}

#[cfg(test)]
mod tests;
