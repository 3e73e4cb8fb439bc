//! Ways out for a secret: memory that cannot be locked, swap, hibernation, core dumps, debuggers.
//!
//! luksctl locks its key pages and is not dumpable; these findings tell where the machine takes that away, and what happens
//! to the plaintext that other programs read. Sources: mlock(2), core(5), proc(5) (suid_dumpable),
//! `Documentation/admin-guide/LSM/Yama.rst`, `Documentation/admin-guide/mm/zswap.rst`, `Documentation/power/swsusp.rst`.

use block::Bytes;

use super::machine::Machine;
use super::swap::{self, Medium, SwapArea};
use super::{Area, Finding, Level};

const WHY_LOCK: &str = "locked pages are never swapped out: keys always, Argon2's memory where the limit allows";
const WHY_SWAP: &str = "what is swapped out in clear stays on the medium: plaintext, and secrets in memory not locked";
const WHY_ZSWAP: &str = "a compressed cache in memory before the swap device, which gets what does not fit";
const WHY_HIBERNATION: &str = "it writes all memory to a disk, keys included: run `luksctl suspend NAME` before";
const WHY_CORE: &str = "a core dump of a program that reads the plaintext holds it; luksctl itself makes none";
const WHY_SUID: &str = "whether programs that changed their rights leave core dumps";
const WHY_PTRACE: &str = "whether a program may read the memory of another one of the same user; luksctl's is closed";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    let areas = swap::areas(machine.root);
    vec![
        lockable(machine, &areas),
        swaps(machine, &areas),
        zswap(machine),
        hibernation(machine),
        core_dumps(machine),
        suid_dumpable(machine),
        ptrace(machine),
    ]
}

fn finding(id: &'static str, level: Level, found: String, why: &'static str) -> Finding {
    Finding::new(id, Area::Secrets, level, found, why)
}

fn lockable(machine: &Machine<'_>, areas: &[SwapArea]) -> Finding {
    let make = |level: Level, found: String| finding("lockable-memory", level, found, WHY_LOCK);
    let limit = machine.answers.memlock_limit_bytes.map_or("unlimited".to_owned(), |bytes| Bytes(bytes).to_string());
    let raise = if machine.is_root() {
        "ulimit -l unlimited"
    } else {
        "echo \"$USER - memlock unlimited\" | sudo tee /etc/security/limits.d/luksctl.conf   # then log in again"
    };
    if !machine.answers.memory_locks {
        let clear = areas.iter().any(|area| area.medium == Medium::Clear);
        let level = if clear { Level::Problem } else { Level::Warning };
        return make(level, format!("64 KiB could not be locked; the limit is {limit}")).mended_by(raise.to_owned());
    }
    if machine.may_lock_without_limit() {
        return make(Level::Ok, "without a limit".to_owned());
    }
    make(Level::Info, format!("limit {limit}: keys are locked, Argon2's memory is not")).mended_by(raise.to_owned())
}

