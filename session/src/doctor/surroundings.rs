//! The machine around: kernel, virtual machine or container, udev, clock, randomness, memory, run directory.
//!
//! Sources: adjtimex(2), random(4), `/proc/cpuinfo`, systemd's container interface (`/run/systemd/container`).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use block::Bytes;
use luks::calibrate::ARGON2_MEMORY_DEFAULT_KIB;
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;

use super::machine::Machine;
use super::{Area, Finding, Level};
use crate::run_dir;

/// 2026-01-01: no copy of this program is older, whatever the date of its file.
const FIRST_BUILD_S: i64 = 1_767_225_600;
/// 2100-01-01.
const LAST_PLAUSIBLE_S: i64 = 4_102_444_800;
/// A clock that is a day behind the program's file may only be of another time zone.
const DAY_S: i64 = 86_400;

const WHY_KERNEL: &str = "what a kernel can do follows from its release; for reports";
const WHY_MACHINE: &str = "a container has only the devices and rights that it was given; for information";
const WHY_UDEV: &str = "it makes /dev/mapper/NAME; where none runs luksctl does, and must not wait for one";
const WHY_SYNC: &str = "dates of files and logs are compared between machines";
const WHY_YEAR: &str = "with a wrong date certificates fail and the newest file looks old";
const WHY_RANDOM: &str = "keys are made of it; a program that needs it early waits";
const WHY_MEMORY: &str = "Argon2 needs it to unlock: by default 1 GiB, or half of a smaller machine";
const WHY_RUN: &str = "open volumes are registered in it; nobody else may write there";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    vec![
        kernel(machine),
        around(machine),
        udev(machine),
        synchronised(machine),
        year(machine),
        randomness(machine),
        memory(machine),
        run_directory(machine),
    ]
}

fn finding(id: &'static str, level: Level, found: impl Into<String>, why: &'static str) -> Finding {
    Finding::new(id, Area::Machine, level, found, why)
}

fn kernel(machine: &Machine<'_>) -> Finding {
    finding("kernel", Level::Ok, format!("Linux {}", machine.answers.kernel_release), WHY_KERNEL)
}

