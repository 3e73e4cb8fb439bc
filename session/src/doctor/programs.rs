//! Programs that luksctl runs (`mount`, `umount`, `fuse2fs`, `e2fsck`) or that people need next to it.

use super::machine::Machine;
use super::{Area, Finding, Level};

/// A program that is looked for.
struct Wanted {
    id: &'static str,
    name: &'static str,
    /// Packages: Debian's, the others'.
    packages: (&'static str, &'static str),
    why: &'static str,
    /// How bad its absence is for root, and for others.
    missing: (Level, Level),
}

const WANTED: [Wanted; 8] = [
    Wanted {
        id: "program-mount",
        name: "mount",
        packages: ("mount", "util-linux"),
        why: "`luksctl mount` runs it for root",
        missing: (Level::Warning, Level::Info),
    },
    Wanted {
        id: "program-umount",
        name: "umount",
        packages: ("mount", "util-linux"),
        why: "`luksctl umount` runs it for root",
        missing: (Level::Warning, Level::Info),
    },
    Wanted {
        id: "program-fuse2fs",
        name: "fuse2fs",
        packages: ("fuse2fs", "e2fsprogs"),
        why: "`luksctl mount` runs it for users, on ext4",
        missing: (Level::Info, Level::Warning),
    },
    Wanted {
        id: "program-e2fsck",
        name: "e2fsck",
        packages: ("e2fsprogs", "e2fsprogs"),
        why: "`luksctl mount` runs it for users, before fuse2fs",
        missing: (Level::Info, Level::Warning),
    },
    Wanted {
        id: "program-fsck",
        name: "fsck",
        packages: ("util-linux", "util-linux"),
        why: "checks a file system after a crash",
        missing: (Level::Warning, Level::Warning),
    },
    Wanted {
        id: "program-mkfs.ext4",
        name: "mkfs.ext4",
        packages: ("e2fsprogs", "e2fsprogs"),
        why: "makes an ext4 file system on a new volume",
        missing: (Level::Warning, Level::Warning),
    },
    Wanted {
        id: "program-mkfs.xfs",
        name: "mkfs.xfs",
        packages: ("xfsprogs", "xfsprogs"),
        why: "makes an XFS file system on a new volume; optional",
        missing: (Level::Info, Level::Info),
    },
    Wanted {
        id: "program-cryptsetup",
        name: "cryptsetup",
        packages: ("cryptsetup-bin", "cryptsetup"),
        why: "a second opinion, and re-encryption; optional",
        missing: (Level::Info, Level::Info),
    },
];

pub(super) fn judge(machine: &Machine<'_>) -> Vec<Finding> {
    WANTED.iter().map(|wanted| look(machine, wanted)).collect()
}

fn look(machine: &Machine<'_>, wanted: &Wanted) -> Finding {
    let finding = |level: Level, found: String| Finding::new(wanted.id, Area::Programs, level, found, wanted.why);
    if let Some(path) = machine.program(wanted.name) {
        return finding(Level::Ok, path.display().to_string());
    }
    let level = if machine.is_root() { wanted.missing.0 } else { wanted.missing.1 };
    let (debian, others) = wanted.packages;
    finding(level, format!("{} was not found", wanted.name)).mended_by(machine.install(debian, others))
}