fn swaps(machine: &Machine<'_>, areas: &[SwapArea]) -> Finding {
    let make = |level: Level, found: String| finding("swap", level, found, WHY_SWAP);
    if areas.is_empty() {
        return make(Level::Ok, "none".to_owned());
    }
    let words: Vec<String> = areas
        .iter()
        .map(|area| {
            let medium = match area.medium {
                Medium::Encrypted => "encrypted",
                Medium::Memory => "in memory",
                Medium::Clear => "not encrypted",
            };
            format!("{} is {medium}", area.path)
        })
        .collect();
    let clear: Vec<String> =
        areas.iter().filter(|area| area.medium == Medium::Clear).map(|area| quoted(&area.path)).collect();
    if clear.is_empty() {
        return make(Level::Ok, words.join(", "));
    }
    make(Level::Problem, words.join(", ")).mended_by(machine.as_root(&format!("swapoff {}", clear.join(" "))))
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@".contains(&byte));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

fn zswap(machine: &Machine<'_>) -> Finding {
    let enabled = machine.root.text("/sys/module/zswap/parameters/enabled");
    let found = match enabled.as_deref() {
        Some("Y" | "1") => "on",
        Some(_) => "off",
        None => "not in this kernel",
    };
    finding("zswap", Level::Info, found.to_owned(), WHY_ZSWAP)
}

fn hibernation(machine: &Machine<'_>) -> Finding {
    let states = machine.root.text("/sys/power/state").unwrap_or_default();
    let has = |name: &str| states.split_whitespace().any(|state| state == name);
    let line = machine.root.text("/proc/cmdline").unwrap_or_default();
    let resume = line.split_whitespace().find_map(|word| word.strip_prefix("resume="));
    let (level, found) = match (has("disk"), resume) {
        (true, Some(device)) => (Level::Info, format!("possible, into {device}")),
        (true, None) => (Level::Info, "the kernel can; no resume= on its command line".to_owned()),
        (false, Some(device)) => (Level::Info, format!("resume={device} is set, but the kernel cannot")),
        (false, None) => (Level::Ok, "not possible".to_owned()),
    };
    let found = if has("mem") { format!("{found}; suspend to memory keeps keys there") } else { found };
    finding("hibernation", level, found, WHY_HIBERNATION)
}

fn core_dumps(machine: &Machine<'_>) -> Finding {
    let make = |level: Level, found: String| finding("core-dumps", level, found, WHY_CORE);
    let pattern = machine.root.text("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let limit = machine.answers.core_limit_bytes;
    // A pipe gets dumps whatever the limit is, but for the limit 1 (core(5)).
    let (possible, found) = match (pattern.strip_prefix('|'), limit) {
        (Some(_), Some(1)) => (false, "limit 1: nothing is piped".to_owned()),
        (Some(program), _) => {
            let program = program.split_whitespace().next().unwrap_or_default();
            (true, format!("piped to {program}, whatever the limit"))
        }
        (None, Some(0)) => (false, "limit 0".to_owned()),
        (None, Some(bytes)) => (true, format!("limit {}, pattern {pattern:?}", Bytes(bytes))),
        (None, None) => (true, format!("no limit, pattern {pattern:?}")),
    };
    let level = match (possible, machine.answers.dumpable) {
        (false, _) => Level::Ok,
        (true, false) => Level::Warning,
        (true, true) => Level::Problem,
    };
    let found = match machine.answers.dumpable {
        true => format!("{found}; luksctl could not close itself to dumps"),
        false => found,
    };
    let piped = pattern.starts_with('|');
    let mend =
        if piped { machine.as_root("sysctl kernel.core_pattern=core && ulimit -c 0") } else { "ulimit -c 0".into() };
    if possible { make(level, found).mended_by(mend) } else { make(level, found) }
}

fn suid_dumpable(machine: &Machine<'_>) -> Finding {
    let value = machine.root.text("/proc/sys/fs/suid_dumpable").unwrap_or_else(|| "0".to_owned());
    let (level, words) = match value.as_str() {
        "0" => (Level::Ok, "they leave none"),
        "2" => (Level::Ok, "readable by root only"),
        _ => (Level::Warning, "they leave them like any other"),
    };
    let made = finding("suid-dumpable", level, format!("fs.suid_dumpable is {value}: {words}"), WHY_SUID);
    if level == Level::Ok { made } else { made.mended_by(machine.as_root("sysctl fs.suid_dumpable=0")) }
}

fn ptrace(machine: &Machine<'_>) -> Finding {
    let make = |level: Level, found: String| finding("ptrace", level, found, WHY_PTRACE);
    match machine.root.text("/proc/sys/kernel/yama/ptrace_scope") {
        None => make(Level::Info, "the kernel has no Yama: allowed".to_owned()),
        Some(scope) if scope == "0" => make(Level::Info, "kernel.yama.ptrace_scope is 0: allowed".to_owned())
            .mended_by(machine.as_root("sysctl kernel.yama.ptrace_scope=1")),
        Some(scope) => make(Level::Ok, format!("kernel.yama.ptrace_scope is {scope}")),
    }
}