fn around(machine: &Machine<'_>) -> Finding {
    let processor = machine.root.text("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let maker = machine.root.text("/sys/class/dmi/id/sys_vendor").or_else(|| machine.root.text("/sys/hypervisor/type"));
    let is_virtual = flags.split_whitespace().any(|flag| flag == "hypervisor")
        || machine.root.exists("/proc/device-tree/hypervisor")
        || machine.root.exists("/sys/hypervisor/type");
    let hardware = match (is_virtual, maker) {
        (true, Some(maker)) => format!("a virtual machine ({maker})"),
        (true, None) => "a virtual machine".to_owned(),
        (false, _) => "no sign of a virtual machine".to_owned(),
    };
    let container =
        container(machine).map_or_else(|| "no container".to_owned(), |kind| format!("a container ({kind})"));
    finding("machine", Level::Info, format!("{hardware}, {container}"), WHY_MACHINE)
}

fn container(machine: &Machine<'_>) -> Option<String> {
    let root = machine.root;
    if let Some(kind) = root.text("/run/systemd/container").filter(|kind| !kind.is_empty()) {
        return Some(kind);
    }
    let environment = root.text("/proc/1/environ").unwrap_or_default();
    let named = environment.split('\0').find_map(|entry| entry.strip_prefix("container=").map(str::to_owned));
    let marked = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
    let marked = || marked.into_iter().find(|(path, _)| root.exists(path)).map(|(_, kind)| kind.to_owned());
    let groups = root.text("/proc/1/cgroup").unwrap_or_default();
    let grouped = ["kubepods", "docker", "lxc", "containerd"].into_iter().find(|kind| groups.contains(kind));
    named.or_else(marked).or_else(|| grouped.map(str::to_owned))
}

fn udev(machine: &Machine<'_>) -> Finding {
    let root = machine.root;
    let numbers = root.names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let is_udev = |comm: &str| matches!(comm, "systemd-udevd" | "udevd" | "(udev-worker)" | "mdev");
    let runs = numbers.filter_map(|pid| root.text(format!("/proc/{pid}/comm"))).any(|comm| is_udev(&comm));
    match (runs, root.exists("/run/udev/control")) {
        (true, _) => finding("udev", Level::Ok, "its daemon runs", WHY_UDEV),
        (false, false) => finding("udev", Level::Info, "no daemon runs", WHY_UDEV),
        (false, true) => {
            let mend = if machine.has_systemd() { "systemctl start systemd-udevd" } else { "rm /run/udev/control" };
            finding("udev", Level::Warning, "/run/udev/control is there, but no daemon was seen", WHY_UDEV)
                .mended_by(machine.as_root(mend))
        }
    }
}

fn synchronise(machine: &Machine<'_>) -> String {
    machine.as_root(if machine.has_systemd() {
        "timedatectl set-ntp true"
    } else {
        "chronyd -q 'pool pool.ntp.org iburst'"
    })
}

fn synchronised(machine: &Machine<'_>) -> Finding {
    match machine.answers.clock_synchronised {
        Some(true) => finding("clock-synchronised", Level::Ok, "yes", WHY_SYNC),
        Some(false) => finding("clock-synchronised", Level::Warning, "no", WHY_SYNC).mended_by(synchronise(machine)),
        None => finding("clock-synchronised", Level::Info, "the kernel does not say", WHY_SYNC),
    }
}

fn year(machine: &Machine<'_>) -> Finding {
    let now_s = machine.answers.now_s;
    let today = date(now_s);
    let built_s = machine.answers.built_s;
    let found = if now_s < FIRST_BUILD_S {
        format!("{today}: before this program was written")
    } else if built_s <= LAST_PLAUSIBLE_S && now_s < built_s.saturating_sub(DAY_S) {
        format!("{today}: before this program's file was made, {}", date(built_s))
    } else if now_s >= LAST_PLAUSIBLE_S {
        format!("{today}: far in the future")
    } else {
        return finding("clock-date", Level::Ok, today, WHY_YEAR);
    };
    let mend = machine.as_root("date --set 'YYYY-MM-DD HH:MM'   # with the time by your watch");
    finding("clock-date", Level::Warning, found, WHY_YEAR).mended_by(mend)
}

/// The day in UTC, as `2026-01-31`. Source: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
fn date(seconds_s: i64) -> String {
    let shifted = seconds_s.div_euclid(DAY_S) + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn randomness(machine: &Machine<'_>) -> Finding {
    if machine.answers.randomness_ready {
        return finding("randomness", Level::Ok, "ready", WHY_RANDOM);
    }
    finding("randomness", Level::Problem, "the kernel has not gathered enough yet", WHY_RANDOM)
        .mended_by(machine.install("rng-tools5", "rng-tools"))
}

fn memory(machine: &Machine<'_>) -> Finding {
    let default_bytes = u64::from(ARGON2_MEMORY_DEFAULT_KIB) * 1024;
    let wanted_bytes = default_bytes.min(machine.answers.memory_total_bytes / 2);
    let available_bytes = machine.answers.memory_available_bytes;
    let found = format!("{} available, {} wanted", Bytes(available_bytes), Bytes(wanted_bytes));
    if available_bytes >= wanted_bytes {
        return finding("memory", Level::Ok, found, WHY_MEMORY);
    }
    finding("memory", Level::Warning, found, WHY_MEMORY).mended_by("ps -eo rss,pid,comm --sort=-rss | head".to_owned())
}

fn run_directory(machine: &Machine<'_>) -> Finding {
    let make = |level: Level, found: String| finding("run-directory", level, found, WHY_RUN);
    let path = &machine.answers.run_directory;
    let shown = path.display();
    let other = || format!("export {}=\"$HOME/.luksctl\"", run_dir::RUN_DIR_VARIABLE);
    match std::fs::symlink_metadata(machine.root.path(path)) {
        Ok(metadata) => match run_dir::refusal(&metadata, machine.answers.effective_uid) {
            None => make(Level::Ok, format!("{shown}, mode {:o}", metadata.mode() & 0o7777)),
            Some(reason) => {
                let own = metadata.is_dir() && metadata.uid() == machine.answers.effective_uid;
                let mend = if own { format!("chmod 700 {shown}") } else { other() };
                make(Level::Problem, format!("{shown} is refused: {reason}")).mended_by(mend)
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match path.parent().map_or(Err(Errno::NOENT), |parent| may_write(&machine.root.path(parent))) {
                Ok(()) => make(Level::Ok, format!("{shown}, made at first use")),
                Err(errno) => make(Level::Problem, format!("{shown} cannot be made: {errno}")).mended_by(other()),
            }
        }
        Err(error) => make(Level::Problem, format!("{shown}: {error}")).mended_by(other()),
    }
}

/// Whether this process could make something in `folder`.
fn may_write(folder: &Path) -> rustix::io::Result<()> {
    let access = Access::EXISTS | Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, folder, access, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds_s, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_400, "2000-02-29"),
            (FIRST_BUILD_S, "2026-01-01"),
            (FIRST_BUILD_S - 1, "2025-12-31"),
            (LAST_PLAUSIBLE_S, "2100-01-01"),
        ] {
            assert_eq!(date(seconds_s), expected);
        }
    }
}
