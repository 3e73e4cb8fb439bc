//! Services of the kernel that a container or a sysctl often forbids: the keyring and its quota, io_uring; and the
//! processor's AES.
//!
//! Sources: keyrings(7) (`/proc/key-users`), `Documentation/admin-guide/sysctl/kernel.rst` (io_uring_disabled).

use super::machine::Machine;
use super::{Area, Finding, Level};

/// Keys and bytes of quota under which it is said: a key of 64 bytes with its description takes about 120.
const KEYS_ROOM_MIN: u64 = 4;
const KEYS_ROOM_MIN_BYTES: u64 = 1024;

const WHY_KEYRING: &str = "dm-crypt takes the volume key from the kernel's keyring, so that no table shows it";
const WHY_QUOTA: &str = "a used-up quota refuses the next key";
const WHY_RING: &str = "faster block I/O; luksctl works without it, by pread and pwrite";
const WHY_AES: &str = "the AES code that luksctl's own dm-crypt runs on this processor";

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    vec![keyring(machine), quota(machine), io_uring(machine), aes(machine)]
}

fn keyring(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("keyring", Area::Backends, level, found, WHY_KEYRING);
    match &machine.answers.keyring {
        Ok(()) => finding(Level::Ok, "a key was added, read and removed".to_owned()),
        Err(reason) => {
            let level = if machine.is_root() { Level::Warning } else { Level::Info };
            finding(level, format!("a key could not be added and read: {reason}"))
        }
    }
}

/// `(used, limit)` of a field such as `3/1000000`.
fn share(field: Option<&str>) -> Option<(u64, u64)> {
    let (used, limit) = field?.split_once('/')?;
    Some((used.parse().ok()?, limit.parse().ok()?))
}

fn quota(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("keyring-quota", Area::Backends, level, found, WHY_QUOTA);
    let users = machine.root.text("/proc/key-users").unwrap_or_default();
    let own = format!("{}:", machine.answers.effective_uid);
    let line = users.lines().find(|line| line.split_whitespace().next() == Some(own.as_str())).unwrap_or_default();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (Some((keys, keys_max)), Some((bytes, bytes_max))) =
        (share(fields.get(3).copied()), share(fields.get(4).copied()))
    else {
        return finding(Level::Ok, "no key of this user is in the kernel".to_owned());
    };
    let found = format!("{keys} of {keys_max} keys, {bytes} of {bytes_max} bytes");
    if keys_max.saturating_sub(keys) >= KEYS_ROOM_MIN && bytes_max.saturating_sub(bytes) >= KEYS_ROOM_MIN_BYTES {
        return finding(Level::Ok, found);
    }
    let prefix = if machine.is_root() { "kernel.keys.root_max" } else { "kernel.keys.max" };
    let larger = |limit: u64| limit.saturating_mul(2).max(200);
    let sysctl = format!("sysctl {prefix}keys={} {prefix}bytes={}", larger(keys_max), larger(bytes_max));
    finding(Level::Warning, found).mended_by(machine.as_root(&sysctl))
}

fn io_uring(machine: &Machine<'_>) -> Finding {
    let finding = |level: Level, found: String| Finding::new("io-uring", Area::Backends, level, found, WHY_RING);
    let Err(reason) = &machine.answers.io_uring else {
        return finding(Level::Ok, "allowed".to_owned());
    };
    match machine.root.text("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some(value @ ("1" | "2")) => finding(Level::Info, format!("denied: kernel.io_uring_disabled is {value}"))
            .mended_by(machine.as_root("sysctl kernel.io_uring_disabled=0")),
        _ => finding(Level::Info, format!("denied: {reason} (a container's system call filter, or an old kernel)")),
    }
}

fn aes(machine: &Machine<'_>) -> Finding {
    Finding::new("aes", Area::Machine, Level::Ok, machine.answers.aes_engine.clone(), WHY_AES)
}
