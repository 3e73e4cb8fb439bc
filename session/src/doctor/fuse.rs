//! FUSE: the driver, and who may mount with it.
//!
//! mount(2) is for who has CAP_SYS_ADMIN; others mount through the set-user-ID program `fusermount3`, which reads `/etc/mtab`
//! before it unmounts. Sources: fuse(4), fusermount3(1), `Documentation/filesystems/fuse.rst`.

use super::answers::Node;
use super::machine::{Machine, NodeOf};
use super::modules::{self, Driver};
use super::{Area, Finding, Level};

const WHY_FUSE: &str = "a volume becomes a disk through it where the kernel's dm-crypt does not do it";
const WHY_HELPER: &str = "mounts for users who may not mount";
const WHY_OTHERS: &str = "lets a user's mount be seen by others, root included; luksctl works without it";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    vec![device(machine), mounting(machine), allow_other(machine)]
}

fn node<'a>(machine: &'a Machine<'_>) -> NodeOf<'a> {
    let file_systems = machine.root.text("/proc/filesystems").unwrap_or_default();
    let registered = file_systems.lines().any(|line| line.split_whitespace().last() == Some("fuse"));
    NodeOf {
        id: "fuse",
        why: WHY_FUSE,
        path: "/dev/fuse",
        state: &machine.answers.fuse,
        registered: registered || modules::is_misc_device(machine.root, "fuse"),
        module: "fuse",
        minor: 229,
        mode: 0o666,
    }
}

/// Why this process cannot open `/dev/fuse` and mount; `None` if it can.
pub(super) fn hindrance(machine: &Machine<'_>) -> Option<String> {
    let first_use_loads = machine.answers.fuse == Node::Driverless && machine.driver("fuse") == Driver::Loadable;
    match machine.node_gap(&node(machine)) {
        Some(gap) if !first_use_loads => Some(gap.found),
        _ => mounting_gap(machine).map(|(found, _)| found),
    }
}

fn device(machine: &Machine<'_>) -> Finding {
    let works = || Finding::new("fuse", Area::Backends, Level::Ok, "/dev/fuse opens", WHY_FUSE);
    machine.node_gap(&node(machine)).unwrap_or_else(works)
}

/// Why neither mount(2) nor `fusermount3` works for this process, and the command that mends it.
fn mounting_gap(machine: &Machine<'_>) -> Option<(String, Option<String>)> {
    if machine.may_administer() {
        return None;
    }
    let Some(program) = machine.program("fusermount3") else {
        return Some(("fusermount3 was not found".to_owned(), machine.install("fuse3", "fuse3")));
    };
    let shown = program.display();
    if !machine.is_setuid(&program) {
        let mend = machine.as_root(&format!("chmod u+s {shown}"));
        return Some((format!("{shown} is not set-user-ID"), Some(mend)));
    }
    if let Some(hindrance) = machine.setuid_hindrance() {
        return Some((format!("{shown} cannot mount: {hindrance}"), None));
    }
    if !machine.root.exists("/etc/mtab") {
        let mend = machine.as_root("ln -s /proc/self/mounts /etc/mtab");
        return Some(("there is no /etc/mtab, so fusermount3 could not unmount".to_owned(), Some(mend)));
    }
    None
}

fn mounting(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("fusermount3", Area::Backends, level, found, WHY_HELPER);
    match (mounting_gap(machine), machine.program("fusermount3")) {
        (Some((found, mend)), _) => finding(Level::Warning, found).mended_by(mend),
        (None, Some(program)) => finding(Level::Ok, program.display().to_string()),
        (None, None) => finding(Level::Info, "not found; this process mounts by itself".to_owned())
            .mended_by(machine.install("fuse3", "fuse3")),
    }
}

fn allow_other(machine: &Machine<'_>) -> Finding {
    let text = machine.root.text("/etc/fuse.conf").unwrap_or_default();
    let allowed = text.lines().any(|line| line.trim() == "user_allow_other");
    let found = if allowed { "user_allow_other is set in /etc/fuse.conf" } else { "user_allow_other is not set" };
    let mend = machine.is_root().then_some("echo user_allow_other >> /etc/fuse.conf");
    let mend = mend.unwrap_or("echo user_allow_other | sudo tee -a /etc/fuse.conf");
    let finding = Finding::new("user-allow-other", Area::Backends, Level::Info, found, WHY_OTHERS);
    if allowed { finding } else { finding.mended_by(mend.to_owned()) }
}
