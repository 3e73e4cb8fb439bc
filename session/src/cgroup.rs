//! How much memory the cgroups above a process leave it.
//!
//! Both hierarchies: v2 (`memory.max`, `memory.current`; inactive file pages count as free) and v1
//! (`memory.limit_in_bytes`, `memory.usage_in_bytes`). Every ancestor up to the root of the mount counts, because each
//! one's limit holds. Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.

use std::path::{Path, PathBuf};

/// Levels of nesting that are looked at; the kernel's own default limit is unbounded, real trees have fewer than ten.
const DEPTH_MAX: usize = 64;

/// The least room, in bytes, that any memory cgroup above this process leaves; `None` where none has a limit.
pub(crate) fn room_bytes() -> Option<u64> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    hierarchies(&cgroups, &mounts).iter().filter_map(Hierarchy::room_bytes).min()
}

#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    folder: PathBuf,
    unified: bool,
}

impl Hierarchy {
    fn room_bytes(&self) -> Option<u64> {
        let mut least = None;
        for folder in self.folder.ancestors().take(DEPTH_MAX) {
            let room = if self.unified { room_v2(folder) } else { room_v1(folder) };
            least = [least, room].into_iter().flatten().min();
            if folder == self.mount_point {
                break;
            }
        }
        least
    }
}

/// The memory hierarchies of the process, where they are mounted here.
fn hierarchies(cgroups: &str, mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let unified = id == "0" && controllers.is_empty();
        if !unified && !controllers.split(',').any(|name| name == "memory") {
            continue;
        }
        let Some((mount_point, root)) = mounted(mounts, unified) else {
            continue;
        };
        // In a container the mount may show only a part of the tree: the root field says which.
        let inside = Path::new(path).strip_prefix(&root).unwrap_or(Path::new(""));
        found.push(Hierarchy { folder: mount_point.join(inside), mount_point, unified });
    }
    found
}

/// Mount point and root field of the hierarchy in `/proc/self/mountinfo`.
fn mounted(mounts: &str, unified: bool) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let kind = tail.next()?;
        let options = tail.nth(1).unwrap_or_default();
        let wanted = match unified {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        };
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        wanted.then(|| (PathBuf::from(point), PathBuf::from(root)))
    })
}

fn room_v2(folder: &Path) -> Option<u64> {
    let max = number(&folder.join("memory.max"))?;
    let current = number(&folder.join("memory.current"))?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    Some(max.saturating_sub(current.saturating_sub(stat_bytes(&stat, "inactive_file"))))
}

fn room_v1(folder: &Path) -> Option<u64> {
    // "No limit" is the largest multiple of the page size in an i64.
    let limit = number(&folder.join("memory.limit_in_bytes")).filter(|limit| *limit < i64::MAX as u64 - (1 << 20))?;
    let usage = number(&folder.join("memory.usage_in_bytes"))?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    Some(limit.saturating_sub(usage.saturating_sub(stat_bytes(&stat, "total_inactive_file"))))
}

/// The number in a file; `None` for "max" and for what cannot be read.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn stat_bytes(stat: &str, key: &str) -> u64 {
    let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_V2: &str = "25 1 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn both_hierarchies_are_found_where_they_are_mounted() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let found = hierarchies("4:memory:/docker/abc/inner\n1:cpu:/x\n0::/ignored\n", mounts);
        assert_eq!(
            found,
            [Hierarchy {
                mount_point: "/sys/fs/cgroup/memory".into(),
                folder: "/sys/fs/cgroup/memory/inner".into(),
                unified: false
            }]
        );
        let found = hierarchies("0::/user.slice/a.scope\n", MOUNTS_V2);
        assert_eq!(found[0].folder, Path::new("/sys/fs/cgroup/user.slice/a.scope"));
        assert!(found[0].unified);
    }

    #[test]
    fn the_tightest_ancestor_decides_and_inactive_file_pages_are_room() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("slice/leaf");
        std::fs::create_dir_all(&leaf).unwrap();
        let write = |folder: &Path, max: &str, current: &str, stat: &str| {
            std::fs::write(folder.join("memory.max"), max).unwrap();
            std::fs::write(folder.join("memory.current"), current).unwrap();
            std::fs::write(folder.join("memory.stat"), stat).unwrap();
        };
        write(&leaf, "max\n", "50\n", "");
        write(&root.path().join("slice"), "1000\n", "700\n", "anon 1\ninactive_file 100\n");
        let hierarchy = Hierarchy { mount_point: root.path().to_path_buf(), folder: leaf.clone(), unified: true };
        assert_eq!(hierarchy.room_bytes(), Some(400));
        write(&leaf, "60\n", "50\n", "");
        assert_eq!(hierarchy.room_bytes(), Some(10));
    }

    #[test]
    fn version_1_without_a_limit_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        let hierarchy =
            Hierarchy { mount_point: root.path().to_path_buf(), folder: root.path().to_path_buf(), unified: false };
        std::fs::write(root.path().join("memory.usage_in_bytes"), "4096\n").unwrap();
        std::fs::write(root.path().join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(hierarchy.room_bytes(), None);
        std::fs::write(root.path().join("memory.limit_in_bytes"), "8192\n").unwrap();
        assert_eq!(hierarchy.room_bytes(), Some(4096));
    }
}
