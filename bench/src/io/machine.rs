//! What the numbers depend on: processor, kernel, storage, versions.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use luksbench::run::Machine;

/// Facts about this machine and what lies below `file`.
pub(super) fn describe(file: &Path, with_fio: bool) -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let page_bytes = rustix::param::page_size() as u64;
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let uname = rustix::system::uname();
    let mut versions = BTreeMap::from([("luksbench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    if with_fio && let Ok(version) = super::fio::version() {
        versions.insert("fio".to_owned(), version);
    }
    Machine {
        cpu: cpu.map_or("unknown", |(_, name)| name.trim()).to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: total.unwrap_or(page_bytes >> 10) << 10,
        kernel: uname.release().to_string_lossy().into_owned(),
        aes_kernel: dmcrypt::kernel_and_reason(),
        storage: storage(file),
        versions,
    }
}

/// File system and device, from the mount that has the file's device number.
fn storage(file: &Path) -> String {
    let Ok(metadata) = file.metadata() else { return "unknown".to_owned() };
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    of_table(&table, device).unwrap_or_else(|| "unknown".to_owned())
}

/// Line: id, parent, major:minor, root, mount point, options, …, "-", type, source, …
fn of_table(table: &str, (major, minor): (u32, u32)) -> Option<String> {
    let number = format!("{major}:{minor}");
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    let mut rest = line.split_once(" - ")?.1.split(' ');
    let (kind, source) = (rest.next()?, rest.next()?);
    let name = source.strip_prefix("/dev/").unwrap_or_default();
    let model = std::fs::read_to_string(format!("/sys/block/{name}/device/model")).unwrap_or_default();
    let model = if model.trim().is_empty() { String::new() } else { format!(" ({})", model.trim()) };
    Some(if kind == source { kind.to_owned() } else { format!("{kind} on {source}{model}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_device_is_found() {
        let table = "22 1 254:0 / / rw,relatime - ext4 /dev/nosuch rw\n30 22 0:25 / /dev/shm rw - tmpfs tmpfs rw\n";
        assert_eq!(of_table(table, (254, 0)).as_deref(), Some("ext4 on /dev/nosuch"));
        assert_eq!(of_table(table, (0, 25)).as_deref(), Some("tmpfs"));
        assert_eq!(of_table(table, (1, 1)), None);
    }

    #[test]
    fn this_machine_has_a_name_and_memory() {
        let machine = describe(&std::env::temp_dir(), false);
        assert!(machine.cpus > 0 && machine.memory_bytes > 64 << 20 && !machine.kernel.is_empty(), "{machine:?}");
        assert!(!machine.storage.is_empty() && machine.versions.contains_key("luksbench"));
    }
}
